"""layer_norm: the public function, autograd, and the custom op for traced code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tritonln.device import Device, kernels_on
from tritonln.ops import layer_norm_triton
from tritonln.ops.contract import arithmetic, check, needs_grad, output_dtype, traced, transformed


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
    if traced(x, weight, bias):
        return layer_norm_op(x, N, weight, bias, eps, output_dtype(x, x.device.type), save)[0]
    device = kernels_on(x.device)
    if device is None:
        return _aten(x, shape, weight, bias, eps)
    if save:
        return _apply(x, weight, bias, N, eps, device)
    return layer_norm_triton.forward(x, N, weight, bias, eps, output_dtype(x, device.type), False, device)[0]


# ---- eager -------------------------------------------------------------------------------------


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, N: int, eps: float, device: Device
    ) -> Tensor:
        y, stats = layer_norm_triton.forward(x, N, weight, bias, eps, output_dtype(x, device.type), True, device)
        ctx.save_for_backward(x, weight, bias, stats)
        ctx.N, ctx.device = N, device
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, stats = ctx.saved_tensors
        needs = ctx.needs_input_grad[:3]
        if torch.is_grad_enabled():  # a graph of the backward is wanted: ATen's operator has a derivative
            dx, dw, db = backward_aten(dy, x, ctx.N, weight, bias, stats, needs)
        else:
            dx, dw, db = layer_norm_triton.backward(dy, x, ctx.N, weight, bias, stats, needs, ctx.device)
        return dx, dw, db, None, None, None


# Function.apply is this and a search for functorch, which layer_norm has made already.
_apply = super(torch.autograd.Function, _LayerNorm).apply


# ---- ATen -----------------------------------------------------------------------------------


def _aten(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    if weight is not None and bias is not None and weight.dtype != bias.dtype:
        weight, bias = weight.float(), bias.float()  # ATen wants the two alike
    return F.layer_norm(x, shape, weight, bias, eps)


def backward_aten(
    dy: Tensor,
    x: Tensor,
    N: int,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    needs: tuple[bool, bool, bool],
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """As layer_norm_triton.backward, in ATen's operator, which can itself be differentiated."""
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
        y, stats = layer_norm_triton.forward(x, N, weight, bias, eps, dtype, save, device)
    return y, _empty_stats(x) if stats is None else stats


def _forward_aten(
    x: Tensor, N: int, weight: Tensor | None, bias: Tensor | None, eps: float, save: bool
) -> tuple[Tensor, Tensor | None]:
    rows = x.reshape(x.numel() // N if N else 0, N)
    weight, bias = (None if p is None else p.reshape(N) for p in (weight, bias))
    y = _aten(rows, (N,), weight, bias, eps).reshape(x.shape)
    if not save:
        return y, None
    _, mean, rstd = torch.native_layer_norm(rows.to(arithmetic(x.dtype)), (N,), None, None, eps)
    return y, torch.cat([mean, rstd], 1)


def _empty_stats(x: Tensor) -> Tensor:
    return torch.empty((0, 2), dtype=arithmetic(x.dtype), device=x.device)


@layer_norm_op.register_fake
def _(
    x: Tensor, N: int, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype, save: bool
) -> tuple[Tensor, Tensor]:
    y = torch.empty(x.shape, dtype=dtype, device=x.device)
    if not save:
        return y, _empty_stats(x)
    return y, torch.empty((x.numel() // N if N else 0, 2), dtype=arithmetic(x.dtype), device=x.device)


@torch.library.custom_op("tritonln::layer_norm_backward", mutates_args=())
def layer_norm_backward_op(
    dy: Tensor, x: Tensor, N: int, weight: Tensor | None, bias: Tensor | None, stats: Tensor, needs: Sequence[bool]
) -> tuple[Tensor, Tensor, Tensor]:
    device = kernels_on(x.device)
    needed = needs[0], needs[1] and weight is not None, needs[2] and bias is not None
    if device is None:
        gradients = backward_aten(dy, x, N, weight, bias, stats, needed)
    else:
        gradients = layer_norm_triton.backward(dy, x, N, weight, bias, stats, needed, device)
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
