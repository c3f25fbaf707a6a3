"""layer_norm and its gradients in elementary operations of torch, as the paper writes them.

What derivatives of derivatives, torch.func's transforms and forward mode run on: each of these operations is right to
any order and under any transform.  ATen's fused operators are not: the third derivative of F.layer_norm is wrong.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonln.ops.contract import arithmetic


def rows(t: Tensor, N: int) -> Tensor:
    return t.reshape(t.numel() // N if N else 0, N)


def standardized(x: Tensor, N: int, eps: float) -> tuple[Tensor, Tensor]:
    """(x_hat, rstd) of the rows of x."""
    x = rows(x, N).to(arithmetic(x.dtype))
    x = x - x.mean(1, keepdim=True)
    x = x - x.mean(1, keepdim=True)  # what the rounding of a large mean left
    rstd = (x.square().mean(1, keepdim=True) + eps).rsqrt()
    return x * rstd, rstd


def forward(x: Tensor, N: int, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype) -> Tensor:
    y, _ = standardized(x, N, eps)
    if weight is not None:
        y = y * weight.reshape(N)
    if bias is not None:
        y = y + bias.reshape(N)
    return y.reshape(x.shape).to(dtype)


def backward(
    dy: Tensor,
    x: Tensor,
    N: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias, each None unless needed."""
    x_hat, rstd = standardized(x, N, eps)
    dy = rows(dy, N).to(x_hat.dtype)
    dx = dw = db = None
    if needs[0]:
        dx_hat = dy if weight is None else dy * weight.reshape(N)
        dx = rstd * (dx_hat - dx_hat.mean(1, keepdim=True) - x_hat * (dx_hat * x_hat).mean(1, keepdim=True))
        dx = dx.reshape(x.shape).to(x.dtype)
    if weight is not None and needs[1]:
        dw = (dy * x_hat).sum(0).reshape(weight.shape).to(weight.dtype)
    if bias is not None and needs[2]:
        db = dy.sum(0).reshape(bias.shape).to(bias.dtype)
    return dx, dw, db
