"""How torch calls a row operator: eagerly through an autograd Function, in traced code through its custom op."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonln.device import Device, kernels_on, runs_triton
from tritonln.ops import row_formula
from tritonln.ops.contract import beyond_numbers, needs_grad, traced, transformed
from tritonln.ops.operands import Tensors, dtypes_of
from tritonln.ops.row_op import (
    Result,
    backward_by_op,
    backward_of,
    by_op,
    formula_backward,
    forward_of,
    kept_of,
    no_gradient,
)
from tritonln.ops.rows import BackwardCall, RowOperator, Settings
from tritonln.ops.subclasses import foreign, knows_only_aten


def call(operator: RowOperator, tensors: Tensors, s: Settings) -> Result:
    """By kernels where there are some for the tensors, else by the formula."""
    first = tensors[0]
    assert first is not None
    if transformed():
        return looked_into(operator, tensors, s)
    symbolic = traced(*tensors)
    if only_aten(operator.name, tensors, symbolic):
        return row_formula.forward(operator, tensors, s)
    if symbolic:
        return by_op(operator, tensors, s)
    return directly(operator, tensors, s, kernels_on(first.device))


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


def directly(operator: RowOperator, tensors: Tensors, s: Settings, device: Device | None) -> Result:
    """Of plain tensors that nobody traces."""
    if needs_grad(*tensors):
        found = _apply(operator, s, device, *tensors)
        return found if operator.returns_x else (found, None)
    return forward_of(operator, tensors, s, False, device)[:2]


class _Rows(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operator: RowOperator, s: Settings, device: Device | None, *tensors: Tensor | None) -> Any:
        y, x, stats = forward_of(operator, tensors, s, True, device)
        ctx.save_for_backward(*kept_of(operator, tensors), x, stats)
        ctx.operator, ctx.s, ctx.device, ctx.dtypes = operator, s, device, dtypes_of(tensors)
        if x is None:
            # Where y is a view of rows, nothing could be written into it: torch refuses that of a Function's views.
            return torch.ops.aten._unsafe_view(y, y.shape) if y._is_view() else y
        ctx.set_materialize_grads(False)
        return y, x

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dx: Tensor | None = None) -> tuple[Tensor | None, ...]:
        operator, s = ctx.operator, ctx.s
        *tensors, x, stats = ctx.saved_tensors
        needs = ctx.needs_input_grad[3:]
        if dy is None:
            if dx is None:
                return (None,) * (3 + len(tensors))
            dy = no_gradient(dx, s)
        call = BackwardCall(dy, dx, x, tuple(tensors), ctx.dtypes, stats, s, needs)
        found: Sequence[Tensor | None]
        if beyond_numbers(dy, dx):
            found = formula_backward(operator, call)
        elif traced(dy, dx):
            found = backward_by_op(operator, call)
        else:
            found = backward_of(operator, call, ctx.device)
        return None, None, None, *found


# Function.apply is this and a search for functorch, which the operators have made already.
_apply = super(torch.autograd.Function, _Rows).apply
