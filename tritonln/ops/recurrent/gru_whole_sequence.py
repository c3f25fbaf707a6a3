"""All time steps of layer_norm_gru in one launch, where W_hh stays on the chip; None elsewhere."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from tritonln.configurations.recurrent import Demand
from tritonln.configurations.tunable import register
from tritonln.device import Device
from tritonln.ops.contract import arithmetic, contiguous, dtype_of
from tritonln.ops.recurrent import gru_step_plans as step_plans
from tritonln.ops.recurrent import gru_steps as stepwise
from tritonln.ops.recurrent.shared import GRUSteps, direction, states
from tritonln.ops.recurrent.whole_sequence import WholeSequence, plan, settle
from tritonln.plan import Plan

# ---- from configurations to launches -------------------------------------------------------------


def _kernels() -> tuple[Any, Any]:
    from tritonln.kernels.recurrent.gru_whole_sequence import gru_persistent_bwd, gru_persistent_fwd

    return gru_persistent_fwd, gru_persistent_bwd


def _forward_stepwise(device: Device, arguments: Sequence[Any]) -> None:
    x_rz, x_n, matrix_hh, gain_hh, bias_hh, lengths, starts, state, h, p, stats, *_, eps = arguments
    s = GRUSteps(matrix_hh, bias_hh, gain_hh, lengths, starts, False, 2, False, False, eps)
    launching = step_plans.forward_plan_of(x_rz.dtype, s, p is not None, device)
    room = x_rz.new_empty((1, x_rz.shape[1], len(matrix_hh))) if p is None else p
    h, state = (state, None) if h is None else (h, state)
    written = (h, state, room, stats, None if starts is None else h[0].clone())
    stepwise.forward_steps(x_rz, x_n, *written, matrix_hh, gain_hh, bias_hh, lengths, starts, False, s.eps, launching)


def _forward_keys(H: int, x: torch.dtype) -> Iterator[dict[str, torch.dtype | None]]:
    wide = arithmetic(x)
    for gain in dict.fromkeys((x, wide)):
        for p, stats in ((x, wide), (None, None)):
            known = {"x_rz": x, "x_n": x, "matrix_hh": x, "gain_hh": gain, "bias_hh": gain, "state": wide}
            yield {**known, "h": None if x == wide else x, "p": p, "stats": stats}


FORWARD = WholeSequence(
    name="gru_persistent_fwd",
    operands={
        **{"x_rz": "T M 2N", "x_n": "T M N", "matrix_hh": "3N N", "gain_hh": "3N", "bias_hh": "3N", "lengths": "M"},
        **{"starts": "S M", "state": "S M N", "h": "S M N", "p": "T M 3N", "stats": "T 2 M 2"},
    },
    results=("p", "stats"),
    updated=("state", "h"),
    kernel=lambda: _kernels()[0],
    constants=lambda H, group, summed, inner: (
        H,
        *step_plans.x_widths(H, 3 if summed or inner else group),
        group,
        summed,
        inner,
    ),
    usual=(2, False, False),
    stepwise=_forward_stepwise,
    demand=lambda x, resets: Demand(x, gates=3, copied=3 * x + resets * 4, exchanged=4),
    keys=_forward_keys,
    scalars=(1e-5,),
)


def _backward_stepwise(device: Device, arguments: Sequence[Any]) -> None:
    dy, x_rz, x_n, p, matrix_hh, gain_hh, bias_hh, lengths, starts, state, stats, *rest = arguments
    dgates, dm, dp, dh = rest[:4]
    s = GRUSteps(matrix_hh, bias_hh, gain_hh, lengths, starts, False, 2, x_rz is None, False, 0.0)
    launching = step_plans.backward_plan_of(p.dtype, dtype_of(dy), s, device)
    through_p = p.new_zeros(dh.shape)
    dh0 = None if starts is None else torch.zeros_like(dh)
    read = (dy, x_rz, x_n, p, stats, state, matrix_hh, gain_hh, bias_hh, lengths, starts)
    stepwise.backward_steps(*read, dgates, dm, dp, through_p, dh.zero_(), dh0, False, launching)
    dh += through_p
    if dh0 is not None:
        dh += dh0


def _backward_keys(H: int, x: torch.dtype) -> Iterator[dict[str, torch.dtype | None]]:
    wide = arithmetic(x)
    for gain in dict.fromkeys((x, wide)):
        known = {"dy": x, "x_rz": x, "x_n": x, "p": x, "matrix_hh": x, "gain_hh": gain, "bias_hh": gain, "state": wide}
        yield {**known, "stats": wide, "dgates": x, "dm": x, "dp": x, "dh": wide}


BACKWARD = WholeSequence(
    name="gru_persistent_bwd",
    operands={
        **{"dy": "S M N", "x_rz": "T M 2N", "x_n": "T M N", "p": "T M 3N", "matrix_hh": "3N N", "gain_hh": "3N"},
        **{"bias_hh": "3N", "lengths": "M", "starts": "S M", "state": "S M N", "stats": "T 2 M 2"},
        **{"dgates": "T M 3N", "dm": "T M N", "dp": "T M 3N", "dh": "M N"},
    },
    results=("dgates", "dm", "dp", "dh"),
    kernel=lambda: _kernels()[1],
    constants=lambda H, group, inner: (H, *step_plans.x_widths(H, 3 if inner else group), group, inner),
    usual=step_plans.PAPER,
    stepwise=_backward_stepwise,
    demand=lambda x, resets: Demand(x, gates=3, copied=7 * x + 4, exchanged=8),
    keys=_backward_keys,
    backward=True,
)

register(FORWARD.tunable, BACKWARD.tunable)


def forward_plan(x: torch.dtype, s: GRUSteps, save: bool, device: Device) -> Plan | None:
    """And, ahead of it, those of the backward."""
    settle(
        save,
        lambda: step_plans.forward_plan_of(x, s, save, device),
        lambda: step_plans.backward_plan_of(x, x, s, device),
        lambda: backward_plan(x, x, s, device),
    )
    wide = arithmetic(x)
    p, stats = (x, wide) if save else (None, None)
    known = (x, x, x, *map(dtype_of, (s.gain, s.bias, s.lengths, s.starts)))
    dtypes = (*known, wide, None if x == wide else x, p, stats)
    return plan(FORWARD, s.weight_hh.shape[1], (s.group, s.summed, s.inner), dtypes, device)


def backward_plan(x: torch.dtype, dy: torch.dtype | None, s: GRUSteps, device: Device) -> Plan | None:
    wide = arithmetic(x)
    given = None if s.summed else x
    known = (dy, given, given, x, x, *map(dtype_of, (s.gain, s.bias, s.lengths, s.starts)), wide)
    dtypes = (*known, wide, x, x, x, wide)
    return plan(BACKWARD, s.weight_hh.shape[1], (s.group, s.inner), dtypes, device)


# ---- from tensors to launches ------------------------------------------------------------------------


def forward(
    x_rz: Tensor, x_n: Tensor, h0: Tensor, s: GRUSteps, save: bool, launching: Plan
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """As gru_steps.forward."""
    dtype, wide = x_rz.dtype, arithmetic(x_rz.dtype)
    (T, B, _), H = x_rz.shape, h0.shape[-1]
    h = states(T, h0, dtype, s.reverse)
    state = None if dtype == wide else states(T, h0, wide, s.reverse)
    p = (x_rz if s.summed else x_rz.new_empty((T, B, 3 * H))) if save else None
    stats = h.new_empty((T, (2 + s.group) // s.group, B, 2), dtype=wide) if save else None
    both = (h, None) if state is None else (state, h)
    tensors = (x_rz, x_n, s.weight_hh, s.gain, s.bias, s.lengths, s.starts, *both, p, stats)
    launching.launch(launching.count(B), *tensors, T, B, *direction(T, s.reverse), s.eps)
    return (h, state, None if s.summed else p, stats) if save else (h, None, None, None)


def backward(
    dy: Tensor | None,
    x_rz: Tensor,
    x_n: Tensor,
    p: Tensor | None,
    stats: Tensor,
    state: Tensor,
    s: GRUSteps,
    launching: Plan,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As gru_steps.backward."""
    given = (None, None, x_rz) if p is None else (x_rz, x_n, p)
    p = x_rz if p is None else p
    T, B, H = len(p), p.shape[1], state.shape[-1]
    dgates, dp, dm = torch.empty_like(p), torch.empty_like(p), p.new_empty((T, B, H))
    dh = state.new_empty((B, H))
    parameters = (s.weight_hh, s.gain, s.bias, s.lengths, s.starts)
    tensors = (contiguous(dy), *given, *parameters, state, stats, dgates, dm, dp, dh)
    launching.launch(launching.count(B), *tensors, T, B, *direction(T, s.reverse, backward=True))
    return dgates, dm, dp, dh
