"""Adaptive normalization: the norms with a scale and a shift for each batch, alone or after a gated sum."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from tritonln.ops import row_autograd, row_op
from tritonln.ops.companions import check_companion, check_dtype, check_shape, modulations
from tritonln.ops.contract import check, output_dtype
from tritonln.ops.known import described, known
from tritonln.ops.operands import BATCHES, COLUMNS, ROWS, Operand
from tritonln.ops.overridden import jagged_in_graph, overridden
from tritonln.ops.row_declaration import Parts
from tritonln.ops.rows import RowOperator, Settings


def _parts() -> Parts:
    from tritonln.kernels.adaptive import modulated, modulated_bwd

    return Parts(modulated, modulated_bwd)


def _gated_parts() -> Parts:
    from tritonln.kernels.add import add_gated, add_gated_bwd

    return _parts()._replace(enter=add_gated, enter_bwd=add_gated_bwd)


def _adaptive(norm: str, kind: str) -> dict[bool, RowOperator]:
    """Without and with a gated sum before it; modulated by rows of this kind."""
    suffix = "_by_row" if kind == ROWS else ""
    finishing = {
        **{"weight": Operand(COLUMNS, 1.0), "bias": Operand(COLUMNS, -0.0)},
        **{"scale": Operand(kind, 0.0), "shift": Operand(kind, -0.0, reread=False)},
    }
    entering = {"x": Operand(), "residual": Operand(ROWS, -0.0, reread=False), "gate": Operand(kind, 1.0)}
    alone = RowOperator(
        f"adaptive_{norm}{suffix}",
        _parts,
        finishing,
        centred=norm == "layer_norm",
        formula=lambda x_hat, weight, bias, scale, shift: (x_hat * weight + bias) * (1.0 + scale) + shift,
    )
    added = RowOperator(
        f"add_adaptive_{norm}{suffix}",
        _gated_parts,
        finishing,
        entering,
        alone.centred,
        returns_x=True,
        formula=alone.formula,
        enter_formula=lambda x, residual, gate: residual + x * gate,
    )
    for operator in (alone, added):
        row_op.define(operator)
    return {False: alone, True: added}


LAYER_NORMS = {by_row: _adaptive("layer_norm", ROWS if by_row else BATCHES) for by_row in (False, True)}
RMS_NORMS = {by_row: _adaptive("rms_norm", ROWS if by_row else BATCHES) for by_row in (False, True)}


def adaptive_layer_norm(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
) -> Tensor:
    r"""Layer normalization with a scale and a shift of each batch: the adaLN of diffusion transformers.

    .. math:: y = (\mathrm{LN}(x) \, w + b) (1 + \mathrm{scale}) + \mathrm{shift}

    Args:
        x: ``(B, *, *normalized_shape)``; fp32, fp16, bf16 or fp64.
        scale, shift: ``(B, *normalized_shape)``, ``(B, 1, *normalized_shape)``, one for each row as ``(B, T,
            *normalized_shape)``, or of another shape that broadcasts to that of x.  Two dimensions are batches first,
            not right-aligned.  None: none.  Chunks of one (B, 6 N) table are read where they lie.
            Written out in memory, a row for each of x, are only shapes such as (1, T, N) beside several batches, and
            all of them where their shapes differ in what a batch is.
        normalized_shape, weight, bias, eps: as in :func:`tritonln.layer_norm`.

    Returns:
        y, contiguous, of x's shape and dtype (fp32 under autocast, as F.layer_norm has); the other tensors may be of
        other dtypes (fp64 only beside fp64), all are upcast to fp32.  One launch forward.  Backward: dx, and dscale and
        dshift as fp32 sums over the rows of each batch in a fixed order.  Saved for backward: the arguments and 8 bytes
        a row.

    What :func:`tritonln.layer_norm` says of the bits of results and of derivatives holds here too, of a batch's scale
    and shift with those of its own rows.

    Raises:
        RuntimeError, TypeError: for shapes, dtypes and devices that do not fit, naming the argument.

    Source: Peebles and Xie, Scalable Diffusion Models with Transformers (2023, arXiv 2212.09748), section 3.2.
    """
    return _call(adaptive_layer_norm, F.layer_norm, x, None, scale, shift, normalized_shape, (weight, bias), eps)[0]


def adaptive_rms_norm(
    x: Tensor,
    scale: Tensor | None,
    shift: Tensor | None,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
) -> Tensor:
    r"""Root mean square normalization with a scale and a shift of each batch.

    .. math:: y = \mathrm{RMSNorm}(x) \, w \, (1 + \mathrm{scale}) + \mathrm{shift}

    :func:`adaptive_layer_norm` with :func:`tritonln.rms_norm` in the place of layer normalization; all else is as
    there, but for 4 bytes a row that are saved.
    """
    return _call(adaptive_rms_norm, F.rms_norm, x, None, scale, shift, normalized_shape, (weight,), eps)[0]


def add_adaptive_layer_norm(
    x: Tensor,
    residual: Tensor,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    residual_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The gated residual sum of a DiT block and the adaptive layer normalization of its next sublayer, in one pass.

    .. math:: r' = r + \mathrm{gate} \, x \qquad y = (\mathrm{LN}(r') \, w + b) (1 + \mathrm{scale}) + \mathrm{shift}

    with the norm of r' as it is rounded to its dtype.  One launch forward, which reads x and r and writes r' and y.

    Args:
        x: what a sublayer adds, ``(B, *, *normalized_shape)``; fp32, fp16, bf16 or fp64.
        residual: r, of x's shape.
        gate, scale, shift: as scale and shift in :func:`adaptive_layer_norm`.
        normalized_shape, weight, bias, eps: as in :func:`tritonln.layer_norm`.
        residual_dtype: of r'.  None: that of the residual.

    Returns:
        (y, r').  Dtypes as in :func:`adaptive_layer_norm`.  Saved for backward: r', x, gate, scale, shift, the
        parameters and 8 bytes a row.

    Raises:
        RuntimeError, TypeError: for shapes, dtypes and devices that do not fit, naming the argument.
    """
    added = residual, gate, residual_dtype
    return _call(add_adaptive_layer_norm, F.layer_norm, x, added, scale, shift, normalized_shape, (weight, bias), eps)


