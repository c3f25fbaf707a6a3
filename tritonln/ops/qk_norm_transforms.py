"""qk_norm under torch.func's vmap and reverse mode: samples are only more tokens, as in row_transforms."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C._functorch import is_functorch_wrapped_tensor

from tritonln.ops import library, qk_norm_op
from tritonln.ops.qk_norm_plans import Needs
from tritonln.ops.qk_norm_rows import Norm, Tensors
from tritonln.ops.row_transforms import front, pulled


def serves(t: Tensors) -> bool:
    """Whether cos and sin are constants, whose gradients the kernels have not."""
    return not any(is_functorch_wrapped_tensor(angles) for angles in (t.cos, t.sin) if angles is not None)


def call(t: Tensors, norm: Norm) -> tuple[Tensor, Tensor]:
    return _QKNorm.apply(norm, *t)  # type: ignore[no-untyped-call]


class _QKNorm(torch.autograd.Function):
    @staticmethod
    def forward(norm: Norm, *tensors: Tensor | None) -> tuple[Tensor, Tensor]:
        return library.op("qk_norm")(*tensors, *norm)

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, Tensor]) -> None:
        ctx.norm, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        given = tuple(upstream) * 3
        needs = tuple([n and dy is not None for n, dy in zip(ctx.needs_input_grad[1:7], given)])
        found = iter(_Gradients.apply(ctx.norm, needs, *upstream, *ctx.saved_tensors) if any(needs) else ())  # type: ignore[no-untyped-call]
        return None, *[next(found) if needed else None for needed in needs], None, None

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], norm: Norm, *tensors: Tensor | None) -> Any:
        (q, k, *parameters), (_, *dims) = tensors[:6], in_dims[:7]
        if any(t is not None and dim is not None for t, dim in zip(parameters, dims[2:])):
            formula = torch.vmap(lambda *t: qk_norm_op.formula(Tensors(*t), norm), tuple(in_dims[1:]))
            return formula(*tensors), (0, 0)
        heads = (front(t, dim, info.batch_size) for t, dim in zip((q, k), dims))  # type: ignore[arg-type]
        return _QKNorm.apply(norm, *heads, *parameters, *tensors[6:]), (0, 0)  # type: ignore[no-untyped-call]


class _Gradients(torch.autograd.Function):
    """Those that are needed, from (norm, needs, dq, dk, *tensors)."""

    @staticmethod
    def forward(norm: Norm, needs: Needs, dq: Tensor | None, dk: Tensor | None, *tensors: Tensor | None) -> Any:
        found = library.op("qk_norm_backward")(dq, dk, *tensors, *norm, needs)
        return tuple([g for g, needed in zip(found, needs) if needed])

    @staticmethod
    def setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
        ctx.norm, ctx.needs, *tensors = inputs
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        again = lambda *tensors: _by_formula(ctx.norm, ctx.needs, *tensors)  # noqa: E731
        return None, None, *pulled(again, ctx.saved_tensors, ctx.needs_input_grad[2:], upstream)

    @staticmethod
    def vmap(info: Any, in_dims: Sequence[Any], norm: Norm, needs: Needs, *tensors: Tensor | None) -> Any:
        parameters, dims = tensors[4:8], in_dims[2:]
        shared = all(t is None or dim is None for t, dim in zip(parameters, dims[4:8]))
        # Those of parameters are sums over the tokens of each sample.
        of_heads = (*needs[:2], *[False] * 4) if shared else (False,) * 6
        left: Any = tuple([needed and not ruled for needed, ruled in zip(needs, of_heads)])
        found: list[Any] = [None] * 6
        if any(of_heads):
            fronts = [None if t is None else front(t, dim, info.batch_size) for t, dim in zip(tensors[:4], dims)]
            ruled = iter(_Gradients.apply(norm, of_heads, *fronts, *tensors[4:]))  # type: ignore[no-untyped-call]
            found = [next(ruled) if wanted else None for wanted in of_heads]
        if any(left):
            more = iter(torch.vmap(lambda *t: _by_formula(norm, left, *t), tuple(dims))(*tensors))
            found = [next(more) if wanted else g for g, wanted in zip(found, left)]
        given = tuple([g for g in found if g is not None])
        return given, (0,) * len(given)


def _by_formula(
    norm: Norm, needs: Needs, dq: Tensor | None, dk: Tensor | None, *tensors: Tensor | None
) -> tuple[Tensor, ...]:
    formula = lambda *t: qk_norm_op.formula(Tensors(*t), norm)  # noqa: E731
    return tuple([g for g in pulled(formula, tensors, (*needs, False, False), (dq, dk)) if g is not None])
