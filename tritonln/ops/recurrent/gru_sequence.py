"""layer_norm_gru over a sequence, forward and backward: what is hoisted out of the time steps, and the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tritonln.device import Device
from tritonln.ops.contract import arithmetic, contiguous, dtype_of
from tritonln.ops.recurrent import gru_aten, gru_steps, gru_whole_sequence
from tritonln.ops.recurrent.contract import device_of, without_autocast
from tritonln.ops.recurrent.shared import (
    GRUSteps,
    gains_backward,
    gone_on_from,
    input_bias,
    norm_backward,
    norm_forward,
    product,
    starting,
    total_bias,
    widths,
    with_starts,
    without_padding,
)

GROUPS = {"joint": 3, "paper": 2, "gates": 1}  # how many gates are normalized together
Constants = tuple[bool, str, str, float, bool]  # reverse, norm_groups, reset, eps, cuda_graph


def forward(
    inputs: Sequence[Any],
    masks: tuple[Tensor | None, Tensor | None],
    constants: Constants,
    save: bool,
) -> tuple[Tensor | None, ...]:
    """(h, state, wx, x_rz, x_n, stats_x_rz, stats_x_n, p, stats).

    h and state (T + 1, B, H), state None where it is h; the others are what the backward wants to know:
    wx = W_ih x, and x_rz and x_n = LN of its groups with the biases.  Where both are one group x_rz holds
    its rows and x_n is None; where the sum of the products is normalized, that sum, and wx is None too, and so is p
    unless the reset is inside of the sum.
    """
    x, h0, weight_ih, _, bias_ih, bias_hh, ln_ih_weight, *_ = inputs
    _, norm_groups, _, eps, cuda_graph = constants
    device, H, x = device_of(x, h0), h0.shape[-1], without_padding(x, masks[0])
    with without_autocast(x):
        s = _steps(inputs, masks, constants)
        wx: Tensor | None = None
        x_n = stats_x_rz = stats_x_n = None
        if s.summed or s.inner:
            bias = total_bias(bias_ih, bias_hh) if s.summed else input_bias(bias_ih, bias_hh)
            x_rz = F.linear(x, weight_ih, None if bias is None else bias.to(x.dtype))
        else:
            wx, bias = F.linear(x, weight_ih), input_bias(bias_ih, bias_hh)
            (wx_rz, w_rz, b_rz), (wx_n, w_n, b_n) = groups(H, wx, ln_ih_weight, bias)
            if norm_groups == "joint":
                x_rz, stats_x_rz = norm_forward(wx, ln_ih_weight, bias, eps, save, device)
            else:
                x_rz, stats_x_rz = norm_forward(wx_rz, w_rz, b_rz, eps, save, device)
                x_n, stats_x_n = norm_forward(wx_n, w_n, b_n, eps, save, device)
        candidate = x_rz[..., 2 * H :] if x_n is None else x_n
        h, state, p, stats = walk(x_rz, candidate, h0, s, save, cuda_graph, device)
    return h, state, wx, x_rz, x_n, stats_x_rz, stats_x_n, p, stats


def walk(
    x_rz: Tensor, x_n: Tensor, h0: Tensor, s: GRUSteps, save: bool, cuda_graph: bool, device: Device | None
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """As gru_steps.forward."""
    if device is None:
        return gru_aten.forward(x_rz, x_n, h0, s, save)
    whole = gru_whole_sequence.forward_plan(x_rz.dtype, s, save, device)
    if whole is None:
        return gru_steps.forward(x_rz, x_n, h0, s, save, cuda_graph, device)
    return gru_whole_sequence.forward(x_rz, x_n, h0, s, save, whole)


def walk_back(
    dh: Tensor | None,
    known: tuple[Tensor, Tensor, Tensor | None, Tensor, Tensor],
    s: GRUSteps,
    cuda_graph: bool,
    device: Device | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As gru_steps.backward."""
    if device is None:
        return gru_aten.backward(dh, *known, s)
    whole = gru_whole_sequence.backward_plan(known[0].dtype, dtype_of(dh), s, device)
    if whole is None:
        return gru_steps.backward(dh, *known, s, cuda_graph, device)
    return gru_whole_sequence.backward(dh, *known, s, whole)


def _steps(inputs: Sequence[Any], masks: tuple[Tensor | None, Tensor | None], constants: Constants) -> GRUSteps:
    *_, weight_hh, _, bias_hh, _, ln_hh_weight, ln_weight, ln_bias = inputs
    reverse, norm_groups, reset, eps, _ = constants
    summed = ln_weight is not None
    inner = summed and reset == "recurrent"
    norm = (inner_bias(bias_hh, ln_bias) if inner else ln_bias, ln_weight) if summed else (bias_hh, ln_hh_weight)
    tensors = map(contiguous, (weight_hh, *norm, masks[0]))
    options = (reverse, GROUPS[norm_groups], summed and not inner, inner, eps)
    return GRUSteps(*tensors, starting(*masks, reverse), *options)  # type: ignore[call-arg, arg-type]


