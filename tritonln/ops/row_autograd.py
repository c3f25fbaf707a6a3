"""How torch calls a row operator: eagerly through an autograd Function, in traced code through a custom op."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tritonln.configurations.tunable import register_operator
from tritonln.device import Device, kernels_on
from tritonln.ops import row_formula
from tritonln.ops.contract import arithmetic, beyond_numbers, needs_grad, output_dtype, refuse_tangents, traced
from tritonln.ops.rows import RowOperator

Columns = tuple[Tensor | None, ...]


def directly(
    operator: RowOperator, streams: tuple[Tensor, ...], N: int, columns: Columns, eps: float, device: Device | None
) -> Tensor:
    """y of plain tensors that nobody traces."""
    if needs_grad(*streams, *columns):
        return _apply(operator, N, eps, device, *streams, *columns)
    dtype = output_dtype(streams[0].dtype, streams[0].device.type)
    return _forward(operator, streams, N, columns, eps, dtype, False, device)[0]


def by_op(operator: RowOperator, streams: tuple[Tensor, ...], N: int, columns: Columns, eps: float) -> Tensor:
    """y in traced code, and of tensors that are more than their storage."""
    dtype = output_dtype(streams[0].dtype, streams[0].device.type)
    return op(operator)(*streams, N, *columns, eps, dtype, needs_grad(*streams, *columns))[0]


def _forward(
    operator: RowOperator,
    streams: tuple[Tensor, ...],
    N: int,
    columns: Columns,
    eps: float,
    dtype: torch.dtype,
    save: bool,
    device: Device | None,
) -> tuple[Tensor, Tensor | None]:
    if device is None and operator.aten is not None:
        return operator.aten.forward(*streams, N, *columns, eps, save)
    if device is None:
        y = row_formula.forward(operator, streams, N, columns, eps, dtype)
        return y, row_formula.statistics(operator, streams, N, eps) if save else None
    return operator.forward(streams, N, columns, eps, dtype, save, device)


def _backward(
    operator: RowOperator,
    dy: Tensor,
    streams: tuple[Tensor, ...],
    N: int,
    columns: Columns,
    stats: Tensor,
    needs: tuple[bool, ...],
    device: Device | None,
) -> Sequence[Tensor | None]:
    if device is None:
        return operator.aten.backward(dy, *streams, N, *columns, stats, needs)
    return operator.backward(dy, streams, N, columns, stats, needs, device)


# ---- eager -------------------------------------------------------------------------------------


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, operator: RowOperator, N: int, eps: float, device: Device | None, *tensors: Tensor | None
    ) -> Tensor:
        streams, columns = operator.split(tensors)
        dtype = output_dtype(streams[0].dtype, streams[0].device.type)
        y, stats = _forward(operator, streams, N, columns, eps, dtype, True, device)
        ctx.save_for_backward(*tensors, stats)
        ctx.operator, ctx.N, ctx.eps, ctx.device = operator, N, eps, device
        return y

    @staticmethod
    def backward(ctx: Any, dy: Tensor) -> tuple[Tensor | None, ...]:
        operator, N = ctx.operator, ctx.N
        *tensors, stats = ctx.saved_tensors
        streams, columns = operator.split(tensors)
        needs = ctx.needs_input_grad[4:]
        found: Sequence[Tensor | None]
        if beyond_numbers(dy):
            found = row_formula.backward(operator, dy, streams, N, columns, ctx.eps, needs)
        elif traced(dy):
            found = _backward_by_op(operator, dy, streams, N, columns, stats, needs)
        else:
            found = _backward(operator, dy, streams, N, columns, stats, needs, ctx.device)
        return None, None, None, None, *found


# Function.apply is this and a search for functorch, which the operators have made already.
_apply = super(torch.autograd.Function, _Rows).apply


# ---- the custom op: what torch.compile, torch.export and fake tensors see ------------------------

_libraries: dict[str, torch.library.Library] = {}  # of each operator, which lives as long as they


def op(operator: RowOperator) -> Callable[..., Any]:
    return getattr(torch.ops.tritonln, operator.name).default


def _backward_by_op(
    operator: RowOperator,
    dy: Tensor,
    streams: tuple[Tensor, ...],
    N: int,
    columns: Columns,
    stats: Tensor,
    needs: tuple[bool, ...],
) -> list[Tensor | None]:
    backward_op = getattr(torch.ops.tritonln, f"{operator.name}_backward").default
    found = backward_op(dy, *streams, N, *columns, stats, needs)
    return [g if needed else None for g, needed in zip(found, needs)]


def define(operator: RowOperator) -> None:
    """Makes tritonln::NAME and tritonln::NAME_backward known to torch, and the operator's kernels to the tuner.

    By torch.library's plain calls: torch.library.custom_op takes 10 to 25 ms for each, at import.  An operator that
    is defined again, as in a notebook, replaces the one before.
    """
    register_operator(operator)
    if operator.name in _libraries:
        _libraries.pop(operator.name)._destroy()
    library = _libraries[operator.name] = torch.library.Library("tritonln", "FRAGMENT")
    streams = [f"Tensor {name}" for name in operator.streams]
    columns = [f"Tensor? {name}" for name in operator.columns]
    S, C, name = len(streams), len(columns), operator.name
    results = ", ".join(["Tensor"] * (S + C))

    def split(arguments: Sequence[Any]) -> tuple[tuple[Tensor, ...], int, Columns, Sequence[Any]]:
        return tuple(arguments[:S]), arguments[S], tuple(arguments[S + 1 : S + 1 + C]), arguments[S + 1 + C :]

    def forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        refuse_tangents(name)
        tensors, N, others, (eps, dtype, save) = split(arguments)
        y, stats = _forward(operator, tensors, N, others, eps, dtype, save, kernels_on(tensors[0].device))
        return y, _room_for_stats(operator, tensors[0], 0) if stats is None else stats

    def fake_forward(*arguments: Any) -> tuple[Tensor, Tensor]:
        (x, *_), N, _, (_, dtype, save) = split(arguments)
        y = torch.empty(x.shape, dtype=dtype, device=x.device)
        return y, _room_for_stats(operator, x, (x.numel() // N if N else 0) if save else 0)

    def backward(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        refuse_tangents(name)
        tensors, N, others, (stats, needs) = split(arguments)
        needed = tuple(n and t is not None for n, t in zip(needs, (*tensors, *others)))
        found = _backward(operator, dy, tensors, N, others, stats, needed, kernels_on(dy.device))
        return tuple(dy.new_empty(0, dtype=tensors[0].dtype) if g is None else g for g in found)

    def fake_backward(dy: Tensor, *arguments: Any) -> tuple[Tensor, ...]:
        tensors, _, others, (_, needs) = split(arguments)
        return tuple(
            torch.empty(t.shape, dtype=t.dtype, device=t.device)
            if t is not None and needed
            else dy.new_empty(0, dtype=tensors[0].dtype)
            for t, needed in zip((*tensors, *others), needs)
        )

    def decomposed(*arguments: Any) -> tuple[Tensor, Tensor]:
        tensors, N, others, (eps, dtype, save) = split(arguments)
        y, stats = _forward(operator, tensors, N, others, eps, dtype, save, None)
        return y.to(dtype), _room_for_stats(operator, tensors[0], 0) if stats is None else stats

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        tensors, ctx.N, others, (ctx.eps, _, ctx.saved) = split(inputs)
        ctx.save_for_backward(*tensors, *others, output[1])
        ctx.mark_non_differentiable(output[1])
        ctx.set_materialize_grads(False)  # of the statistics, which have none

    def differentiated(ctx: Any, dy: Tensor | None, _: None) -> tuple[Tensor | None, ...]:
        if dy is None:
            return (None,) * (S + C + 4)
        *saved, stats = ctx.saved_tensors
        tensors, others = operator.split(saved)
        needs = *ctx.needs_input_grad[:S], *ctx.needs_input_grad[S + 1 : S + 1 + C]
        if beyond_numbers(dy):
            found = row_formula.backward(operator, dy, tensors, ctx.N, others, ctx.eps, needs)
        else:
            if not ctx.saved:  # the graph was captured where nothing required a gradient
                stats = op(operator)(*tensors, ctx.N, *others, ctx.eps, tensors[0].dtype, True)[1]
            found = _backward_by_op(operator, dy, tensors, ctx.N, others, stats, needs)
        return *found[:S], None, *found[S:], None, None, None

    between = ", ".join([*streams, "SymInt N", *columns])
    for schema in (
        f"{name}({between}, float eps, ScalarType dtype, bool save) -> (Tensor, Tensor)",
        f"{name}_backward(Tensor dy, {between}, Tensor stats, bool[] needs) -> ({results})",
    ):
        library.define(schema, tags=(torch.Tag.pt2_compliant_tag,))
    for suffix, real, fake in (("", forward, fake_forward), ("_backward", backward, fake_backward)):
        library.impl(f"{name}{suffix}", real, "CompositeExplicitAutograd")
        torch.library.register_fake(f"tritonln::{name}{suffix}", fake, lib=library)
    torch.library.register_autograd(f"tritonln::{name}", differentiated, setup_context=setup_context, lib=library)
    # In torch's own operators, for exporters: torch.onnx asks for it, run_decompositions can be given it.
    torch._decomp.register_decomposition(op(operator))(decomposed)


def _room_for_stats(operator: RowOperator, x: Tensor, M: int) -> Tensor:
    return torch.empty((M, 1 + operator.centred), dtype=arithmetic(x.dtype), device=x.device)
