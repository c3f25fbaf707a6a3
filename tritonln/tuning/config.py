"""The configuration of a launch, and the analytical choice of one.

A choice depends on the row length, the dtypes and the device, never on the number of rows: the
result of a row must not depend on how many others there are, and a new batch size must not
compile anything.
"""

from __future__ import annotations

from dataclasses import dataclass

from tritonln.clusters import largest_cluster
from tritonln.device import Device


@dataclass(frozen=True)
class Config:
    """BLOCK_M rows by BLOCK_N columns a tile; less than the row length, in all pieces, walks the row in chunks."""

    block_m: int
    block_n: int
    num_warps: int  # of each of the num_ctas thread blocks that share a tile
    num_ctas: int = 1
    stages: int = 1  # tiles in flight: the one in use and the prefetched ones
    programs: int = 0  # resident programs of a persistent kernel on the whole device; 0: one for every tile
    pieces: int = 1  # of BLOCK_N columns each, that a tile holds of a row


def next_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def aligned(N: int, x_bytes: int) -> bool:
    """Whether every row starts at a 16-byte boundary.  Elsewhere each value has an address and a mask of its own."""
    return N * x_bytes % 16 == 0


def forward(N: int, x_bytes: int, device: Device) -> Config:
    width = next_power_of_2(N)
    # Values a thread.  Bytes in flight are the same for 32 and 64 (twice the registers, half the
    # threads), and 64 spread the row sums over more values: 12.5 -> 10.7 instructions each on sm_90.
    wide = x_bytes <= 2 and width >= 2048
    each = ((64 if wide else 32) if aligned(N, x_bytes) else 16) // (1 if x_bytes < 8 else 2)
    warps = width // (32 * each)
    if width <= 1024:
        # Up to 256 columns several rows lie side by side in a warp; up to 1,024 a warp holds a row:
        # no barrier in either.  A tile of fewer than 64 columns would only be taller.
        warps = 2 if width <= 256 else max(1, warps)
        return Config(max(1, warps * 32 * each // max(64, width)), width, warps)
    if warps <= (8 if each == 64 else 16):
        return Config(1, width, warps)
    # More leave one program to a multiprocessor, which idles at each barrier.
    ctas = largest_cluster(device, warps // 8)
    if ctas > 1:
        return Config(1, width, 8, ctas)
    if each == 64 and width == 32_768:
        return Config(1, width, 32)
    return Config(1, 8192 if x_bytes < 8 else 4096, 8)


def backward(N: int, x_bytes: int, device: Device) -> Config:
    """8 warps of 32 16-bit values a thread: x, dy, w, dw and db of them just fit 255 registers."""
    # fp32 loses some of those to the copies from shared memory, an fp64 value takes two.
    each = (32 if aligned(N, x_bytes) and x_bytes <= 2 else 16) // (1 if x_bytes < 8 else 2)
    width = next_power_of_2(N)
    # Past 8 warps 128 registers are left, enough for 16 values where addresses are shared.
    warps = 16 if width > 256 * each and each == 16 and aligned(N, x_bytes) else 8
    tile = warps * 32 * each
    columns, pieces = _pieces(N, x_bytes, warps) if aligned(N, x_bytes) else (width, 1)
    if width <= tile:
        rows = max(warps * 512 // x_bytes // columns, tile // (max(64, columns) * pieces))
        stages = _stages(2 * rows * N * x_bytes, device)
        return Config(rows, columns, warps, 1, stages, device.multiprocessors, pieces)
    ctas = largest_cluster(device, width // tile)
    if ctas * tile == width:
        stages = _stages(2 * N * x_bytes // ctas, device)
        return Config(1, width, warps, ctas, stages, device.multiprocessors // ctas)
    # A group of 16 rows writes 1 byte of partial sums for each value it reads; 4 warps leave room
    # for three programs, 48 KiB in flight.
    return Config(16, 8 * each, 4)


def _pieces(N: int, x_bytes: int, warps: int) -> tuple[int, int]:
    """Columns of a piece and how many hold a row, a power of two.

    A piece is what the fewest warps load at once: few warps exchange row sums, and pieces past the
    row cost nothing.  A thread holds 8 16-bit values of each, so 4 fill the registers; 5 fit
    where nothing is masked.
    """
    columns = 512 // x_bytes
    while columns < warps * 512 // x_bytes and 4 * columns < N and not (x_bytes == 2 and 5 * columns == N):
        columns *= 2
    return min(columns, next_power_of_2(N)), next_power_of_2(-(-N // columns))


def _stages(tile_bytes: int, device: Device) -> int:
    """As many tiles ahead as put 48 KiB in flight (Little's law asks for 36 on B200), while they fit."""
    ahead = -(-48 * 1024 // tile_bytes)
    fit = device.shared_memory * 3 // 4 // tile_bytes
    return 1 + max(1, min(ahead, fit, 3))  # more only adds barriers


def column_sum(N: int) -> Config:
    """About 128 programs, none narrower than a 128-byte line."""
    width = min(512, max(32, next_power_of_2(N) // 128))
    return Config(4096 // width, width, 4)
