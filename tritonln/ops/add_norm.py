"""add_layer_norm and add_rms_norm: the residual stream and its norm in one pass."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from tritonln.ops import row_autograd, row_formula, row_op
from tritonln.ops.companions import check_companion, check_dtype, check_shape, dropout_seed, probability, row_factors
from tritonln.ops.contract import check, needs_grad, output_dtype, shifted, transformed
from tritonln.ops.known import described, known
from tritonln.ops.layer_norm import LAYER_NORM
from tritonln.ops.noise import seed_from
from tritonln.ops.operands import NOISE, ONE_A_BATCH, ROWS, Operand
from tritonln.ops.overridden import jagged_in_graph, overridden
from tritonln.ops.rms_norm import RMS_NORM
from tritonln.ops.row_declaration import Parts
from tritonln.ops.rows import RowOperator, Settings
from tritonln.ops.subclasses import foreign


def _added(norm: RowOperator) -> RowOperator:
    """A norm of residual + row_scale noise x."""

    def parts() -> Parts:
        from tritonln.kernels.add import add, add_bwd

        return norm.parts()._replace(enter=add, enter_bwd=add_bwd)

    operator = RowOperator(
        f"add_{norm.name}",
        parts,
        norm.finishing,
        {
            "x": Operand(ROWS, reread=False),
            "residual": Operand(ROWS, -0.0, reread=False),
            "row_scale": Operand(ONE_A_BATCH, 1.0),
            "noise": Operand(NOISE, 1.0),
        },
        norm.centred,
        returns_x=True,
        twins=("x", "residual"),
        formula=norm.formula,
        enter_formula=lambda x, residual, row_scale, noise: residual + x * (row_scale * noise),
    )
    row_op.define(operator)
    return operator


NOISE_AT = 3  # of the operands
ADD_LAYER_NORM, ADD_RMS_NORM = _added(LAYER_NORM), _added(RMS_NORM)


def add_layer_norm(
    x: Tensor,
    residual: Tensor | None,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    bias: Tensor | None = None,
    eps: float = 1e-5,
    *,
    dropout_p: float = 0.0,
    training: bool = True,
    row_scale: Tensor | None = None,
    residual_dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""The residual stream of a transformer and its layer normalization, in one pass over memory.

    .. math:: r' = r + s \, \mathrm{dropout}_p(x) \qquad y = \mathrm{LN}(r') \, w + b

    with :func:`tritonln.layer_norm` of r' as it is rounded to its dtype: one launch forward, which reads x and r and
    writes r' and y, and two backward, which take the gradients of both results (three of rows wider than a tile).

    Args:
        x: what a sublayer adds, ``(*, *normalized_shape)``; fp32, fp16, bf16 or fp64.
        residual: r, of x's shape.  None: there is none yet, as before the first layer.
        normalized_shape, weight, bias, eps, weight_offset: of the norm, as in :func:`tritonln.layer_norm`.
        dropout_p: probability with which an element of x becomes 0; the others are divided by 1 - p.
        training: False: nothing is dropped.
        row_scale: s, one factor for each of the outermost dimensions of x, such as (B, 1, 1) of stochastic depth.  Its
            own gradient is computed in torch's elementary operations.
        residual_dtype: of r'.  None: that of the residual, or of x where there is none.
        generator: torch's, of x's device, which seeds dropout.  None: the default one, so that
            ``torch.manual_seed`` repeats what is dropped; a replayed CUDA graph drops anew.

    Returns:
        (y, r'), contiguous, of x's shape; y has x's dtype (fp32 under autocast, as F.layer_norm has).  x, the residual
        and the parameters may differ in dtype (fp64 only beside fp64): all are upcast to fp32.  Saved for backward: r',
        the parameters, row_scale, 8 bytes a row and the seed of dropout, whose noise is drawn again (8 bytes); neither
        x nor the residual.  What is dropped is drawn by row and column, with Philox, and is the same for every
        configuration, GPU and dtype.

    What :func:`tritonln.layer_norm` says of the bits of results and of derivatives holds here too.  Where only r' is
    used, its gradient does not go through the norm, whose parameters have none; compiled code that returns y too gives
    them zeros, as it does those of torch's norms.  Hooks on r' see the gradient of its uses outside of this function.

    Raises:
        RuntimeError, TypeError, ValueError: for shapes, dtypes, devices and probabilities that do not fit, naming the
            argument, in torch's words where it has them.
    """
    return _call(
        add_layer_norm, ADD_LAYER_NORM, F.layer_norm, x, residual, normalized_shape, (weight, bias), eps, dropout_p,
        training, row_scale, residual_dtype, generator, weight_offset,
    )  # fmt: skip


