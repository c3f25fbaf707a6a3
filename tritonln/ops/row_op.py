"""A row operator as a custom op: what torch.compile, torch.export and fake tensors see, and what runs inside."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonln.configurations.tunable import register_operator
from tritonln.device import Device, kernels_on
from tritonln.ops import library, row_formula, subclasses
from tritonln.ops.contract import arithmetic, autograd_inside, beyond_numbers, needs_grad, refuse_tangents
from tritonln.ops.operands import GROUPS, NOISE, ONE_A_BATCH, Tensors, dtypes_of
from tritonln.ops.rows import BackwardCall, RowOperator, Settings

Result = tuple[Tensor, Tensor | None]  # y, and x where that is a result


def by_op(operator: RowOperator, tensors: Tensors, s: Settings) -> Result:
    """In traced code, and of tensors that are more than their storage."""
    results = op(operator)(*_arguments(operator, tensors, s), needs_grad(*tensors))
    return results[0], results[1] if operator.returns_x else None


def forward_by_op(operator: RowOperator, tensors: Tensors, s: Settings) -> tuple[Tensor, ...]:
    """(y, [x,] stats)"""
    *results, stats = op(operator)(*_arguments(operator, tensors, s), True)
    return *results, _flat(operator, stats)


def forward_of(
    operator: RowOperator, tensors: Tensors, s: Settings, save: bool, device: Device | None
) -> tuple[Tensor, Tensor | None, Tensor | None]:
    if device is None and operator.aten is not None:
        y, stats = operator.aten.forward(tensors[0], s.N, *tensors[1:], s.eps, save)
        return y, None, stats
    if device is None:
        y, x = row_formula.forward(operator, tensors, s)
        if not save:
            return y, x, None
        if operator.centred is None:
            return y, x, row_formula.no_statistics(y, s)
        found = row_formula.entered(operator, tensors, s) if x is None else row_formula.rows(x, s.N)
        return y, x, row_formula.statistics(operator, found, s)
    return operator.forward(tensors, s, save, device)


def backward_of(operator: RowOperator, call: BackwardCall, device: Device | None) -> Sequence[Tensor | None]:
    if device is None and operator.aten is not None:
        return operator.aten.backward(call.dy, call.tensors[0], call.s.N, *call.tensors[1:], call.stats, call.needs)
    if device is None:
        return formula_backward(operator, call)
    return operator.backward(call, device)


def formula_backward(
    operator: RowOperator, call: BackwardCall, pull: row_formula.Pull | None = None
) -> list[Tensor | None]:
    """By the formula, with zeros for operands that were not kept: their values do not matter."""
    # From x, or what else was kept of its shape, as dy may be many gradients at once.
    x = call.tensors[0] if call.x is None else call.x
    restored = tuple(
        t if x is None or t is not None or dtype is None else x.new_zeros((), dtype=dtype).expand(x.shape)
        for t, dtype in zip(call.tensors, call.dtypes)
    )
    return row_formula.backward(operator, call._replace(tensors=restored), pull)


def kept_of(operator: RowOperator, tensors: Tensors) -> Tensors:
    return tensors if all(operator.kept) else tuple([t if kept else None for t, kept in zip(tensors, operator.kept)])


def op(operator: RowOperator) -> Any:
    return library.op(operator.name)


def backward_op(operator: RowOperator) -> Any:
    return library.op(f"{operator.name}_backward")


def _arguments(operator: RowOperator, tensors: Sequence[Any], s: Settings) -> tuple[Any, ...]:
    """Those of the custom op but for `save`: what an operator has no use for is left out."""
    E = len(operator.entering)
    p = (s.p,) if NOISE in operator.kinds else ()
    dtypes = (s.dtype, s.x_dtype) if operator.returns_x else (s.dtype,)
    return *tensors[:E], s.N, *tensors[E:], s.eps, *p, *dtypes


def _schema(operator: RowOperator) -> str:
    typed = [f"Tensor{'' if o.absent is None else '?'} {name}" for name, o in operator.operands.items()]
    E = len(operator.entering)
    p = ["float p"] if NOISE in operator.kinds else []
    dtypes = ["ScalarType dtype", "ScalarType x_dtype"] if operator.returns_x else ["ScalarType dtype"]
    return ", ".join([*typed[:E], "SymInt N", *typed[E:], "float eps", *p, *dtypes])


def read(operator: RowOperator, arguments: Sequence[Any]) -> tuple[Tensors, Settings, Sequence[Any]]:
    """The tensors, the settings, and what follows them."""
    E, n = len(operator.entering), len(operator.operands)
    tensors = *arguments[:E], *arguments[E + 1 : n + 1]
    eps, *rest = arguments[n + 1 :]
    p = rest.pop(0) if NOISE in operator.kinds else 0.0
    dtype = rest.pop(0)
    return tensors, Settings(arguments[E], eps, dtype, rest.pop(0) if operator.returns_x else None, p), rest


def _backward_schema(operator: RowOperator) -> str:
    typed = [
        f"Tensor{'' if o.absent is None and kept else '?'} {name}"
        for (name, o), kept in zip(operator.operands.items(), operator.kept)
    ]
    results = ["Tensor? dx_out", "Tensor x_out"] if operator.returns_x else []
    # Each by itself: of a list, torch 2.11 gives Python numbers.
    dtypes = [f"ScalarType {name}_dtype" for name in operator.operands]
    more = ["float eps", "float p", *dtypes] if operator.aten is None else []
    E = len(operator.entering)
    return ", ".join(["Tensor dy", *results, *typed[:E], "SymInt N", *typed[E:], "Tensor stats", *more, "bool[] needs"])


def read_backward(operator: RowOperator, dy: Tensor, arguments: Sequence[Any]) -> BackwardCall:
    R, E, n = 2 * operator.returns_x, len(operator.entering), len(operator.operands)
    dx, x = arguments[:R] or (None, None)
    entering, N, *rest = arguments[R : R + E], *arguments[R + E :]
    tensors, (stats, *more, needs) = (*entering, *rest[: n - E]), rest[n - E :]
    eps, p, *dtypes = more or [0.0, 0.0, *dtypes_of(tensors)]
    known = tuple(None if t is None and k else dtype for t, k, dtype in zip(tensors, operator.kept, dtypes))
    s = Settings(N, eps, dy.dtype, None if x is None else x.dtype, p)
    needed = tuple(wanted and dtype is not None for wanted, dtype in zip(needs, known))
    return BackwardCall(dy, dx, x, tensors, known, stats, s, needed)


def backward_by_op(operator: RowOperator, call: BackwardCall) -> list[Tensor | None]:
    dy, dx, x, tensors, dtypes, stats, s, needs = call
    E = len(operator.entering)
    results = (dx, x) if operator.returns_x else ()
    more: tuple[Any, ...] = ()
    if operator.aten is None:
        more = s.eps, s.p, *[dy.dtype if dtype is None else dtype for dtype in dtypes]
    wanted = [needed and dtype is not None for needed, dtype in zip(needs, dtypes)]
    twin, source = operator.twin(dtypes, wanted)
    if twin is not None:  # no result of an op may be another one of them: it would be a copy
        wanted[twin] = False
    found = backward_op(operator)(dy, *results, *tensors[:E], s.N, *tensors[E:], stats, *more, wanted)
    gradients = [g if needed else None for g, needed in zip(found, wanted)]
    if twin is not None:
        gradients[twin] = dy if source is None else gradients[source]
    return gradients


def define(operator: RowOperator) -> None:
    """Makes tritonln::NAME and tritonln::NAME_backward known to torch, and the operator's kernels to the tuner."""
    register_operator(operator)
    subclasses.RULES[operator.name] = functools.partial(_shard, operator)
    subclasses.known.discard(operator.name)
    name, n = operator.name, len(operator.operands)

    def results(y: Tensor, x: Tensor | None, stats: Tensor | None, tensors: Tensors, s: Settings) -> tuple[Tensor, ...]:
        saved = _room_for_stats(operator, y, s, (0,)) if stats is None else _by_rows(operator, stats, tensors, s)
        return (y, saved) if x is None else (y, x, saved)

    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        refuse_tangents(name)
        tensors, s, (save,) = read(operator, arguments)
        y, x, stats = forward_of(operator, tensors, s, save, kernels_on(tensors[0].device))  # type: ignore[union-attr]
        return results(y, x, stats, tensors, s)

    def fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
        tensors, s, (save,) = read(operator, arguments)
        first: Any = tensors[0]
        y, *x = (torch.empty(first.shape, dtype=dtype, device=first.device) for dtype in (s.dtype, s.x_dtype) if dtype)
        return y, *x, _room_for_stats(operator, y, s, _rows(operator, tensors, s) if save else (0,))

    def backward(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        refuse_tangents(name)
        call = read_backward(operator, dy, arguments)
        call = call._replace(stats=_flat(operator, call.stats))
        with autograd_inside():
            found = backward_of(operator, call, kernels_on(dy.device))
        apart: list[Tensor] = []  # torch wants no result of an op to be another one of them
        for g in found:
            apart.append(dy.new_empty(0) if g is None else g.clone() if any(g is other for other in apart) else g)
        return tuple(apart)

    def fake_backward(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        call = read_backward(operator, dy, arguments)
        return tuple(
            torch.empty((dy if t is None else t).shape, dtype=dtype, device=dy.device) if needed else dy.new_empty(0)
            for t, dtype, needed in zip(call.tensors, call.dtypes, call.needs)
        )

    def decomposed(*arguments: Any) -> tuple[Tensor, ...]:
        tensors, s, (save,) = read(operator, arguments)
        y, x, stats = forward_of(operator, tensors, s, save, None)
        return results(y.to(s.dtype), x, stats, tensors, s)

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        tensors, ctx.s, (ctx.saved,) = read(operator, inputs)
        x = output[1] if operator.returns_x else None
        ctx.save_for_backward(*kept_of(operator, tensors), x, output[-1])
        ctx.dtypes = dtypes_of(tensors)
        constant = x is not None and not any(ctx.needs_input_grad[: len(operator.entering)])
        ctx.mark_non_differentiable(*output[1 if constant else -1 :])
        ctx.set_materialize_grads(False)  # of the statistics, which have none

    def differentiated(ctx: Any, dy: Tensor | None, *others: Tensor | None) -> tuple[Tensor | None, ...]:
        dx, s, E = others[0] if operator.returns_x else None, ctx.s, len(operator.entering)
        *tensors, x, stats = ctx.saved_tensors
        scalars = 2 + (NOISE in operator.kinds) + (1 + operator.returns_x)
        if dy is None and dx is None:
            return (None,) * (n + 1 + scalars)
        needs = *ctx.needs_input_grad[:E], *ctx.needs_input_grad[E + 1 : n + 1]
        _refuse_factors(operator, needs)
        beyond = beyond_numbers(dy, dx)
        if not ctx.saved and not beyond:  # the graph was captured where nothing required a gradient
            stats = _statistics_anew(operator, tensors, x, s, dx if dy is None else dy)  # type: ignore[arg-type]
        call = operator.backward_call(dy, dx, x, tuple(tensors), ctx.dtypes, stats, s, needs)
        found = formula_backward(operator, call) if beyond else backward_by_op(operator, call)
        return *found[:E], None, *found[E:], *(None,) * scalars

    forward_results, backward_results = (", ".join(["Tensor"] * count) for count in (2 + operator.returns_x, n))
    library.define(
        name,
        f"({_schema(operator)}, bool save) -> ({forward_results})",
        forward,
        fake_forward,
        backward=differentiated,
        setup_context=setup_context,
        decomposition=decomposed,
    )
    signature = f"({_backward_schema(operator)}) -> ({backward_results})"
    library.define(f"{name}_backward", signature, backward, fake_backward)


def _shard(operator: RowOperator) -> None:
    from tritonln.ops import row_sharding  # which imports torch.distributed.tensor

    row_sharding.register(operator)


def _statistics_anew(
    operator: RowOperator, tensors: Sequence[Any], x: Tensor | None, s: Settings, dy: Tensor
) -> Tensor:
    if operator.centred is None:
        return _by_rows(operator, row_formula.no_statistics(dy, s), (dy, *tensors[1:]), s)
    if x is None:
        return op(operator)(*_arguments(operator, tensors, s), True)[-1]
    stats = row_formula.statistics(operator, row_formula.rows(x, s.N), s)
    return _by_rows(operator, stats, (x, *tensors[1:]), s)


def _refuse_factors(operator: RowOperator, needs: Sequence[bool]) -> None:
    """Eager calls compute these gradients by the formula, which a graph that was captured without them lacks."""
    for (word, operand), needed in zip(operator.operands.items(), needs):
        if needed and operand.kind == ONE_A_BATCH:
            raise RuntimeError(
                f"{operator.name} in a graph that was captured before has no gradient of {word}: "
                f"call tritonln.{operator.name} itself, or capture the graph where {word} requires a gradient"
            )


def _room_for_stats(operator: RowOperator, y: Tensor, s: Settings, rows: Sequence[int]) -> Tensor:
    return torch.empty((*rows, operator.statistics), dtype=arithmetic(s.dtype), device=y.device)


def _flat(operator: RowOperator, stats: Tensor) -> Tensor:
    """(M, the statistics of a row)"""
    return stats.reshape(math.prod(stats.shape[:-1]), operator.statistics)


def _by_rows(operator: RowOperator, stats: Tensor, tensors: Sequence[Any], s: Settings) -> Tensor:
    return stats.view(*_rows(operator, tensors, s), operator.statistics)


def _rows(operator: RowOperator, tensors: Sequence[Any], s: Settings) -> tuple[int, ...]:
    """The shape of all rows, as that of the statistics starts: of x without the dimensions of a row, and its groups."""
    lead, groups = lead_of(operator, tensors, tensors[0].shape, s.N)
    return (*lead, groups) if operator.grouped else lead


def lead_of(operator: RowOperator, tensors: Sequence[Any], shape: Sequence[int], N: int) -> tuple[tuple[int, ...], int]:
    """The dimensions of x that stand before those of its rows, and how many groups of N values such a row has."""
    weight = next((t for t, kind in zip(tensors, operator.kinds) if kind == GROUPS and t is not None), None)
    known, width = weight is not None or not operator.grouped, N if weight is None else weight.shape[0] * N
    size = 1
    for i in reversed(range(len(shape) if N else 0)):
        size = size * shape[i]
        if size == width if known else size % N == 0:
            return tuple(shape[:i]), size // N
    return (math.prod(shape) // N if N else 0,), 1
