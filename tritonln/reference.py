"""The oracle of every operator in plain torch.  Tests and benchmarks use it, operators never do."""

from __future__ import annotations

import math
from collections.abc import Callable

import torch
from torch import Tensor


def layer_norm(
    x: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    """Layer normalization in the dtype of x: equations 3 and 4 of arXiv 1607.06450, as written there."""
    dims = tuple(range(-len(normalized_shape), 0))
    centered = x - x.mean(dims, keepdim=True)
    y = centered / torch.sqrt(centered.square().mean(dims, keepdim=True) + eps)
    if weight is not None:
        y = y * weight
    if bias is not None:
        y = y + bias
    return y


def rms_norm(x: Tensor, normalized_shape: tuple[int, ...], weight: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """RMS normalization in the dtype of x: equation 4 of arXiv 1910.07467, as written there."""
    dims = tuple(range(-len(normalized_shape), 0))
    y = x / torch.sqrt(x.square().mean(dims, keepdim=True) + eps)
    return y if weight is None else y * weight


def normed_heads(
    x: Tensor,
    weight: Tensor | None,
    eps: float,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    bias: Tensor | None = None,
    centred: bool = False,
) -> Tensor:
    """One of the tensors of qk_norm, in the dtype of x: rms_norm, or layer_norm, of rows (*, T, H, N), and equation 34
    of arXiv 2104.09864 with cos and sin (T, N) or (*, T, N), its pairs being the halves of a row.
    """
    N = tuple(x.shape[-1:])
    y = layer_norm(x, N, weight, bias, eps) if centred else rms_norm(x, N, weight, eps)
    if cos is None or sin is None:
        return y
    a, b = y[..., : y.shape[-1] // 2], y[..., y.shape[-1] // 2 :]
    return y * cos[..., None, :] + torch.cat([-b, a], -1) * sin[..., None, :]


def layer_norm_gradients(
    x: Tensor,
    normalized_shape: tuple[int, ...],
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dy: Tensor,
) -> dict[str, Tensor]:
    """y and the gradients dx, dw, db in fp64, on the values that the arguments really hold."""
    return _gradients(layer_norm, x, normalized_shape, {"dw": weight, "db": bias}, eps, dy)


def rms_norm_gradients(
    x: Tensor, normalized_shape: tuple[int, ...], weight: Tensor | None, eps: float, dy: Tensor
) -> dict[str, Tensor]:
    """y and the gradients dx, dw in fp64, on the values that the arguments really hold."""
    return _gradients(rms_norm, x, normalized_shape, {"dw": weight}, eps, dy)


def _gradients(
    norm: Callable[..., Tensor],
    x: Tensor,
    normalized_shape: tuple[int, ...],
    parameters: dict[str, Tensor | None],
    eps: float,
    dy: Tensor,
) -> dict[str, Tensor]:
    leaves = {
        name: t.detach().double().requires_grad_() for name, t in {"dx": x, **parameters}.items() if t is not None
    }
    y = norm(leaves["dx"], normalized_shape, *map(leaves.get, parameters), eps)
    gradients = torch.autograd.grad(y, list(leaves.values()), dy.double())
    return {"y": y.detach(), **dict(zip(leaves, gradients))}


def dx_scale(
    x: Tensor, normalized_shape: tuple[int, ...], weight: Tensor | None, eps: float, dy: Tensor, centred: bool = True
) -> float:
    """rms(rstd w dy): the size of the terms whose difference dx is.

    dx itself can be as small as one likes: it is zero but for eps where a row has two values (one, unless centred),
    and zero for the gradient of a plain sum.
    """
    dx_hat = dy.double() if weight is None else dy.double() * weight.double()
    rows = x.detach().double().reshape(-1, math.prod(normalized_shape))
    squares = rows.var(1, correction=0, keepdim=True) if centred else rows.square().mean(1, keepdim=True)
    rstd = (squares + eps).rsqrt()
    return float((dx_hat.reshape(rows.shape) * rstd).square().mean().sqrt()) if rows.numel() else 0.0


def condition(x: Tensor, normalized_shape: tuple[int, ...], eps: float) -> float:
    """max(1, |mean| rstd) over the rows: how far the rounding of x's mean is magnified."""
    rows = x.detach().double().reshape(-1, math.prod(normalized_shape))
    rstd = (rows.var(1, correction=0) + eps).rsqrt()
    return max([1.0, *(rows.mean(1).abs() * rstd).tolist()])


def outermost(t: Tensor, x: Tensor, dims: int = 0) -> Tensor:
    """t with its dimensions but the last `dims` beside the first ones of x, to broadcast to x's shape."""
    outer = max(0, t.dim() - dims)
    missing = x.dim() - max(t.dim(), dims)
    return t.reshape(*t.shape[:outer], *[1] * max(0, missing), *t.shape[outer:]) if outer else t


def added(
    x: Tensor, residual: Tensor | None = None, row_scale: Tensor | None = None, noise: Tensor | None = None
) -> Tensor:
    """residual + row_scale noise x, what the add_ norms normalize; the noise is 0 where dropped, else 1 / (1 - p)."""
    if row_scale is not None:
        x = x * row_scale.reshape(*row_scale.shape[: x.dim()], *[1] * (x.dim() - row_scale.dim()))
    if noise is not None:
        x = x * noise.reshape(x.shape)
    return x if residual is None else residual + x


def modulated(y: Tensor, scale: Tensor | None, shift: Tensor | None, dims: int = 1) -> Tensor:
    """y (1 + scale) + shift of a norm's y: adaLN of arXiv 2212.09748; two dimensions of scale are batches first."""
    if scale is not None:
        y = y * (1.0 + outermost(scale, y, dims))
    return y if shift is None else y + outermost(shift, y, dims)


def gate_added(x: Tensor, residual: Tensor, gate: Tensor | None, dims: int = 1) -> Tensor:
    """residual + gate x, of the same paper."""
    return residual + (x if gate is None else x * outermost(gate, x, dims))


def silu_gated(x: Tensor, gate: Tensor) -> Tensor:
    """x silu(gate): section 7 of arXiv 2405.21060."""
    return x * gate / (1.0 + torch.exp(-gate))
