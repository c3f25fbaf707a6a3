"""rms_norm: the public function, and what it is as a row operator."""

from __future__ import annotations

from collections.abc import Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from tritonln.device import kernels_on
from tritonln.ops import rms_norm_aten, row_autograd, row_op
from tritonln.ops.contract import check, output_dtype, shifted, traced, transformed
from tritonln.ops.known import described, known
from tritonln.ops.of_y import keeping, of_y, restored
from tritonln.ops.operands import COLUMNS, Operand
from tritonln.ops.overridden import jagged_in_graph, overridden
from tritonln.ops.row_declaration import Parts
from tritonln.ops.rows import RowOperator, Settings
from tritonln.ops.subclasses import knows_only_aten


def _parts() -> Parts:
    from tritonln.kernels.rms_norm import scaled, scaled_bwd

    return Parts(scaled, scaled_bwd)


RMS_NORM = RowOperator(
    "rms_norm",
    _parts,
    finishing={"weight": Operand(COLUMNS, 1.0)},
    centred=False,
    formula=lambda x_hat, weight: x_hat * weight,
    aten=rms_norm_aten,
)
row_op.define(RMS_NORM)


def _parts_of_y() -> Parts:
    from tritonln.kernels.rms_norm import scaled_restore

    return _parts()._replace(restore=scaled_restore)


RMS_NORM_OF_Y = of_y(RMS_NORM, _parts_of_y, restored)


def _rounding(dtype: torch.dtype, name: str) -> RowOperator:
    """The norm that rounds x_hat to a 16-bit dtype before the weight."""

    def parts() -> Parts:
        from tritonln.kernels import rms_norm as kernels

        return Parts(getattr(kernels, f"scaled_{name}"), getattr(kernels, f"scaled_{name}_bwd"))

    operator = RowOperator(
        f"rms_norm_rounding_{name}",
        parts,
        RMS_NORM.finishing,
        centred=False,
        formula=lambda x_hat, weight: x_hat.to(dtype).to(x_hat.dtype) * weight,
    )
    row_op.define(operator)
    return operator


ROUNDING = {torch.bfloat16: _rounding(torch.bfloat16, "bf16"), torch.float16: _rounding(torch.float16, "fp16")}
CASTS = "native", "llama"


def rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    weight_offset: float = 0.0,
    cast: str = "native",
    save: str = "x",
) -> Tensor:
    r"""Root mean square normalization over the trailing dimensions, as :func:`torch.nn.functional.rms_norm`.

    .. math:: y = \frac{x}{\sqrt{\mathrm E[x^2] + \epsilon}} \, w

    with the mean of the squares of each row, a row being the ``N`` values of the trailing dimensions
    ``normalized_shape``.

    Args:
        input: x, ``(*, *normalized_shape)``; fp32, fp16, bf16 or fp64.  Rows may be strided; values that
            are not contiguous within a row are copied once.
        normalized_shape: the trailing dimensions, an int for one.
        weight: of shape ``normalized_shape``; in fp64 for fp64 ``x``, else in fp32, fp16 or bf16.
        eps: added to the mean of the squares.  None: the epsilon of the arithmetic's dtype, so fp32's for a 16-bit
            ``x``, as in torch.
        weight_offset: added to the weight, for weights that are stored around zero (Gemma's: 1).  torch adds it, in
            the precision of the arithmetic, so it costs a launch on N values; an absent weight stays a factor of 1.
        cast: ``"native"``: y is rounded once.  ``"llama"``: the normalized x is rounded to its dtype before it meets
            the weight, and y again, as in transformers' Llama; the same for fp32 and fp64.
        save: what is kept for backward beside the weight, ``"x"`` or, in its place, ``"y"``: as in
            :func:`tritonln.layer_norm`, with a bias of 0.  The 16-bit dtypes keep x under ``cast="llama"``.

    Returns:
        A contiguous tensor of ``x``'s shape and dtype (fp32 under autocast wherever ``F.rms_norm`` of torch 2.13 gives
        fp32; that of 2.11 never does).
        Statistics, products and the sums of the gradients are fp32, and fp64 for fp64 ``x``; each gradient has the
        dtype of its input.  Saved for backward: the arguments, or y in the place of ``x``, and 4 bytes a row (8 for
        fp64); nothing where no gradient is asked for.  The mean of squares is computed in that precision too: where it
        overflows (values past 1e19 in fp32), y is 0, as in torch.

    What :func:`tritonln.layer_norm` says of the bits of results and of derivatives holds here too.

    Raises:
        ValueError: for another ``cast`` or ``save``.
        RuntimeError, TypeError, NotImplementedError: as ``F.rms_norm`` for shapes and dtypes that do not fit;
            RuntimeError for fp64 beside another dtype, which ``F.rms_norm`` takes with a warning, for complex x, for
            arguments on different devices, on a device that neither Triton nor the CPU serves, and for forward mode
            through a graph that was captured without it.

    Source: Zhang and Sennrich, Root Mean Square Layer Normalization (2019, arXiv 1910.07467), equation 4.
    """
    x, shape = input, (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
    keeps = None if save == "x" else keeping(save, RMS_NORM_OF_Y, (x, weight), weight_offset)
    description = None if weight_offset else described(RMS_NORM, (x, weight), shape, eps, weight_offset, cast, keeps)
    if (forward := known(description)) is not None:
        return row_autograd.again(forward, (x, weight))[0]
    if has_torch_function_variadic(input, weight) or jagged_in_graph(input):
        return overridden(
            rms_norm,
            (input, weight),
            input,
            normalized_shape,
            weight=weight,
            eps=eps,
            weight_offset=weight_offset,
            cast=cast,
            save=save,
        )
    if cast not in CASTS:
        raise ValueError(f"expected cast to be one of {', '.join(map(repr, CASTS))}, but got {cast!r}")
    if cast == "llama" and getattr(x, "dtype", None) in ROUNDING:
        N, number = check(F.rms_norm, x, shape, (weight,), eps)
        s = Settings(N, number, output_dtype(x.dtype, x.device.type))
        return row_autograd.call(ROUNDING[x.dtype], (x, shifted(weight, weight_offset, x.dtype)), s, description)[0]
    if transformed():
        return _transformed(x, shape, weight, eps, weight_offset)
    N, number = check(F.rms_norm, x, shape, (weight,), eps)
    weight = shifted(weight, weight_offset, x.dtype)
    tensors, s = (x, weight), Settings(N, number, output_dtype(x.dtype, x.device.type))
    if traced(*tensors):
        if row_autograd.left_to_inductor(x) or knows_only_aten("rms_norm", *tensors):
            return rms_norm_aten.operator(x, shape, weight, number)
        return row_op.by_op(RMS_NORM, tensors, s)[0]
    return row_autograd.directly(RMS_NORM, tensors, s, kernels_on(x.device), description, keeps)[0]


def _transformed(x: Tensor, shape: Sequence[int], weight: Tensor | None, eps: float | None, offset: float) -> Tensor:
    if torch.jit.is_tracing():  # type: ignore[attr-defined]
        weight = shifted(weight, offset, x.dtype)
        return rms_norm_aten.operator(x, shape, weight, eps)  # what TorchScript knows
    N, number = check(F.rms_norm, x, shape, (weight,), eps)
    weight = shifted(weight, offset, x.dtype)
    s = Settings(N, number, output_dtype(x.dtype, x.device.type))
    return row_autograd.looked_into(RMS_NORM, (x, weight), s)[0]
