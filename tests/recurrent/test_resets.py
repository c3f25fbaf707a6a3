"""Resets inside a sequence: rows that start anew go on from the initial state, forward and backward, by every way."""

from __future__ import annotations

import itertools
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn.utils.rnn import pack_padded_sequence, pad_packed_sequence

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.problems import BF16, F32
from tests.helpers.recurrent import expect, gru_problem, lstm_problem, per_step
from tritonln.nn import LayerNormGRU, LayerNormLSTM

PROBLEMS: dict[str, Any] = {"layer_norm_lstm": lstm_problem, "layer_norm_gru": gru_problem}


def resets(T: int, B: int, device: torch.device) -> Tensor:
    """At the first step and the last too, in rows that are over too, twice in a row, and never."""
    anew = torch.zeros(T, B, dtype=torch.bool, device=device)
    anew[0, 0] = anew[1, 0] = anew[2, 0] = anew[T - 1, 1 % B] = anew[T // 2, 1 % B] = True
    return anew


def lengths(T: int, B: int, device: torch.device) -> Tensor:
    return torch.tensor([T, T - 1, 1][:B], device=device)


@pytest.mark.interpreted
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("reverse", [True, *thorough(False)])
@pytest.mark.parametrize("name", PROBLEMS)
def test_on_kernels(name: str, reverse: bool, device: torch.device) -> None:
    args = PROBLEMS[name](5, 3, 4, 7, F32, device)
    expect(name, args, resets=resets(5, 3, device), reverse=reverse, lengths=lengths(5, 3, device))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", PROBLEMS)
def test_16_bit(name: str, device: torch.device) -> None:
    args = PROBLEMS[name](4, 2, 5, 48, BF16, device, parameters=F32)
    expect(name, args, resets=resets(4, 2, device))


def test_projection(device: torch.device) -> None:
    args, over = lstm_problem(5, 3, 4, 7, F32, device, P=3), lengths(5, 3, device)
    expect("layer_norm_lstm", args, resets=resets(5, 3, device), lengths=over)


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(
    ("name", "variant"),
    [("layer_norm_lstm", {}), ("layer_norm_lstm", {"P": 3}), ("layer_norm_gru", {})],
    ids=str,
)
def test_aten(name: str, variant: dict[str, int], reverse: bool, device: torch.device) -> None:
    args = PROBLEMS[name](5, 3, 4, 7, F32, device, **variant)
    expect(name, args, resets=resets(5, 3, device), reverse=reverse)
    expect(name, args, resets=resets(5, 3, device), reverse=reverse, lengths=lengths(5, 3, device))


@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize("name", PROBLEMS)
def test_plain(name: str, reverse: bool, monkeypatch: pytest.MonkeyPatch) -> None:
    """What forward mode, torch.func and second derivatives take."""
    cpu = torch.device("cpu")
    monkeypatch.setattr("tritonln.ops.recurrent.operator.transformed", lambda: True)
    args = PROBLEMS[name](5, 3, 4, 7, F32, cpu)
    expect(name, args, resets=resets(5, 3, cpu), reverse=reverse, lengths=lengths(5, 3, cpu))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("name", PROBLEMS)
def test_what_was_before_is_not_seen(name: str, device: torch.device) -> None:
    """Bit for bit the sequence from there on, also after steps that are not numbers."""
    args = PROBLEMS[name](5, 2, 4, 7, F32, device)
    anew = torch.zeros(5, 2, dtype=torch.bool, device=device)
    anew[3] = True
    whole = getattr(tritonln, name)(**args, resets=anew)[0]
    alone = getattr(tritonln, name)(**{**args, "x": args["x"][3:].clone()}, resets=anew[:2])[0]
    assert whole[3:].equal(alone)
    args["x"][:3] = float("nan")
    assert getattr(tritonln, name)(**args, resets=anew)[0][3:].equal(alone)


@pytest.mark.usefixtures("stepwise")
@pytest.mark.parametrize("name", PROBLEMS)
def test_launches_of_a_step_are_no_more(name: str, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    def problem(T: int) -> dict[str, Any]:
        return PROBLEMS[name](T, 2, 3, 7, F32, device)

    anew = {T: resets(T, 2, device) for T in (3, 8)}
    operator = getattr(tritonln, name)
    monkeypatch.setattr(tritonln, name, lambda **args: operator(**args, resets=anew[len(args["x"])]))
    assert per_step(name, problem, monkeypatch) == ((2, 0), (2, 0))


@pytest.mark.parametrize("name", PROBLEMS)
def test_refused(name: str) -> None:
    args = PROBLEMS[name](2, 3, 4, 7, F32, torch.device("cpu"))
    expected = r"expected resets of shape \(2, 3\), dtype torch.bool on cpu, got "
    with pytest.raises(RuntimeError, match=expected + r"\(3,\), torch.bool"):
        getattr(tritonln, name)(**args, resets=torch.tensor([True, False, True]))
    with pytest.raises(RuntimeError, match=expected + r"\(2, 3\), torch.float32"):
        getattr(tritonln, name)(**args, resets=torch.zeros(2, 3))


# ---- layers --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("kind", ["batched", "batch first", "unbatched", "packed"])
@pytest.mark.parametrize("layer", [LayerNormLSTM, LayerNormGRU])
def test_layers_of_two_directions(layer: Any, kind: str) -> None:
    """As if each sequence came alone: what begins where another ends is seen from neither side."""
    torch.manual_seed(0)
    rnn = layer(4, 5, num_layers=2, bidirectional=True, batch_first=kind == "batch first")
    x, anew = torch.randn(6, 3, 4), torch.zeros(6, 3, dtype=torch.bool)
    anew[2, 0] = anew[4, 0] = anew[3, 1] = True
    lengths = [6, 5, 6]
    if kind == "packed":
        packed = [pack_padded_sequence(t, lengths, enforce_sorted=False) for t in (x, anew)]
        y = pad_packed_sequence(rnn(packed[0], resets=packed[1])[0])[0]
    elif kind == "unbatched":
        y = torch.stack([rnn(x[:, b], resets=anew[:, b])[0] for b in range(3)], 1)
    elif kind == "batch first":
        y = rnn(x.transpose(0, 1), resets=anew.t())[0].transpose(0, 1)
    else:
        y = rnn(x, resets=anew)[0]
    ends = lengths[1] if kind == "packed" else 6
    for b, pieces in enumerate([[0, 2, 4, 6], [0, 3, ends], [0, 6]]):
        for begin, end in itertools.pairwise(pieces):
            alone = x[begin:end, b : b + 1]
            alone = rnn(alone.transpose(0, 1) if kind == "batch first" else alone)[0].reshape(end - begin, -1)
            torch.testing.assert_close(y[begin:end, b], alone)


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("layer", [LayerNormLSTM, LayerNormGRU])
def test_layers_refuse(layer: Any) -> None:
    rnn, x, packed = layer(4, 5, batch_first=True), torch.randn(3, 6, 4), torch.nn.utils.rnn.pack_sequence
    with pytest.raises(RuntimeError, match=r"LayerNorm\w+: expected resets of shape \(3, 6\), dtype torch.bool on cpu"):
        rnn(x, resets=torch.zeros(6, 3, dtype=torch.bool))
    sequence = packed([x[0], x[1]])
    with pytest.raises(RuntimeError, match="expected resets to be packed as the input is, got Tensor"):
        rnn(sequence, resets=torch.zeros(2, 6, dtype=torch.bool))
    with pytest.raises(RuntimeError, match="expected resets to be a tensor as the input is, got PackedSequence"):
        rnn(x, resets=packed([torch.zeros(6, dtype=torch.bool)] * 3))


@pytest.mark.usefixtures("aten")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize("layer", [LayerNormLSTM, LayerNormGRU])
def test_compiled(layer: Any) -> None:
    torch._dynamo.reset()
    rnn, x, anew = layer(4, 5, bidirectional=True), torch.randn(6, 3, 4), resets(6, 3, torch.device("cpu"))
    found = torch.compile(rnn, fullgraph=True, backend="aot_eager")(x, resets=anew)[0]
    expected = rnn(x, resets=anew)[0]
    assert found.equal(expected)
    for a, b in zip(*(torch.autograd.grad(y.square().sum(), list(rnn.parameters())) for y in (found, expected))):
        assert a.equal(b)
