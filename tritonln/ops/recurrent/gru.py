"""layer_norm_gru: one layer in one direction."""

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
from tritonln.ops.recurrent.gru_sequence import GROUPS, backward, forward
from tritonln.ops.recurrent.operator import RecurrentOperator, define
from tritonln.ops.recurrent.sharded import overridable
from tritonln.ops.recurrent.shared import total_bias


@overridable
def layer_norm_gru(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    ln_ih_weight: Tensor | None = None,
    ln_hh_weight: Tensor | None = None,
    *,
    ln_weight: Tensor | None = None,
    ln_bias: Tensor | None = None,
    norm_groups: str = "paper",
    reset: str = "recurrent",
    update_bias: float = 0.0,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    eps: float = 1e-5,
    cuda_graph: bool = True,
) -> tuple[Tensor, Tensor]:
    r"""A layer-normalized GRU over a sequence: one layer, one direction.

    .. math::
        (r, z) &= \sigma(\mathrm{LN}(W_{hh}^{rz} h_{t-1}; w_{hh}, b_{hh})
                  + \mathrm{LN}(W_{ih}^{rz} x_t; w_{ih}, b_{ih})) \\
        n &= \tanh(\mathrm{LN}(W_{ih}^n x_t; w_{ih}, b_{ih}) + r \, \mathrm{LN}(W_{hh}^n h_{t-1}; w_{hh}, b_{hh})) \\
        h_t &= (1 - z) \, n + z \, h_{t-1}

    The norms are over the 2H values of r and z and the H of n; with ``norm_groups="joint"`` over all 3H together, as
    some implementations have it.  z keeps the old state as in torch; the paper's z is 1 - z.

    With ``ln_weight`` it is the sum of the products that is normalized, with r inside of the norm or, with
    ``reset="candidate"``, around all of it:

    .. math::
        (r, z) &= \sigma(\mathrm{LN}(W_{hh}^{rz} h_{t-1} + W_{ih}^{rz} x_t + b_{ih} + b_{hh}; w, b)) \\
        n &= \tanh(\mathrm{LN}(W_{ih}^n x_t + b_{ih} + r \, (W_{hh}^n h_{t-1} + b_{hh}); w, b))
             \quad\text{or} \\
        n &= \tanh(r \, \mathrm{LN}(W_{hh}^n h_{t-1} + W_{ih}^n x_t + b_{ih} + b_{hh}; w, b))

    Args:
        x: ``(T, B, I)``; fp32, fp16, bf16 or fp64.
        h0: ``(B, H)``.
        weight_ih, weight_hh: ``(3H, I)`` and ``(3H, H)``, gates in torch's order r, z, n.
        bias_ih, bias_hh: ``(3H,)``, the biases of the norms, or of the products in the sum; both or neither.
        ln_ih_weight, ln_hh_weight: ``(3H,)``, the gains of the norms.
        ln_weight, ln_bias: ``(3H,)``, gain and optional bias of the norm of the sum, in the place of those two.
        norm_groups: ``"paper"``, ``"joint"`` or, of the sum, ``"gates"``: the H of each gate by themselves.
        reset: ``"recurrent"``, which a joint norm of the sum cannot have; or, of the sum, ``"candidate"``.
        update_bias: added to the argument of the update 1 - z, a sigmoid as z is: -1 keeps more of the state.
        lengths: ``(B,)`` int64; row ``b`` runs at steps ``t < lengths[b]`` and keeps its state at all others, whose
            ``x`` is not read.
        resets: ``(T, B)`` bool; where true, the step goes on from ``h0``, as where an episode begins.
        reverse: walk from the last step to the first.
        eps: added to each variance.
        cuda_graph: on CUDA, replay steps that are not one launch as a graph, from the second call of a shape on.

    The biases and the gains may be fp32 for a 16-bit ``x``.  Under autocast ``x``, ``h0`` and the weight
    matrices are cast to its dtype, and all else that is 16-bit.

    Returns:
        ``y, h_n``: h of every step ``(T, B, H)`` and the last, in ``x``'s dtype.  The state that steps hand
        on, all statistics and all sums are fp32 (fp64 for fp64 ``x``); the products see it rounded.

    Saved for backward, beside the arguments: a step and row 9H values of ``x``'s dtype (W_ih x, its norm, W_hh h;
    3H where their sum is normalized, 6H with the reset inside of it), the states, H of ``x``'s dtype and, where that is
    16-bit, of fp32, and 16 bytes of statistics for each group, 8 for each of a sum.  The results are the caller's to
    change in place.

    Forward mode, torch.func's transforms, batched gradients, derivatives of derivatives (of any order) and
    torch.jit.trace run in plain torch, which takes some twenty operators a step.  Compiled code has first
    derivatives only.

    Raises:
        RuntimeError: for shapes, dtypes and devices that do not fit.

    Source: Ba, Kiros and Hinton, Layer Normalization (2016, arXiv 1607.06450), section 3.1 and the
    supplement's equations 26 to 28.
    """
    dtype = autocast_dtype(x)
    if dtype is not None:
        x, h0, weight_ih, weight_hh = cast(dtype, x, h0, weight_ih, weight_hh)
        vectors = bias_ih, bias_hh, ln_ih_weight, ln_hh_weight, ln_weight, ln_bias
        bias_ih, bias_hh, ln_ih_weight, ln_hh_weight, ln_weight, ln_bias = cast_halves(dtype, *vectors)
    if (bias_ih is None) != (bias_hh is None):
        raise RuntimeError("layer_norm_gru: expected both or neither of bias_ih and bias_hh")
    if (ln_ih_weight is None) != (ln_hh_weight is None) or (ln_hh_weight is None and ln_weight is None):
        raise RuntimeError("layer_norm_gru: expected ln_ih_weight and ln_hh_weight, or ln_weight")
    check_norms("layer_norm_gru", ln_hh_weight, ln_weight, ln_bias, norm_groups, ("paper", "joint", "gates"))
    if reset not in ("recurrent", "candidate"):
        raise RuntimeError(f"layer_norm_gru: expected reset one of recurrent, candidate, got {reset}")
    if reset == "candidate" and ln_weight is None:
        raise RuntimeError("layer_norm_gru: expected ln_weight where reset is 'candidate'")
    if reset == "recurrent" and ln_weight is not None and norm_groups == "joint":
        raise RuntimeError("layer_norm_gru: expected reset 'candidate' where the sum has one norm, which r comes from")
    H, I = h0.shape[-1], x.shape[-1]
    check(
        "layer_norm_gru",
        x,
        {
            "h0": (h0, (*x.shape[1:2], H)),
            "weight_ih": (weight_ih, (3 * H, I)),
            "weight_hh": (weight_hh, (3 * H, H)),
            "bias_ih": (bias_ih, (3 * H,)),
            "bias_hh": (bias_hh, (3 * H,)),
            "ln_ih_weight": (ln_ih_weight, (3 * H,)),
            "ln_hh_weight": (ln_hh_weight, (3 * H,)),
            "ln_weight": (ln_weight, (3 * H,)),
            "ln_bias": (ln_bias, (3 * H,)),
        },
        products=("h0", "weight_ih", "weight_hh"),
    )
    check_lengths("layer_norm_gru", lengths, x)
    check_resets("layer_norm_gru", resets, x)
    if update_bias:  # a part of the bias of z
        shift = x.new_zeros(3 * H, dtype=arithmetic(x.dtype))
        shift[H : 2 * H] = -float(update_bias)
        if ln_weight is not None:
            ln_bias = total_bias(ln_bias, shift)
        else:
            bias_ih, bias_hh = total_bias(bias_ih, shift), torch.zeros_like(shift) if bias_hh is None else bias_hh
    gates = (weight_ih, weight_hh, bias_ih, bias_hh, ln_ih_weight, ln_hh_weight, ln_weight, ln_bias)
    (h,), save = GRU(x, h0, *gates, lengths, resets, reverse, norm_groups, reset, float(eps), cuda_graph)
    steps, last = (slice(None, -1), 0) if reverse else (slice(1, None), -1)
    # What is saved for backward is nobody's to change.
    return h[steps].clone() if save else owned(h[steps]), h[last].clone()


