"""layer_norm and rms_norm of rows that are split over the ranks of a group, each of which has some of the columns."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.distributed as dist
import torch.nn.functional as F
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.distributed import ProcessGroup
from torch.distributed._functional_collectives import all_reduce

from tritonln.ops.contract import arithmetic, check, output_dtype
from tritonln.ops.row_formula import rows
from tritonln.ops.subclasses import foreign


def layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    group: ProcessGroup | None = None,
) -> Tensor:
    r"""Layer normalization of rows that are split over ranks, equal to that of the whole rows.

    .. math:: y = \frac{x - \mathrm E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \, w + b

    with mean and variance over the values of a row on all ranks of the group, merged from the moments of each.

    Args:
        input: this rank's part of x, ``(*, *normalized_shape)``; fp32, fp16, bf16 or fp64.  The parts of ranks may
            differ in how many columns they have, not in how many rows.
        normalized_shape, weight, bias: of this rank's part.
        eps: added to the variance.
        group: the ranks; None: all.

    Returns:
        This rank's part of y, of x's dtype (fp32 under autocast, as F.layer_norm has).  Forward sends one all-reduce of
        16 bytes a row: sums in fp64, whose 53 bits hold the difference of E[x^2] and E[x]^2 for whatever means 16 or 32
        bits can state.  fp64 rows take two, of 8 bytes each, the second around the mean.  Backward sends one of 8 bytes
        a row (16 for fp64), and the gradients of the parameters are summed meanwhile.  All arithmetic is torch's; saved
        are the arguments and mean and rstd.

    Raises:
        RuntimeError, TypeError: as :func:`tritonln.layer_norm`, and for DTensors, whose rows that function takes whole;
            RuntimeError for second derivatives and forward mode.

    Source: Chan, Golub and LeVeque, Updating Formulae and a Pairwise Algorithm for Computing Sample Variances (1979).
    """
    return _call(F.layer_norm, input, normalized_shape, (weight, bias), eps, group)


def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    group: ProcessGroup | None = None,
) -> Tensor:
    r"""Root mean square normalization of rows that are split over ranks.

    .. math:: y = \frac{x}{\sqrt{\mathrm E[x^2] + \epsilon}} \, w

    :func:`layer_norm` with :func:`tritonln.rms_norm` in the place of layer normalization: one all-reduce of 4 bytes a
    row forward and one backward (8 for fp64).
    """
    return _call(F.rms_norm, input, normalized_shape, (weight,), eps, group)


class _Settings(NamedTuple):
    N: int  # columns of this rank
    eps: float
    dtype: torch.dtype  # of y
    centred: bool
    group: ProcessGroup


def _call(
    function: Any,
    x: Tensor,
    normalized_shape: int | Sequence[int],
    parameters: tuple[Tensor | None, ...],
    eps: float | None,
    group: ProcessGroup | None,
) -> Tensor:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
    N, number = check(function, x, shape, parameters, eps)
    kinds = foreign(x, *parameters)
    if kinds:
        raise TypeError(
            f"tritonln.distributed.{function.__name__}: expected this rank's part of a row in a plain tensor, but got "
            f"{kinds[0].__name__}: tritonln.{function.__name__} takes it"
        )
    known = dist.group.WORLD if group is None else group
    if known is None:
        raise RuntimeError(f"tritonln.distributed.{function.__name__}: expected init_process_group to have been called")
    s = _Settings(N, number, output_dtype(x.dtype, x.device.type), function is F.layer_norm, known)
    weight, bias = (*parameters, None)[:2]
    return _SplitRows.apply(s, x, weight, bias)  # type: ignore[no-untyped-call]


class _SplitRows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, s: _Settings, x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        wide = rows(x, s.N).to(arithmetic(x.dtype))
        mean, variance, count = _moments(wide, s) if s.centred else _squares(wide, s)
        rstd = (variance + s.eps).rsqrt()
        ctx.save_for_backward(x, weight, bias, mean, rstd, count)
        ctx.s = s
        y = _normalized(wide, mean, rstd)
        if weight is not None:
            y = y * weight.reshape(s.N)
        if bias is not None:
            y = y + bias.reshape(s.N)
        return y.to(s.dtype).reshape(x.shape)

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        s: _Settings = ctx.s
        x, weight, bias, mean, rstd, count = ctx.saved_tensors
        dy = rows(dy, s.N).to(rstd.dtype)
        x_hat = _normalized(rows(x, s.N).to(rstd.dtype), mean, rstd)
        dx_hat = dy if weight is None else dy * weight.reshape(s.N)
        sums = [(dx_hat * x_hat).sum(1), *([dx_hat.sum(1)] if s.centred else [])]
        along, *level = all_reduce(torch.stack(sums), "sum", s.group)  # waited for where it is used
        dw, db = (
            g.reshape(p.shape).to(p.dtype) if p is not None and needed else None
            for g, p, needed in zip(
                ((dy * x_hat).sum(0), dy.sum(0)), (weight, bias), ctx.needs_input_grad[2:], strict=True
            )
        )
        dx_hat = dx_hat - x_hat * (along / count).unsqueeze(1)
        if level:
            dx_hat = dx_hat - (level[0] / count).unsqueeze(1)
        return None, (dx_hat * rstd.unsqueeze(1)).to(x.dtype).reshape(x.shape), dw, db


def _normalized(x: Tensor, mean: Tensor | None, rstd: Tensor) -> Tensor:
    return (x if mean is None else x - mean.unsqueeze(1)) * rstd.unsqueeze(1)


def _moments(x: Tensor, s: _Settings) -> tuple[Tensor, Tensor, Tensor]:
    """Mean and variance of each row over all ranks, and how many values a row has."""
    mean = x.mean(1)
    centred = x - mean.unsqueeze(1)
    left = centred.mean(1)  # by the rounding of a large mean
    mean, centred = mean + left, centred - left.unsqueeze(1)
    squares = centred.square().sum(1)
    count = mean.new_full((1,), s.N, dtype=torch.float64)
    if x.dtype == torch.float64:
        *total, values = all_reduce(torch.cat([mean * s.N, count]), "sum", s.group).split([len(mean), 1])
        whole = total[0] / values
        return whole, all_reduce(squares + s.N * (mean - whole).square(), "sum", s.group) / values, values
    local = mean.double()
    sums = torch.cat([local * s.N, squares.double() + local.square() * s.N, count])
    total_mean, total_squares, values = all_reduce(sums, "sum", s.group).split([len(mean), len(mean), 1])
    whole = total_mean / values
    variance = (total_squares / values - whole.square()).clamp(min=0.0)
    return whole.to(x.dtype), variance.to(x.dtype), values.to(x.dtype)


def _squares(x: Tensor, s: _Settings) -> tuple[None, Tensor, Tensor]:
    """The mean square of each row over all ranks, and how many values a row has."""
    sums = torch.cat([x.square().sum(1), x.new_full((1,), s.N)])
    squares, values = all_reduce(sums, "sum", s.group).split([len(sums) - 1, 1])
    return None, squares / values, values
