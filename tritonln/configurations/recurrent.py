"""Configurations of the recurrent kernels: the analytic choice, and the candidates of a search.

As elsewhere a choice never depends on the number of rows, here the batch.  A step is bound by latency,
not by bandwidth: a program takes as few rows as fill a warp, so that a batch spreads over the device.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

import torch

from tritonln.configurations.config import STEPS, Config, next_power_of_2
from tritonln.configurations.tunable import Key
from tritonln.device import Device, triton_version

BATCH = 128  # that steps are timed on: rows of a recurrent layer are sequences, and few
LENGTH = 8  # of the sequences that whole-sequence kernels are timed on; longer ones are chaotic on random weights


def step(H: int, double: bool, device: Device) -> Config:
    """4 values of each gate a thread (2 in fp64), forward and backward: about 25 tiles are alive in the backward.

    Past 16 warps of these 8: of few threads with many registers each, a smaller share goes to addresses.
    """
    each = 2 if double else 4
    width = next_power_of_2(H)
    tile = max(width, device.warp_size * each)
    warps = tile // (device.warp_size * each)
    return Config(tile // width, width, warps if warps <= 16 else 8)


def step_candidates(H: int, double: bool, device: Device) -> Iterator[Config]:
    yield step(H, double, device)
    width = next_power_of_2(H)
    for warps in (1, 2, 4, 8, 16):
        for each in (1, 2, 4, 8):
            tile = warps * device.warp_size * each
            if tile >= width:
                yield Config(tile // width, width, warps)


def _double(key: Key) -> bool:
    return torch.float64 in key.operands.values()


# What the tunables of all step kernels have in common.
OF_STEPS: dict[str, Any] = {
    "choice": lambda key, device: step(key.N, _double(key), device),
    "candidates": lambda key, device: step_candidates(key.N, _double(key), device),
    "safe": lambda key: Config(1, next_power_of_2(key.N), 4),
    "most_rows": lambda device: BATCH,
    "latency_bound": True,
}


# ---- the whole sequence in one launch ------------------------------------------------------------

MATRIX_ROWS = 16  # of the smallest tile that a matrix unit multiplies


def precision(device: Device) -> str:
    """Of fp32 products, as good as fp32's own: NVIDIA's matrix units take tf32, three products of which are that."""
    return "tf32x3" if device.backend == "cuda" else "ieee"


class Demand(NamedTuple):
    """What a kernel of a whole sequence holds: gates of W_hh, and bytes for each value of a tile of the state."""

    x_bytes: int
    gates: int
    copied: int  # that a step reads of its own
    exchanged: int  # that go from one layout to another


def persistent(H: int, demand: Demand, device: Device) -> Config:
    """8 warps: fewer run out of registers backward, and more have too few each.  AMD's as many as divide a product."""
    width = _width(H)
    warps = 8 if device.backend == "cuda" else width // MATRIX_ROWS
    for stages in (2, 1):
        if _on_chip(width, demand, MATRIX_ROWS, stages, device):
            return Config(MATRIX_ROWS, width, warps, num_stages=stages)
    return STEPS


def persistent_candidates(H: int, demand: Demand, device: Device) -> Iterator[Config]:
    yield STEPS
    width = _width(H)
    for rows in (MATRIX_ROWS, 2 * MATRIX_ROWS):
        for stages in (1, 2):
            if _on_chip(width, demand, rows, stages, device):
                for warps in (1, 2, 4, 8, 16):
                    yield Config(rows, width, warps, num_stages=stages)


def _on_chip(width: int, d: Demand, rows: int, stages: int, device: Device) -> bool:
    # Past these the backward spills everywhere, and W_hh of an LSTM is larger than any shared memory.
    if d.x_bytes > 4 or width > 256 // d.x_bytes:
        return False
    if device.backend == "hip":
        # W_hh lies in registers there, and so would copies ahead of use; from Triton 3.8 on kilobytes of it spill.
        return device.warp_size == 64 and stages == 1 and (width <= 32 or triton_version() < (3, 8))
    matrix = d.gates * width * width * (8 if d.x_bytes == 4 else d.x_bytes)  # an fp32 value is two of tf32
    tiles = rows * width * (d.exchanged + (d.copied if stages > 1 else 0))
    ampere = isinstance(device.arch, int) and device.arch >= 80
    return device.backend == "cuda" and ampere and matrix + tiles <= device.shared_memory


def _width(H: int) -> int:
    return max(MATRIX_ROWS, next_power_of_2(H))
