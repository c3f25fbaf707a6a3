"""gated_residual: the sum that the blocks of diffusion transformers end in."""

from __future__ import annotations

from torch import Tensor
from torch.overrides import has_torch_function_variadic

from tritonln.ops import row_autograd, row_op
from tritonln.ops.companions import check_companion, check_shape, modulations
from tritonln.ops.contract import DTYPES
from tritonln.ops.elementwise import Elementwise
from tritonln.ops.known import described, known
from tritonln.ops.operands import BATCHES, ROWS, Operand
from tritonln.ops.overridden import jagged_in_graph, overridden
from tritonln.ops.row_declaration import Parts
from tritonln.ops.rows import Settings


def _parts() -> Parts:
    from tritonln.kernels.add import add_gated, add_gated_bwd

    return Parts(None, None, add_gated, add_gated_bwd)


def _operator(kind: str) -> Elementwise:
    """Gated by rows of this kind.  As beside the adaptive norms, x is what is gated."""
    operator = Elementwise(
        "gated_residual" + ("_by_row" if kind == ROWS else ""),
        _parts,
        {},
        {"x": Operand(), "residual": Operand(ROWS, reread=False), "gate": Operand(kind)},
        centred=None,
        passed="residual",
        formula=lambda x: x,
        enter_formula=lambda x, residual, gate: residual + x * gate,
    )
    row_op.define(operator)
    return operator


OPERATORS = {by_row: _operator(ROWS if by_row else BATCHES) for by_row in (False, True)}


def gated_residual(x: Tensor, y: Tensor, gate: Tensor) -> Tensor:
    r"""The gated residual sum of a DiT block: one launch forward, which reads x and y and writes the result.

    .. math:: x + \mathrm{gate} \, y

    Where an adaptive norm follows, :func:`tritonln.add_adaptive_layer_norm` makes both in one pass.

    Args:
        x: the residual stream, ``(B, *, N)``; fp32, fp16, bf16 or fp64.
        y: what a sublayer adds, of x's shape.
        gate: ``(B, N)``, ``(B, 1, N)``, one for each row as ``(B, T, N)``, or of another shape that broadcasts to that
            of x, as scale and shift in :func:`tritonln.adaptive_layer_norm`: two dimensions are batches first, chunks
            of a table are read where they lie.

    Returns:
        A contiguous tensor of x's shape and dtype, under autocast too; y and the gate may be of other dtypes (fp64 only
        beside fp64), all are upcast to fp32.  Backward is one launch, which reads y and the gradient of the result, and
        a second for the gate's where several programs share a batch: an fp32 sum over the rows of each batch in a fixed
        order.  x's gradient is that of the result itself.  Saved for backward: y and gate; not x.

    What :func:`tritonln.layer_norm` says of the bits of results and of derivatives holds here too, of a batch's gate
    with its own rows.

    Raises:
        RuntimeError, TypeError: for shapes, dtypes and devices that do not fit, naming the argument.

    Source: Peebles and Xie, Scalable Diffusion Models with Transformers (2023, arXiv 2212.09748), section 3.2.
    """
    description = described("gated_residual", (y, x, gate), ())
    if (forward := known(description)) is not None:
        return row_autograd.again(forward, (y, x, gate))[0]
    tensors = x, y, gate
    if has_torch_function_variadic(*tensors) or jagged_in_graph(x):
        return overridden(gated_residual, tensors, x, y, gate)
    name = "gated_residual"
    if not isinstance(x, Tensor):
        raise TypeError(f"{name}(): argument 'x' must be Tensor, not {type(x).__name__}")
    if x.dtype not in DTYPES or x.dim() == 0:
        raise RuntimeError(
            f"{name}: expected x of (*, N) in float32, bfloat16, float16 or float64, "
            f"but got {list(x.shape)} of {x.dtype}"
        )
    check_companion(name, "y", y, x)
    check_shape(name, "y", y, x.shape)
    if gate is None:
        raise TypeError(f"{name}(): argument 'gate' must be Tensor, not NoneType")
    N = x.shape[-1]
    (gate_rows,), by_row = modulations(name, {"gate": gate}, x, 1, N)
    description = description if gate_rows is gate else None
    return row_autograd.call(OPERATORS[by_row], (y, x, gate_rows), Settings(N, 0.0, x.dtype), description)[0]
