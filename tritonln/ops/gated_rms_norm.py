"""gated_rms_norm: RMSNorm beside a silu gate, after or before it."""

from __future__ import annotations

from collections.abc import Sequence

import torch.nn.functional as F
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from tritonln.ops import row_autograd, row_op
from tritonln.ops.companions import check_companion, check_shape
from tritonln.ops.contract import check, integer, output_dtype, shifted
from tritonln.ops.known import described, known
from tritonln.ops.operands import COLUMNS, GROUPS, Operand
from tritonln.ops.overridden import jagged_in_graph, overridden
from tritonln.ops.rms_norm import RMS_NORM
from tritonln.ops.row_declaration import Parts
from tritonln.ops.rows import RowOperator, Settings


def _gated() -> Parts:
    from tritonln.kernels.gated import gated, gated_bwd

    return Parts(gated, gated_bwd)


def _gate_first() -> Parts:
    from tritonln.kernels.gated import gate_first, gate_first_bwd

    return RMS_NORM.parts()._replace(enter=gate_first, enter_bwd=gate_first_bwd)


def _operators(weight: str) -> dict[bool, RowOperator]:
    """With the norm before the gate, and after it; with a weight of this kind."""
    suffix = "_by_group" if weight == GROUPS else ""
    found = {
        True: RowOperator(
            f"gated_rms_norm{suffix}",
            _gated,
            {"weight": Operand(weight, 1.0), "gate": Operand()},
            centred=False,
            formula=lambda x_hat, weight, gate: x_hat * weight * F.silu(gate),
            held=1,
        ),
        False: RowOperator(
            f"gate_first_rms_norm{suffix}",
            _gate_first,
            {"weight": Operand(weight, 1.0)},
            {"x": Operand(), "gate": Operand()},
            centred=False,
            formula=RMS_NORM.formula,
            enter_formula=lambda x, gate: x * F.silu(gate),
            held=2,
        ),
    }
    for operator in found.values():
        row_op.define(operator)
    return found


BY_ROW, BY_GROUP = _operators(COLUMNS), _operators(GROUPS)


def gated_rms_norm(
    x: Tensor,
    gate: Tensor,
    normalized_shape: int | Sequence[int],
    weight: Tensor | None = None,
    eps: float | None = None,
    *,
    norm_before_gate: bool = True,
    group_size: int | None = None,
    weight_offset: float = 0.0,
) -> Tensor:
    r"""Root mean square normalization with a silu gate, as Mamba-2 and linear attention end in.

    .. math:: y = \mathrm{RMSNorm}(x) \, w \, \mathrm{silu}(g) \qquad \text{or} \qquad
              y = \mathrm{RMSNorm}(x \, \mathrm{silu}(g)) \, w

    Args:
        x: ``(*, *normalized_shape)``; fp32, fp16, bf16 or fp64.
        gate: g, of x's shape; of another dtype where it likes (fp64 only beside fp64).
        normalized_shape, weight, eps, weight_offset: as in :func:`tritonln.rms_norm`.
        norm_before_gate: False: the second formula.
        group_size: values that are normalized together, the first so many of a row, the next, and so on; it divides the
            row.  None: the row.  Rows that are not contiguous are copied then.

    Returns:
        y, contiguous, of x's shape and dtype (fp32 under autocast, as F.rms_norm has).  One launch forward, two
        backward.  Saved for backward: the arguments and 4 bytes a row.

    What :func:`tritonln.layer_norm` says of the bits of results and of derivatives holds here too.

    Raises:
        RuntimeError, TypeError: for shapes, dtypes and devices that do not fit, naming the argument.

    Source: Dao and Gu, Transformers are SSMs (2024, arXiv 2405.21060), section 7.
    """
    shape = (normalized_shape,) if isinstance(normalized_shape, int) else normalized_shape
    operator, description = (BY_ROW if group_size is None else BY_GROUP)[bool(norm_before_gate)], None
    if group_size is None and not weight_offset:
        given = (x, weight, gate) if norm_before_gate else (x, gate, weight)
        description = described(operator, given, shape, eps, weight_offset)
        if (forward := known(description)) is not None:
            return row_autograd.again(forward, given)[0]
    if has_torch_function_variadic(x, gate, weight) or jagged_in_graph(x):
        return overridden(
            gated_rms_norm, (x, gate, weight), x, gate, normalized_shape, weight, eps,
            norm_before_gate=norm_before_gate, group_size=group_size, weight_offset=weight_offset,
        )  # fmt: skip
    N, number = check(F.rms_norm, x, shape, (weight,), eps)
    check_companion("gated_rms_norm", "gate", gate, x)
    check_shape("gated_rms_norm", "gate", gate, x.shape)
    weight = shifted(weight, weight_offset, x.dtype)
    if group_size is not None:
        if not hasattr(group_size, "__index__") or group_size < 1 or N % group_size:
            raise ValueError(
                f"gated_rms_norm: expected group_size to be an integer that divides the row length {N}, "
                f"but got {group_size!r}"
            )
        group_size = integer(group_size)
        weight = None if weight is None else weight.reshape(N // group_size, group_size)
        N = group_size
    s = Settings(N, number, output_dtype(x.dtype, x.device.type))
    tensors = (x, weight, gate) if norm_before_gate else (x, gate, weight)
    return row_autograd.call(operator, tensors, s, description)[0]
