"""layer_norm: the public function, autograd, and the custom op for traced code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from tritonln.device import Device, kernels_on
from tritonln.ops import layer_norm_aten, layer_norm_formula, layer_norm_triton
from tritonln.ops.contract import (
    arithmetic,
    beyond_numbers,
    check,
    knows_only_aten,
    needs_grad,
    output_dtype,
    refuse_tangents,
    traced,
    transformed,
)

Gradients = tuple[Tensor | None, Tensor | None, Tensor | None]


def layer_norm(
    input: Tensor,
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
        input: x, ``(*, *normalized_shape)``; fp32, fp16, bf16 or fp64.  Rows may be strided; values that
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
    the same bits on every run.  Derivatives are right to any order, in reverse and forward mode and under
    torch.func's transforms; all but the first gradient run in elementary operations of torch.  (The third
    derivative of ``F.layer_norm`` itself is wrong in torch 2.13.)  ``torch.jit.trace`` and ``torch.jit.script`` get
    ATen's operator.

    Raises:
        RuntimeError, TypeError, NotImplementedError: as ``F.layer_norm`` for shapes and dtypes that
            do not fit; RuntimeError for arguments on different devices, on a device that neither
            Triton nor the CPU serves, and for forward mode through a graph that was captured without it.

    Source: Ba, Kiros and Hinton, Layer Normalization (2016, arXiv 1607.06450), equations 3 and 4.
    """
    if has_torch_function_variadic(input, weight, bias):
        return handle_torch_function(
            layer_norm, (input, weight, bias), input, normalized_shape, weight=weight, bias=bias, eps=eps
        )
    x, shape = input, (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
    if transformed():
        return _transformed(x, shape, weight, bias, eps)
    N, eps = check(x, shape, weight, bias, eps)
    if traced(x, weight, bias):
        if knows_only_aten(x, weight, bias):
            return layer_norm_aten.operator(x, shape, weight, bias, eps)
        dtype = output_dtype(x.dtype, x.device.type)
        return layer_norm_op(x, N, weight, bias, eps, dtype, needs_grad(x, weight, bias))[0]
    device = kernels_on(x.device)
    if needs_grad(x, weight, bias):
        return _apply(x, weight, bias, N, eps, device)
    if device is None:
        return layer_norm_aten.forward(x, N, weight, bias, eps, False)[0]
    return layer_norm_triton.forward(x, N, weight, bias, eps, output_dtype(x.dtype, device.type), False, device)[0]


def _transformed(x: Tensor, shape: Sequence[int], weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        return layer_norm_aten.operator(x, shape, weight, bias, eps)  # what TorchScript knows
    N, eps = check(x, shape, weight, bias, eps)
    return layer_norm_formula.forward(x, N, weight, bias, eps, output_dtype(x.dtype, x.device.type))


# ---- eager -------------------------------------------------------------------------------------


class _LayerNorm(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x: Tensor, weight: Tensor | None, bias: Tensor | None, N: int, eps: float, device: Device | None
    ) -> Tensor:
        if device is None:
            y, stats = layer_norm_aten.forward(x, N, weight, bias, eps, True)
        else:
            dtype = output_dtype(x.dtype, device.type)
            y, stats = layer_norm_triton.forward(x, N, weight, bias, eps, dtype, True, device)
        ctx.save_for_backward(x, weight, bias, stats)
        ctx.constants = N, eps, device
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        x, weight, bias, stats = ctx.saved_tensors
        (N, eps, device), needs = ctx.constants, ctx.needs_input_grad[:3]
        if beyond_numbers(dy):
            dx, dw, db = layer_norm_formula.backward(dy, x, N, weight, bias, eps, needs)
        elif traced(dy):
            dx, dw, db = _backward_by_op(dy, x, N, weight, bias, stats, needs)
        elif device is None:
            dx, dw, db = layer_norm_aten.backward(dy, x, N, weight, bias, stats, needs)
        else:
            dx, dw, db = layer_norm_triton.backward(dy, x, N, weight, bias, stats, needs, device)
        return dx, dw, db, None, None, None


# Function.apply is this and a search for functorch, which layer_norm has made already.
_apply = super(torch.autograd.Function, _LayerNorm).apply


# ---- the custom op: what torch.compile, torch.export and fake tensors see ------------------------


@torch.library.custom_op("tritonln::layer_norm", mutates_args=())
def layer_norm_op(
    x: Tensor, N: int, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype, save: bool
) -> tuple[Tensor, Tensor]:
    refuse_tangents("layer_norm")
    device = kernels_on(x.device)
    if device is None:
        y, stats = layer_norm_aten.forward(x, N, weight, bias, eps, save)
    else:
        y, stats = layer_norm_triton.forward(x, N, weight, bias, eps, dtype, save, device)
    return y, _empty_stats(x) if stats is None else stats


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
    refuse_tangents("layer_norm")
    needed = needs[0], needs[1] and weight is not None, needs[2] and bias is not None
    device = kernels_on(x.device)
    if device is None:
        gradients = layer_norm_aten.backward(dy, x, N, weight, bias, stats, needed)
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


def _backward_by_op(
    dy: Tensor,
    x: Tensor,
    N: int,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    needs: tuple[bool, bool, bool],
) -> Gradients:
    dx, dw, db = (
        g if needed else None for g, needed in zip(layer_norm_backward_op(dy, x, N, weight, bias, stats, needs), needs)
    )
    return dx, dw, db


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    x, ctx.N, weight, bias, ctx.eps, _, ctx.saved = inputs
    ctx.save_for_backward(x, weight, bias, output[1])
    ctx.mark_non_differentiable(output[1])
    ctx.set_materialize_grads(False)  # of the statistics, which have none


def _op_backward(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
    if dy is None:
        return (None,) * 7
    x, weight, bias, stats = ctx.saved_tensors
    needs = ctx.needs_input_grad[0], ctx.needs_input_grad[2], ctx.needs_input_grad[3]
    if beyond_numbers(dy):
        dx, dw, db = layer_norm_formula.backward(dy, x, ctx.N, weight, bias, ctx.eps, needs)
    else:
        if not ctx.saved:  # the graph was captured where nothing required a gradient
            _, stats = layer_norm_op(x, ctx.N, None, None, ctx.eps, x.dtype, True)
        dx, dw, db = _backward_by_op(dy, x, ctx.N, weight, bias, stats, needs)
    return dx, None, dw, db, None, None, None


layer_norm_op.register_autograd(_op_backward, setup_context=_setup_context)


@torch._decomp.register_decomposition(torch.ops.tritonln.layer_norm.default)
def _(
    x: Tensor, N: int, weight: Tensor | None, bias: Tensor | None, eps: float, dtype: torch.dtype, save: bool
) -> tuple[Tensor, Tensor]:
    """In ATen's operators, for exporters: torch.onnx asks for it, run_decompositions can be given it."""
    y, stats = layer_norm_aten.forward(x, N, weight, bias, eps, save)
    return y.to(dtype), _empty_stats(x) if stats is None else stats
