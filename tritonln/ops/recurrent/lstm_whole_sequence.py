"""All time steps of layer_norm_lstm in one launch, where W_hh stays on the chip; None elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tritonln.configurations.recurrent import Demand
from tritonln.configurations.tunable import register
from tritonln.device import Device
from tritonln.ops.contract import arithmetic, contiguous, dtype_of
from tritonln.ops.recurrent import lstm_step_plans as step_plans
from tritonln.ops.recurrent import lstm_steps as stepwise
from tritonln.ops.recurrent.shared import LSTMSteps, direction, states
from tritonln.ops.recurrent.whole_sequence import WholeSequence, plan, settle
from tritonln.plan import Plan

# ---- from configurations to launches -------------------------------------------------------------


def _kernels() -> tuple[Any, Any]:
    from tritonln.kernels.recurrent.lstm_whole_sequence import lstm_persistent_bwd, lstm_persistent_fwd

    return lstm_persistent_fwd, lstm_persistent_bwd


def _forward_stepwise(device: Device, arguments: Sequence[Any]) -> None:
    x, matrix_hh, gain_hh, bias_hh, gain_c, bias_c, lengths, starts, h, c, p, stats, *_, eps = arguments
    s = LSTMSteps(matrix_hh, gain_hh, bias_hh, gain_c, bias_c, None, lengths, starts, False, False, 4, False, eps)
    launching = step_plans.forward_plan_of(x.dtype, s, p is not None, device)
    room = torch.empty_like(x[:1]) if p is None else p
    written = (h, c, room, stats, None, None if starts is None else h[0].clone())
    read = (matrix_hh, None, gain_hh, bias_hh, gain_c, bias_c, lengths, starts)
    stepwise.forward_steps(x, *written, *read, False, s.eps, launching)


def _forward_keys(H: int, x: torch.dtype) -> Iterator[dict[str, torch.dtype | None]]:
    wide = arithmetic(x)
    for gain in dict.fromkeys((x, wide)):
        for p, stats in ((x, wide), (None, None)):
            known = {"x": x, "matrix_hh": x, "gain_hh": gain, "gain_c": gain, "bias_c": gain, "h": x, "c": wide}
            yield {**known, "p": p, "stats": stats}


FORWARD = WholeSequence(
    name="lstm_persistent_fwd",
    operands={
        **{
            "x": "T M 4N",
            "matrix_hh": "4N N",
            "gain_hh": "4N",
            "bias_hh": "4N",
            "gain_c": "N",
            "bias_c": "N",
            "lengths": "M",
        },
        **{"starts": "S M", "h": "S M N", "c": "S M N", "p": "T M 4N", "stats": "T M 2"},
    },
    results=("p", "stats"),
    updated=("h", "c"),
    kernel=lambda: _kernels()[0],
    constants=lambda H, group, summed, carry: (H, group, summed, carry),
    usual=(4, False, False),
    stepwise=_forward_stepwise,
    demand=lambda x, resets: Demand(x, gates=4, copied=4 * x + resets * (x + 4), exchanged=4),
    keys=_forward_keys,
    scalars=(1e-5,),
)


def _backward_stepwise(device: Device, arguments: Sequence[Any]) -> None:
    (
        dy,
        dcells,
        x,
        p,
        matrix_hh,
        gain_hh,
        bias_hh,
        gain_c,
        bias_c,
        lengths,
        starts,
        c,
        stats,
        *found,
        _,
        _,
        _,
        _,
        _,
        eps,
    ) = arguments
    dgates, dp, dh, dc, dgain_c, dbias_c = found
    s = LSTMSteps(matrix_hh, gain_hh, bias_hh, gain_c, bias_c, None, lengths, starts, False, False, 4, x is None, eps)
    launching = step_plans.backward_plan_of(p.dtype, dtype_of(dy), dtype_of(dcells), s, device)
    kept = None if lengths is None else torch.zeros_like(dh)
    sums = [None if t is None else t.new_zeros((launching.count(p.shape[1]), t.shape[1])) for t in (dgain_c, dbias_c)]
    dc0 = None if starts is None else torch.zeros_like(dc)
    read = (dy, dcells, x, p, stats, c, matrix_hh, None, gain_hh, bias_hh, gain_c, bias_c, lengths, starts)
    written = (dgates, dp, dh.zero_(), dc.zero_(), dc0, kept, None, None, sums[0], sums[1])
    stepwise.backward_steps(*read, *written, False, s.eps, launching)
    if kept is not None:
        dh += kept
    if dc0 is not None:
        dc += dc0
    for mine, partial in zip((dgain_c, dbias_c), sums):
        if partial is not None:
            torch.sum(partial, 0, keepdim=True, out=mine)


def _backward_keys(H: int, x: torch.dtype) -> Iterator[dict[str, torch.dtype | None]]:
    wide = arithmetic(x)
    for gain in dict.fromkeys((x, wide)):
        known = {
            "dy": x,
            "x": x,
            "p": x,
            "matrix_hh": x,
            "gain_hh": gain,
            "gain_c": gain,
            "bias_c": gain,
            "c": wide,
            "stats": wide,
        }
        yield {**known, "dgates": x, "dp": x, "dh": x, "dc": wide, "dgain_c_partial": wide, "dbias_c_partial": wide}


BACKWARD = WholeSequence(
    name="lstm_persistent_bwd",
    operands={
        **{"dy": "S M N", "dcells": "S M N", "x": "T M 4N", "p": "T M 4N", "matrix_hh": "4N N", "gain_hh": "4N"},
        **{
            "bias_hh": "4N",
            "gain_c": "N",
            "bias_c": "N",
            "lengths": "M",
            "starts": "S M",
            "c": "S M N",
            "stats": "T M 2",
        },
        **{
            "dgates": "T M 4N",
            "dp": "T M 4N",
            "dh": "M N",
            "dc": "M N",
            "dgain_c_partial": "P N",
            "dbias_c_partial": "P N",
        },
    },
    results=("dgates", "dp", "dh", "dc", "dgain_c_partial", "dbias_c_partial"),
    kernel=lambda: _kernels()[1],
    constants=lambda H, group, carry: (H, group, carry),
    usual=(4, False),
    stepwise=_backward_stepwise,
    demand=lambda x, resets: Demand(x, gates=4, copied=9 * x + 8, exchanged=10),
    keys=_backward_keys,
    backward=True,
    scalars=(1e-5,),
)

register(FORWARD.tunable, BACKWARD.tunable)


def forward_plan(x: torch.dtype, s: LSTMSteps, save: bool, device: Device) -> Plan | None:
    """And, ahead of it, those of the backward."""
    kinds = (x, x, None)
    settle(
        save,
        lambda: step_plans.forward_plan_of(x, s, save, device),
        lambda: step_plans.backward_plan_of(*kinds, s, device),
        lambda: backward_plan(*kinds, s, device),
    )
    if s.weight_hr is not None:
        return None
    p, stats = x if save else None, arithmetic(x) if save and s.gain is not None else None
    dtypes = (x, x, *map(dtype_of, (*s.norms, s.lengths, s.starts)), x, arithmetic(x), p, stats)
    return plan(FORWARD, s.weight_hh.shape[1], (s.group, s.summed, s.carry), dtypes, device)


def backward_plan(
    x: torch.dtype, dy: torch.dtype | None, dcells: torch.dtype | None, s: LSTMSteps, device: Device
) -> Plan | None:
    if s.weight_hr is not None:
        return None
    wide = arithmetic(x)
    stats, dp = (None, None) if s.gain is None else (wide, x)
    sums = [None if w is None else wide for w in (s.ln_c_weight, s.ln_c_bias)]
    given = None if s.summed else x
    known = (dy, dcells, given, x, x, *map(dtype_of, (*s.norms, s.lengths, s.starts)), wide, stats)
    return plan(BACKWARD, s.weight_hh.shape[1], (s.group, s.carry), (*known, x, dp, x, wide, *sums), device)


# ---- from tensors to launches ------------------------------------------------------------------------


def forward(
    x: Tensor, h0: Tensor, c0: Tensor, s: LSTMSteps, save: bool, launching: Plan
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, None]:
    """As lstm_steps.forward."""
    T, B, _ = x.shape
    h, c = states(T, h0, x.dtype, s.reverse), states(T, c0, arithmetic(x.dtype), s.reverse)
    p = (x if s.summed else torch.empty_like(x)) if save else None
    stats = c.new_empty((T, 4 // s.group, B, 2)) if save and s.gain is not None else None
    tensors = (x, s.weight_hh, *s.norms, s.lengths, s.starts, h, c, p, stats)
    launching.launch(launching.count(B), *tensors, T, B, *direction(T, s.reverse), s.eps)
    return h, c, None if s.summed else p, stats, None


def backward(
    dy: Tensor | None,
    dcells: Tensor | None,
    x: Tensor,
    p: Tensor | None,
    stats: Tensor | None,
    c: Tensor,
    s: LSTMSteps,
    launching: Plan,
    device: Device,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, None]:
    """As lstm_steps.backward."""
    (T, B, _), H = x.shape, c.shape[-1]
    programs = launching.count(B)
    dgates = torch.empty_like(x)
    dp = None if s.gain is None else torch.empty_like(x)
    dh, dc = x.new_empty((B, H)), c.new_empty((B, H))
    dgain_c, dbias_c = (None if w is None else c.new_empty((programs, H)) for w in (s.ln_c_weight, s.ln_c_bias))
    given = (None, x) if s.summed else (x, p)
    read = (contiguous(dy), contiguous(dcells), *given, s.weight_hh, *s.norms, s.lengths, s.starts, c, stats)
    written = (dgates, dp, dh, dc, dgain_c, dbias_c)
    launching.launch(programs, *read, *written, T, B, *direction(T, s.reverse, backward=True), s.eps)
    return dgates, dgates if dp is None else dp, dh, dc, *stepwise.added_up(dgain_c, dbias_c, device), None
