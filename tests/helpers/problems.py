"""Inputs of layer_norm, its results, and the oracle that they are held to."""

import torch
from torch import Tensor

import tritonln
from tests.helpers.tolerance import assert_close
from tritonln import reference

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
WIDE = 4 * 8192 + 77  # past one tile forward and backward


def rand(*shape: int, dtype: torch.dtype, device: torch.device, mean: float = 0.0, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=g, dtype=F64) + mean).to(dtype).to(device)


def problem(
    M: int, N: int, dtype: torch.dtype, device: torch.device, parameters: torch.dtype | None = None, mean: float = 0.0
):  # type: ignore[no-untyped-def]
    x = rand(M, N, dtype=dtype, device=device, mean=mean)
    w, b = (rand(N, dtype=parameters or dtype, device=device, seed=s) for s in (1, 2))
    dy = rand(M, N, dtype=dtype, device=device, seed=3)
    return x, w, b, dy


def run(
    x: Tensor, shape: tuple[int, ...], w: Tensor | None, b: Tensor | None, dy: Tensor, eps: float = 1e-5
) -> dict[str, Tensor]:
    """y and all gradients from tritonln, as the oracle gives them."""
    names = [n for n, t in (("dx", x), ("dw", w), ("db", b)) if t is not None]
    leaves = [t.detach().requires_grad_() for t in (x, w, b) if t is not None]
    full = iter(leaves)
    args = [None if t is None else next(full) for t in (x, w, b)]
    assert args[0] is not None
    y = tritonln.layer_norm(args[0], shape, args[1], args[2], eps)
    return {"y": y.detach(), **dict(zip(names, torch.autograd.grad(y, leaves, dy)))}


def expect(
    x: Tensor, shape: tuple[int, ...], w: Tensor | None, b: Tensor | None, dy: Tensor, eps: float = 1e-5
) -> dict[str, Tensor]:
    """Runs tritonln and holds it to the oracle."""
    out = run(x, shape, w, b, dy, eps)
    ref = reference.layer_norm_gradients(x, shape, w, b, eps, dy)
    kappa = reference.condition(x, shape, eps)
    rows = max(1, x.numel() // max(1, torch.Size(shape).numel()))
    assert out.keys() == ref.keys()
    scale = reference.dx_scale(x, shape, w, eps, dy)
    for name in ref:
        terms = rows if name in ("dw", "db") else 1
        assert_close(name, out[name], ref[name], terms, kappa, scale if name == "dx" else 0.0)
    for name, t in (("y", x), ("dx", x), ("dw", w), ("db", b)):
        assert t is None or out[name].dtype == t.dtype, name
    return out
