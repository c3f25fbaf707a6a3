"""Configurations of the recurrent step kernels: the analytic choice, and the candidates of a search.

As elsewhere a choice never depends on the number of rows, here the batch.  A step is bound by latency,
not by bandwidth: a program takes as few rows as fill a warp, so that a batch spreads over the device.
"""

from __future__ import annotations

from collections.abc import Iterator

from tritonln.device import Device
from tritonln.tuning.config import Config, next_power_of_2

BATCH = 128  # that steps are timed on: rows of a recurrent layer are sequences, and few


def step(H: int, double: bool, device: Device) -> Config:
    """4 values of each gate a thread (2 in fp64), forward and backward: about 25 tiles are alive in the backward."""
    each = 2 if double else 4
    width = next_power_of_2(H)
    tile = max(width, device.warp_size * each)
    return Config(tile // width, width, min(16, tile // (device.warp_size * each)))


def step_candidates(H: int, double: bool, device: Device) -> Iterator[Config]:
    yield step(H, double, device)
    width = next_power_of_2(H)
    for warps in (1, 2, 4, 8, 16):
        for each in (1, 2, 4, 8):
            tile = warps * device.warp_size * each
            if tile >= width:
                yield Config(tile // width, width, warps)


def step_safe(H: int) -> Config:
    return Config(1, next_power_of_2(H), 4)