def inner_bias(bias_hh: Tensor | None, ln_bias: Tensor | None) -> Tensor | None:
    """(4H,): the bias of the norms, and that of W_hh h inside of the candidate's."""
    some = ln_bias if bias_hh is None else bias_hh
    if some is None:
        return None
    dtype, H = arithmetic(some.dtype), some.shape[0] // 3
    b, b_hh = (some.new_zeros(3 * H, dtype=dtype) if t is None else t.to(dtype) for t in (ln_bias, bias_hh))
    return torch.cat([b, b_hh[2 * H :]])


def groups(H: int, *tensors: Tensor | None) -> tuple[list[Any], list[Any]]:
    """The columns of r and z, and those of the candidate."""
    rz = [None if t is None else t[..., : 2 * H] for t in tensors]
    return rz, [None if t is None else t[..., 2 * H :] for t in tensors]


def backward(
    dh: Tensor | None,
    inputs: Sequence[Any],
    saved: Sequence[Any],
    masks: tuple[Tensor | None, Tensor | None],
    constants: Constants,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs in their dtypes, each None unless needed."""
    h, state, wx, x_rz, x_n, stats_x_rz, stats_x_n, p, stats = saved
    if x_rz is None:  # the graph was captured where nothing asked for gradients
        h, state, wx, x_rz, x_n, stats_x_rz, stats_x_n, p, stats = forward(inputs, masks, constants, True)
    x, h0, weight_ih, _, bias_ih, bias_hh, ln_ih_weight, *_ = inputs
    reverse, norm_groups, *_, cuda_graph = constants
    device, H, x = device_of(x, h0), h.shape[-1], without_padding(x, masks[0])
    with without_autocast(x):
        candidate = x_rz[..., 2 * H :] if x_n is None else x_n
        known = (x_rz, candidate, p, stats, h if state is None else state)
        s = _steps(inputs, masks, constants)
        dgates, dm, dp, dh0 = walk_back(dh, known, s, cuda_graph, device)
        dh0 = with_starts(dh0, dp, s.starts, s.weight_hh, reverse)
        need_x, _, need_ih, need_hh, need_bias_ih, need_bias_hh, need_ln_ih, need_ln_hh, need_ln, need_ln_bias = needs
        wanted = (need_x or need_ih, need_ln_ih, need_bias_ih or need_bias_hh)
        bias = input_bias(bias_ih, bias_hh)
        dwx: Any
        if s.summed or s.inner:
            dwx, dw_x = dp if s.summed else torch.cat([dp[..., : 2 * H], dm], -1), None
            db_x = dwx.sum((0, 1), dtype=arithmetic(x.dtype)) if wanted[2] else None
        elif norm_groups == "joint":
            dwx, dw_x, db_x = norm_backward(dgates, wx, ln_ih_weight, bias, stats_x_rz, wanted, device)
        else:
            (dy_rz, wx_rz, w_rz, b_rz), (dy_n, wx_n, w_n, b_n) = groups(H, dgates, wx, ln_ih_weight, bias)
            found_rz = norm_backward(dy_rz, wx_rz, w_rz, b_rz, stats_x_rz, wanted, device)
            found_n = norm_backward(dy_n, wx_n, w_n, b_n, stats_x_n, wanted, device)
            dwx, dw_x, db_x = (joined(*pair) for pair in zip(found_rz, found_n))
        # The candidate's norm is that of m; where one group is all three gates, so are its statistics.
        (dy_rz, rows_rz), (dy_n, rows_n) = groups(H, dgates, x_rz if s.summed or s.inner else p)
        sizes = widths(2, min(s.group, 2), H)
        pieces = ((*dy_rz.split(sizes, -1), dy_n if s.inner else dm), (*rows_rz.split(sizes, -1), rows_n))
        pairs = [stats[:, min(k, stats.shape[1] - 1)] for k in range(len(sizes) + 1)]
        if s.summed or s.inner:
            dw_h, db_ln = gains_backward(*pieces, s.gain, inputs[-1], pairs, (need_ln, need_ln_bias), device)
        else:
            dw_h, db_ln = gains_backward(*pieces, s.gain, None, pairs, (need_ln_hh, False), device)
        if s.summed:
            db_h = db_x if db_x is None or not (need_bias_ih and need_bias_hh) else db_x.clone()
        else:
            through_reset = dp[..., 2 * H :] if s.inner else dm
            db_n = through_reset.sum((0, 1), dtype=arithmetic(x.dtype)) if need_bias_hh else None
            db_h = joined(None if db_x is None else db_x[: 2 * H], db_n)
        gradients = (
            dwx @ weight_ih if need_x else None,
            dh0,
            product(dwx, x) if need_ih else None,
            product(dp, gone_on_from(h, s.starts, reverse)) if need_hh else None,
            db_x,
            db_h,
            dw_x,
            dw_h if need_ln_hh else None,
            dw_h if need_ln else None,
            db_ln,
        )
    return tuple(
        g.to(t.dtype) if g is not None and t is not None and needed else None
        for g, t, needed in zip(gradients, inputs, needs)
    )


def joined(rz: Tensor | None, n: Tensor | None) -> Tensor | None:
    return None if rz is None or n is None else torch.cat([rz.to(n.dtype), n], -1)