def add_adaptive_rms_norm(
    x: Tensor,
    residual: Tensor,
    gate: Tensor | None,
    scale: Tensor | None,
    shift: Tensor | None,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    residual_dtype: torch.dtype | None = None,
) -> tuple[Tensor, Tensor]:
    r"""The gated residual sum and the adaptive root mean square normalization of the next sublayer, in one pass.

    :func:`add_adaptive_layer_norm` with :func:`tritonln.rms_norm` in the place of layer normalization.
    """
    added = residual, gate, residual_dtype
    return _call(add_adaptive_rms_norm, F.rms_norm, x, added, scale, shift, normalized_shape, (weight,), eps)


def _call(
    public: Callable[..., Any],
    function: Callable[..., Tensor],
    x: Tensor,
    added: tuple[Tensor, Tensor | None, torch.dtype | None] | None,
    scale: Tensor | None,
    shift: Tensor | None,
    normalized_shape: int | Sequence[int],
    parameters: tuple[Tensor | None, ...],
    eps: float | None,
) -> tuple[Tensor, Tensor]:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
    weight, bias = (*parameters, None)[:2]
    residual, gate, x_dtype = added or (None, None, None)
    entering = (x,) if added is None else (x, residual, gate)
    asked = *entering, weight, bias, scale, shift
    description = described(public, asked, shape, eps, x_dtype)
    if (forward := known(description)) is not None:
        return row_autograd.again(forward, asked)  # type: ignore[return-value]
    if has_torch_function_variadic(*asked) or jagged_in_graph(x):
        options = {} if added is None else {"residual_dtype": x_dtype}
        found = overridden(public, asked, *entering, scale, shift, normalized_shape, *parameters, eps, **options)
        return found if added is not None else (found, None)  # type: ignore[return-value]
    name = public.__name__
    N, number = check(function, x, shape, parameters, eps)
    if added is not None:
        check_companion(name, "residual", residual, x)
        assert residual is not None
        check_shape(name, "residual", residual, x.shape)
        x_dtype = x_dtype or residual.dtype
        check_dtype(name, "residual_dtype", x_dtype, x)
    given = {"scale": scale, "shift": shift, "gate": gate}
    (scale, shift, gate), by_row = modulations(name, given, x, len(tuple(shape)), N)
    operator = (LAYER_NORMS if function is F.layer_norm else RMS_NORMS)[by_row][added is not None]
    entering = (x,) if added is None else (x, residual, gate)
    s = Settings(N, number, output_dtype(x.dtype, x.device.type), x_dtype)
    tensors = *entering, weight, bias, scale, shift
    description = description if all(a is b for a, b in zip(tensors, asked)) else None
    return row_autograd.call(operator, tensors, s, description)  # type: ignore[return-value]
