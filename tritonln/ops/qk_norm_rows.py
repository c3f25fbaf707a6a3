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
from tritonln.plan import Plan


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


def _rotary(t: Tensors) -> tuple[bool, int]:
    """Whether cos and sin are written out, a row for each token, and their rows: as many, or those they have."""
    if t.cos is None:
        return False, 1
    lead, outer = t.q.shape[:-2], t.cos.shape[:-1]
    shared = math.prod(outer) == (outer[-1] if outer else 1)
    whole = not shared or (bool(outer) and outer[-1] != lead[-1])
    return whole, t.tokens if whole else math.prod(outer)


def _angles(t: Tensors, whole: bool) -> tuple[Any, Any]:
    """cos and sin as a Launch takes them."""
    if whole and t.cos is not None and t.sin is not None:
        lead = t.q.shape[:-2]
        return t.cos.expand(*lead, -1).contiguous(), t.sin.expand(*lead, -1).contiguous()
    return contiguous(t.cos), contiguous(t.sin)


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


class Forward(NamedTuple):
    """A forward pass on tensors of certain shapes and dtypes: all that does not depend on where they lie."""

    norm: Norm
    save: bool
    device: Device
    as_given: bool  # whether the kernel takes all tensors as they are
    whole: bool  # whether cos and sin are written out
    tokens: int
    launch: Any
    programs: int
    scalars: tuple[float, ...]  # that its arguments end in
    backwards: dict[Any, Backward]  # by which gradients are asked for and given

    def on(self, t: Sequence[Any]) -> tuple[Tensor, Tensor]:
        q, k = t[:2]
        results = empty_like(q, q.dtype), empty_like(k, k.dtype)
        self.into(results, t)
        return results

    def into(self, results: tuple[Any, Any], t: Sequence[Any]) -> None:
        if self.as_given:
            self.launch(self.programs, t[:2], t[2:4], t[4:6], t[6:], results, *self.scalars)
            return
        t = Tensors(*t)
        streams = _placed(t.q, self.tokens), _placed(t.k, self.tokens)
        self.launch(self.programs, streams, *_parameters(t), _angles(t, self.whole), results, *self.scalars)

    def in_place(self, t: Sequence[Any]) -> bool:
        """Writes the results over q and k; False, and nothing done, where a launch cannot: values of one row may lie in
        another too, or tokens have no one stride.
        """
        tokens, streams, extents = self.tokens, t[:2], []
        places = [_placed(x, tokens) for x in streams]
        for x, place in zip(streams, places):
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
        self.into((places[0], places[1]), t)
        for x in streams:
            if not x.is_inference():
                torch.autograd.graph.increment_version(x)
        return True

    def gradients(self, upstream: Sequence[Tensor | None], t: Tensors, needs: Needs) -> list[Tensor | None]:
        """As `backward` has them."""
        asked = needs, *[dy is None for dy in upstream]
        found = self.backwards.get(asked)
        if found is None:
            found = self.backwards[asked] = prepared_backward(upstream, t, self.norm, needs, self.device)
        return found.of(upstream, t)


class Backward(NamedTuple):
    """A backward pass on tensors of certain shapes and dtypes, with certain gradients."""

    wanted: Needs
    read: tuple[bool, bool]  # which of the gradients of the results
    whole: bool  # whether cos and sin are written out
    tokens: int
    launch: Any  # None where no gradient is wanted
    P: int
    scalars: tuple[float, ...]  # that its arguments end in
    sums: Plan | None

    def of(self, upstream: Sequence[Tensor | None], t: Tensors) -> list[Tensor | None]:
        """The gradients of q, k, their weights and biases, each None unless wanted."""
        wanted, read, whole, tokens, launch, P, scalars, sums = self
        gradients = [empty_like(x, x.dtype) if w else None for x, w in zip(t, wanted)]  # type: ignore[union-attr, arg-type]
        if launch is None:
            return gradients
        N, wide = t.q.shape[-1], arithmetic(t.q.dtype)
        partials = tuple([None if g is None else t.q.new_empty(P, N, dtype=wide) for g in gradients[2:]])
        launch(
            P,
            (_placed(t.q, tokens), _placed(t.k, tokens)),
            tuple([_placed(dy, tokens) if r else None for dy, r in zip(upstream, read)]),
            _parameters(t)[0],
            _angles(t, whole),
            tuple(gradients[:2]),
            partials[:2],
            partials[2:],
            *scalars,
        )
        if sums is not None:
            sums.launch(sums.count(N), partials, tuple(gradients[2:]), P)
        return gradients


def prepared(t: Tensors, norm: Norm, save: bool, device: Device) -> Forward:
    """What `forward` does with tensors like these."""
    (whole, T), tokens = _rotary(t), t.tokens
    plan = _heads(norm.centred).forward_plan(t.q.shape[-1], t.heads, *_dtypes(t), device)
    as_given = not whole and all(x is None or x.is_contiguous() for x in t)
    programs = sum(plan.count(tokens * heads) for heads in t.heads)
    return Forward(norm, save, device, as_given, whole, tokens, plan.launch, programs, (tokens, T, norm.eps), {})


def prepared_backward(
    upstream: Sequence[Tensor | None], t: Tensors, norm: Norm, needs: Needs, device: Device
) -> Backward:
    """What `backward` does with tensors like these."""
    wanted = tuple([n and x is not None and dy is not None for n, x, dy in zip(needs, t, tuple(upstream) * 3)])
    read = any(wanted[::2]), any(wanted[1::2])
    (whole, T), tokens = _rotary(t), t.tokens
    if not any(wanted):
        return Backward(wanted, read, whole, tokens, None, 0, (), None)
    plan, sums = _heads(norm.centred).backward_plan(t.q.shape[-1], t.heads, *_dtypes(t), wanted, device)
    P = plan.count(tokens * sum(heads for heads, r in zip(t.heads, read) if r))
    return Backward(wanted, read, whole, tokens, plan.launch, P, (tokens, T, norm.eps), sums)


def forward(t: Tensors, norm: Norm, device: Device) -> tuple[Tensor, Tensor]:
    """Of tensors with values."""
    return prepared(t, norm, False, device).on(t)


def backward(
    upstream: Sequence[Tensor | None], t: Tensors, norm: Norm, needs: Needs, device: Device
) -> list[Tensor | None]:
    """The gradients of q, k, their weights and biases, each None unless needed, from those of the results."""
    return prepared_backward(upstream, t, norm, needs, device).of(upstream, t)


def _parameters(t: Tensors) -> tuple[Any, Any]:
    """Weights and biases as a Launch takes them."""
    return tuple(map(contiguous, t[2:4])), tuple(map(contiguous, t[4:6]))
