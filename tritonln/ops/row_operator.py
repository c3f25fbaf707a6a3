"""row_operator: a fused normalization of one's own, from two to four device functions."""

from __future__ import annotations

import ast
import inspect
import math
import textwrap
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from tritonln.ops import row_autograd, row_op
from tritonln.ops.contract import DTYPES, HALF, check_device, number, output_dtype
from tritonln.ops.known import described, known
from tritonln.ops.operands import COLUMNS, ROWS, Operand
from tritonln.ops.row_declaration import Parts
from tritonln.ops.rows import RowOperator, Settings
from tritonln.ops.sizes import agree


def row_operator(
    name: str,
    finish: Any,
    finish_bwd: Any,
    *,
    columns: Mapping[str, float] | None = None,
    streams: Sequence[str] = ("x",),
    enter: Any = None,
    enter_bwd: Any = None,
    centred: bool = True,
    formula: Callable[..., Tensor] | None = None,
    enter_formula: Callable[..., Tensor] | None = None,
) -> Callable[..., Tensor]:
    r"""A normalization of rows that is fused with what comes before and after it, forward and backward.

    .. math:: y = \mathrm{finish}(\hat x, c_1, c_2, \dots) \qquad
              \hat x = \frac{x - \mathrm E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \qquad
              x = \mathrm{enter}(s_1, s_2, \dots)

    The parts are ``@triton.jit`` functions of tiles, in fp32 (fp64 for fp64 input) whatever the dtypes of the
    tensors, and work element by element.  A module of parts imports ``triton.language as tl``.

    Args:
        name: of the operator, an identifier: its kernels are ``NAME_fwd`` and ``NAME_bwd`` in profiles and tables.
        finish: ``(x_hat, *columns) -> y``.
        finish_bwd: ``(dy, x_hat, *columns) -> (dx_hat, (d_column, ...))``, linear in ``dy``: the gradient of
            x_hat, and for each column the term of this element, which is summed over all rows.
        columns: the operands with one value for each column, such as weight and bias, by name and in order, each
            with the number that stands for it where it is not given.
        streams: the operands that are read row by row, by name and in order.
        enter: ``(*streams) -> x``; may be left out where there is one stream, which is x then.
        enter_bwd: ``(dx, *streams) -> (d_stream, ...)``; given if and only if ``enter`` is.
        centred: whether the mean is taken out.  If not, :math:`\hat x = x / \sqrt{\mathrm E[x^2] + \epsilon}`.
        formula: finish in torch, for tensors that no kernel serves (CPU tensors beside Triton's interpreter), for
            second derivatives, forward mode and the transforms of torch.func, which say so where it is missing.
        enter_formula: enter in torch, beside ``formula``.

    Returns:
        ``operator(*streams, *columns, eps=1e-5)``, whose arguments may also be given by name.  Streams are ``(*, N)``
        of one shape, in fp32, fp16, bf16 or fp64; columns ``(N,)``, in the dtype of the first stream or in fp32 for
        16-bit ones.  y has the shape and dtype of the first stream.  Every row length and stride, gradients that are
        the same bits on every run, tuning, and torch.compile are as those of :func:`tritonln.layer_norm`.  Saved for
        backward: the arguments, and 8 bytes a row (16 for fp64; half of that where rows are not centred).

    Raises:
        TypeError, ValueError: for parts that do not fit together, naming the part and what was expected of it.
    """
    columns, streams = dict(columns or {}), tuple(streams)
    _check_name(name, streams, tuple(columns))
    if name not in _built and hasattr(torch.ops.tritonln, name):
        raise ValueError(f"{name} is an operator of tritonln's: expected another name")
    if len(streams) > 1 and enter is None:
        raise TypeError(f"{name}: expected enter, which makes x of the streams {', '.join(streams)}, but got None")
    if (enter is None) != (enter_bwd is None):
        raise TypeError(f"{name}: expected both or neither of enter and enter_bwd")
    names = tuple(columns)
    _check_part(name, "finish", finish, ("x_hat", *names))
    _check_part(name, "finish_bwd", finish_bwd, ("dy", "x_hat", *names), gradients_of=names)
    if enter is not None:
        _check_part(name, "enter", enter, streams)
        _check_part(name, "enter_bwd", enter_bwd, ("dx", *streams))
    parts = Parts(finish, finish_bwd, enter, enter_bwd)
    declared = RowOperator(
        name,
        lambda: parts,
        {column: Operand(COLUMNS, float(number)) for column, number in columns.items()},
        {stream: Operand() for stream in streams},
        centred,
        formula=formula,
        enter_formula=enter_formula,
    )
    row_op.define(declared)
    _built.add(name)
    return _public(declared)


