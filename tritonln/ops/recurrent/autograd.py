"""What autograd does with a recurrent operator: its arguments are tensors, lengths and resets, and constants."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from torch import Tensor

from tritonln.ops import library
from tritonln.ops.contract import beyond_numbers, traced
from tritonln.ops.recurrent import plain
from tritonln.ops.recurrent.shared import present


class Arguments(NamedTuple):
    """Those of an operator, in groups."""

    inputs: tuple[Any, ...]  # what has a gradient
    masks: tuple[Tensor | None, Tensor | None]  # lengths and resets
    constants: tuple[Any, ...]


class Backward(NamedTuple):
    """The ways to the gradients of an operator."""

    inputs: int  # how many tensors have a gradient
    plain: Callable[..., tuple[Tensor, ...]]  # the operator in plain torch
    op: str  # the custom op of its gradients
    eager: Callable[..., Sequence[Tensor | None]]

    def save(self, ctx: Any, arguments: Arguments, results: Sequence[Tensor | None]) -> None:
        ctx.save_for_backward(*arguments.inputs, *arguments.masks, *results)
        ctx.constants = arguments.constants
        ctx.set_materialize_grads(False)

    def __call__(self, ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        """The gradients of the inputs, each None unless needed, from those of the results."""
        n, tensors, needs = self.inputs, ctx.saved_tensors, ctx.needs_input_grad[: self.inputs]
        inputs, masks, saved = tensors[:n], tensors[n : n + 2], tensors[n + 2 :]
        if beyond_numbers(*directions):
            return plain.gradients(self.plain, inputs, (*masks, *ctx.constants), directions, needs)
        if traced(*directions, *inputs):
            found = library.op(self.op)(*directions, inputs, saved, *masks, *ctx.constants, needs)
            return tuple(g if needed else None for g, needed in zip(found, needs))
        return tuple(self.eager(*directions, inputs, present(saved), masks, ctx.constants, needs))
