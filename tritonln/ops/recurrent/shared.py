"""What the recurrent operators share: the walk through time, the hoisted input product and its norm."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tritonln.device import Device
from tritonln.ops import layer_norm_aten
from tritonln.ops.contract import arithmetic
from tritonln.ops.layer_norm import LAYER_NORM
from tritonln.ops.operands import dtypes_of
from tritonln.ops.recurrent.contract import cast
from tritonln.ops.rows import BackwardCall, Settings


class LSTMSteps(NamedTuple):
    """What the time steps of an LSTM have in common."""

    weight_hh: Tensor
    gain: Tensor | None
    bias: Tensor | None
    ln_c_weight: Tensor | None
    ln_c_bias: Tensor | None
    weight_hr: Tensor | None
    lengths: Tensor | None
    starts: Tensor | None
    reverse: bool
    carry: bool
    group: int  # how many gates are normalized together
    summed: bool  # the sum of both products is normalized: x is that of the input, and the steps' sums take its place
    eps: float

    @property
    def norms(self) -> tuple[Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
        """Gain and bias of the gates' norm and of the cell's."""
        return self.gain, self.bias, self.ln_c_weight, self.ln_c_bias


class GRUSteps(NamedTuple):
    """What the time steps of a GRU have in common."""

    weight_hh: Tensor
    bias: Tensor | None
    gain: Tensor
    lengths: Tensor | None
    starts: Tensor | None
    reverse: bool
    group: int  # as an LSTM's
    summed: bool
    inner: (
        bool  # the sum is normalized with the reset inside of it: x is that of the input, and bias that and b_n (4H,)
    )
    eps: float


def widths(gates: int, group: int, H: int) -> tuple[int, ...]:
    """Of the groups of columns that are normalized together: `group` gates, and what is left of them."""
    rest = gates % group
    return (group * H,) * (gates // group) + ((rest * H,) if rest else ())


def order(T: int, reverse: bool) -> list[tuple[int, int, int]]:
    """(t, slot of the state before, slot of the state after) of every step, in the order of time that is walked.

    States lie in T + 1 slots, the initial one first, or last where time runs backward: of three steps
    [(0, 0, 1), (1, 1, 2), (2, 2, 3)], or [(2, 3, 2), (1, 2, 1), (0, 1, 0)].
    """
    return [(t, t + 1, t) for t in reversed(range(T))] if reverse else [(t, t, t + 1) for t in range(T)]


def direction(T: int, reverse: bool, backward: bool = False) -> tuple[int, int, int]:
    """The same for a kernel of all steps: (first t, what is added to it, slot of the state before step t minus t)."""
    return (T - 1, -1, int(reverse)) if reverse != backward else (0, 1, int(reverse))


def states(T: int, initial: Tensor, dtype: torch.dtype, reverse: bool) -> Tensor:
    """Room for the states of all steps, with the initial one in its slot."""
    slots = torch.empty((T + 1, *initial.shape), dtype=dtype, device=initial.device)
    slots[T if reverse else 0] = initial
    return slots


def running(T: int, lengths: Tensor) -> Tensor:
    """(T, B, 1): whether a row runs at a step."""
    return (torch.arange(T, device=lengths.device)[:, None] < lengths).unsqueeze(-1)


def starting(lengths: Tensor | None, resets: Tensor | None, reverse: bool) -> Tensor | None:
    """(T + 1, B): whether the step that would go on from a slot goes on from the initial state's slot instead."""
    if resets is None:
        return None
    anew = resets if lengths is None else resets & running(len(resets), lengths)[..., 0]
    # The first step has no other state to go on from, and nothing goes on from the last one's.
    first, rest = (anew[-1:], anew[:-1]) if reverse else (anew[:1], anew[1:])
    ends = torch.zeros_like(first)
    return torch.cat([ends, rest, ends])


def before(slots: Sequence[Tensor], starts: Tensor | None, previous: int, initial: int) -> Tensor:
    """The state that the step goes on from which reads the slot `previous`."""
    if starts is None:
        return slots[previous]
    return torch.where(starts[previous, :, None], slots[initial], slots[previous])


def gone_on_from(states: Tensor, starts: Tensor | None, reverse: bool) -> Tensor:
    """(T, B, ...): the state that each step went on from."""
    before = slice(1, None) if reverse else slice(None, -1)
    if starts is None:
        return states[before]
    return torch.where(starts[before, :, None], states[-1 if reverse else 0], states[before])


def with_starts(dh0: Tensor, dp: Tensor, starts: Tensor | None, weight_hh: Tensor, reverse: bool) -> Tensor:
    """The gradient of the initial h, with what reaches it through W_hh from rows that start anew: one product."""
    if starts is None:
        return dh0
    anew = starts[slice(1, None) if reverse else slice(None, -1), :, None]
    return dh0 + torch.where(anew, dp, 0).sum(0, dtype=arithmetic(dp.dtype)).to(dp.dtype) @ weight_hh


