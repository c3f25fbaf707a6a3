"""Row operators under torch.func's vmap and reverse mode: a batched leading dimension is only more rows.

Both passes are autograd Functions with rules for vmap, so that kernels run on all rows at once.  Where a parameter is
batched, x_hat comes from the kernel and the parameter is applied in torch; gradients that are sums over the rows of
each sample are the formula's.  Derivatives of the backward pass are the formula's, to any order.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _get_tracing_state
from torch._C._functorch import TransformType, get_interpreter_stack

from tritonln.device import kernels_on
from tritonln.ops import row_formula
from tritonln.ops.contract import arithmetic, traced
from tritonln.ops.operands import BATCHES, COLUMNS, GROUPS, NOISE, ONE_A_BATCH, ROWS, Tensors, dtypes_of
from tritonln.ops.row_op import (
    Result,
    backward_by_op,
    backward_of,
    formula_backward,
    forward_by_op,
    forward_of,
    kept_of,
)
from tritonln.ops.rows import BackwardCall, RowOperator, Settings

RULED = TransformType.Vmap, TransformType.Grad
SHARED = COLUMNS, GROUPS  # what all rows have in common: its gradient is a sum over those of a sample


def serves() -> bool:
    """Whether of the transforms at work there is none but vmap and reverse mode.

    Compiled code fuses the formula, and jit.trace, to which sizes are tensors, notes down nothing but ATen's operators.
    """
    if torch.compiler.is_compiling() or _get_tracing_state() or torch.autograd.forward_ad._current_level >= 0:
        return False
    return all(interpreter.key() in RULED for interpreter in get_interpreter_stack() or ())


def call(operator: RowOperator, tensors: Tensors, s: Settings) -> Result:
    y, *x, _ = _Rows.apply(operator, s, *tensors)  # type: ignore[no-untyped-call]
    return y, x[0] if x else None


class _Rows(torch.autograd.Function):
    """(y, [x,] stats) of (operator, settings, *tensors)."""

    @staticmethod
    def forward(operator: RowOperator, s: Settings, *tensors: Tensor | None) -> tuple[Tensor, ...]:
        if traced(*tensors):
            return forward_by_op(operator, tensors, s)
        first = tensors[0]
        assert first is not None
        y, x, stats = forward_of(operator, tensors, s, True, kernels_on(first.device))
        assert stats is not None
        return (y, stats) if x is None else (y, x, stats)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.operator, ctx.s, *tensors = inputs
        ctx.save_for_backward(*kept_of(ctx.operator, tuple(tensors)), *output[1:])
        ctx.dtypes = dtypes_of(tensors)
        ctx.mark_non_differentiable(output[-1])
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        operator, s = ctx.operator, ctx.s
        n = len(operator.operands)
        *tensors, stats = ctx.saved_tensors
        x, dx = (tensors[n], others[0]) if operator.returns_x else (None, None)
        if dy is None and dx is None:
            return (None,) * (n + 2)
        given = operator.backward_call(dy, dx, x, tuple(tensors[:n]), ctx.dtypes, stats, s, ctx.needs_input_grad[2:])
        dy, dx, x, operands, dtypes, stats, s, asked = given
        needs = [needed and dtype is not None for needed, dtype in zip(asked, dtypes)]
        twin, source = operator.twin(dtypes, needs)
        if twin is not None:  # no result of a Function may be another one of them
            needs[twin] = False
        found = iter(_Gradients.apply(operator, s, dtypes, tuple(needs), dy, dx, x, stats, *operands))  # type: ignore[no-untyped-call]
        gradients = [next(found) if needed else None for needed in needs]
        if twin is not None:
            gradients[twin] = dy if source is None else gradients[source]
        return None, None, *gradients

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], operator: RowOperator, s: Settings, *tensors: Tensor | None) -> Any:
        V, dims, E = info.batch_size, tuple(in_dims[2:]), len(operator.entering)
        folded = _folded(operator, V, dims, tensors)
        if folded is not None:
            return _unfolded(V, _Rows.apply(operator, s, *folded))  # type: ignore[no-untyped-call]
        bare = _folded(operator, V, dims, (*tensors[:E], *[None] * len(operator.finishing)))
        if bare is None or any(operand.absent is None for operand in operator.finishing.values()):
            found = torch.vmap(lambda *t: _by_formula(operator, t, s), dims)(*tensors)
            return found, (0,) * len(found)
        # With all finishing operands absent, finish is the identity.
        x_hat, *rest = _Rows.apply(operator, s._replace(dtype=arithmetic(s.dtype)), *bare)  # type: ignore[no-untyped-call]
        y = torch.vmap(lambda x_hat, *finishing: row_formula.finish(operator, x_hat, finishing, s), (0, *dims[E:]))(
            x_hat, *tensors[E:]
        )
        return _unfolded(V, (y, *rest))


class _Gradients(torch.autograd.Function):
    """The gradients that are needed."""

    @staticmethod
    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        operator, call = _read(arguments)
        if traced(call.dy, call.dx, *call.tensors):
            found: Sequence[Tensor | None] = backward_by_op(operator, call)
        else:
            found = backward_of(operator, call, kernels_on(call.dy.device))
        return tuple([g for g in found if g is not None])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.constants, tensors = inputs[:4], inputs[4:]
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        needs = list(ctx.needs_input_grad[4:])
        needs[3] = False  # of the statistics, which are a function of the others
        again = lambda *tensors: _by_formula_backward(*_read((*ctx.constants, *tensors)))  # noqa: E731
        return None, None, None, None, *pulled(again, ctx.saved_tensors, needs, upstream)

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], *arguments: Any) -> Any:
        operator, call = _read(arguments)
        V, of_call, dims = info.batch_size, in_dims[4:8], in_dims[8:]
        folded = _folded(operator, V, dims, call.tensors)
        ruled = [
            needed and folded is not None and kind not in SHARED for needed, kind in zip(call.needs, operator.kinds)
        ]
        gradients: list[Tensor | None] = [None] * len(ruled)
        if folded is not None and any(ruled):
            dy, dx, x, stats = (front(t, dim, V) for t, dim in zip(arguments[4:8], of_call))
            constants = operator, call.s, call.dtypes, tuple(ruled)
            found = iter(_Gradients.apply(*constants, dy, dx, x, stats.flatten(0, 1), *folded))  # type: ignore[no-untyped-call, union-attr]
            sizes = (BATCHES, ONE_A_BATCH)
            gradients = [
                None if not wanted else _split(next(found), V) if kind in sizes else next(found)
                for wanted, kind in zip(ruled, operator.kinds)
            ]
        left = tuple([needed and not wanted for needed, wanted in zip(call.needs, ruled)])
        if any(left):

            def summed(*tensors: Tensor | None) -> tuple[Tensor, ...]:
                return _by_formula_backward(*_read((operator, call.s, call.dtypes, left, *tensors)))

            more = iter(torch.vmap(summed, tuple(in_dims[4:]))(*arguments[4:]))
            gradients = [next(more) if wanted else g for g, wanted in zip(gradients, left)]
        given = tuple([g for g in gradients if g is not None])
        return given, (0,) * len(given)


def _read(arguments: Sequence[Any]) -> tuple[RowOperator, BackwardCall]:
    operator, s, dtypes, needs, dy, dx, x, stats, *tensors = arguments
    return operator, BackwardCall(dy, dx, x, tuple(tensors), dtypes, stats, s, needs)


def _by_formula(operator: RowOperator, tensors: Tensors, s: Settings) -> tuple[Tensor, ...]:
    """Without statistics, which the formula of the gradients does not read."""
    y, x = row_formula.forward(operator, tensors, s)
    stats = y.new_empty((0, operator.statistics), dtype=arithmetic(s.dtype))
    return (y, stats) if x is None else (y, x, stats)


def _by_formula_backward(operator: RowOperator, call: BackwardCall) -> tuple[Tensor, ...]:
    """The gradients that are needed."""
    return tuple([g for g in formula_backward(operator, call, row_formula.by_vjp) if g is not None])


def pulled(
    function: Callable[..., Sequence[Tensor]],
    tensors: Sequence[Tensor | None],
    needs: Sequence[bool],
    upstream: Sequence[Tensor | None],
) -> list[Tensor | None]:
    """The gradients of tensors, each None unless needed, from those of the results of function(*tensors)."""
    needed = [i for i, wanted in enumerate(needs) if wanted]

    def of_needed(*changed: Tensor) -> list[Tensor]:
        given = list(tensors)
        for i, t in zip(needed, changed):
            given[i] = t
        return [y for y, dy in zip(function(*given), upstream) if dy is not None]

    pull = torch.func.vjp(of_needed, *[tensors[i] for i in needed])[1]
    found = iter(pull([dy for dy in upstream if dy is not None]))
    return [next(found) if wanted else None for wanted in needs]


def front(t: Tensor | None, dim: int | None, V: int) -> Tensor | None:
    if t is None:
        return None
    return t.expand(V, *t.shape) if dim is None else t.movedim(dim, 0)


def _split(t: Tensor, V: int) -> Tensor:
    return t.reshape(V, t.shape[0] // V, *t.shape[1:])


def _folded(operator: RowOperator, V: int, dims: Sequence[Any], tensors: Sequence[Any]) -> list[Tensor | None] | None:
    """Tensors of V samples as those of one with more rows; None where they are not that."""
    found = []
    for t, dim, kind in zip(tensors, dims, operator.kinds):
        if t is None or (kind in SHARED and dim is None):
            found.append(t)
        elif kind == ROWS:
            found.append(front(t, dim, V))
        elif kind in SHARED or kind == NOISE:
            return None
        else:
            found.append(front(t, dim, V).flatten(0, 1))  # type: ignore[union-attr]
    return found


def _unfolded(V: int, results: Sequence[Tensor]) -> tuple[tuple[Tensor, ...], tuple[int, ...]]:
    *of_rows, stats = results
    return (*of_rows, _split(stats, V)), (0,) * len(results)
