"""layer_norm: the contract, the Triton launches, autograd, and the custom op for traced code."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor

from tritonln.device import Device, kernels_on
from tritonln.ops.contract import (
    check,
    contiguous,
    contiguous_rows,
    dtype_of,
    empty_like,
    needs_grad,
    output_dtype,
    traced,
    transformed,
)


def layer_norm(
    x: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Layer normalization over the trailing dimensions, as :func:`torch.nn.functional.layer_norm`.

    .. math:: y = \frac{x - \mathrm E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \, w + b

    with the mean and the biased variance of each row, a row being the ``N`` values of the trailing
    dimensions ``normalized_shape``.

    Args:
        x: ``(*, *normalized_shape)``; fp32, fp16, bf16 or fp64.  Rows may be strided; values that
            are not contiguous within a row are copied once.
        normalized_shape: the trailing dimensions, an int for one.
        weight, bias: of shape ``normalized_shape``, each optional; in ``x``'s dtype, or in fp32 for
            a 16-bit ``x``.
        eps: added to the variance.

    Returns:
        A contiguous tensor of ``x``'s shape and dtype (fp32 under autocast wherever
        ``F.layer_norm`` gives fp32).  Statistics, products and the sums of the gradients are fp32,
        and fp64 for fp64 ``x``; each gradient has the dtype of its input.  Saved for backward: the
        arguments and 8 bytes a row (16 for fp64); nothing where no gradient is asked for.

    A row's result and its ``x`` gradient do not depend on the other rows, and the same inputs give
    the same bits on every run.  Can be differentiated twice; the second derivative runs in ATen.

    Raises:
        RuntimeError, TypeError, NotImplementedError: as ``F.layer_norm`` for shapes and dtypes that
            do not fit; RuntimeError for arguments on different devices, or on a device that neither
            Triton nor the CPU serves.

    Source: Ba, Kiros and Hinton, Layer Normalization (2016, arXiv 1607.06450), equations 3 and 4.
    """
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
    N, eps = check(x, shape, weight, bias, eps)
    if transformed():
        return _aten(x, shape, weight, bias, eps)
    save = needs_grad(x, weight, bias)
    if traced(x):
        return layer_norm_op(x, N, weight, bias, eps, output_dtype(x, x.device.type), save)[0]
    device = kernels_on(x.device)
    if device is None:
        return _aten(x, shape, weight, bias, eps)
    if save:
        return _apply(x, weight, bias, N, eps, device)
    return _forward(x, N, weight, bias, eps, output_dtype(x, device.type), False, device)[0]


# ---- launches -------------------------------------------------------------------------------


