"""layer_norm_lstm over a sequence, forward and backward: what is hoisted out of the time steps, and the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch.nn.functional as F
from torch import Tensor

from tritonln.device import Device
from tritonln.ops.contract import arithmetic, contiguous, dtype_of
from tritonln.ops.recurrent import lstm_aten, lstm_steps, lstm_whole_sequence
from tritonln.ops.recurrent.contract import device_of, without_autocast
from tritonln.ops.recurrent.shared import (
    LSTMSteps,
    gains_backward,
    gone_on_from,
    norm_backward,
    norm_forward,
    product,
    starting,
    total_bias,
    widths,
    with_starts,
    without_padding,
)

GROUPS = {"joint": 4, "gates": 1}  # how many gates are normalized together
Constants = tuple[bool, bool, str, float, bool]  # reverse, carry, norm_groups, eps, cuda_graph


def forward(
    inputs: Sequence[Any],
    masks: tuple[Tensor | None, Tensor | None],
    constants: Constants,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(h, c, wx, gates_x, stats_x, p, stats, m): the states of all steps, and what the backward wants to know.

    wx = W_ih x and gates_x = LN(wx) with both biases, the same where gates are not normalized: wx is None then.
    Where the sum of the products is normalized, it is gates_x, and p is None.
    """
    x, h0, c0, weight_ih, _, bias_ih, bias_hh, ln_ih_weight, *_ = inputs
    *_, eps, cuda_graph = constants
    device, x = device_of(x, c0), without_padding(x, masks[0])
    with without_autocast(x):
        bias = total_bias(bias_ih, bias_hh)
        wx = stats_x = None
        if ln_ih_weight is None:
            gates_x = F.linear(x, weight_ih, None if bias is None else bias.to(x.dtype))
        else:
            wx = F.linear(x, weight_ih)
            gates_x, stats_x = norm_forward(wx, ln_ih_weight, bias, eps, save, device)
        s = _steps(inputs, masks, constants)
        h, c, p, stats, m = walk(gates_x, h0, c0, s, save, cuda_graph, device)
    return h, c, wx, gates_x, stats_x, p, stats, m


def walk(
    x: Tensor, h0: Tensor, c0: Tensor, s: LSTMSteps, save: bool, cuda_graph: bool, device: Device | None
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """As lstm_steps.forward."""
    if device is None:
        return lstm_aten.forward(x, h0, c0, s, save)
    whole = lstm_whole_sequence.forward_plan(x.dtype, s, save, device)
    if whole is None:
        return lstm_steps.forward(x, h0, c0, s, save, cuda_graph, device)
    return lstm_whole_sequence.forward(x, h0, c0, s, save, whole)


def walk_back(
    dh: Tensor | None,
    dc: Tensor | None,
    known: tuple[Tensor, Tensor | None, Tensor | None],
    states: tuple[Tensor, Tensor],
    s: LSTMSteps,
    cuda_graph: bool,
    device: Device | None,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """As lstm_steps.backward, from the gates, the statistics and the states of all steps."""
    if device is None:
        return lstm_aten.backward(dh, dc, *known, *states, s)
    whole = lstm_whole_sequence.backward_plan(known[0].dtype, dtype_of(dh), dtype_of(dc), s, device)
    if whole is None:
        return lstm_steps.backward(dh, dc, *known, *states, s, cuda_graph, device)
    return lstm_whole_sequence.backward(dh, dc, *known, states[1], s, whole, device)


def _steps(inputs: Sequence[Any], masks: tuple[Tensor | None, Tensor | None], constants: Constants) -> LSTMSteps:
    *_, weight_hh, _, _, _, ln_hh_weight, ln_c_weight, ln_c_bias, weight_hr, ln_weight, ln_bias = inputs
    reverse, carry, norm_groups, eps, _ = constants
    gain = ln_hh_weight if ln_weight is None else ln_weight
    tensors = map(contiguous, (weight_hh, gain, ln_bias, ln_c_weight, ln_c_bias, weight_hr, masks[0]))
    options = (reverse, carry, GROUPS[norm_groups], ln_weight is not None, eps)
    return LSTMSteps(*tensors, starting(*masks, reverse), *options)  # type: ignore[call-arg, arg-type]


def backward(
    dh: Tensor | None,
    dc: Tensor | None,
    inputs: Sequence[Any],
    saved: Sequence[Any],
    masks: tuple[Tensor | None, Tensor | None],
    constants: Constants,
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs in their dtypes, each None unless needed."""
    h, c, wx, gates_x, stats_x, p, stats, m = saved
    if gates_x is None:  # the graph was captured where nothing asked for gradients
        h, c, wx, gates_x, stats_x, p, stats, m = forward(inputs, masks, constants, True)
    x, _, c0, weight_ih, _, bias_ih, bias_hh, ln_ih_weight, *_ = inputs
    reverse, *_, cuda_graph = constants
    device, x = device_of(x, c0), without_padding(x, masks[0])
    s = _steps(inputs, masks, constants)
    with without_autocast(x):
        found = walk_back(dh, dc, (gates_x, p, stats), (h, c), s, cuda_graph, device)
        dgates, dp, dh0, dc0, dw_c, db_c, dh_total = found
        after = slice(None, -1) if reverse else slice(1, None)
        dh0 = with_starts(dh0, dp, s.starts, s.weight_hh, reverse)
        need_x, _, _, need_ih, need_hh, need_bias_ih, need_bias_hh, need_ln_ih, need_ln_hh, _, _, need_hr = needs[:12]
        need_bias = need_bias_ih or need_bias_hh
        dw_hh = product(dp, gone_on_from(h, s.starts, reverse)) if need_hh else None
        dwx: Any = dp if s.summed else dgates
        del found, dp  # before dwx takes as much
        dw_x, bias = None, total_bias(bias_ih, bias_hh)
        if ln_ih_weight is not None:
            wanted = (need_x or need_ih, need_ln_ih, need_bias)
            dwx, dw_x, db = norm_backward(dgates, wx, ln_ih_weight, bias, stats_x, wanted, device)
        else:
            db = dwx.sum((0, 1), dtype=arithmetic(x.dtype)) if need_bias else None
        dw, db_h = None, None
        if s.gain is not None:
            sizes, rows = widths(4, s.group, c0.shape[-1]), gates_x if s.summed else p
            pieces = (dgates.split(sizes, -1), rows.split(sizes, -1))
            wanted_of_norm = (needs[12], needs[13]) if s.summed else (need_ln_hh, False)
            dw, db_h = gains_backward(*pieces, s.gain, s.bias, stats.unbind(1), wanted_of_norm, device)
        gradients = (
            dwx @ weight_ih if need_x else None,
            dh0,
            dc0,
            product(dwx, x) if need_ih else None,
            dw_hh,
            db if need_bias_ih else None,
            db.clone() if db is not None and need_bias_ih and need_bias_hh else db,
            dw_x,
            None if s.summed else dw,
            dw_c,
            db_c,
            product(dh_total, m[after]) if need_hr and dh_total is not None else None,
            dw if s.summed else None,
            db_h,
        )
    return tuple(
        g.to(t.dtype) if g is not None and t is not None and needed else None
        for g, t, needed in zip(gradients, inputs, needs)
    )
