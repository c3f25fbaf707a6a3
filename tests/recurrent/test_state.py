"""Who may read and write what: padding is not read, and results are the caller's to change."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tritonln
from tests.helpers.problems import F32
from tests.helpers.recurrent import flat, gru_problem, lstm_problem
from tritonln.nn import LayerNormGRU, LayerNormGRUCell, LayerNormLSTM, LayerNormLSTMCell

PROBLEMS: dict[str, Any] = {"layer_norm_lstm": lstm_problem, "layer_norm_gru": gru_problem}


# ---- padding -------------------------------------------------------------------------------------


def expect_unread_padding(name: str, device: torch.device, reverse: bool, **variant: Any) -> None:
    """Results and gradients are those of another padding, bit for bit."""
    lengths = torch.tensor([3, 1, 0], device=device)
    padded = torch.arange(3, device=device)[:, None] >= lengths
    found = []
    for filling in (0.5, float("nan"), float("inf")):
        args = {k: t.requires_grad_() for k, t in PROBLEMS[name](3, 3, 4, 7, F32, device, **variant).items()}
        with torch.no_grad():
            args["x"][padded] = filling
        results = flat(getattr(tritonln, name)(**args, lengths=lengths, reverse=reverse))
        gradients = torch.autograd.grad([r.square().sum() for r in results], list(args.values()))
        assert gradients[0][padded].eq(0).all()
        found.append([*results, *gradients])
    for usual, nan, inf in zip(*found):
        assert usual.isfinite().all()
        assert usual.equal(nan)
        assert usual.equal(inf)


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", PROBLEMS)
def test_padding(name: str, reverse: bool, device: torch.device) -> None:
    expect_unread_padding(name, device, reverse)


@pytest.mark.parametrize("variant", [{"P": 3}, {"gates": False}, {"cell": False}], ids=str)
def test_padding_of_variants(variant: dict[str, Any], device: torch.device) -> None:
    expect_unread_padding("layer_norm_lstm", device, False, **variant)


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", PROBLEMS)
def test_padding_in_aten(name: str, reverse: bool, device: torch.device) -> None:
    expect_unread_padding(name, device, reverse)


@pytest.mark.parametrize("name", PROBLEMS)
def test_padding_in_plain_torch(name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tritonln.ops.recurrent.operator.transformed", lambda: True)
    expect_unread_padding(name, device, False)


# ---- results -------------------------------------------------------------------------------------


@pytest.mark.parametrize("trained", [True, False])
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", PROBLEMS)
def test_final_states_are_tensors_of_their_own(name: str, reverse: bool, trained: bool, device: torch.device) -> None:
    args = PROBLEMS[name](3, 2, 4, 7, F32, device)
    args["x"].requires_grad_(trained)
    results = flat(getattr(tritonln, name)(**args, reverse=reverse))
    expected = [r.detach().clone() for r in results]
    for k, result in enumerate(results):
        with torch.no_grad():
            result.zero_()
        assert all(r.equal(e) for r, e in zip(results[k + 1 :], expected[k + 1 :]))


@pytest.mark.parametrize("layer", [LayerNormLSTM, LayerNormGRU])
def test_layers_whose_results_are_changed_in_place(layer: Any) -> None:
    rnn, x = layer(4, 5, num_layers=2), torch.randn(3, 2, 4)

    def gradients(relu: Any, double: Any) -> list[Tensor]:
        y, *finals = flat(rnn(x))
        loss = relu(y).sum() + sum(double(f).square().sum() for f in finals)
        return list(torch.autograd.grad(loss, list(rnn.parameters())))

    in_place = gradients(torch.relu_, lambda t: t.mul_(2))
    for found, expected in zip(in_place, gradients(torch.relu, lambda t: t * 2), strict=True):
        torch.testing.assert_close(found, expected)


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("kind", [LayerNormLSTM, LayerNormGRU, LayerNormLSTMCell, LayerNormGRUCell])
def test_results_of_inference_may_be_written_over(kind: Any) -> None:
    with torch.no_grad():
        results = flat(kind(4, 5)(torch.randn(2, 4)))
    for t in results:
        assert t.mul_(torch.ones(5, requires_grad=True)).requires_grad


@pytest.mark.parametrize("kind", [LayerNormLSTMCell, LayerNormGRUCell])
def test_cells_whose_states_are_changed_in_place(kind: Any) -> None:
    """As where an episode ends: rows of the state start anew before the next step."""
    cell, x = kind(4, 5), torch.randn(3, 2, 4)

    def gradients(in_place: bool) -> list[Tensor]:
        state, loss = None, torch.zeros(())
        for t in (1, 2, 3):
            states = flat(cell(x[t - 1], state))
            loss = loss + sum((s * t).sum() for s in states)
            if in_place:
                for s in states:
                    s[0] = 0
            else:
                states = [s * torch.tensor([[0.0], [1.0]]) for s in states]
            state = tuple(states) if len(states) > 1 else states[0]
        return list(torch.autograd.grad(loss, list(cell.parameters())))

    for found, expected in zip(gradients(True), gradients(False), strict=True):
        torch.testing.assert_close(found, expected)


def test_cells_of_every_step_are_kept_for_the_backward(device: torch.device) -> None:
    """A changed one is noticed, as every tensor that autograd saved."""
    args = lstm_problem(3, 2, 4, 7, F32, device)
    args["x"].requires_grad_()
    y, _, cells = tritonln.layer_norm_lstm(**args)
    cells.zero_()
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()
