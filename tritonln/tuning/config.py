"""The configuration of a launch, and the analytical choice of one.

A choice depends on the row length, the dtypes and the device, never on the number of rows: the
result of a row must not depend on how many others there are, and a new batch size must not
compile anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from tritonln.device import Device


@dataclass(frozen=True)
class Config:
    """BLOCK_M rows by BLOCK_N columns a tile; BLOCK_N below the row length walks the row in chunks."""

    block_m: int
    block_n: int
    num_warps: int
    stages: int = 1  # tiles in flight: the one in use and the prefetched ones
    programs: int = 0  # resident programs a multiprocessor of a persistent kernel; 0: one a tile


def next_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def forward(N: int, x_bytes: int, device: Device) -> Config:
    """32 values a thread hide the latency of DRAM at every occupancy that their registers allow."""
    width = next_power_of_2(N)
    threads = 32 * (1 if x_bytes < 8 else 2)  # an fp64 value takes two registers
    if width > 1024 * threads // (1 if x_bytes <= 2 else 2):
        return Config(1, 8192 * 32 // threads, num_warps=8)
    # Up to 256 columns several rows lie side by side in a warp; up to 1,024 a warp holds a row:
    # no barrier in either.
    warps = 2 if width <= 256 else max(1, width // 1024)
    warps = min(32, warps * threads // 32)
    return Config(max(1, warps * 1024 * 32 // threads // width), width, warps)


def backward(N: int, x_bytes: int, device: Device) -> Config:
    """A tile of 8,192 values is 32 a thread: x, dy, w, dw and db of it just fit 255 registers."""
    width = next_power_of_2(N)
    tile = 8192 if x_bytes < 8 else 2048
    if width > tile:
        return Config(16, tile // 16, num_warps=8)
    # Two 16-bit tiles ahead are 64 KiB in flight, one of fp32 as much.
    return Config(tile // width, width, num_warps=8, stages=3 if x_bytes <= 2 else 2, programs=1)


def column_sum(N: int) -> Config:
    """About 128 programs, none narrower than a 128-byte line."""
    width = min(512, max(32, next_power_of_2(N) // 128))
    return Config(4096 // width, width, num_warps=4)