def _room(inputs: Sequence[Any], constants: Sequence[Any]) -> tuple[Tensor | None, ...]:
    """What `forward` returns, without values."""
    x, h0, *_, ln_weight, _ = inputs
    _, norm_groups, reset, *_ = constants
    (T, B, _), H, dtype = x.shape, h0.shape[1], arithmetic(x.dtype)
    summed, G = ln_weight is not None, (2 + GROUPS[norm_groups]) // GROUPS[norm_groups]
    joint = summed or norm_groups == "joint"
    return (
        x.new_empty((T + 1, B, H)),
        None if x.dtype == dtype else x.new_empty((T + 1, B, H), dtype=dtype),
        None if summed else x.new_empty((T, B, 3 * H)),
        x.new_empty((T, B, 3 * H if joint else 2 * H)),
        None if joint else x.new_empty((T, B, H)),
        None if summed else x.new_empty((T * B, 2), dtype=dtype),
        None if joint else x.new_empty((T * B, 2), dtype=dtype),
        None if summed and reset == "candidate" else x.new_empty((T, B, 3 * H)),
        x.new_empty((T, G, B, 2), dtype=dtype),
    )


GRU = RecurrentOperator(
    "layer_norm_gru",
    required=("x", "h0", "weight_ih", "weight_hh"),
    optional=("bias_ih", "bias_hh", "ln_ih_weight", "ln_hh_weight", "ln_weight", "ln_bias"),
    constants="bool reverse, str norm_groups, str reset, float eps, bool cuda_graph",
    states=1,
    results=9,
    forward=forward,
    backward=backward,
    plain=plain.gru,
    room=_room,
)
define(GRU)
