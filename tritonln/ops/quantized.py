"""quantized_layer_norm and quantized_rms_norm: norms that write 8 bits and the scales that go with them."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function_variadic

from tritonln.device import kernels_on
from tritonln.ops.companions import check_companion, check_shape
from tritonln.ops.contract import check, needs_grad, shifted, traced, transformed
from tritonln.ops.known import described, known, remember
from tritonln.ops.layer_norm import LAYER_NORM
from tritonln.ops.quantized_op import by_op, define, formula
from tritonln.ops.quantized_plans import BLOCK, FORMATS, Arguments, Quantized, QuantizedNorm, allocated
from tritonln.ops.rms_norm import RMS_NORM

QUANTIZED_LAYER_NORM, QUANTIZED_RMS_NORM = QuantizedNorm(LAYER_NORM), QuantizedNorm(RMS_NORM)
define(QUANTIZED_LAYER_NORM)
define(QUANTIZED_RMS_NORM)

Results = tuple[Tensor, Tensor] | tuple[Tensor, Tensor, Tensor]


def quantized_layer_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual: Tensor | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale: Tensor | None = None,
    block_size: int | None = None,
    weight_offset: float = 0.0,
) -> Results:
    r"""Layer normalization that writes 8 bits and their scales, in one launch; for inference.

    .. math:: y = \mathrm{LN}(x) \, w + b \qquad
              q = \mathrm{round}(y / s) \qquad s = \max_\mathrm{row} |y| / q_\mathrm{max}

    so that q s is y again, but for the rounding.  With a residual r, x + r takes the place of x, as it is rounded to
    r's dtype.

    Args:
        input: x, ``(*, *normalized_shape)``; fp32, fp16 or bf16.  Rows may be strided.
        normalized_shape, weight, bias, eps, weight_offset: of the norm, as in :func:`tritonln.layer_norm`.
        residual: r, of x's shape, of any of these dtypes.
        dtype: of q: ``torch.float8_e4m3fn``, ``torch.float8_e5m2`` or ``torch.int8``.
        scale: s, one fp32 number for all rows, as static quantization has it.  None: each row has its own.
        block_size: 32: each 32 columns have a scale, a power of two, as MXFP8 has it; N must be a multiple of 32, and
            dtype one of the floats.  None: they have not.

    Returns:
        (q, s), and x + r as the third where a residual was given: q of x's shape; s of shape ``(*, 1, ...)``, fp32, so
        that ``q.float() * s`` is y; ``scale`` itself where that was given; and with blocks
        ``(*, *normalized_shape[:-1], normalized_shape[-1] / 32)`` in ``torch.float8_e8m0fnu``, whose exponents are
        ``floor(log2(max |y|))`` less that of the dtype's largest number.  q is rounded to nearest, ties to even, from
        the fp32 product of 1 / s and y, which is not rounded before; past the largest number it is that one, and -128
        for int8.  A row with a NaN is NaN, in its scale too, and of any value in int8.  No s is below the smallest
        normal number of fp32.

    A row's result does not depend on the other rows.

    Raises:
        RuntimeError, TypeError, ValueError: for arguments that do not fit, as :func:`tritonln.layer_norm`; where a
            gradient is asked for: rounding has none.

    Source: Micikevicius et al., FP8 Formats for Deep Learning (2022, arXiv 2209.05433), for the floats; Rouhani et al.,
    OCP Microscaling Formats (MX) Specification 1.0 (2023), section 6.3, for the scales of blocks.
    """
    return _call(
        quantized_layer_norm, QUANTIZED_LAYER_NORM, F.layer_norm, input, normalized_shape, (weight, bias), eps,
        residual, dtype, scale, block_size, weight_offset,
    )  # fmt: skip


def quantized_rms_norm(
    input: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual: Tensor | None = None,
    dtype: torch.dtype = torch.float8_e4m3fn,
    scale: Tensor | None = None,
    block_size: int | None = None,
    weight_offset: float = 0.0,
) -> Results:
    r"""Root mean square normalization that writes 8 bits and their scales, in one launch; for inference.

    .. math:: y = \mathrm{RMSNorm}(x) \, w \qquad
              q = \mathrm{round}(y / s) \qquad s = \max_\mathrm{row} |y| / q_\mathrm{max}

    :func:`quantized_layer_norm` with :func:`tritonln.rms_norm` in the place of layer normalization, whose ``weight``,
    ``eps`` and ``weight_offset`` it takes; all else is as there.
    """
    return _call(
        quantized_rms_norm, QUANTIZED_RMS_NORM, F.rms_norm, input, normalized_shape, (weight,), eps, residual, dtype,
        scale, block_size, weight_offset,
    )  # fmt: skip


def _call(
    public: Callable[..., Results],
    operator: QuantizedNorm,
    function: Callable[..., Tensor],
    x: Tensor,
    normalized_shape: int | Sequence[int],
    parameters: tuple[Tensor | None, ...],
    eps: float | None,
    residual: Tensor | None,
    dtype: torch.dtype,
    scale: Tensor | None,
    block_size: int | None,
    weight_offset: float,
) -> Results:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
    tensors = x, residual, *parameters, scale
    description = None
    if not weight_offset:
        description = described(operator, tensors, shape, eps, weight_offset, dtype, block_size)
        if (quantizing := known(description)) is not None:
            return _results(quantizing.on(tensors), scale)
    if has_torch_function_variadic(*tensors):
        return handle_torch_function(
            public, tensors, x, normalized_shape, *parameters, eps, residual=residual, dtype=dtype, scale=scale,
            block_size=block_size, weight_offset=weight_offset,
        )  # fmt: skip
    shape, name = tuple(shape), operator.name
    N, number = check(function, x, shape, parameters, eps)
    if x.dtype == torch.float64:
        raise RuntimeError(f"{name}: expected x of dtype float32, bfloat16 or float16, but got {x.dtype}")
    if residual is not None:
        check_companion(name, "residual", residual, x)
        check_shape(name, "residual", residual, x.shape)
    _check_quantization(name, x, dtype, scale, block_size, shape)
    if needs_grad(*tensors):
        raise RuntimeError(
            f"{name} is for inference: rounding has no gradient. "
            "Call it under torch.no_grad() or torch.inference_mode(), or on tensors that require none"
        )
    weights = shifted(parameters[0], weight_offset, x.dtype), *parameters[1:]
    a = Arguments(x, residual, weights, scale, number, dtype, block_size is not None, N)
    sizes = *x.shape[: x.dim() - len(shape)], *((*shape[:-1], shape[-1] // BLOCK) if a.blocks else (1,) * len(shape))
    if not N:
        found = allocated(a)
        if not a.blocks and scale is None:
            found = found._replace(scale=torch.full(sizes, 2.0**-126, dtype=torch.float32, device=x.device))
    elif transformed():
        found = formula(operator, a)
    elif traced(*tensors):
        found = by_op(operator, a)
    elif (device := kernels_on(x.device)) is None:
        found = formula(operator, a)
    else:
        quantizing = operator.prepared(a, sizes, device)
        remember(description, quantizing)
        found = quantizing.on((x, residual, *weights, scale))
    if found.scale is not None:
        found = found._replace(scale=found.scale.reshape(sizes))
    return _results(found, scale)


def _results(found: Quantized, given: Tensor | None) -> Results:
    q, scale, x = found
    if scale is None:
        assert given is not None
        scale = given
    return (q, scale) if x is None else (q, scale, x)


def _check_quantization(name: str, x: Tensor, dtype: Any, scale: Any, block_size: Any, shape: tuple[int, ...]) -> None:
    if dtype not in FORMATS:
        raise RuntimeError(f"{name}: expected dtype to be one of {', '.join(map(str, FORMATS))}, but got {dtype}")
    if scale is not None:
        check_companion(name, "scale", scale, x)
        if scale.dtype != torch.float32 or scale.numel() != 1:
            raise RuntimeError(
                f"{name}: expected scale to be one value of torch.float32, but got {list(scale.shape)} of {scale.dtype}"
            )
    if block_size is None:
        return
    if block_size != BLOCK:
        raise ValueError(f"{name}: expected block_size to be {BLOCK} or None, but got {block_size}")
    if scale is not None:
        raise ValueError(f"{name}: expected one of scale and block_size, but got both")
    if dtype == torch.int8:
        raise ValueError(f"{name}: expected a float for dtype beside block_size, but got {dtype}")
    if shape[-1] % BLOCK:
        raise RuntimeError(
            f"{name}: expected the last of normalized_shape to be a multiple of block_size={BLOCK}, "
            f"but got {list(shape)}"
        )
