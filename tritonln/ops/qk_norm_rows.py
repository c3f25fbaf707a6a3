"""qk_norm on tensors: what is allocated and launched."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tritonln.configurations.tunable import register_operator
from tritonln.device import Device
from tritonln.ops.contract import arithmetic, contiguous, dtype_of, empty_like
from tritonln.ops.operands import Dtypes
from tritonln.ops.qk_norm_plans import HeadPlans, Needs, Parameters


class Tensors(NamedTuple):
    q: Tensor
    k: Tensor
    q_weight: Tensor | None
    k_weight: Tensor | None
    q_bias: Tensor | None
    k_bias: Tensor | None
    cos: Tensor | None  # of the shape (*, T, N), each dimension that of q and k or 1
    sin: Tensor | None

    @property
    def heads(self) -> tuple[int, int]:
        return self.q.shape[-2], self.k.shape[-2]

    @property
    def tokens(self) -> int:
        return math.prod(self.q.shape[:-2])


class Norm(NamedTuple):
    """What is computed of a row beside its parameters."""

    eps: float
    centred: bool = False  # layer normalization


class Heads(HeadPlans):
    def train(
        self, make: Callable[..., Tensor], rows: int, N: int, x: torch.dtype, parameter: torch.dtype, device: Device
    ) -> None:
        """A forward and a backward pass of `rows` rows, eight in nine of q, with rotary embedding of even rows."""
        if x == torch.float64:
            parameter = x
        tokens = max(1, rows // 9)
        rotary = [make(tokens, N, dtype=x) if N % 2 == 0 else None for _ in range(2)]
        parameters = [make(N, dtype=parameter) if i < 2 or self.centred else None for i in range(4)]
        t = Tensors(make(tokens, 8, N, dtype=x), make(tokens, 1, N, dtype=x), *parameters, *rotary)
        norm = Norm(1e-6, self.centred)
        upstream = forward(t, norm, device)
        backward(upstream, t, norm, tuple(x is not None for x in t[:6]), device)


RMS_HEADS, CENTRED_HEADS = Heads("qk_norm", False), Heads("qk_layer_norm", True)
for of_heads in (RMS_HEADS, CENTRED_HEADS):
    register_operator(of_heads)


def _heads(centred: bool) -> Heads:
    return CENTRED_HEADS if centred else RMS_HEADS


def _dtypes(t: Tensors) -> tuple[torch.dtype, Parameters, Dtypes]:
    q, _, q_weight, k_weight, q_bias, k_bias, cos, sin = t
    weights, biases = (dtype_of(q_weight), dtype_of(k_weight)), (dtype_of(q_bias), dtype_of(k_bias))
    return q.dtype, (weights, biases), (dtype_of(cos), dtype_of(sin))


def _placed(t: Tensor | None, tokens: int) -> Any:
    """(tokens, H, N) as a Launch takes it, a copy only where the tokens or the values of a row have no one stride."""
    if t is None or t.is_contiguous():
        return t
    rows = t.reshape(tokens, *t.shape[-2:])
    if rows.shape[-1] > 1 and rows.stride(-1) != 1:
        rows = rows.contiguous()
    return rows if rows.is_contiguous() else (rows, rows.stride(0), rows.stride(1))


def _rotary(t: Tensors) -> tuple[tuple[Any, ...], int]:
    """cos and sin as a Launch takes them, and their rows: one for each token, or for each of the last dimension."""
    if t.cos is None or t.sin is None:
        return (None, None), 1
    lead, outer = t.q.shape[:-2], t.cos.shape[:-1]
    shared = math.prod(outer) == (outer[-1] if outer else 1)
    if not shared or (outer and outer[-1] != lead[-1]):
        whole = t.cos.expand(*lead, -1), t.sin.expand(*lead, -1)
        return tuple([side.contiguous() for side in whole]), t.tokens
    return (t.cos.contiguous(), t.sin.contiguous()), math.prod(outer)


def forward(t: Tensors, norm: Norm, device: Device) -> tuple[Tensor, Tensor]:
    """Of tensors with values."""
    q, k = empty_like(t.q, t.q.dtype), empty_like(t.k, t.k.dtype)
    _launch_forward(t, norm, (q, k), device)
    return q, k


class Extent(NamedTuple):
    """What the rows of q or k take of memory, in values."""

    start: int
    token: int  # from one token to the next
    span: int  # of the heads of one token
    end: int

    def meets(self, other: Extent) -> bool:
        """Whether a value of one may be one of the other.  Those of a packed tensor take turns, token by token."""
        if self.end <= other.start or other.end <= self.start:
            return False
        offset = (other.start - self.start) % self.token
        return self.token != other.token or offset < self.span or offset + other.span > self.token


def forward_in_place(t: Tensors, norm: Norm, device: Device) -> bool:
    """Writes the results over q and k; False, and nothing done, where a launch cannot: values of one row may lie in
    another too, or tokens have no one stride.
    """
    places, extents, tokens = [_placed(x, t.tokens) for x in (t.q, t.k)], [], t.tokens
    for x, place in zip((t.q, t.k), places):
        first, *strides = place if isinstance(place, tuple) else (place,)
        H, N = x.shape[-2:]
        token, head = strides or (H * N, N)
        start, span = x.data_ptr() // x.element_size(), (H - 1) * head + N
        apart = (H == 1 or head >= N) and (tokens == 1 or token >= span)
        if not apart or first.data_ptr() != x.data_ptr():
            return False
        extents.append(Extent(start, token, span, start + (tokens - 1) * token + span))
    if tokens and extents[0].meets(extents[1]):
        return False
    _launch_forward(t, norm, tuple(places), device)
    for x in (t.q, t.k):
        if not x.is_inference():
            torch.autograd.graph.increment_version(x)
    return True


def _launch_forward(t: Tensors, norm: Norm, results: tuple[Any, ...], device: Device) -> None:
    tokens, (rotary, T) = t.tokens, _rotary(t)
    plan = _heads(norm.centred).forward_plan(t.q.shape[-1], t.heads, *_dtypes(t), device)
    streams = _placed(t.q, tokens), _placed(t.k, tokens)
    programs = sum(plan.count(tokens * heads) for heads in t.heads)
    plan.launch(programs, streams, *_parameters(t), rotary, results, tokens, T, norm.eps)


def _parameters(t: Tensors) -> tuple[Any, Any]:
    """Weights and biases as a Launch takes them."""
    return tuple(map(contiguous, t[2:4])), tuple(map(contiguous, t[4:6]))


def backward(
    upstream: Sequence[Tensor | None], t: Tensors, norm: Norm, needs: Needs, device: Device
) -> list[Tensor | None]:
    """The gradients of q, k, their weights and biases, each None unless needed, from those of the results."""
    gradients = [
        empty_like(x, x.dtype) if needed and x is not None and dy is not None else None
        for x, needed, dy in zip(t, needs, tuple(upstream) * 3)
    ]
    wanted = tuple([g is not None for g in gradients])
    if any(wanted):
        _launch_backward(upstream, t, norm, gradients, wanted, device)
    return gradients


def _launch_backward(
    upstream: Sequence[Tensor | None],
    t: Tensors,
    norm: Norm,
    gradients: Sequence[Tensor | None],
    wanted: Needs,
    device: Device,
) -> None:
    N, tokens, (rotary, T) = t.q.shape[-1], t.tokens, _rotary(t)
    plan, sums = _heads(norm.centred).backward_plan(N, t.heads, *_dtypes(t), wanted, device)
    read = [dy if any(wanted[i::2]) else None for i, dy in enumerate(upstream)]
    P = plan.count(tokens * sum(heads for heads, dy in zip(t.heads, read) if dy is not None))
    wide = arithmetic(t.q.dtype)
    partials = [None if g is None else torch.empty((P, N), dtype=wide, device=t.q.device) for g in gradients[2:]]
    plan.launch(
        P,
        (_placed(t.q, tokens), _placed(t.k, tokens)),
        tuple([_placed(dy, tokens) for dy in read]),
        _parameters(t)[0],
        rotary,
        tuple(gradients[:2]),
        tuple(partials[:2]),
        tuple(partials[2:]),
        tokens,
        T,
        norm.eps,
    )
    if sums is not None:
        sums.launch(sums.count(N), tuple(partials), tuple(gradients[2:]), P)
