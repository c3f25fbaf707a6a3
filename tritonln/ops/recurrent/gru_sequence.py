"""layer_norm_gru over a sequence, forward and backward: what is hoisted out of the time steps, and the steps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tritonln.ops.contract import contiguous
from tritonln.ops.recurrent import gru_aten, gru_steps, gru_whole_sequence
from tritonln.ops.recurrent.shared import (
    GRUSteps,
    device_of,
    input_bias,
    norm_backward,
    norm_forward,
    product,
    without_autocast,
    without_padding,
)


def forward(
    inputs: Sequence[Any],
    lengths: Tensor | None,
    constants: tuple[bool, bool, float, bool],
    save: bool,
) -> tuple[Tensor | None, ...]:
    """(h, state, wx, x_rz, x_n, stats_x_rz, stats_x_n, p, stats_rz, stats_n).

    h and state (T + 1, B, H), state None where it is h; the others are what the backward wants to know:
    wx = W_ih x, and x_rz and x_n = LN of its groups with the biases.  Where both are one group x_rz holds
    its rows and x_n is None.
    """
    x, h0, weight_ih, _, bias_ih, bias_hh, ln_ih_weight, _ = inputs
    _, joint, eps, cuda_graph = constants
    device, H, x = device_of(x, h0), h0.shape[-1], without_padding(x, lengths)
    with without_autocast(x):
        wx, bias = F.linear(x, weight_ih), input_bias(bias_ih, bias_hh)
        x_n = stats_x_n = None
        if joint:
            x_rz, stats_x_rz = norm_forward(wx, ln_ih_weight, bias, eps, save, device)
        else:
            (wx_rz, w_rz, b_rz), (wx_n, w_n, b_n) = groups(H, wx, ln_ih_weight, bias)
            x_rz, stats_x_rz = norm_forward(wx_rz, w_rz, b_rz, eps, save, device)
            x_n, stats_x_n = norm_forward(wx_n, w_n, b_n, eps, save, device)
        candidate = x_rz[..., 2 * H :] if x_n is None else x_n
        s = _steps(inputs, lengths, constants)
        if device is None:
            found = gru_aten.forward(x_rz, candidate, h0, s, save)
        else:
            found = gru_whole_sequence.forward(x_rz, candidate, h0, s, save, device) or gru_steps.forward(
                x_rz, candidate, h0, s, save, cuda_graph, device
            )
    h, state, p, stats_rz, stats_n = found
    return h, state, wx, x_rz, x_n, stats_x_rz, stats_x_n, p, stats_rz, stats_n


def _steps(inputs: Sequence[Any], lengths: Tensor | None, constants: tuple[bool, bool, float, bool]) -> GRUSteps:
    *_, weight_hh, _, bias_hh, _, ln_hh_weight = inputs
    return GRUSteps(*map(contiguous, (weight_hh, bias_hh, ln_hh_weight, lengths)), *constants[:3])  # type: ignore[call-arg, arg-type]


def groups(H: int, *tensors: Tensor | None) -> tuple[list[Any], list[Any]]:
    """The columns of r and z, and those of the candidate."""
    rz = [None if t is None else t[..., : 2 * H] for t in tensors]
    return rz, [None if t is None else t[..., 2 * H :] for t in tensors]


def backward(
    dh: Tensor | None,
    inputs: Sequence[Any],
    saved: Sequence[Any],
    lengths: Tensor | None,
    constants: tuple[bool, bool, float, bool],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """The gradients of the inputs in their dtypes, each None unless needed."""
    h, state, wx, x_rz, x_n, stats_x_rz, stats_x_n, p, stats_rz, stats_n = saved
    if p is None:  # the graph was captured where nothing asked for gradients
        h, state, wx, x_rz, x_n, stats_x_rz, stats_x_n, p, stats_rz, stats_n = forward(inputs, lengths, constants, True)
    x, h0, weight_ih, _, bias_ih, bias_hh, ln_ih_weight, ln_hh_weight = inputs
    reverse, joint, _, cuda_graph = constants
    device, H, x = device_of(x, h0), h.shape[-1], without_padding(x, lengths)
    with without_autocast(x):
        candidate = x_rz[..., 2 * H :] if x_n is None else x_n
        known = (x_rz, candidate, p, stats_rz, stats_n, h if state is None else state)
        s = _steps(inputs, lengths, constants)
        if device is None:
            dgates, dm, dp, dh0 = gru_aten.backward(dh, *known, s)
        else:
            dgates, dm, dp, dh0 = gru_whole_sequence.backward(dh, *known, s, device) or gru_steps.backward(
                dh, *known, s, cuda_graph, device
            )
        need_x, _, need_ih, need_hh, need_bias_ih, need_bias_hh, need_ln_ih, need_ln_hh = needs
        wanted = (need_x or need_ih, need_ln_ih, need_bias_ih or need_bias_hh)
        bias = input_bias(bias_ih, bias_hh)
        dwx: Any
        if joint:
            dwx, dw_x, db_x = norm_backward(dgates, wx, ln_ih_weight, bias, stats_x_rz, wanted, device)
        else:
            (dy_rz, wx_rz, w_rz, b_rz), (dy_n, wx_n, w_n, b_n) = groups(H, dgates, wx, ln_ih_weight, bias)
            found_rz = norm_backward(dy_rz, wx_rz, w_rz, b_rz, stats_x_rz, wanted, device)
            found_n = norm_backward(dy_n, wx_n, w_n, b_n, stats_x_n, wanted, device)
            dwx, dw_x, db_x = (joined(*pair) for pair in zip(found_rz, found_n))
        # Gain and bias see the group's values only, so both kinds of norm have two groups here.
        (dy_rz, p_rz, w_rz), (_, p_n, w_n) = groups(H, dgates, p, ln_hh_weight)
        _, dw_rz, _ = norm_backward(dy_rz, p_rz, w_rz, None, stats_rz, (False, need_ln_hh, False), device)
        b_n = None if bias_hh is None else bias_hh[2 * H :]
        wanted = (False, need_ln_hh, need_bias_hh)
        _, dw_n, db_n = norm_backward(dm, p_n, w_n, b_n, stats_rz if joint else stats_n, wanted, device)
        gradients = (
            dwx @ weight_ih if need_x else None,
            dh0,
            product(dwx, x) if need_ih else None,
            product(dp, h[slice(1, None) if reverse else slice(None, -1)]) if need_hh else None,
            db_x,
            joined(None if db_x is None else db_x[: 2 * H], db_n),
            dw_x,
            joined(dw_rz, dw_n),
        )
    return tuple(
        g.to(t.dtype) if g is not None and t is not None and needed else None
        for g, t, needed in zip(gradients, inputs, needs)
    )


def joined(rz: Tensor | None, n: Tensor | None) -> Tensor | None:
    return None if rz is None or n is None else torch.cat([rz.to(n.dtype), n], -1)