def without_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x with zeros at the steps that a row does not run: a NaN there would reach sums as zero times NaN."""
    return x if lengths is None else torch.where(running(x.shape[0], lengths), x, 0)


def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, save: bool, device: Device | None
) -> tuple[Tensor, Tensor | None]:
    """LN over the last dimension of x, and the statistics of the rows where they are to be saved."""
    N = x.shape[-1]
    if device is not None:
        y, _, stats = LAYER_NORM.forward((x, weight, bias), Settings(N, eps, x.dtype), save, device)
        return y, stats
    wide, weight, bias = cast(arithmetic(x.dtype), x, weight, bias)
    y, mean, rstd = torch.native_layer_norm(wide, (N,), weight, bias, eps)
    return y.to(x.dtype), torch.cat([mean, rstd], -1).view(-1, 2) if save else None


def gains_backward(
    dy: Sequence[Tensor],
    rows: Sequence[Tensor],
    gain: Tensor,
    bias: Tensor | None,
    stats: Sequence[Tensor],
    needs: tuple[bool, bool],
    device: Device | None,
) -> tuple[Tensor | None, Tensor | None]:
    """The gradients of the gain and the bias of norms from their columns, piece by piece: only the statistics are
    those of whole groups.
    """
    sizes = [piece.shape[-1] for piece in dy]
    biases = [None] * len(sizes) if bias is None else bias.split(sizes)
    found = [
        norm_backward(d, row, w, b, pair.contiguous(), (False, needs[0], needs[1] and b is not None), device)[1:]
        for d, row, w, b, pair in zip(dy, rows, gain.split(sizes), biases, stats)
    ]
    dw, db = (None if None in part else torch.cat([t.to(part[-1].dtype) for t in part]) for part in zip(*found))
    return dw, db


def norm_backward(
    dy: Tensor,
    x: Tensor,
    weight: Tensor,
    bias: Tensor | None,
    stats: Tensor,
    needs: tuple[bool, bool, bool],
    device: Device | None,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias of norm_forward, each None unless needed."""
    if not any(needs):
        return None, None, None
    N, stats = x.shape[-1], stats.view(-1, 2)
    if device is not None:
        s, tensors = Settings(N, 0.0, x.dtype), (x, weight, bias)
        call = BackwardCall(dy, None, None, tensors, dtypes_of(tensors), stats, s, needs)
        dx, dw, db = LAYER_NORM.backward(call, device)
        return dx, dw, db
    return layer_norm_aten.backward(dy, x, N, weight, bias, stats, needs)


def total_bias(a: Tensor | None, b: Tensor | None) -> Tensor | None:
    """a + b, in fp32 where they are 16-bit: it goes into the norm unrounded."""
    if a is None or b is None:
        return b if a is None else a
    return a + b if a.dtype == b.dtype == arithmetic(a.dtype) else a.float() + b.float()


def input_bias(bias_ih: Tensor | None, bias_hh: Tensor | None) -> Tensor | None:
    """The bias of a GRU's LN(W_ih x): of r and z those of both sides, of the candidate only the input's."""
    if bias_ih is None or bias_hh is None:
        return None
    a, b = cast(arithmetic(bias_ih.dtype), bias_ih, bias_hh)
    rz = len(a) // 3 * 2
    return torch.cat([a[:rz] + b[:rz], a[rz:]])


def product(a: Tensor, b: Tensor) -> Tensor:
    """The sum over all rows of a^T b: one product for all time steps."""
    return a.reshape(-1, a.shape[-1]).t() @ b.reshape(-1, b.shape[-1])


def real(tensors: Sequence[Tensor | None]) -> list[Any]:
    """Tensors that came to a custom op in a list, where torch leaves lazy negation to the operator."""
    return [None if t is None else t.resolve_neg() for t in tensors]


def filled(like: Tensor, *tensors: Tensor | None) -> tuple[Tensor, ...]:
    """With an empty tensor for None: a custom op returns tensors only."""
    return tuple(like.new_empty(0) if t is None else t for t in tensors)


def present(tensors: Sequence[Tensor | None]) -> tuple[Tensor | None, ...]:
    """The tensors that `filled` was given, whose empty ones of one dimension stand for None."""
    return tuple(None if t is None or (t.dim() == 1 and t.numel() == 0) else t for t in tensors)


def fake_gradients(inputs: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor]:
    """What the custom ops of the gradients return, without values: contiguous whatever the inputs are."""
    x: Any = inputs[0]
    wanted = (None if t is None or not needed else t for t, needed in zip(inputs, needs))
    return list(filled(x, *(None if t is None else t.new_empty(t.shape) for t in wanted)))
