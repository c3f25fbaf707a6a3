"""Calls of a norm that keep y for backward, which x_hat is restored from: when they may, and the autograd Function.

They may where weight and bias are such that x_hat keeps its digits (kernels/limits.py says how many).  That depends on
values, so somebody has to look: at all weights and biases of calls that ask for it, together, in a few launches on
their values and one synchronization.  What was seen holds until a backward pass has gone through such a norm, after
which an optimizer may have changed them, or until one of them has another version or another address.
"""

from __future__ import annotations

import weakref
from typing import Any

import torch
from torch import Tensor
from torch.utils.weak import WeakIdKeyDictionary

from tritonln.kernels.limits import LEAST_WEIGHT, MOST_BIAS
from tritonln.ops.contract import PLAIN, beyond_numbers, needs_grad, shifted, traced, transformed
from tritonln.ops.of_y import gradients
from tritonln.ops.operands import Tensors
from tritonln.ops.row_op import forward_of
from tritonln.ops.rows import BackwardCall, Forward


def possible(offset: float, x: Any, weight: Tensor | None, bias: Tensor | None = None) -> bool:
    """Whether y may be kept.  x is where values cannot be looked at; and where no gradient is asked for, nothing is."""
    if any(t is not None and type(t) not in PLAIN for t in (x, weight, bias)):
        return False
    if transformed() or traced(x, weight, bias) or not needs_grad(x, weight, bias) or x.device.type == "meta":
        return False
    if x.is_cuda and torch.cuda.is_current_stream_capturing():  # replays have other values
        return False
    first = bias if weight is None else weight
    if first is None:
        return True
    others = [t for t in (weight, bias) if t is not None]
    if any(t.shape != first.shape or t.device != x.device or t.is_inference() for t in others):
        return False  # is refused by whoever is called next
    pair = _pairs.get(first)
    if pair is None or not pair.is_of(weight, bias, offset):
        pair = _pairs[first] = _Pair(weight, bias, offset)
    if not pair.is_known():
        _look(x.device)
    return pair.restores


# ---- looking at weights and biases -----------------------------------------------------------------


class _Pair:
    """A weight and a bias, of which one may be absent, and what was seen when somebody looked at them."""

    def __init__(self, weight: Tensor | None, bias: Tensor | None, offset: float) -> None:
        self.references = tuple([None if t is None else weakref.ref(t) for t in (weight, bias)])
        self.offset = offset
        self.seen: Any = None
        self.restores = False

    def tensors(self) -> tuple[Tensor | None, ...]:
        return tuple([None if r is None else r() for r in self.references])

    def is_whole(self) -> bool:
        return all(r is None or r() is not None for r in self.references)

    def is_of(self, weight: Tensor | None, bias: Tensor | None, offset: float) -> bool:
        mine = self.tensors()
        return mine[0] is weight and mine[1] is bias and self.offset == offset

    def state(self) -> tuple[Any, ...]:
        return tuple([(t._version, t.data_ptr()) for t in self.tensors() if t is not None])

    def is_known(self) -> bool:
        if self.seen is None:
            return False
        passes, state = self.seen
        # What is computed again inside of a backward pass comes before any step of an optimizer.
        return state == self.state() and (passes == _passes or torch._C._current_graph_task_id() != -1)

    def see(self, restores: bool) -> None:
        self.seen, self.restores = (_passes, self.state()), restores


_pairs = WeakIdKeyDictionary()  # by the weight, or the bias where there is none
_passes = 0  # backward passes through norms that kept y


@torch.no_grad()
def _look(device: torch.device) -> None:
    """At all that is not known, at once."""
    pairs, weights, biases = [], [], []
    for pair in tuple(_pairs.data.values()):  # at once, as other threads may add to them
        weight, bias = pair.tensors()
        if not pair.is_whole() or pair.is_known():
            continue
        first: Any = bias if weight is None else weight
        if first.device == device:
            weight = torch.ones_like(first) if weight is None else shifted(weight, pair.offset, weight.dtype)
            pairs.append(pair)
            weights.append(weight.reshape(-1))  # type: ignore[union-attr]
            biases.append((weight if bias is None else bias).reshape(-1))  # type: ignore[union-attr]
    w, b = torch.cat(weights).abs(), torch.cat(biases).abs()
    restores = (w >= LEAST_WEIGHT) & (b <= MOST_BIAS * w)
    if bool(restores.all()):
        each = [True] * len(pairs)
    else:
        each = torch.stack([part.all() for part in restores.split([t.numel() for t in weights])]).tolist()
    for pair, found in zip(pairs, each):
        pair.see(found)


# ---- the autograd Function -------------------------------------------------------------------------


def call(forward: Forward, tensors: Tensors) -> Tensor:
    return _KeepingY.apply(forward, *tensors)[0]  # type: ignore[no-untyped-call]


class _KeepingY(torch.autograd.Function):
    """(y, stats): both are results, so that autograd reaches x through them where a gradient has a graph of its own."""

    @staticmethod
    def forward(ctx: Any, forward: Forward, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        if forward.device is None:
            y, _, stats = forward_of(forward.operator, tensors, forward.s, True, None)
            if y._is_view():  # nothing could be written into it
                y = torch.ops.aten._unsafe_view(y, y.shape)
        else:
            y, _, stats = forward.on(tensors)
        assert stats is not None
        ctx.save_for_backward(y, *tensors[1:], stats)
        ctx.forward = forward
        ctx.set_materialize_grads(False)
        return y, stats

    @staticmethod
    def backward(ctx: Any, dy: Tensor | None, dstats: Tensor | None) -> tuple[Tensor | None, ...]:
        global _passes
        _passes += 1
        forward, (y, *finishing, stats) = ctx.forward, ctx.saved_tensors
        if dy is None and dstats is None:
            return (None,) * (2 + len(finishing))
        dy = y.new_zeros(()).expand(y.shape) if dy is None else dy
        s, needs = forward.s, ctx.needs_input_grad[1:]
        call = BackwardCall(dy, None, y, (None, *finishing), forward.dtypes, stats, s, needs)
        if dstats is not None or forward.launch is None or beyond_numbers(dy) or traced(dy):
            return None, *gradients(forward.of_y, call, dstats)
        backward = forward.backwards.get(needs)
        if backward is None:
            backward = forward.backwards[needs] = forward.of_y.prepared_backward(call, forward.device)
        return None, *backward.of(call)
