"""layer_norm_lstm: one layer in one direction."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonln.ops.contract import arithmetic, owned
from tritonln.ops.recurrent import plain
from tritonln.ops.recurrent.contract import (
    autocast_dtype,
    cast,
    cast_halves,
    check,
    check_lengths,
    check_norms,
    check_resets,
)
from tritonln.ops.recurrent.lstm_sequence import GROUPS, backward, forward
from tritonln.ops.recurrent.operator import RecurrentOperator, define
from tritonln.ops.recurrent.sharded import overridable


@overridable
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
    ln_weight: Tensor | None = None,
    ln_bias: Tensor | None = None,
    norm_groups: str = "joint",
    carry: bool = False,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    eps: float = 1e-5,
    cuda_graph: bool = True,
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    r"""A layer-normalized LSTM over a sequence: one layer, one direction.

    .. math::
        (i, f, g, o) &= \mathrm{LN}(W_{hh} h_{t-1}; w_{hh}, b_{hh}) + \mathrm{LN}(W_{ih} x_t; w_{ih}, b_{ih}) \\
        c_t &= \sigma(f) \, c_{t-1} + \sigma(i) \tanh(g) \\
        h_t &= W_{hr} \, \sigma(o) \tanh(\mathrm{LN}(c_t; w_c, b_c))

    Each of the first two norms is over all 4H values of its row.  With ``ln_weight`` it is the sum of the products
    that is normalized, all 4H values or, with ``norm_groups="gates"``, the H of each gate by themselves:

    .. math::
        (i, f, g, o) = \mathrm{LN}(W_{hh} h_{t-1} + W_{ih} x_t + b_{ih} + b_{hh}; w, b)

    Args:
        x: ``(T, B, I)``; fp32, fp16, bf16 or fp64.
        h0: ``(B, P)``, P = H without a projection.
        c0: ``(B, H)``; in ``x``'s dtype, or in fp32 for a 16-bit ``x``.
        weight_ih, weight_hh: ``(4H, I)`` and ``(4H, P)``, gates in torch's order i, f, g, o.
        bias_ih, bias_hh: ``(4H,)``, the biases of the two norms; each optional.
        ln_ih_weight, ln_hh_weight: ``(4H,)``, the gains of the two norms.  Without both of them the gates
            are not normalized.
        ln_weight, ln_bias: ``(4H,)``, gain and optional bias of the norm of the sum, in the place of those two.
        norm_groups: ``"joint"`` or, of the sum, ``"gates"``.
        ln_c_weight, ln_c_bias: ``(H,)``, gain and optional bias of the cell's norm, left out without a gain.
        weight_hr: ``(P, H)``, the projection; optional.
        carry: carry LN(c) to the next step instead of c, as some implementations do.
        lengths: ``(B,)`` int64; row ``b`` runs at steps ``t < lengths[b]`` and keeps its state at all others, whose
            ``x`` is not read.
        resets: ``(T, B)`` bool; where true, the step goes on from ``h0`` and ``c0``, as where an episode begins.
        reverse: walk from the last step to the first.
        eps: added to each variance.
        cuda_graph: on CUDA, replay steps that are not one launch as a graph, from the second call of a shape on.

    The biases and the gains may be fp32 for a 16-bit ``x``.  Under autocast ``x``, ``h0`` and the weight
    matrices are cast to its dtype, and all else that is 16-bit.

    Returns:
        ``y, (h_n, c_n), cells``: h of every step ``(T, B, P)``, the last states, and c of every step
        ``(T, B, H)``.  y and h_n are in ``x``'s dtype, c_n and cells in ``c0``'s.  The cell state, all
        statistics and all sums are fp32 (fp64 for fp64 ``x``); h is rounded to ``x``'s dtype each step.

    Saved for backward, beside the arguments: a step and row 12H values of ``x``'s dtype (W_ih x, its norm,
    W_hh h; 4H fewer where gates are not normalized, 8H fewer where their sum is), the states, P of ``x``'s dtype and
    H of fp32, and 16 bytes of statistics, 8 for each group of a sum; H more of ``x``'s dtype with a projection.  y and
    the last states are the caller's to change in place, cells only where there is no backward to come.

    Forward mode, torch.func's transforms, batched gradients, derivatives of derivatives (of any order) and
    torch.jit.trace run in plain torch, which takes some twenty operators a step.  Compiled code has first
    derivatives only.

    Raises:
        RuntimeError: for shapes, dtypes and devices that do not fit.

    Source: Ba, Kiros and Hinton, Layer Normalization (2016, arXiv 1607.06450), section 3.1 and the
    supplement's equations 20 to 22.
    """
    gates = (weight_ih, weight_hh, bias_ih, bias_hh, ln_ih_weight, ln_hh_weight)
    parameters = (*gates, ln_c_weight, ln_c_bias, weight_hr, ln_weight, ln_bias)
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, h0, weight_ih, weight_hh, weight_hr = cast(dtype, x, h0, weight_ih, weight_hh, weight_hr)
        c0, *vectors = cast_halves(dtype, c0, *parameters[2:8], ln_weight, ln_bias)
        parameters = (weight_ih, weight_hh, *vectors[:6], weight_hr, *vectors[6:])
    _check(x, h0, c0, parameters, lengths, carry, norm_groups)
    check_resets("layer_norm_lstm", resets, x)
    masks = (lengths, resets)
    (h, c), save = LSTM(x, h0, c0, *parameters, *masks, reverse, carry, norm_groups, float(eps), cuda_graph)
    if c.dtype != c0.dtype:
        c = c.to(c0.dtype)
    steps, last = (slice(None, -1), 0) if reverse else (slice(1, None), -1)
    # What is saved for backward is nobody's to change.
    y = h[steps].clone() if save else owned(h[steps])
    return y, (h[last].clone(), c[last].clone()), owned(c[steps])


def _check(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    parameters: tuple[Tensor | None, ...],
    lengths: Tensor | None,
    carry: bool,
    norm_groups: str,
) -> None:
    weight_ih, weight_hh, bias_ih, bias_hh, ln_ih_weight, ln_hh_weight, ln_c_weight, ln_c_bias, *rest = parameters
    weight_hr, ln_weight, ln_bias = rest
    B, H, P = x.shape[1] if x.dim() > 1 else 0, c0.shape[-1], h0.shape[-1]
    if (ln_ih_weight is None) != (ln_hh_weight is None):
        raise RuntimeError("layer_norm_lstm: expected both or neither of ln_ih_weight and ln_hh_weight")
    check_norms("layer_norm_lstm", ln_hh_weight, ln_weight, ln_bias, norm_groups, ("joint", "gates"))
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
            "ln_weight": (ln_weight, (4 * H,)),
            "ln_bias": (ln_bias, (4 * H,)),
        },
        products=("h0", "weight_ih", "weight_hh", "weight_hr"),
    )
    check_lengths("layer_norm_lstm", lengths, x)


def _room(inputs: Sequence[Any], constants: Sequence[Any]) -> tuple[Tensor | None, ...]:
    """What `forward` returns, without values."""
    x, h0, c0, *_, ln_ih_weight, _, _, _, weight_hr, ln_weight, _ = inputs
    (T, B, _), H, dtype = x.shape, c0.shape[1], arithmetic(x.dtype)
    hoisted, G = ln_ih_weight is not None, 4 // GROUPS[constants[2]]
    gates_x, p = (x.new_empty((T, B, 4 * H)) for _ in range(2))
    return (
        x.new_empty((T + 1, *h0.shape)),
        x.new_empty((T + 1, B, H), dtype=dtype),
        torch.empty_like(gates_x) if hoisted else None,
        gates_x,
        x.new_empty((T * B, 2), dtype=dtype) if hoisted else None,
        p if ln_weight is None else None,
        x.new_empty((T, G, B, 2), dtype=dtype) if hoisted or ln_weight is not None else None,
        None if weight_hr is None else x.new_empty((T + 1, B, H)),
    )


LSTM = RecurrentOperator(
    "layer_norm_lstm",
    required=("x", "h0", "c0", "weight_ih", "weight_hh"),
    optional=(
        *("bias_ih", "bias_hh", "ln_ih_weight", "ln_hh_weight", "ln_c_weight", "ln_c_bias"),
        *("weight_hr", "ln_weight", "ln_bias"),
    ),
    constants="bool reverse, bool carry, str norm_groups, float eps, bool cuda_graph",
    states=2,
    results=8,
    forward=forward,
    backward=backward,
    plain=plain.lstm,
    room=_room,
)
define(LSTM)
