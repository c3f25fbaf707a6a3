"""How torch calls a row operator: eagerly through an autograd Function, in traced code through its custom op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonln.device import Device, kernels_on, runs_triton
from tritonln.ops import row_formula
from tritonln.ops.contract import beyond_numbers, needs_grad, only_numbers, owned, traced, transformed
from tritonln.ops.known import Description, remember
from tritonln.ops.of_y import OfY
from tritonln.ops.operands import Tensors
from tritonln.ops.row_op import (
    Result,
    backward_by_op,
    backward_of,
    by_op,
    formula_backward,
    forward_of,
    kept_of,
)
from tritonln.ops.rows import BackwardCall, Forward, RowOperator, Settings
from tritonln.ops.subclasses import foreign, knows_only_aten


def call(operator: RowOperator, tensors: Tensors, s: Settings, description: Description | None = None) -> Result:
    """By kernels where there are some for the tensors, else by the formula."""
    first = tensors[0]
    assert first is not None
    if transformed():
        return looked_into(operator, tensors, s)
    symbolic = traced(*tensors)
    if only_aten(operator.name, tensors, symbolic):
        return _owned(*row_formula.forward(operator, tensors, s))
    if symbolic:
        return by_op(operator, tensors, s)
    return directly(operator, tensors, s, kernels_on(first.device), description)


def _owned(y: Tensor, x: Tensor | None) -> Result:
    return owned(y), None if x is None else owned(x)


def looked_into(operator: RowOperator, tensors: Tensors, s: Settings) -> Result:
    """Under transforms."""
    first = tensors[0]
    assert first is not None
    if by_rules(first):
        from tritonln.ops import row_transforms

        return row_transforms.call(operator, tensors, s)
    return row_formula.forward(operator, tensors, s)


def by_rules(x: Tensor) -> bool:
    """Whether kernels serve x under the transforms at work."""
    if not _has_kernels(x.device.type):
        return False
    from tritonln.ops import row_transforms  # whose autograd Functions take milliseconds to make

    return row_transforms.serves()


def only_formula(name: str, tensors: Tensors, symbolic: bool) -> bool:
    """Whether nothing but torch's own operations serves tensors, which are `traced` or not."""
    return transformed() or only_aten(name, tensors, symbolic)


def only_aten(name: str, tensors: Tensors, symbolic: bool) -> bool:
    """The same where no transform is at work."""
    first = tensors[0]
    assert first is not None
    if symbolic and foreign(*tensors):  # inside the op come what they consist of, of whatever devices
        return knows_only_aten(name, *tensors)
    return not _has_kernels(first.device.type)


def left_to_inductor(x: Tensor) -> bool:
    """In compiled code, where no kernel serves x: Inductor fuses ATen's operators, and no custom op."""
    return torch.compiler.is_compiling() and not _exporting() and not _has_kernels(x.device.type)


def _has_kernels(device_type: str) -> bool:
    return runs_triton(device_type)


def _exporting() -> bool:
    return torch.compiler.is_exporting()


# As torch.compiler.assume_constant_result has it, whose call would import torch._dynamo.  By itself, Dynamo of torch
# 2.11 takes whatever it compiles for an export.
_has_kernels._dynamo_marked_constant = _exporting._dynamo_marked_constant = True  # type: ignore[attr-defined]


def directly(
    operator: RowOperator,
    tensors: Tensors,
    s: Settings,
    device: Device | None,
    description: Description | None = None,
    of_y: OfY | None = None,
) -> Result:
    """Of plain tensors that nobody traces, whose description says that they were given as they are here.  y is kept in
    the place of x where there is `of_y`.
    """
    forward = operator.prepared(tensors, s, needs_grad(*tensors), device)
    if of_y is not None:
        forward = forward._replace(of_y=of_y)
        of_y.prepare(forward)
    remember(description, forward)
    if device is None and not forward.save:
        return _owned(*forward_of(operator, tensors, s, False, None)[:2])
    return again(forward, tensors)


def again(forward: Forward, tensors: Tensors) -> Result:
    """A call that is prepared."""
    if not forward.save:
        return forward.on(tensors)[:2]
    if forward.of_y is not None:
        from tritonln.ops import keep_y

        return keep_y.call(forward, tensors), None
    found = _apply(forward, *tensors)
    return found if forward.operator.returns_x else (found, None)


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, forward: Forward, *tensors: Tensor | None) -> Any:
        if forward.device is None:
            y, x, stats = forward_of(forward.operator, tensors, forward.s, True, None)
            if x is None and y._is_view():  # nothing could be written into it: torch refuses that of a Function's views
                y = torch.ops.aten._unsafe_view(y, y.shape)
        else:
            y, x, stats = forward.on(tensors)
        ctx.save_for_backward(*kept_of(forward.operator, tensors), x, stats)
        ctx.forward = forward
        if x is None:
            return y
        ctx.set_materialize_grads(False)
        if not any(ctx.needs_input_grad[1 : 1 + len(forward.operator.entering)]):
            ctx.mark_non_differentiable(x)
        return y, x

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dx: Tensor | None = None) -> tuple[Tensor | None, ...]:
        forward, saved = ctx.forward, ctx.saved_tensors
        operator, s = forward.operator, forward.s
        if dy is None and dx is None:
            return (None,) * (len(saved) - 1)
        needs = ctx.needs_input_grad[1:]
        call = operator.backward_call(dy, dx, saved[-2], saved[:-2], forward.dtypes, saved[-1], s, needs)
        found: Sequence[Tensor | None]
        if only_numbers(dy, dx):
            found = _gradients(forward, call)
        elif beyond_numbers(dy, dx):
            found = formula_backward(operator, call)
        else:
            found = backward_by_op(operator, call)
        return None, *found


def _gradients(forward: Forward, call: BackwardCall) -> Sequence[Tensor | None]:
    if forward.launch is None or call.dtypes is not forward.dtypes:
        return backward_of(forward.operator, call, forward.device)
    asked = call.needs, call.dx is None
    backward = forward.backwards.get(asked)
    if backward is None:
        assert forward.device is not None
        backward = forward.backwards[asked] = forward.operator.prepared_backward(call, forward.device)
    return backward.of(call)


# Function.apply is this and a search for functorch, which the operators have made already.
_apply = super(torch.autograd.Function, _Rows).apply
