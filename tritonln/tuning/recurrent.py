"""Configurations of the recurrent step kernels, chosen analytically.

As elsewhere a choice never depends on the number of rows, here the batch.  A step is bound by latency,
not by bandwidth: a program takes as few rows as fill a warp, so that a batch spreads over the device.
"""

from __future__ import annotations

from tritonln.device import Device
from tritonln.tuning.config import Config, next_power_of_2


def step(H: int, x_bytes: int, device: Device) -> Config:
    """4 values of each gate a thread (2 in fp64), forward and backward: about 25 tiles are alive in the backward."""
    each = 4 if x_bytes < 8 else 2
    width = next_power_of_2(H)
    tile = max(width, device.warp_size * each)
    return Config(tile // width, width, min(16, tile // (device.warp_size * each)))
