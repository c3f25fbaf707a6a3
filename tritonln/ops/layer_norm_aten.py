"""layer_norm in ATen's operators, for tensors that no kernel serves."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor

from tritonln.ops.contract import HALF, arithmetic, output_dtype
from tritonln.ops.row_formula import rows


def operator(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """F.layer_norm, for graphs and tensors that know nothing else; a mixture of dtypes is computed in the widest."""
    if all(p is None or p.dtype == x.dtype for p in (weight, bias)):
        return F.layer_norm(x, shape, weight, bias, eps)
    wide = arithmetic(x.dtype)
    weight, bias = (None if p is None else p.to(wide) for p in (weight, bias))
    return F.layer_norm(x.to(wide), shape, weight, bias, eps).to(output_dtype(x.dtype, x.device.type))


def forward(
    x: Tensor, N: int, weight: Tensor | None, bias: Tensor | None, eps: float, save: bool
) -> tuple[Tensor, Tensor | None]:
    """(y, stats); y has the bits of F.layer_norm."""
    if weight is not None and bias is not None and weight.dtype != bias.dtype:
        weight, bias = weight.float(), bias.float()  # ATen wants the two alike
    weight, bias = (None if p is None else p.reshape(N) for p in (weight, bias))
    y, mean, rstd = torch.native_layer_norm(rows(x, N), (N,), weight, bias, eps)
    if save and x.dtype in HALF:  # theirs are 16-bit too
        _, mean, rstd = torch.native_layer_norm(rows(x, N).float(), (N,), None, None, eps)
    return y.reshape(x.shape), torch.cat([mean, rstd], 1) if save else None


def backward(
    dy: Tensor,
    x: Tensor,
    N: int,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias, each None unless needed."""
    dtype = stats.dtype

    def row(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.reshape(N).to(dtype)

    mean, rstd = stats.T.contiguous().unsqueeze(2)  # ATen reads them by their addresses
    gradients = torch.ops.aten.native_layer_norm_backward(
        rows(dy, N).to(dtype), rows(x, N).to(dtype), [N], mean, rstd, row(weight), row(bias), needs
    )
    inputs = (x, weight, bias)
    dx, dw, db = (
        g.reshape(t.shape).to(t.dtype) if wanted and t is not None else None
        for g, t, wanted in zip(gradients, inputs, needs)
    )
    return dx, dw, db
