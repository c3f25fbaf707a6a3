"""rms_norm in ATen's operators, for tensors that no kernel serves."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor

from tritonln.ops.contract import arithmetic, output_dtype
from tritonln.ops.row_formula import normalized, rows


def operator(x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None) -> Tensor:
    """F.rms_norm, for graphs and tensors that know nothing else; a mixture of dtypes is computed in the widest."""
    if weight is None or weight.dtype == x.dtype:
        return F.rms_norm(x, shape, weight, eps)  # type: ignore[arg-type]
    wide = arithmetic(x.dtype)
    y = F.rms_norm(x.to(wide), shape, weight.to(wide), eps)  # type: ignore[arg-type]
    return y.to(output_dtype(x.dtype, x.device.type))


def forward(x: Tensor, N: int, weight: Tensor | None, eps: float, save: bool) -> tuple[Tensor, Tensor | None]:
    """(y, rstd); y has the bits of F.rms_norm."""
    y = operator(rows(x, N), (N,), None if weight is None else weight.reshape(N), eps)
    stats = normalized(rows(x, N).to(arithmetic(x.dtype)), eps, centred=False)[1] if save else None
    return y.reshape(x.shape), stats


def backward(
    dy: Tensor, x: Tensor, N: int, weight: Tensor | None, rstd: Tensor, needs: tuple[bool, bool]
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of x and weight, each None unless needed; ATen's own backward is of one dtype only."""
    dy, x_hat = rows(dy, N).to(rstd.dtype), rows(x, N).to(rstd.dtype) * rstd
    dx = dw = None
    if needs[0]:
        dx_hat = dy if weight is None else dy * weight.reshape(N)
        dx = rstd * (dx_hat - x_hat * (dx_hat * x_hat).mean(1, keepdim=True))
        dx = dx.reshape(x.shape).to(x.dtype)
    if needs[1] and weight is not None:
        dw = (dy * x_hat).sum(0).reshape(weight.shape).to(weight.dtype)
    return dx, dw