def add_rms_norm(
    x: Tensor,
    residual: Tensor | None,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    dropout_p: float = 0.0,
    training: bool = True,
    row_scale: Tensor | None = None,
    residual_dtype: torch.dtype | None = None,
    generator: torch.Generator | None = None,
    weight_offset: float = 0.0,
) -> tuple[Tensor, Tensor]:
    r"""The residual stream of a transformer and its root mean square normalization, in one pass over memory.

    .. math:: r' = r + s \, \mathrm{dropout}_p(x) \qquad y = \mathrm{RMSNorm}(r') \, w

    :func:`add_layer_norm` with :func:`tritonln.rms_norm` in the place of layer normalization, whose ``weight``, ``eps``
    and ``weight_offset`` it takes; all else is as there, but for 4 bytes a row that are saved.
    """
    return _call(
        add_rms_norm, ADD_RMS_NORM, F.rms_norm, x, residual, normalized_shape, (weight,), eps, dropout_p, training,
        row_scale, residual_dtype, generator, weight_offset,
    )  # fmt: skip


def _call(
    public: Callable[..., tuple[Tensor, Tensor]],
    operator: RowOperator,
    function: Callable[..., Tensor],
    x: Tensor,
    residual: Tensor | None,
    normalized_shape: int | Sequence[int],
    parameters: tuple[Tensor | None, ...],
    eps: float | None,
    dropout_p: float,
    training: bool,
    row_scale: Tensor | None,
    residual_dtype: torch.dtype | None,
    generator: torch.Generator | None,
    weight_offset: float,
) -> tuple[Tensor, Tensor]:
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
    description = None
    if row_scale is None and not weight_offset:
        given = x, residual, *parameters
        description = described(operator, given, shape, eps, weight_offset, dropout_p, training, residual_dtype)
        if (forward := known(description)) is not None:
            seed = None if forward.dtypes[NOISE_AT] is None else seed_from(generator, x.device)
            return row_autograd.again(forward, (x, residual, None, seed, *parameters))  # type: ignore[return-value]
    tensors = x, residual, *parameters, row_scale
    if has_torch_function_variadic(*tensors) or jagged_in_graph(x):
        return overridden(
            public, tensors, x, residual, normalized_shape, *parameters, eps, dropout_p=dropout_p, training=training,
            row_scale=row_scale, residual_dtype=residual_dtype, generator=generator, weight_offset=weight_offset,
        )  # fmt: skip
    N, number = check(function, x, shape, parameters, eps)
    name, weight = operator.name, shifted(parameters[0], weight_offset, x.dtype)
    if residual is not None:
        check_companion(name, "residual", residual, x)
        check_shape(name, "residual", residual, x.shape)
    if residual_dtype is None:
        residual_dtype = x.dtype if residual is None else residual.dtype
    check_dtype(name, "residual_dtype", residual_dtype, x)
    factors = None if row_scale is None else row_factors(name, "row_scale", row_scale, x, len(tuple(shape)))
    dropout_p = probability(dropout_p)
    if training and dropout_p and generator is None and foreign(x):
        x, dropout_p = F.dropout(x, dropout_p), 0.0  # torch shards the noise of a DTensor; the kernels' is drawn by row
    seed = dropout_seed(dropout_p, training, generator, x.device)
    s = Settings(N, number, output_dtype(x.dtype, x.device.type), residual_dtype, dropout_p)
    operands = x, residual, factors, seed, weight, *parameters[1:]
    # The kernels have no gradient of the factors: a sum over all values of a batch.
    if factors is not None and (needs_grad(factors) or transformed()):
        return row_formula.forward(operator, operands, s)  # type: ignore[return-value]
    return row_autograd.call(operator, operands, s, description)  # type: ignore[return-value]
