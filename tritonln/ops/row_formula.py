"""A row operator in elementary operations of torch, as the paper writes it.

What derivatives of derivatives, torch.func's transforms and forward mode run on: each of these operations is right to
any order and under any transform.  ATen's fused operators are not: the third derivative of F.layer_norm is wrong.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor

from tritonln.ops.contract import arithmetic
from tritonln.ops.rows import RowOperator


def rows(t: Tensor, N: int) -> Tensor:
    return t.reshape(t.numel() // N if N else 0, N)


def normalized(x: Tensor, eps: float, centred: bool) -> tuple[Tensor, Tensor]:
    """x_hat of the rows of x, and their statistics."""
    mean = None
    if centred:
        mean = x.mean(1, keepdim=True)
        x = x - mean
        left = x.mean(1, keepdim=True)  # by the rounding of a large mean
        x, mean = x - left, mean + left
    rstd = (x.square().mean(1, keepdim=True) + eps).rsqrt()
    return x * rstd, rstd if mean is None else torch.cat([mean, rstd], 1)


def entered(operator: RowOperator, streams: Sequence[Tensor], N: int) -> Tensor:
    """x as rows, in the dtype of the arithmetic."""
    wide = [rows(t, N).to(arithmetic(t.dtype)) for t in streams]
    return wide[0] if operator.enter_formula is None else operator.enter_formula(*wide)


def statistics(operator: RowOperator, streams: Sequence[Tensor], N: int, eps: float) -> Tensor:
    return normalized(entered(operator, streams, N), eps, operator.centred)[1]


def forward(
    operator: RowOperator,
    streams: Sequence[Tensor],
    N: int,
    columns: Sequence[Tensor | None],
    eps: float,
    dtype: torch.dtype,
) -> Tensor:
    formula = operator.formula
    if formula is None:
        raise RuntimeError(
            f"{operator.name} has no formula in torch: expected one for tensors that no kernel serves, transforms of "
            "torch.func, forward mode and second derivatives (the argument formula of row_operator)"
        )
    x_hat, _ = normalized(entered(operator, streams, N), eps, operator.centred)
    values = [number if c is None else c.reshape(N) for c, number in zip(columns, operator.numbers)]
    return formula(x_hat, *values).reshape(streams[0].shape).to(dtype)


def backward(
    operator: RowOperator,
    dy: Tensor,
    streams: Sequence[Tensor],
    N: int,
    columns: Sequence[Tensor | None],
    eps: float,
    needs: Sequence[bool],
) -> list[Tensor | None]:
    """The gradients of streams and columns, each None unless needed; in grad mode with a graph of their own."""
    graph = torch.is_grad_enabled()
    wanted = [t if needed else None for t, needed in zip((*streams, *columns), needs)]
    with torch.enable_grad():
        y = forward(operator, streams, N, columns, eps, dy.dtype)
    found = iter(torch.autograd.grad(y, [t for t in wanted if t is not None], dy, create_graph=graph))
    return [None if t is None else next(found) for t in wanted]
