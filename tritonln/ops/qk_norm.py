"""qk_norm: RMSNorm or LayerNorm of the heads of q and k, and rotary embedding, in one launch."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import has_torch_function_variadic

from tritonln.configurations.heads import MOST
from tritonln.ops import library, qk_norm_op, row_autograd
from tritonln.ops.companions import check_shape
from tritonln.ops.contract import (
    DTYPES,
    HALF,
    arithmetic,
    check_device,
    needs_grad,
    number,
    only_numbers,
    owned,
    shifted,
    traced,
    transformed,
)
from tritonln.ops.known import Description, described, known, remember
from tritonln.ops.overridden import jagged_in_graph, overridden
from tritonln.ops.qk_norm_rows import Forward, Norm, Tensors, prepared
from tritonln.ops.sizes import agree, equal, holds


def qk_norm(
    q: Tensor,
    k: Tensor,
    q_weight: Tensor | None = None,
    k_weight: Tensor | None = None,
    eps: float | None = 1e-6,
    *,
    cos: Tensor | None = None,
    sin: Tensor | None = None,
    weight_offset: float = 0.0,
    centred: bool = False,
    q_bias: Tensor | None = None,
    k_bias: Tensor | None = None,
    inplace: bool = False,
) -> tuple[Tensor, Tensor]:
    r"""Normalization of every head of q and k, and the rotary embedding of both: one launch forward, two backward.

    .. math:: n = \frac{x}{\sqrt{\mathrm E[x^2] + \epsilon}} \, w \qquad
              y = n \cos + \mathrm{rotate\_half}(n) \sin \qquad
              \mathrm{rotate\_half}((a, b)) = (-b, a)

    with a and b the halves of a head; y = n without cos and sin.  Centred, as ViT-22B has it,

    .. math:: n = \frac{x - \mathrm E[x]}{\sqrt{\mathrm{Var}[x] + \epsilon}} \, w + b

    Args:
        q: ``(*, T, Hq, N)``; fp32, fp16, bf16 or fp64.  N is the length of a head, up to 1,024.
        k: ``(*, T, Hk, N)``, of q's dtype; Hk may differ from Hq.  Both may be views of one packed tensor, such as
            ``qkv.view(B, T, -1, N).split([Hq, Hk, Hk], -2)``: they are read where they lie as long as all tokens have
            one stride.  Others are copied, among them a transposed ``(B, H, T, N)``.
        q_weight, k_weight: w, ``(N,)``, in the dtype of q or in fp32 for 16 bits.
        eps: added to the mean of the squares.  None: the epsilon of the arithmetic's dtype, as in
            :func:`tritonln.rms_norm`.
        cos, sin: ``(T, N)`` or ``(*, T, N)`` with 1 or the size of q in each leading dimension, as transformers' models
            give them; of any floating dtype.  Given together, for even N.
        weight_offset: as in :func:`tritonln.rms_norm`: 1 for weights that are stored around zero, as Gemma 3's are.
        centred: layer normalization instead of RMS normalization.
        q_bias, k_bias: b, as the weights; of layer normalization only.
        inplace: for inference: y is written over q and k where they lie, such as in the packed tensor, and these are
            returned.  Where one launch cannot, as in compiled code or of a transposed tensor, it is copied there.

    Returns:
        y of q and of k: new contiguous tensors of their shapes and dtype, under autocast too.  All between is fp32
        (fp64 for fp64), and the result is rounded once; models that round n before they multiply by the weight or
        rotate differ in the last place.  Saved for backward: the arguments.

    What :func:`tritonln.layer_norm` says of the bits of results and of derivatives holds here too.  Gradients of cos
    and sin are right, and are in plain torch, with all else of a call that asks for them.

    Raises:
        RuntimeError, TypeError: for shapes, dtypes and devices that do not fit, naming the argument; in place, where a
            gradient is asked for, which is made of q and k.

    Source: Henry et al., Query-Key Normalization for Transformers (2020, arXiv 2010.04245) has the norm of heads, with
    a division by the length where the models that this serves (Qwen3, Gemma 3) have RMSNorm; Su et al., RoFormer
    (2021, arXiv 2104.09864), equation 34, the rotation, with its pairs as halves; Dehghani et al., Scaling Vision
    Transformers to 22 Billion Parameters (2023, arXiv 2302.05442), section 2, layer normalization of q and k.
    """
    tensors = q, k, q_weight, k_weight, q_bias, k_bias, cos, sin
    description = None
    if not weight_offset:
        description = described(qk_norm, tensors, (), eps, weight_offset, centred, inplace)
        if (forward := known(description)) is not None and (not inplace or forward.in_place(tensors)):
            return (q, k) if inplace else _again(forward, tensors)
    if has_torch_function_variadic(*tensors) or jagged_in_graph(q):
        return overridden(
            qk_norm, tensors, q, k, q_weight, k_weight, eps, cos=cos, sin=sin, weight_offset=weight_offset,
            centred=centred, q_bias=q_bias, k_bias=k_bias, inplace=inplace,
        )  # fmt: skip
    norm = Norm(_check(*tensors, eps, centred), centred)
    weights = shifted(q_weight, weight_offset, q.dtype), shifted(k_weight, weight_offset, q.dtype)
    t = Tensors(q, k, *weights, q_bias, k_bias, cos, sin)
    return _in_place(t, norm, description) if inplace else _call(t, norm, description)


def _call(t: Tensors, norm: Norm, description: Description | None = None) -> tuple[Tensor, Tensor]:
    if transformed() and row_autograd.by_rules(t.q):
        from tritonln.ops import qk_norm_transforms  # whose autograd Functions take milliseconds to make

        if qk_norm_transforms.serves(t):
            return qk_norm_transforms.call(t, norm)
    symbolic = traced(*t)
    if row_autograd.only_formula("qk_norm", t, symbolic) or needs_grad(t.cos, t.sin):
        return _by_formula(t, norm)
    if symbolic:
        return library.op("qk_norm")(*t, *norm)
    device = qk_norm_op.device_for(t)
    if device is None:
        return _by_formula(t, norm)
    forward = prepared(t, norm, needs_grad(*t), device)
    remember(description, forward)
    return _again(forward, t)


def _again(forward: Forward, tensors: Sequence[Any]) -> tuple[Tensor, Tensor]:
    """A call that is prepared."""
    return _apply(forward, *tensors) if forward.save else forward.on(tensors)


def _by_formula(t: Tensors, norm: Norm) -> tuple[Tensor, Tensor]:
    q, k = qk_norm_op.formula(t, norm)
    return owned(q), owned(k)


def _in_place(t: Tensors, norm: Norm, description: Description | None) -> tuple[Tensor, Tensor]:
    """q and k, written over."""
    if needs_grad(*t):
        raise RuntimeError(
            "qk_norm(inplace=True) is for inference: its gradients are made of q and k, which it writes over. "
            "Call it under torch.no_grad() or torch.inference_mode(), or on tensors that require none"
        )
    device = None if transformed() or traced(*t) else qk_norm_op.device_for(t)
    forward = None if device is None else prepared(t, norm, False, device)
    if forward is not None and forward.in_place(t):
        remember(description, forward)
    else:
        q, k = _call(t, norm)
        t.q.copy_(q)
        t.k.copy_(k)
    return t.q, t.k


class _QKNorm(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, forward: Forward, *tensors: Any) -> tuple[Tensor, Tensor]:
        ctx.save_for_backward(*tensors)
        ctx.set_materialize_grads(False)
        ctx.forward = forward
        results = forward.on(tensors)
        ctx.mark_non_differentiable(*qk_norm_op.constants(results, ctx.needs_input_grad[1:]))
        return results

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor | None) -> tuple[Tensor | None, ...]:
        forward, t, needs = ctx.forward, Tensors(*ctx.saved_tensors), ctx.needs_input_grad[1:7]
        if only_numbers(*upstream):
            return None, *forward.gradients(upstream, t, needs), None, None
        return None, *qk_norm_op.gradients(upstream, t, forward.norm, needs), None, None


# Function.apply is this and a search for functorch, which qk_norm has made already.
_apply = super(torch.autograd.Function, _QKNorm).apply

# ---- what is refused ---------------------------------------------------------------------------------


PARAMETERS = "q_weight", "k_weight", "q_bias", "k_bias"


def _check(
    q: Any, k: Any, q_weight: Any, k_weight: Any, q_bias: Any, k_bias: Any, cos: Any, sin: Any, eps: Any, centred: bool
) -> float:
    """Raises for arguments that do not fit.  Returns eps."""
    parameters = dict(zip(PARAMETERS, (q_weight, k_weight, q_bias, k_bias)))
    given = {"q": q, "k": k, **parameters, "cos": cos, "sin": sin}
    for word, t in given.items():
        if not isinstance(t, Tensor) and (t is not None or word in ("q", "k")):
            raise TypeError(f"qk_norm(): argument '{word}' must be Tensor, not {type(t).__name__}")
        if t is not None:
            check_device("qk_norm", word, t, q.device)
    if q.dim() < 2:
        raise RuntimeError(f"qk_norm: expected q of (*, heads, N), got {list(q.shape)}")
    *lead, _, N = q.shape
    if N < 1 or N > MOST:
        raise RuntimeError(
            f"qk_norm: expected q of heads of 1 to {MOST} values, got {list(q.shape)}: tritonln.rms_norm takes any"
        )
    if k.dim() != q.dim() or not agree([*k.shape[:-2], k.shape[-1]], [*lead, N]):
        raise RuntimeError(
            f"qk_norm: Expected k size {[*lead, 'any', N]} beside q of {list(q.shape)}, got {list(k.shape)}"
        )
    _check_dtype("q", q, DTYPES)
    _check_dtype("k", k, (q.dtype,))
    for word in PARAMETERS:
        if given[word] is not None and not centred and "bias" in word:
            raise RuntimeError(f"qk_norm: expected {word} with centred=True only: RMS normalization has no bias")
        if given[word] is not None:
            check_shape("qk_norm", word, given[word], (N,))
            _check_dtype(word, given[word], (q.dtype, torch.float32) if q.dtype in HALF else (q.dtype,))
    if (cos is None) != (sin is None):
        raise RuntimeError("qk_norm: expected both or neither of cos and sin")
    if cos is not None:
        if N % 2:
            raise RuntimeError(
                f"qk_norm: expected heads of an even number of values beside cos, got q of {list(q.shape)}"
            )
        for word in ("cos", "sin"):
            _check_rotary(word, given[word], [*lead, N])
        check_shape("qk_norm", "sin", sin, cos.shape)
    if eps is None:
        return torch.finfo(arithmetic(q.dtype)).eps
    return number("qk_norm(): argument 'eps'", eps)


def _check_dtype(word: str, t: Tensor, known: Sequence[torch.dtype]) -> None:
    if t.dtype not in known:
        raise RuntimeError(f"qk_norm: expected {word} of dtype {' or '.join(map(str, known))}, got {t.dtype}")


def _check_rotary(word: str, t: Tensor, full: list[int]) -> None:
    _check_dtype(word, t, DTYPES)
    sizes = list(t.shape)
    fits = 2 <= len(sizes) <= len(full) and agree(sizes[-2:], full[-2:])
    if not fits or not all(holds(a == 1) or equal(a, b) for a, b in zip(sizes[:-2], full[len(full) - len(sizes) :])):
        raise RuntimeError(f"qk_norm: Expected {word} size {full[-2:]} or {full}, got {sizes}")
