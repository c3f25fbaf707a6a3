"""layer_norm_lstm: one layer in one direction; the public function, autograd, and the custom op for traced code."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonln.ops.contract import arithmetic, refuse_tangents, traced, transformed
from tritonln.ops.recurrent import plain
from tritonln.ops.recurrent.autograd import Arguments, Backward
from tritonln.ops.recurrent.lstm_sequence import backward, forward
from tritonln.ops.recurrent.shared import (
    autocast_dtype,
    cast,
    check,
    check_lengths,
    fake_gradients,
    filled,
    present,
    real,
)


def layer_norm_lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    ln_ih_weight: Tensor | None = None,
    ln_hh_weight: Tensor | None = None,
    ln_c_weight: Tensor | None = None,
    ln_c_bias: Tensor | None = None,
    weight_hr: Tensor | None = None,
    *,
    carry: bool = False,
    lengths: Tensor | None = None,
    reverse: bool = False,
    eps: float = 1e-5,
    cuda_graph: bool = True,
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    r"""A layer-normalized LSTM over a sequence: one layer, one direction.

    .. math::
        (i, f, g, o) &= \mathrm{LN}(W_{hh} h_{t-1}; w_{hh}, b_{hh}) + \mathrm{LN}(W_{ih} x_t; w_{ih}, b_{ih}) \\
        c_t &= \sigma(f) \, c_{t-1} + \sigma(i) \tanh(g) \\
        h_t &= W_{hr} \, \sigma(o) \tanh(\mathrm{LN}(c_t; w_c, b_c))

    Each of the first two norms is over all 4H values of its row.

    Args:
        x: ``(T, B, I)``; fp32, fp16, bf16 or fp64.
        h0: ``(B, P)``, P = H without a projection.
        c0: ``(B, H)``; in ``x``'s dtype, or in fp32 for a 16-bit ``x``.
        weight_ih, weight_hh: ``(4H, I)`` and ``(4H, P)``, gates in torch's order i, f, g, o.
        bias_ih, bias_hh: ``(4H,)``, the biases of the two norms; each optional.
        ln_ih_weight, ln_hh_weight: ``(4H,)``, the gains of the two norms.  Without both of them the gates
            are not normalized.
        ln_c_weight, ln_c_bias: ``(H,)``, gain and optional bias of the cell's norm, left out without a gain.
        weight_hr: ``(P, H)``, the projection; optional.
        carry: carry LN(c) to the next step instead of c, as some implementations do.
        lengths: ``(B,)`` int64; row ``b`` runs at steps ``t < lengths[b]`` and keeps its state at all others, whose
            ``x`` is not read.
        reverse: walk from the last step to the first.
        eps: added to each variance.
        cuda_graph: on CUDA, replay steps that are not one launch as a graph, from the second call of a shape on.

    The biases and the gains may be fp32 for a 16-bit ``x``.  Under autocast ``x``, ``h0`` and the weight
    matrices are cast to its dtype.

    Returns:
        ``y, (h_n, c_n), cells``: h of every step ``(T, B, P)``, the last states, and c of every step
        ``(T, B, H)``.  y and h_n are in ``x``'s dtype, c_n and cells in ``c0``'s.  The cell state, all
        statistics and all sums are fp32 (fp64 for fp64 ``x``); h is rounded to ``x``'s dtype each step.

    Saved for backward, beside the arguments: a step and row 12H values of ``x``'s dtype (W_ih x, its norm,
    W_hh h; 4H fewer where gates are not normalized), the states, P of ``x``'s dtype and H of fp32, and
    16 bytes of statistics; H more of ``x``'s dtype with a projection.  y and the last states are the caller's to
    change in place, cells only where there is no backward to come.

    Forward mode, torch.func's transforms, batched gradients, derivatives of derivatives (of any order) and
    torch.jit.trace run in plain torch, which takes some twenty operators a step.  Compiled code has first
    derivatives only.

    Raises:
        RuntimeError: for shapes, dtypes and devices that do not fit.

    Source: Ba, Kiros and Hinton, Layer Normalization (2016, arXiv 1607.06450), section 3.1 and the
    supplement's equations 20 to 22.
    """
    parameters = (weight_ih, weight_hh, bias_ih, bias_hh, ln_ih_weight, ln_hh_weight, ln_c_weight, ln_c_bias, weight_hr)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, h0, weight_ih, weight_hh, weight_hr = cast(dtype, x, h0, weight_ih, weight_hh, weight_hr)
        parameters = (weight_ih, weight_hh, *parameters[2:8], weight_hr)
    _check(x, h0, c0, parameters, lengths, carry)
    save = torch.is_grad_enabled() and any(t is not None and t.requires_grad for t in (x, h0, c0, *parameters))
    arguments = (x, h0, c0, *parameters, lengths, reverse, carry, float(eps), cuda_graph)
    if transformed():
        save, (h, c) = False, plain.lstm(*arguments)  # autograd saves what it needs
    elif traced(x, h0, c0, *parameters):
        h, c, *_ = layer_norm_lstm_op(*arguments, save)
    elif save:
        h, c = _LayerNormLSTM.apply(*arguments)
    else:
        h, c, *_ = forward(*_grouped(arguments), False)
    if c.dtype != c0.dtype:
        c = c.to(c0.dtype)
    steps, last = (slice(None, -1), 0) if reverse else (slice(1, None), -1)
    # What is saved for backward is nobody's to change.
    y = h[steps].clone() if save else h[steps]
    return y, (h[last].clone(), c[last].clone()), c[steps]


def _check(
    x: Tensor, h0: Tensor, c0: Tensor, parameters: tuple[Tensor | None, ...], lengths: Tensor | None, carry: bool
) -> None:
    weight_ih, weight_hh, bias_ih, bias_hh, ln_ih_weight, ln_hh_weight, ln_c_weight, ln_c_bias, weight_hr = parameters
    B, H, P = x.shape[1] if x.dim() > 1 else 0, c0.shape[-1], h0.shape[-1]
    if (ln_ih_weight is None) != (ln_hh_weight is None):
        raise RuntimeError("layer_norm_lstm: expected both or neither of ln_ih_weight and ln_hh_weight")
    if ln_c_weight is None and (carry or ln_c_bias is not None):
        raise RuntimeError("layer_norm_lstm: expected ln_c_weight where there is an ln_c_bias or LN(c) is carried")
    if weight_hr is None and P != H:
        raise RuntimeError(f"layer_norm_lstm: Expected h0 size {(B, H)}, got {list(h0.shape)}")
    check(
        "layer_norm_lstm",
        x,
        {
            "h0": (h0, (B, P)),
            "c0": (c0, (B, H)),
            "weight_ih": (weight_ih, (4 * H, x.shape[-1])),
            "weight_hh": (weight_hh, (4 * H, P)),
            "bias_ih": (bias_ih, (4 * H,)),
            "bias_hh": (bias_hh, (4 * H,)),
            "ln_ih_weight": (ln_ih_weight, (4 * H,)),
            "ln_hh_weight": (ln_hh_weight, (4 * H,)),
            "ln_c_weight": (ln_c_weight, (H,)),
            "ln_c_bias": (ln_c_bias, (H,)),
            "weight_hr": (weight_hr, (P, H)),
        },
        products=("h0", "weight_ih", "weight_hh", "weight_hr"),
    )
    check_lengths("layer_norm_lstm", lengths, x)


# ---- eager -------------------------------------------------------------------------------------


class _LayerNormLSTM(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, *arguments: Any) -> tuple[Tensor, Tensor]:
        h, c, *saved = forward(*_grouped(arguments), True)
        _backward.save(ctx, _grouped(arguments), (h, c, *saved))
        return h, c

    @staticmethod
    def backward(ctx: Any, dh: Tensor | None, dc: Tensor | None) -> tuple[Tensor | None, ...]:
        return *_backward(ctx, dh, dc), None, None, None, None, None


def _grouped(arguments: tuple[Any, ...]) -> Arguments:
    return Arguments(arguments[:12], arguments[12], arguments[13:17])


# ---- the custom op: what torch.compile, torch.export and fake tensors see ------------------------


@torch.library.custom_op("tritonln::layer_norm_lstm", mutates_args=())
def layer_norm_lstm_op(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    ln_ih_weight: Tensor | None,
    ln_hh_weight: Tensor | None,
    ln_c_weight: Tensor | None,
    ln_c_bias: Tensor | None,
    weight_hr: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    carry: bool,
    eps: float,
    cuda_graph: bool,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor, Tensor]:
    refuse_tangents("layer_norm_lstm")
    gates = (weight_ih, weight_hh, bias_ih, bias_hh, ln_ih_weight, ln_hh_weight)
    inputs = (x, h0, c0, *gates, ln_c_weight, ln_c_bias, weight_hr)
    h, c, *saved = forward(inputs, lengths, (reverse, carry, eps, cuda_graph), save)
    return filled(x, h, c, *(saved if save else [None] * 6))  # type: ignore[return-value]


@layer_norm_lstm_op.register_fake
def _(x: Tensor, h0: Tensor, c0: Tensor, *rest: Any) -> tuple[Tensor, ...]:
    ln_ih_weight, weight_hr, save = rest[4], rest[8], rest[-1]
    (T, B, _), H, dtype = x.shape, c0.shape[1], arithmetic(x.dtype)
    h, c = x.new_empty((T + 1, *h0.shape)), x.new_empty((T + 1, B, H), dtype=dtype)
    if not save:
        return filled(x, h, c, *[None] * 6)
    normalized = ln_ih_weight is not None
    gates_x, p = (x.new_empty((T, B, 4 * H)) for _ in range(2))
    return filled(
        x,
        h,
        c,
        torch.empty_like(gates_x) if normalized else None,
        gates_x,
        x.new_empty((T * B, 2), dtype=dtype) if normalized else None,
        p,
        x.new_empty((T, B, 2), dtype=dtype) if normalized else None,
        None if weight_hr is None else x.new_empty((T + 1, B, H)),
    )


@torch.library.custom_op("tritonln::layer_norm_lstm_backward", mutates_args=())
def layer_norm_lstm_backward_op(
    dh: Tensor | None,
    dc: Tensor | None,
    inputs: Sequence[Tensor | None],
    saved: Sequence[Tensor | None],
    lengths: Tensor | None,
    reverse: bool,
    carry: bool,
    eps: float,
    cuda_graph: bool,
    needs: Sequence[bool],
) -> list[Tensor]:
    inputs = real(inputs)
    found = backward(dh, dc, inputs, present(saved), lengths, (reverse, carry, eps, cuda_graph), needs)
    return list(filled(inputs[0], *found))


@layer_norm_lstm_backward_op.register_fake
def _(dh: Tensor | None, dc: Tensor | None, inputs: Sequence[Tensor | None], *rest: Any) -> list[Tensor]:
    return fake_gradients(inputs, rest[-1])


_backward = Backward(12, plain.lstm, layer_norm_lstm_backward_op, backward)


def _setup_context(ctx: Any, inputs: tuple[Any, ...], output: tuple[Tensor, ...]) -> None:
    _backward.save(ctx, _grouped(inputs), output)
    ctx.mark_non_differentiable(*output[2:])


def _op_backward(ctx: Any, dh: Tensor | None, dc: Tensor | None, *_: Any) -> tuple[Tensor | None, ...]:
    return *_backward(ctx, dh, dc), None, None, None, None, None, None


layer_norm_lstm_op.register_autograd(_op_backward, setup_context=_setup_context)


@torch._decomp.register_decomposition(torch.ops.tritonln.layer_norm_lstm.default)
def _(*arguments: Any) -> tuple[Tensor, ...]:
    """In ATen's operators, for exporters.  Nothing is saved: a backward in the same graph computes it again."""
    h, c = plain.lstm(*arguments[:-1])
    return filled(h, h, c, *[None] * 6)
