"""What the recurrent operators share: their contract, autocast, the hoisted input product and its norm."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tritonln.device import Device, kernels_on
from tritonln.ops import layer_norm_aten
from tritonln.ops.contract import DTYPES, HALF, arithmetic
from tritonln.ops.layer_norm import LAYER_NORM


class LSTMSteps(NamedTuple):
    """What the time steps of an LSTM have in common."""

    weight_hh: Tensor
    ln_hh_weight: Tensor | None
    ln_c_weight: Tensor | None
    ln_c_bias: Tensor | None
    weight_hr: Tensor | None
    lengths: Tensor | None
    reverse: bool
    carry: bool
    eps: float


class GRUSteps(NamedTuple):
    """What the time steps of a GRU have in common."""

    weight_hh: Tensor
    bias_hh: Tensor | None
    ln_hh_weight: Tensor
    lengths: Tensor | None
    reverse: bool
    joint: bool
    eps: float


def check(
    operator: str, x: Tensor, shapes: Mapping[str, tuple[Tensor | None, tuple[int, ...]]], products: Sequence[str]
) -> None:
    """Raises for an x that is no sequence, and for the first argument of a shape, dtype or device that does not fit.

    `products` names the arguments that are multiplied with x or h, which must be of their dtype; all
    others may be fp32 where x is 16-bit.
    """
    if x.dim() != 3:
        raise RuntimeError(f"input must have 3 dimensions, got {x.dim()}")
    if x.shape[0] == 0:
        raise RuntimeError("Expected sequence length to be larger than 0 in RNN")
    if x.dtype not in DTYPES:
        raise RuntimeError(f"{operator}: expected input of a floating dtype, got {x.dtype}")
    for name, (t, shape) in shapes.items():
        if t is None:
            continue
        if t.shape != shape:
            raise RuntimeError(f"{operator}: Expected {name} size {shape}, got {list(t.shape)}")
        if t.device != x.device:
            raise RuntimeError(
                f"Expected all tensors to be on the same device, but got {name} is on {t.device}, "
                f"different from other tensors on {x.device} (when checking argument in method {operator})"
            )
        if t.dtype != x.dtype and (name in products or t.dtype != torch.float32 or x.dtype not in HALF):
            raise RuntimeError(f"{operator}: expected {name} of dtype {x.dtype}, got {t.dtype}")


def check_lengths(operator: str, lengths: Tensor | None, x: Tensor) -> None:
    if lengths is None:
        return
    if lengths.shape != x.shape[1:2] or lengths.dtype != torch.int64 or lengths.device != x.device:
        raise RuntimeError(
            f"{operator}: expected lengths of shape ({x.shape[1]},), dtype torch.int64 on {x.device}, "
            f"got {tuple(lengths.shape)}, {lengths.dtype} on {lengths.device}"
        )


def autocast_dtype(x: Tensor) -> torch.dtype | None:
    """The dtype that autocast wants of the products; None where it is off."""
    return torch.get_autocast_dtype(x.device.type) if autocast_on(x) and x.dtype != torch.float64 else None


def autocast_on(x: Tensor) -> bool:
    kind = x.device.type
    return torch.amp.is_autocast_available(kind) and torch.is_autocast_enabled(kind)  # there is none for "meta"


def cast(dtype: torch.dtype, *tensors: Tensor | None) -> list[Any]:
    return [None if t is None else t.to(dtype) for t in tensors]


def without_autocast(x: Tensor) -> contextlib.AbstractContextManager[Any]:
    """Inside, nothing is cast a second time."""
    return torch.autocast(x.device.type, enabled=False) if autocast_on(x) else contextlib.nullcontext()


def device_of(x: Tensor, state: Tensor) -> Device | None:
    """Where the kernels run; None where ATen does, which also serves batches of no rows and layers of no units."""
    return kernels_on(x.device) if x.numel() and state.numel() else None


def order(T: int, reverse: bool) -> list[tuple[int, int, int]]:
    """(t, slot of the state before, slot of the state after) of every step, in the order of time that is walked.

    States lie in T + 1 slots, the initial one first, or last where time runs backward.
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


def without_padding(x: Tensor, lengths: Tensor | None) -> Tensor:
    """x with zeros at the steps that a row does not run: a NaN there would reach sums as zero times NaN."""
    return x if lengths is None else torch.where(running(x.shape[0], lengths), x, 0)


def norm_forward(
    x: Tensor, weight: Tensor, bias: Tensor | None, eps: float, save: bool, device: Device | None
) -> tuple[Tensor, Tensor | None]:
    """LN over the last dimension of x, and the statistics of the rows where they are to be saved."""
    N = x.shape[-1]
    if device is not None:
        return LAYER_NORM.forward((x,), N, (weight, bias), eps, x.dtype, save, device)
    wide, weight, bias = cast(arithmetic(x.dtype), x, weight, bias)
    y, mean, rstd = torch.native_layer_norm(wide, (N,), weight, bias, eps)
    return y.to(x.dtype), torch.cat([mean, rstd], -1).view(-1, 2) if save else None


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
        dx, dw, db = LAYER_NORM.backward(dy, (x,), N, (weight, bias), stats, needs, device)
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
    """The tensors that `filled` was given."""
    return tuple(None if t is None or t.dim() == 1 else t for t in tensors)


def fake_gradients(inputs: Sequence[Tensor | None], needs: Sequence[bool]) -> list[Tensor]:
    """What the custom ops of the gradients return, without values: contiguous whatever the inputs are."""
    x: Any = inputs[0]
    wanted = (None if t is None or not needed else t for t, needed in zip(inputs, needs))
    return list(filled(x, *(None if t is None else t.new_empty(t.shape) for t in wanted)))
