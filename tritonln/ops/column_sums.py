"""The column sums of partial sums: how every gradient of a column operand ends."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch

from tritonln.configurations import rows as rules
from tritonln.configurations.config import Config
from tritonln.configurations.lookup import config_for, planned
from tritonln.configurations.tunable import Key, Tunable, register
from tritonln.device import Device
from tritonln.launch import Launch
from tritonln.ops.contract import arithmetic
from tritonln.plan import Plan

MOST = 8  # that are summed in one launch
PARTIALS = tuple(f"partial{i}" for i in range(MOST))
TOTALS = tuple(f"total{i}" for i in range(MOST))


def _kernels() -> tuple[Any]:
    from tritonln.kernels.column_sum import column_sum

    return (column_sum,)


def _plan(key: Key, c: Config, device: Device) -> Plan:
    return Plan(Launch(_kernels()[0], (key.N, c.block_m, c.block_n), device, c.num_warps, of=SUMS), c.block_n, 0)


def _keys(N: int, x: torch.dtype) -> Iterator[Key]:
    for parameter in dict.fromkeys((x, arithmetic(x))):
        yield _key(N, arithmetic(x), (parameter, parameter))


def _key(N: int, partial: torch.dtype, totals: tuple[torch.dtype | None, ...]) -> Key:
    partials = {name: partial for name, dtype in zip(PARTIALS, totals) if dtype is not None}
    return SUMS.key(N, **partials, **dict(zip(TOTALS, totals)))


SUMS = Tunable(
    name="column_sum",
    operands={**dict.fromkeys(PARTIALS, "M N"), **dict.fromkeys(TOTALS, "N")},
    layout=(PARTIALS, TOTALS),
    results=TOTALS,
    kernels=_kernels,
    plan=_plan,
    choice=lambda key, device: rules.column_sum(key.N),
    candidates=lambda key, device: rules.column_sum_candidates(),
    safe=lambda key: Config(16, 32, 4),
    keys=_keys,
    programs_over="N",
    most_rows=lambda device: device.multiprocessors,  # one of each program before it
)
register(SUMS)


@planned
def column_sums_plan(N: int, partial: torch.dtype, totals: tuple[torch.dtype | None, ...], device: Device) -> Plan:
    """For totals of these dtypes; None for one that is not wanted."""
    key = _key(N, partial, totals)
    return _plan(key, config_for(SUMS, key, device), device)
