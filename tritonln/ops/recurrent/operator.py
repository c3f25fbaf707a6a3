"""A recurrent operator: what runs in eager code, in traced code and under transforms, and the gradients of each.

Its arguments are tensors that have gradients, the masks (lengths and resets), and constants; its results the states of
all steps, and behind them what the backward wants to know.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tritonln.ops import library
from tritonln.ops.contract import beyond_numbers, needs_grad, refuse_tangents, traced, transformed
from tritonln.ops.recurrent import plain
from tritonln.ops.recurrent.shared import fake_gradients, filled, present, real

Masks = tuple[Tensor | None, Tensor | None]
MASKS = "Tensor? lengths, Tensor? resets"
Results = Sequence[Tensor | None]


class RecurrentOperator(NamedTuple):
    name: str
    required: tuple[str, ...]  # the tensors that have gradients
    optional: tuple[str, ...]
    constants: str  # in torch's schema
    states: int  # how many of the results are states
    results: int
    forward: Callable[..., Results]  # of the tensors, the masks, the constants, and whether there is a backward to come
    backward: Callable[..., Results]  # of the states' gradients, the tensors, the results, masks, constants, and needs
    plain: Callable[..., tuple[Tensor, ...]]  # the states in plain torch, of all arguments
    room: Callable[..., Results]  # the results without values, as `forward` has them

    def __call__(self, *arguments: Any) -> tuple[Sequence[Tensor], bool]:
        """The states, and whether they are saved for backward."""
        inputs, masks, constants = self.read(arguments)
        if transformed():
            return self.plain(*arguments), False  # autograd saves what it needs
        save = needs_grad(*inputs)
        found: Any
        if traced(*inputs):
            found = library.op(self.name)(*arguments, save)
        elif save:
            found = _Eager.apply(self, *arguments)
        else:
            found = self.forward(inputs, masks, constants, False)
        return found[: self.states], save

    @property
    def inputs(self) -> int:
        return len(self.required) + len(self.optional)

    def read(self, arguments: Sequence[Any]) -> tuple[tuple[Tensor | None, ...], Masks, tuple[Any, ...]]:
        n = self.inputs
        return tuple(arguments[:n]), (arguments[n], arguments[n + 1]), tuple(arguments[n + 2 :])


class _Eager(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, operator: RecurrentOperator, *arguments: Any) -> tuple[Any, ...]:
        found = operator.forward(*operator.read(arguments), True)
        ctx.operator = operator
        _save(ctx, operator, arguments, found)
        return tuple(found[: operator.states])

    @staticmethod
    def backward(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        return None, *_gradients(ctx, ctx.operator, directions, ctx.needs_input_grad[1:])


def _save(ctx: Any, operator: RecurrentOperator, arguments: Sequence[Any], results: Results) -> None:
    inputs, masks, ctx.constants = operator.read(arguments)
    ctx.save_for_backward(*inputs, *masks, *results)
    ctx.set_materialize_grads(False)


def _gradients(
    ctx: Any, operator: RecurrentOperator, directions: Results, needs: Sequence[bool]
) -> tuple[Tensor | None, ...]:
    """Those of all arguments, each None unless needed."""
    n, tensors, others = operator.inputs, ctx.saved_tensors, (None,) * (2 + len(ctx.constants))
    inputs, masks, saved, needs = tensors[:n], tensors[n : n + 2], tensors[n + 2 :], needs[:n]
    if beyond_numbers(*directions):
        found = plain.gradients(operator.plain, inputs, (*masks, *ctx.constants), directions, needs)
    elif traced(*directions, *inputs):
        op = library.op(f"{operator.name}_backward")
        dense = op(directions, inputs, saved, *masks, *ctx.constants, needs)
        found = tuple(g if needed else None for g, needed in zip(dense, needs))
    else:
        found = tuple(operator.backward(*directions, inputs, present(saved), masks, ctx.constants, needs))
    return *found, *others


def define(operator: RecurrentOperator) -> None:
    """Makes tritonln::NAME and tritonln::NAME_backward known to torch: what torch.compile and fake tensors see."""
    name, absent = operator.name, [None] * (operator.results - operator.states)

    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        refuse_tangents(name)
        inputs, masks, (*constants, save) = operator.read(arguments)
        found = operator.forward(inputs, masks, tuple(constants), save)
        states = found[: operator.states]
        x: Any = inputs[0]
        return filled(x, *states, *(found[operator.states :] if save else absent))

    def fake_forward(*arguments: Any) -> tuple[Tensor, ...]:
        inputs, _, (*constants, save) = operator.read(arguments)
        x: Any = inputs[0]
        found = operator.room(inputs, tuple(constants))
        return filled(x, *found[: operator.states], *(found[operator.states :] if save else absent))

    def backward(
        directions: Results, inputs: Results, saved: Results, lengths: Any, resets: Any, *rest: Any
    ) -> list[Tensor]:
        (*constants, needs), inputs = rest, real(inputs)
        found = operator.backward(*directions, inputs, present(saved), (lengths, resets), tuple(constants), needs)
        x: Any = inputs[0]
        return list(filled(x, *found))

    def fake_backward(directions: Results, inputs: Results, *rest: Any) -> list[Tensor]:
        return fake_gradients(inputs, rest[-1])

    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        _save(ctx, operator, inputs[:-1], output)
        ctx.mark_non_differentiable(*output[operator.states :])

    def differentiated(ctx: Any, *directions: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_gradients(ctx, operator, directions[: operator.states], ctx.needs_input_grad), None

    def decomposed(*arguments: Any) -> tuple[Tensor, ...]:
        """In ATen's operators, for exporters.  Nothing is saved: a backward in the same graph computes it again."""
        states = operator.plain(*arguments[:-1])
        return filled(states[0], *states, *absent)

    typed = [*(f"Tensor {t}" for t in operator.required), *(f"Tensor? {t}" for t in operator.optional)]
    results = ", ".join(["Tensor"] * operator.results)
    library.define(
        name,
        f"({', '.join(typed)}, {MASKS}, {operator.constants}, bool save) -> ({results})",
        forward,
        fake_forward,
        backward=differentiated,
        setup_context=setup_context,
        decomposition=decomposed,
    )
    tensors = "Tensor?[] directions, Tensor?[] inputs, Tensor?[] saved"
    signature = f"({tensors}, {MASKS}, {operator.constants}, bool[] needs) -> Tensor[]"
    library.define(f"{name}_backward", signature, backward, fake_backward)
