"""The launches of a time step of layer_norm_gru, by dtypes: tunables, keys, plans."""

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
from tritonln.ops.recurrent.shared import GRUSteps
from tritonln.plan import Plan


def _kernels() -> tuple[Any, Any]:
    from tritonln.kernels.recurrent.gru_steps import gru_step_bwd, gru_step_fwd

    return gru_step_fwd, gru_step_bwd


PAPER = (2, False)  # the variant that is tuned: gates that are normalized together, and whether the reset is inside


def _plan(of: Tunable, H: int, variant: tuple[int, bool], c: Config, device: Device) -> Plan:
    (kernel,) = of.kernels()
    group, inner = variant
    constants = (H, *x_widths(H, 3 if inner else group), *variant, c.block_m, c.block_n)
    return Plan(Launch(kernel, constants, device, c.num_warps, of=of), c.block_m, 0)


def x_widths(H: int, group: int) -> tuple[int, int]:
    """Of the rows of x_rz and x_n, which are one tensor where all gates are normalized together, or none of x."""
    return (3 * H, 3 * H) if group == 3 else (2 * H, H)


def _forward_keys(H: int, x: torch.dtype) -> Iterator[Key]:
    wide = arithmetic(x)
    for gain in dict.fromkeys((x, wide)):
        for stats in (wide, None):
            known = {"x_rz": x, "x_n": x, "p": x, "gain_hh": gain, "bias_hh": gain, "state": wide}
            yield FORWARD.key(H, **known, h=None if x == wide else x, stats=stats)


# A step at t = 0, with the paper's two groups.  Others are the same work but for reductions, and have the same key.
FORWARD: Tunable = Tunable(
    name="gru_step_fwd",
    operands={
        **{"x_rz": "1 M 2N", "x_n": "1 M N", "p": "M 3N", "gain_hh": "3N", "bias_hh": "3N", "lengths": "M"},
        **{"starts": "2 M", "state": "2 M N", "h": "2 M N", "stats": "2 M 2", "multiplied": "M N"},
    },
    results=("stats", "multiplied"),
    updated=("state", "h"),
    kernels=lambda: _kernels()[:1],
    plan=lambda key, c, device: _plan(FORWARD, key.N, PAPER, c, device),
    keys=_forward_keys,
    scalars=lambda M: (0, 0, 1, 0, 0, M, 1e-5),
    **recurrent.OF_STEPS,
)


def _backward_keys(H: int, x: torch.dtype) -> Iterator[Key]:
    wide = arithmetic(x)
    for gain in dict.fromkeys((x, wide)):
        known = {"dy": x, "dh": x, "x_rz": x, "x_n": x, "p": x, "gain_hh": gain, "bias_hh": gain, "state": wide}
        yield BACKWARD.key(H, **known, stats=wide, kept=wide, dgates=x, dm=x, dp=x)


BACKWARD: Tunable = Tunable(
    name="gru_step_bwd",
    operands={
        **{"dy": "2 M N", "dh": "M N", "x_rz": "1 M 2N", "x_n": "1 M N", "p": "M 3N", "gain_hh": "3N", "bias_hh": "3N"},
        **{"lengths": "M", "starts": "2 M", "state": "2 M N", "stats": "2 M 2"},
        **{"kept": "M N", "dh0": "M N", "dgates": "1 M 3N", "dm": "1 M N", "dp": "1 M 3N"},
    },
    results=("dgates", "dm", "dp"),
    updated=("kept", "dh0"),
    kernels=lambda: _kernels()[1:],
    plan=lambda key, c, device: _plan(BACKWARD, key.N, PAPER, c, device),
    keys=_backward_keys,
    scalars=lambda M: (0, 0, 1, 0, M),
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


def forward_plan_of(x: torch.dtype, s: GRUSteps, save: bool, device: Device) -> Plan:
    wide = arithmetic(x)
    stats = wide if save else None
    given = None if s.summed else x
    known = (given, given, x, *map(dtype_of, (s.gain, s.bias, s.lengths, s.starts)), wide)
    dtypes = (*known, None if x == wide else x, stats, None if s.starts is None else x)
    return forward_plan(s.weight_hh.shape[1], (s.group, s.inner), dtypes, device)


def backward_plan_of(x: torch.dtype, dy: torch.dtype | None, s: GRUSteps, device: Device) -> Plan:
    wide = arithmetic(x)
    given = None if s.summed else x
    known = (dy, x, given, given, x, *map(dtype_of, (s.gain, s.bias, s.lengths, s.starts)), wide)
    dh0 = None if s.starts is None else wide
    return backward_plan(s.weight_hh.shape[1], (s.group, s.inner), (*known, wide, wide, dh0, x, x, x), device)
