"""The launches of a time step of layer_norm_lstm, by dtypes: tunables, keys, plans."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tritonln.configurations import recurrent
from tritonln.configurations.config import Config
from tritonln.configurations.lookup import config_for, planned
from tritonln.configurations.tunable import Key, Tunable, register
from tritonln.device import Device
from tritonln.launch import Launch
from tritonln.ops.contract import arithmetic, dtype_of
from tritonln.ops.recurrent.shared import LSTMSteps
from tritonln.plan import Plan


def _kernels() -> tuple[Any, Any]:
    from tritonln.kernels.recurrent.lstm_steps import lstm_step_bwd, lstm_step_fwd

    return lstm_step_fwd, lstm_step_bwd


JOINT = (4, False)  # the variant that is tuned: gates that are normalized together, and whether LN(c) is carried


def _plan(of: Tunable, H: int, variant: tuple[int, bool], c: Config, device: Device) -> Plan:
    (kernel,) = of.kernels()
    return Plan(Launch(kernel, (H, *variant, c.block_m, c.block_n), device, c.num_warps, of=of), c.block_m, 0)


def _forward_keys(H: int, x: torch.dtype) -> Iterator[Key]:
    wide = arithmetic(x)
    for gain in dict.fromkeys((x, wide)):
        for stats in (wide, None):
            known = {"x": x, "p": x, "gain_hh": gain, "gain_c": gain, "bias_c": gain, "h": x, "c": wide}
            yield FORWARD.key(H, **known, stats=stats)


# A step at t = 0.  Other groups and LN(c) carried are much the same work, so configurations do not depend on them.
FORWARD: Tunable = Tunable(
    name="lstm_step_fwd",
    operands={
        **{"x": "1 M 4N", "p": "M 4N", "gain_hh": "4N", "bias_hh": "4N", "gain_c": "N", "bias_c": "N", "lengths": "M"},
        **{"starts": "2 M", "carried": "2 M N", "h": "2 M N", "c": "2 M N", "stats": "1 M 2", "multiplied": "M N"},
    },
    results=("stats", "multiplied"),
    updated=("h", "c"),
    kernels=lambda: _kernels()[:1],
    plan=lambda key, c, device: _plan(FORWARD, key.N, JOINT, c, device),
    keys=_forward_keys,
    scalars=lambda M: (0, 0, 1, 0, 0, M, 1e-5),
    **recurrent.OF_STEPS,
)


def _backward_keys(H: int, x: torch.dtype) -> Iterator[Key]:
    wide = arithmetic(x)
    for gain in dict.fromkeys((x, wide)):
        known = {
            "dy": x,
            "dh": x,
            "x": x,
            "p": x,
            "gain_hh": gain,
            "gain_c": gain,
            "bias_c": gain,
            "c": wide,
            "stats": wide,
        }
        yield BACKWARD.key(H, **known, dc=wide, dgates=x, dp=x, dgain_c_partial=wide, dbias_c_partial=wide)


BACKWARD: Tunable = Tunable(
    name="lstm_step_bwd",
    operands={
        **{"dy": "2 M N", "dh": "M N", "dcells": "2 M N", "x": "1 M 4N", "p": "M 4N", "gain_hh": "4N"},
        **{
            "bias_hh": "4N",
            "gain_c": "N",
            "bias_c": "N",
            "lengths": "M",
            "starts": "2 M",
            "ends": "2 M",
            "c": "2 M N",
            "stats": "1 M 2",
        },
        **{"kept": "M N", "dc": "M N", "dc0": "M N"},
        **{"dgates": "1 M 4N", "dp": "1 M 4N", "dgain_c_partial": "P N", "dbias_c_partial": "P N"},
    },
    results=("dgates", "dp"),
    updated=("kept", "dc", "dc0", "dgain_c_partial", "dbias_c_partial"),
    kernels=lambda: _kernels()[1:],
    plan=lambda key, c, device: _plan(BACKWARD, key.N, JOINT, c, device),
    keys=_backward_keys,
    scalars=lambda M: (0, 0, 1, 0, M, 1e-5),
    **recurrent.OF_STEPS,
)

register(FORWARD, BACKWARD)


@planned
def forward_plan(H: int, variant: tuple[int, bool], dtypes: tuple[torch.dtype | None, ...], device: Device) -> Plan:
    """For operands of these dtypes, in the kernel's order; None where there is none."""
    key = FORWARD.key(H, **dict(zip(FORWARD.operands, dtypes)))
    return _plan(FORWARD, H, variant, config_for(FORWARD, key, device), device)


@planned
def backward_plan(H: int, variant: tuple[int, bool], dtypes: tuple[torch.dtype | None, ...], device: Device) -> Plan:
    key = BACKWARD.key(H, **dict(zip(BACKWARD.operands, dtypes)))
    return _plan(BACKWARD, H, variant, config_for(BACKWARD, key, device), device)


def forward_plan_of(x: torch.dtype, s: LSTMSteps, save: bool, device: Device) -> Plan:
    parameters = tuple(map(dtype_of, s.norms))
    carried = x if s.lengths is not None and s.weight_hr is None else None
    stats = arithmetic(x) if save and s.gain is not None else None
    multiplied = x if s.starts is not None and s.weight_hr is None else None
    masks = dtype_of(s.lengths), dtype_of(s.starts)
    dtypes = (None if s.summed else x, x, *parameters, *masks, carried, x, arithmetic(x), stats, multiplied)
    return forward_plan(s.weight_hh.shape[0] // 4, (s.group, s.carry), dtypes, device)


def backward_plan_of(
    x: torch.dtype, dy: torch.dtype | None, dcells: torch.dtype | None, s: LSTMSteps, device: Device
) -> Plan:
    wide, projected = arithmetic(x), s.weight_hr is not None
    parameters = tuple(map(dtype_of, s.norms))
    kept = None if projected or s.lengths is None else x
    sums = tuple(None if w is None else wide for w in parameters[2:])
    stats, dp = (None, None) if s.gain is None else (wide, x)
    starts = dtype_of(s.starts)
    masks = dtype_of(s.lengths), starts, None if projected else starts
    known = (None if projected else dy, x, dcells, None if s.summed else x, x, *parameters, *masks, wide, stats)
    dc0 = None if starts is None else wide
    return backward_plan(s.weight_hh.shape[0] // 4, (s.group, s.carry), (*known, kept, wide, dc0, x, dp, *sums), device)