class Plan(NamedTuple):
    """The launch of a kernel, and how its programs divide the rows."""

    launch: Any
    rows_per_program: int
    programs: int  # of a persistent kernel, which then walks the rows; 0: one for every tile

    def count(self, M: int) -> int:
        tiles = -(-M // self.rows_per_program)
        return min(tiles, self.programs) if self.programs else tiles


@functools.cache
def forward_plan(
    N: int,
    x: torch.dtype,
    y: torch.dtype,
    weight: torch.dtype | None,
    bias: torch.dtype | None,
    save: bool,
    device: Device,
) -> Plan:
    """For tensors of these dtypes; None where there is none."""
    from tritonln.kernels.layer_norm import layer_norm_fwd
    from tritonln.kernels.layer_norm_wide import layer_norm_wide_fwd
    from tritonln.launch import Launch
    from tritonln.tuning import config

    c = config.forward(N, x.itemsize, device)
    if c.block_n >= N:
        return Plan(Launch(layer_norm_fwd, (N, c.block_m, c.block_n), device, c.num_warps, c.num_ctas), c.block_m, 0)
    return Plan(Launch(layer_norm_wide_fwd, (N, c.block_n, c.stages), device, c.num_warps), 1, 0)


@functools.cache
def backward_plan(
    N: int,
    x: torch.dtype,
    dy: torch.dtype,
    weight: torch.dtype | None,
    bias: torch.dtype | None,
    needs: tuple[bool, bool, bool],
    device: Device,
) -> tuple[Plan, Plan, Plan]:
    """The gradient kernel, the same where one program does it all, and the sum over programs of its partial sums."""
    from tritonln.kernels.column_sum import column_sum
    from tritonln.kernels.layer_norm import layer_norm_bwd
    from tritonln.kernels.layer_norm_wide import layer_norm_wide_bwd
    from tritonln.launch import Launch
    from tritonln.tuning import config

    c = config.backward(N, x.itemsize, device)
    kernel = layer_norm_bwd if c.block_n >= N else layer_norm_wide_bwd
    constants = (N, c.block_m, c.block_n, c.stages)
    # Two objects, as one writes sums in fp32 and the other the gradients in their own dtypes.
    several, alone = (Launch(kernel, constants, device, c.num_warps, c.num_ctas) for _ in range(2))
    s = config.column_sum(N)
    return (
        Plan(several, c.block_m, c.programs),
        Plan(alone, c.block_m, 1),
        Plan(Launch(column_sum, (N, s.block_m, s.block_n), device, s.num_warps), s.block_n, 0),
    )


def _stats_dtype(x: Tensor) -> torch.dtype:
    return torch.float64 if x.dtype == torch.float64 else torch.float32


def _forward(
    x: Tensor,
    N: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    save: bool,
    device: Device,
) -> tuple[Tensor, Tensor | None]:
    """(y, stats); stats are the (M, 2) means and reciprocal standard deviations, None unless saved."""
    M = x.numel() // N if N else 0
    y = empty_like(x, dtype)
    stats = torch.empty((M, 2), dtype=_stats_dtype(x), device=x.device) if save else None
    if M:
        plan = forward_plan(N, x.dtype, dtype, dtype_of(weight), dtype_of(bias), save, device)
        rows, stride = contiguous_rows(x, N)
        plan.launch(plan.count(M), (rows, contiguous(weight), contiguous(bias), y, stats), (stride,), (M, eps))
    return y, stats


def _backward(
    dy: Tensor,
    x: Tensor,
    N: int,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    needs: tuple[bool, bool, bool],
    device: Device,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias, each None unless needed."""
    M = stats.shape[0]
    dx = empty_like(x, x.dtype) if needs[0] else None
    new = torch.empty_like if M else torch.zeros_like
    dw = new(weight.contiguous()) if weight is not None and needs[1] else None
    db = new(bias.contiguous()) if bias is not None and needs[2] else None
    if not M:
        return dx, dw, db
    gradients, alone, sums = backward_plan(N, x.dtype, dy.dtype, dtype_of(weight), dtype_of(bias), needs, device)
    P = gradients.count(M)
    rows, stride_x = contiguous_rows(x, N)
    dy_rows, stride_dy = contiguous_rows(dy, N)
    weight = contiguous(weight)
    if P == 1:  # the sums of the only program are the gradients
        alone.launch(1, (dy_rows, rows, weight, stats, dx, dw, db), (stride_dy, stride_x), (M,))
        return dx, dw, db
    dw_partial = None if dw is None else stats.new_empty((P, N))
    db_partial = None if db is None else stats.new_empty((P, N))
    tensors = (dy_rows, rows, weight, stats, dx, dw_partial, db_partial)
    gradients.launch(P, tensors, (stride_dy, stride_x), (M,))
    if dw is not None or db is not None:
        sums.launch(sums.count(N), (dw_partial, db_partial, dw, db), (), (P,))
    return dx, dw, db


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, N: int, eps: float, device: Device
    ) -> Tensor:
        y, stats = _forward(x, N, weight, bias, eps, output_dtype(x, device.type), True, device)
        ctx.save_for_backward(x, weight, bias, stats)
        ctx.N, ctx.device = N, device
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, stats = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # a graph of the backward is wanted: ATen's operator has a derivative
            dx, dw, db = _backward_aten(dy, x, ctx.N, weight, bias, stats, needs)
        else:
            dx, dw, db = _backward(dy, x, ctx.N, weight, bias, stats, needs, ctx.device)
        return dx, dw, db, None, None, None


# Function.apply is this and a search for functorch, which layer_norm has made already.
_apply = super(torch.autograd.Function, _LayerNorm).apply


# ---- ATen -----------------------------------------------------------------------------------


def _aten(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    if weight is not None and bias is not None and weight.dtype != bias.dtype:
        weight, bias = weight.float(), bias.float()  # ATen wants the two alike
    return F.layer_norm(x, shape, weight, bias, eps)


def _backward_aten(
    dy: Tensor,
    x: Tensor,
    N: int,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As _backward, in ATen's operator, which can itself be differentiated."""
    dtype = stats.dtype

    def row(t: Tensor | None) -> Tensor | None:
        return None if t is None else t.reshape(N).to(dtype)

    mean, rstd = stats.T.contiguous().unsqueeze(2)  # ATen reads them by their addresses
    gradients = torch.ops.aten.native_layer_norm_backward(
        dy.reshape(-1, N).to(dtype), x.reshape(-1, N).to(dtype), [N], mean, rstd, row(weight), row(bias), needs
    )
    inputs = (x, weight, bias)
    dx, dw, db = (
        g.reshape(t.shape).to(t.dtype) if wanted and t is not None else None
        for g, t, wanted in zip(gradients, inputs, needs)
    )
    return dx, dw, db


# ---- the custom op: what torch.compile, torch.export and fake tensors see ------------------------


@torch.library.custom_op("tritonln::layer_norm", mutates_args=())
def layer_norm_op(
    x: Tensor, N: int, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype, save: bool
) -> tuple[Tensor, Tensor]:
    device = kernels_on(x.device)
    if device is None:
        y, stats = _forward_aten(x, N, weight, bias, eps, save)
    else:
        y, stats = _forward(x, N, weight, bias, eps, dtype, save, device)
    return y, _empty_stats(x) if stats is None else stats


def _forward_aten(
    x: Tensor, N: int, weight: Tensor | None, bias: Tensor | None, eps: float, save: bool
) -> tuple[Tensor, Tensor | None]:
    rows = x.reshape(x.numel() // N if N else 0, N)
    weight, bias = (None if p is None else p.reshape(N) for p in (weight, bias))
    y = _aten(rows, (N,), weight, bias, eps).reshape(x.shape)
    if not save:
        return y, None
    _, mean, rstd = torch.native_layer_norm(rows.to(_stats_dtype(x)), (N,), None, None, eps)
    return y, torch.cat([mean, rstd], 1)


def _empty_stats(x: Tensor) -> Tensor:
    return torch.empty((0, 2), dtype=_stats_dtype(x), device=x.device)


@layer_norm_op.register_fake
def _(
    x: Tensor, N: int, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype, save: bool
) -> tuple[Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    if not save:
        return y, _empty_stats(x)
    return y, torch.empty((x.numel() // N if N else 0, 2), dtype=_stats_dtype(x), device=x.device)


@torch.library.custom_op("tritonln::layer_norm_backward", mutates_args=())
def layer_norm_backward_op(
    dy: Tensor, x: Tensor, N: int, weight: Tensor | None, bias: Tensor | None, stats: Tensor, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    device = kernels_on(x.device)
    needed = needs[0], needs[1] and weight is not None, needs[2] and bias is not None
    if device is None:
        gradients = _backward_aten(dy, x, N, weight, bias, stats, needed)
    else:
        gradients = _backward(dy, x, N, weight, bias, stats, needed, device)
    return tuple(x.new_empty(0) if g is None else g for g in gradients)  # type: ignore[return-value]


@layer_norm_backward_op.register_fake
def _(
    dy: Tensor, x: Tensor, N: int, weight: Tensor | None, bias: Tensor | None, stats: Tensor, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    return tuple(  # type: ignore[return-value]
        torch.empty(t.shape, dtype=t.dtype, device=t.device) if t is not None and needed else x.new_empty(0)
        for t, needed in zip((x, weight, bias), needs)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.N, weight, bias, *_ = inputs
    ctx.save_for_backward(x, weight, bias, output[1])
    ctx.mark_non_differentiable(output[1])


def _op_backward(ctx: Any, dy: Tensor, _: Tensor | None) -> tuple[Tensor | None, ...]:
    x, weight, bias, stats = ctx.saved_tensors
    wanted = ctx.needs_input_grad[0], ctx.needs_input_grad[2], ctx.needs_input_grad[3]
    gradients = layer_norm_backward_op(dy, x, ctx.N, weight, bias, stats, wanted)
    dx, dw, db = (g if w else None for g, w in zip(gradients, wanted))
    return dx, None, dw, db, None, None, None


layer_norm_op.register_autograd(_op_backward, setup_context=_setup_context)