_built: set[str] = set()


def _check_name(name: str, streams: tuple[str, ...], columns: tuple[str, ...]) -> None:
    operands = (*streams, *columns, "eps")
    for word in (name, *operands):
        if not isinstance(word, str) or not word.isidentifier():
            raise ValueError(f"expected names of operators and operands to be identifiers, but got {word!r}")
    if not streams or len(set(operands)) < len(operands):
        raise ValueError(f"{name}: expected a stream, and different names of all operands, but got {operands}")


def _check_part(name: str, part: str, function: Any, takes: tuple[str, ...], gradients_of: Any = None) -> None:
    python = getattr(function, "fn", None)
    if python is None:
        raise TypeError(f"{name}: expected {part} to be a @triton.jit function, but got {function!r}")
    parameters = list(inspect.signature(python).parameters)
    if len(parameters) != len(takes):
        raise TypeError(f"{name}: expected {part} to take ({', '.join(takes)}), but it takes ({', '.join(parameters)})")
    if gradients_of is None:
        return
    tree = ast.parse(textwrap.dedent(inspect.getsource(python)))
    for node in ast.walk(tree):
        value = node.value if isinstance(node, ast.Return) else None
        if isinstance(value, ast.Tuple):
            terms = value.elts[-1]
            literal = len(value.elts) == 2 and isinstance(terms, ast.Tuple)
            if len(value.elts) != 2 or (literal and len(terms.elts) != len(gradients_of)):  # type: ignore[attr-defined]
                expected = "".join(f"d{column}, " for column in gradients_of)
                raise TypeError(
                    f"{name}: expected {part} to return dx_hat and one term for each column, (dx_hat, ({expected})), "
                    f"but it returns ({ast.unparse(value)})"
                )


def _public(operator: RowOperator) -> Callable[..., Tensor]:
    kind = inspect.Parameter.POSITIONAL_OR_KEYWORD
    signature = inspect.Signature(
        [
            *(inspect.Parameter(name, kind, annotation=Tensor) for name in operator.entering),
            *(inspect.Parameter(name, kind, default=None, annotation=Tensor | None) for name in operator.finishing),
            inspect.Parameter("eps", kind, default=1e-5, annotation=float),
        ],
        return_annotation=Tensor,
    )

    def call(*arguments: Any, **keywords: Any) -> Tensor:
        bound = signature.bind(*arguments, **keywords)
        bound.apply_defaults()
        *tensors, eps = bound.arguments.values()
        description = described(operator, tensors, (), eps)
        if (forward := known(description)) is not None:
            return row_autograd.again(forward, tuple(tensors))[0]
        N, x = _check(operator, tensors), tensors[0]
        s = Settings(N, number(f"{operator.name}(): argument 'eps'", eps), output_dtype(x.dtype, x.device.type))
        return row_autograd.call(operator, tuple(tensors), s, description)[0]

    call.__name__ = call.__qualname__ = operator.name
    call.__signature__ = signature  # type: ignore[attr-defined]
    call.__doc__ = f"{operator.name}{signature}: a row operator; see tritonln.row_operator."
    return call


def _check(operator: RowOperator, tensors: Sequence[Any]) -> int:
    """Raises for operands that do not fit each other.  Returns the row length."""
    name, x = operator.name, tensors[0]
    for (word, operand), t in zip(operator.operands.items(), tensors):
        if t is None and operand.absent is not None:
            continue
        if not isinstance(t, Tensor):
            raise TypeError(f"{name}(): argument '{word}' must be Tensor, not {type(t).__name__}")
        shape = x.shape if operand.kind == ROWS else x.shape[-1:]
        if t.dim() == 0 or not agree(t.shape, shape):
            raise RuntimeError(f"{name}: Expected {word} size {list(shape)}, got {list(t.shape)}")
        check_device(name, word, t, x.device)
        if t.dtype not in DTYPES or (t.dtype != x.dtype and not (t.dtype == torch.float32 and x.dtype in HALF)):
            raise RuntimeError(f"{name}: expected {word} of dtype {x.dtype}, or float32 for 16 bits, got {t.dtype}")
    return math.prod(x.shape[-1:])
