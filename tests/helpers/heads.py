"""Heads of q and k, and qk_norm held to the fp64 oracle."""

from typing import Any

import pytest
import torch
from torch import Tensor

import tritonln
from tests.helpers.problems import F64, rand
from tests.helpers.tolerance import assert_close
from tritonln import reference

forward_mode_warns = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
B, T, HQ, HK = 2, 5, 6, 2
NAMES = "q", "k", "q_weight", "k_weight"
BIASES = "q_bias", "k_bias"


def inputs(
    N: int, dtype: torch.dtype, device: torch.device, parameters: torch.dtype | None = None, rotary: bool = True
) -> dict[str, Tensor]:
    """q and k as views of one packed tensor, weights, cos and sin as a transformers model has them."""
    packed = rand(B, T, (HQ + 2 * HK) * N, dtype=dtype, device=device)
    q, k, _ = packed.view(B, T, -1, N).split([HQ, HK, HK], -2)
    weights = [rand(N, dtype=parameters or dtype, device=device, seed=seed) for seed in (1, 2)]
    found = {"q": q, "k": k, "q_weight": weights[0], "k_weight": weights[1]}
    if rotary:
        angles = rand(1, T, N // 2, dtype=F64, device=device, seed=3).repeat(1, 1, 2)
        found |= {"cos": angles.cos().to(dtype), "sin": angles.sin().to(dtype)}
    return found


def upstream(t: dict[str, Any]) -> tuple[Tensor, Tensor]:
    q, k = (rand(*x.shape, dtype=x.dtype, device=x.device, seed=s) for x, s in ((t["q"], 4), (t["k"], 5)))
    return q, k


def run(
    t: dict[str, Any], dy: tuple[Tensor, ...], eps: float = 1e-6, norm: Any = tritonln.qk_norm
) -> dict[str, Tensor]:
    """The results and the gradients of all that is given."""
    names = [name for name in (*NAMES, *BIASES) if t.get(name) is not None]
    leaves = {name: t[name].detach().requires_grad_() for name in names}
    y = norm(**{**t, **leaves}, eps=eps)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy)
    return {"y_q": y[0].detach(), "y_k": y[1].detach(), **dict(zip(names, gradients))}


def oracle(*, eps: float, **t: Any) -> tuple[Tensor, ...]:
    angles, centred = (t.get("cos"), t.get("sin")), t.get("centred", False)
    return tuple(
        reference.normed_heads(t[x], t.get(f"{x}_weight"), eps, *angles, t.get(f"{x}_bias"), centred) for x in "qk"
    )


def expect(t: dict[str, Any], dy: tuple[Tensor, Tensor], eps: float = 1e-6) -> dict[str, Tensor]:
    """Runs tritonln and holds it to the oracle."""
    out = run(t, dy, eps)
    centred = t.get("centred", False)
    wide = {name: x.detach().double() if isinstance(x, Tensor) else x for name, x in t.items()}
    ref = run(wide, tuple(g.double() for g in dy), eps, oracle)
    assert out.keys() == ref.keys()
    for x, g in zip("qk", dy):
        dn = g.double()
        if wide.get("cos") is not None:
            a, b = (dn * wide["sin"][..., None, :]).chunk(2, -1)
            dn = dn * wide["cos"][..., None, :] + torch.cat([b, -a], -1)
        scale = reference.dx_scale(wide[x], g.shape[-1:], wide.get(f"{x}_weight"), eps, dn, centred)
        kappa = reference.condition(t[x], g.shape[-1:], eps) if centred else 1.0
        rows = max(1, t[x].shape[:-1].numel())
        assert_close(f"y of {x}", out[f"y_{x}"], ref[f"y_{x}"], 1, kappa)
        assert_close(f"d{x}", out[x], ref[x], 1, kappa, scale)
        for name in (f"{x}_weight", f"{x}_bias"):
            if name in out:
                assert_close(f"d{name}", out[name], ref[name], rows, kappa)
    for name, result in out.items():
        assert result.dtype == t[name.removeprefix("y_")].dtype, name
        assert result.is_contiguous(), name
    return out
