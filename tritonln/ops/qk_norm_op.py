"""qk_norm as a custom op, its formula in torch, and the way from gradients of its results to those of its arguments."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonln.device import Device, kernels_on
from tritonln.ops import library
from tritonln.ops.contract import arithmetic, autograd_inside, beyond_numbers, refuse_tangents, traced
from tritonln.ops.qk_norm_plans import Needs
from tritonln.ops.qk_norm_rows import Norm, Tensors, backward, forward
from tritonln.ops.row_formula import normalized, rows
from tritonln.ops.subclasses import RULES


def device_for(t: Tensors) -> Device | None:
    """That of the kernels; None where there are none, or nothing to compute."""
    return kernels_on(t.q.device) if t.q.numel() and t.k.numel() else None


def formula(t: Tensors, norm: Norm) -> tuple[Tensor, Tensor]:
    """In elementary operations, which are right to any order and under any transform."""
    return (
        _of_heads(t.q, t.q_weight, t.q_bias, t.cos, t.sin, norm),
        _of_heads(t.k, t.k_weight, t.k_bias, t.cos, t.sin, norm),
    )


def _of_heads(
    x: Tensor, weight: Tensor | None, bias: Tensor | None, cos: Tensor | None, sin: Tensor | None, norm: Norm
) -> Tensor:
    N, wide = x.shape[-1], arithmetic(x.dtype)
    y = normalized(rows(x, N).to(wide), norm.eps, norm.centred)[0].reshape(x.shape)
    if weight is not None:
        y = y * weight.to(wide)
    if bias is not None:
        y = y + bias.to(wide)
    if cos is not None and sin is not None:
        a, b = y.chunk(2, -1)
        y = y * cos.to(wide).unsqueeze(-2) + torch.cat([-b, a], -1) * sin.to(wide).unsqueeze(-2)
    return y.to(x.dtype)


def constants(results: tuple[Tensor, Tensor], needs: Needs) -> list[Tensor]:
    """Which of the results depend on nothing that requires a gradient."""
    return [y for i, y in enumerate(results) if not any(needs[i:6:2])]


def gradients(upstream: Sequence[Tensor | None], t: Tensors, norm: Norm, needs: Needs) -> Sequence[Tensor | None]:
    """Of q, k, their weights and their biases, each None unless needed."""
    if all(dy is None for dy in upstream):
        return [None] * 6
    if beyond_numbers(*upstream):
        return _of_formula(upstream, t, norm, needs)
    if traced(*upstream, *t):  # such as lazily negated ones that were saved
        found = library.op("qk_norm_backward")(*upstream, *t, *norm, needs)
        return [g if needed and dy is not None else None for g, needed, dy in zip(found, needs, tuple(upstream) * 3)]
    return _computed(upstream, t, norm, needs)


def _of_formula(upstream: Sequence[Tensor | None], t: Tensors, norm: Norm, needs: Needs) -> list[Tensor | None]:
    graph = torch.is_grad_enabled()
    wanted = [x if n and dy is not None else None for x, n, dy in zip(t, needs, tuple(upstream) * 3)]
    if all(x is None for x in wanted):  # what is needed belongs to the result that nobody used
        return wanted
    with torch.enable_grad():
        places = [x if w is None else w.view_as(w) for x, w in zip(t, (*wanted, None, None))]  # one may be in two
        pairs = [(y, dy) for y, dy in zip(formula(Tensors(*places), norm), upstream) if dy is not None]  # type: ignore[arg-type]
        outputs, given = zip(*[(y, dy) for y, dy in pairs if y.requires_grad])
        leaves = [x for x, w in zip(places, wanted) if x is not None and w is not None]
        found = iter(torch.autograd.grad(outputs, leaves, given, create_graph=graph))
    return [None if x is None else next(found) for x in wanted]


def _computed(upstream: Sequence[Tensor | None], t: Tensors, norm: Norm, needs: Needs) -> Sequence[Tensor | None]:
    device = device_for(t)
    if device is not None:
        return backward(upstream, t, norm, needs, device)
    leaves = [None if x is None else x.detach().requires_grad_(n) for x, n in zip(t, (*needs, False, False))]
    with torch.no_grad(), autograd_inside():
        return _of_formula(upstream, Tensors(*leaves), norm, needs)  # type: ignore[arg-type]


# ---- the op ------------------------------------------------------------------------------------------

_ARGUMENTS = (
    "Tensor q, Tensor k, Tensor? q_weight, Tensor? k_weight, Tensor? q_bias, Tensor? k_bias, Tensor? cos, Tensor? sin, "
    "float eps, bool centred"
)


def _read(arguments: Sequence[Any]) -> tuple[Tensors, Norm]:
    return Tensors(*arguments[:8]), Norm(*arguments[8:10])


def _forward(*arguments: Any) -> tuple[Tensor, Tensor]:
    refuse_tangents("qk_norm")
    t, norm = _read(arguments)
    device = device_for(t)
    return formula(t, norm) if device is None else forward(t, norm, device)


def _fake_forward(q: Tensor, k: Tensor, *_: Any) -> tuple[Tensor, Tensor]:
    return torch.empty(q.shape, dtype=q.dtype, device=q.device), torch.empty(k.shape, dtype=k.dtype, device=k.device)


def _backward(dq: Tensor | None, dk: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    """Empty tensors for what is not wanted."""
    refuse_tangents("qk_norm")
    t, norm = _read(arguments)
    found = _computed((dq, dk), t, norm, arguments[10])
    return tuple([t.q.new_empty(0) if g is None else g for g in found])


def _fake_backward(dq: Tensor | None, dk: Tensor | None, *arguments: Any) -> tuple[Tensor, ...]:
    t, _ = _read(arguments)
    return tuple(
        torch.empty(x.shape, dtype=x.dtype, device=x.device)
        if x is not None and needed and dy is not None
        else t.q.new_empty(0)
        for x, needed, dy in zip(t, arguments[10], (dq, dk) * 3)
    )


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
    t, ctx.norm = _read(inputs)
    ctx.save_for_backward(*t)
    ctx.set_materialize_grads(False)
    ctx.mark_non_differentiable(*constants(output, ctx.needs_input_grad))


def _differentiated(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
    found = gradients(upstream, Tensors(*ctx.saved_tensors), ctx.norm, ctx.needs_input_grad[:6])
    return *found, None, None, None, None


library.define(
    "qk_norm",
    f"({_ARGUMENTS}) -> (Tensor, Tensor)",
    _forward,
    _fake_forward,
    backward=_differentiated,
    setup_context=_setup_context,
    decomposition=lambda *arguments: formula(*_read(arguments)),
)
library.define(
    "qk_norm_backward",
    f"(Tensor? dq_out, Tensor? dk_out, {_ARGUMENTS}, bool[] needs) -> ({', '.join(['Tensor'] * 6)})",
    _backward,
    _fake_backward,
)


def _shard() -> None:
    from tritonln.ops import qk_norm_sharding  # which imports torch.distributed.tensor

    qk_norm_sharding.register()


RULES["qk_norm"] = _shard
