"""DreamerV3's core: steps and all gradients beside plain torch of the published formula, and its weights."""

from __future__ import annotations

import copy
from typing import Any

import pytest
import torch
from torch import Tensor

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.problems import rand

G, H, HIDDEN, STOCH, ACTION, T, B = 4, 32, 16, 6, 3, 5, 3


def weights(layers: int = 1, dtype: torch.dtype = torch.float64) -> dict[str, Tensor]:
    """Of Linear (in, out), of blocks (G, in, out) of each."""
    sizes = {"dynin0": (H, HIDDEN), "dynin1": (STOCH, HIDDEN), "dynin2": (ACTION, HIDDEN)}
    sizes |= {f"dynhid{k}": (G, H // G + (0 if k else 3 * HIDDEN), H // G) for k in range(layers)}  # type: ignore[dict-item]
    sizes |= {"dyngru": (G, H // G, 3 * H // G)}  # type: ignore[dict-item]
    w: dict[str, Tensor] = {}
    for seed, (name, size) in enumerate(sizes.items()):
        out = size[-1] * (G if len(size) == 3 else 1)
        w[f"{name}/kernel"] = rand(*size, dtype=dtype, device=torch.device("cpu"), seed=3 * seed) / 3
        w[f"{name}/bias"] = rand(out, dtype=dtype, device=torch.device("cpu"), seed=3 * seed + 1) / 3
        if name != "dyngru":
            w[f"{name}norm/scale"] = 1 + rand(out, dtype=dtype, device=torch.device("cpu"), seed=3 * seed + 2) / 3
    return w


def inputs(dtype: torch.dtype, device: torch.device) -> tuple[Tensor, ...]:
    shapes = (B, H), (T, B, STOCH // 2, 2), (T, B, ACTION)
    h, s, a = (rand(*shape, dtype=dtype, device=device, seed=90 + k) for k, shape in enumerate(shapes))
    return h, s, 2 * a  # some actions are larger than 1


RESETS = torch.tensor([[0, 1, 0], [0, 0, 0], [1, 1, 0], [0, 0, 0], [0, 0, 1]], dtype=torch.bool)


def oracle(w: dict[str, Tensor], h: Tensor, s: Tensor, a: Tensor, resets: Tensor | None) -> Tensor:
    """All steps; blocks by one whole matrix with zeros beside them, gates taken from where they lie."""

    def whole(kernel: Tensor) -> Tensor:
        return torch.block_diag(*kernel)

    def act(name: str, v: Tensor) -> Tensor:
        v = v / (v.square().mean(-1, keepdim=True) + 1e-4).sqrt() * w[f"{name}norm/scale"]
        return v * torch.sigmoid(v)

    k = torch.arange(H)
    gates = k // (H // G) * (3 * H // G) + k % (H // G)
    states = []
    for t in range(T):
        begins = torch.zeros(B, dtype=torch.bool) if resets is None else resets[t]
        h_t, s_t, a_t = ((~begins).to(v.dtype)[:, None] * v for v in (h, s[t].reshape(B, -1), a[t]))
        a_t = a_t / torch.maximum(torch.ones_like(a_t), a_t.abs()).detach()
        x = [act(f"dynin{j}", v @ w[f"dynin{j}/kernel"] + w[f"dynin{j}/bias"]) for j, v in enumerate((h_t, s_t, a_t))]
        u = torch.cat([torch.cat([block, *x], -1) for block in h_t.chunk(G, -1)], -1)
        for j in range(sum(name.startswith("dynhid") and name.endswith("kernel") for name in w)):
            u = act(f"dynhid{j}", u @ whole(w[f"dynhid{j}/kernel"]) + w[f"dynhid{j}/bias"])
        q = u @ whole(w["dyngru/kernel"]) + w["dyngru/bias"]
        r, n, z = (q[:, gates + j * (H // G)] for j in range(3))
        update = torch.sigmoid(z - 1)
        h = update * torch.tanh(torch.sigmoid(r) * n) + (1 - update) * h_t
        states.append(h)
    return torch.stack(states)


def steps(cell: Any, h: Tensor, s: Tensor, a: Tensor, resets: Tensor | None) -> Tensor:
    states = []
    for t in range(T):
        h = cell(h, s[t], a[t], None if resets is None else resets[t])
        states.append(h)
    return torch.stack(states)


@pytest.mark.parametrize(
    ("dtype", "layers", "resets"), [(torch.float32, 1, RESETS), *thorough((torch.float64, 2, None))]
)
def test_oracle(dtype: torch.dtype, layers: int, resets: Tensor | None, device: torch.device) -> None:
    w = {name: t.to(dtype).double().requires_grad_() for name, t in weights(layers).items()}
    cell = tritonln.nn.load_dreamerv3({name: t.detach().to(device, dtype) for name, t in w.items()})
    given = [t.requires_grad_() for t in inputs(dtype, device)]
    wide = [t.detach().cpu().double().requires_grad_() for t in given]
    found, expected = steps(cell, *given, None if resets is None else resets.to(device)), oracle(w, *wide, resets)
    dy = rand(T, B, H, dtype=torch.float64, device=torch.device("cpu"), seed=77)
    found.backward(dy.to(found))
    expected.backward(dy)
    close = {"rtol": 1e-4, "atol": 1e-4} if dtype == torch.float32 else {"rtol": 1e-9, "atol": 1e-9}
    torch.testing.assert_close(found.cpu().double(), expected, **close)
    for ours, theirs in zip(given, wide):
        torch.testing.assert_close(ours.grad.cpu().double(), theirs.grad, **close)  # type: ignore[union-attr]
    # The gradients, as weights once more: both sides of the loader.
    assert len(w) == len(list(cell.parameters()))
    again = copy.deepcopy(cell)
    again.load_state_dict({name: p.grad for name, p in cell.named_parameters()})
    theirs = tritonln.nn.load_dreamerv3({name: t.grad for name, t in w.items()})  # type: ignore[misc]
    for (name, p), q in zip(again.named_parameters(), theirs.parameters()):
        torch.testing.assert_close(
            p.detach().cpu().double(), q.detach(), **close, msg=lambda m, name=name: f"{name}: {m}"
        )


def test_what_was_before_a_reset_is_not_read() -> None:
    """Nor does a NaN reach a gradient."""
    cell = tritonln.nn.load_dreamerv3(weights())
    given = [torch.full((2, n), float("nan"), dtype=torch.float64).requires_grad_() for n in (H, STOCH, ACTION)]
    begins = torch.tensor([True, True])
    y = cell(*given, begins)
    zeros = [torch.zeros_like(t) for t in given]
    assert y.equal(cell(*zeros))
    y.sum().backward()
    assert all(t.grad.eq(0).all() for t in given)  # type: ignore[union-attr]
    assert all(p.grad.isfinite().all() for p in cell.parameters())  # type: ignore[union-attr]


def test_wrong_arguments() -> None:
    w = weights()
    with pytest.raises(ValueError, match=r"load_dreamerv3: expected .*, but 'dynhid0norm/scale' missing"):
        tritonln.nn.load_dreamerv3({k: t for k, t in w.items() if k != "dynhid0norm/scale"})
    with pytest.raises(ValueError, match="but got 'dyn/dyngru/bias'"):
        tritonln.nn.load_dreamerv3({f"dyn/{k}" if k == "dyngru/bias" else k: t for k, t in w.items()})
    with pytest.raises(ValueError, match="expected features divisible by 8 blocks, got 140 and 44"):
        tritonln.nn.DreamerV3Cell(4, 4, 44, 4)
    cell = tritonln.nn.load_dreamerv3(w)
    h, s, a = inputs(torch.float64, torch.device("cpu"))
    with pytest.raises(RuntimeError, match=r"DreamerV3Cell: expected resets of shape \(3,\), dtype torch.bool"):
        cell(h, s[0], a[0], RESETS[0, :2])


def test_initial_values_are_those_published() -> None:
    cell = tritonln.nn.DreamerV3Cell(128, 16, 256, 64)
    for name, p in cell.named_parameters():
        if "norm" in name or "bias" in name:
            assert p.eq(float("norm" in name)).all(), name
        else:
            inputs = p[..., 0].numel() if p.dim() == 3 else p.shape[1]
            assert p.std().item() * inputs**0.5 == pytest.approx(1, rel=0.05), name
            assert p.abs().max() <= 2 * 1.1368 / inputs**0.5
