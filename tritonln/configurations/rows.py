"""Configurations of the row kernels forward and of column sums: the analytic choice, and the candidates of a search.

A choice depends on the row length, the dtypes and the device, never on the number of rows: the
result of a row must not depend on how many others there are, and a new batch size must not
compile anything.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from tritonln.clusters import LARGEST, largest_cluster
from tritonln.configurations.config import Config, next_power_of_2
from tritonln.device import Device

WARPS = (1, 2, 4, 8, 16, 32)
IN_FLIGHT = 48 * 1024  # bytes of a multiprocessor that a backward kernel is to have, where Little asks for 36 of B200's
MOST_AHEAD = 3  # tiles: more only add barriers
VALUES = (8, 16, 32, 64)  # of a tile that a thread holds: fewer leave too little in flight, more spill


class Work(NamedTuple):
    """What a row kernel does for each column of a row.

    Rules of thumb below are those of layer_norm: one stream of x forward; backward dy and x are streamed, and five
    tiles are alive at once, those of x, dy, w, dw and db.
    """

    x_bytes: int  # of the widest value of a stream
    streamed: int  # bytes of all streams together
    tiles: int  # that are held at once
    of_all: bool = False  # whether the operands that rows have in common are those of all rows


def aligned(N: int, x_bytes: int) -> bool:
    """Whether every row starts at a 16-byte boundary.  Elsewhere each value has an address and a mask of its own."""
    return N * x_bytes % 16 == 0


def at_once(N: int, x_bytes: int) -> int:
    """Values that a lane loads at once: 16 bytes, or what is aligned in every row."""
    return min(16 // x_bytes, N & -N)


def touched(N: int, x_bytes: int) -> bool:
    """Whether tiles ahead are brought to L2 and not copied to shared memory, as 16 bits cannot be.

    Of a tile, values that come one at a time then go to registers all at once.
    """
    return x_bytes < 8 and at_once(N, x_bytes) == 1


def ahead(N: int, x_bytes: int, c: Config) -> tuple[int, int]:
    """STAGES and AHEAD of a kernel: its tiles ahead are copied, or brought to L2."""
    return (1, c.num_stages - 1) if touched(N, x_bytes) else (c.num_stages, 0)


def loaded_at_once(N: int, work: Work, column_bytes: int, c: Config, device: Device) -> int:
    """Columns that a thread loads at once forward, of aligned rows: 16 bytes of the widest operand, so that lanes read
    neighbours of all.

    Where 16 bytes of rows leave a row to few lanes, or to one warp of several, it stays with them: with half as many
    columns each, more lanes or warps would exchange its sums.
    """
    lanes = next_power_of_2(N) // at_once(N, work.x_bytes)
    if lanes < device.warp_size or (lanes == device.warp_size and c.num_warps > 1):
        return 16 // work.x_bytes
    return 16 // max(work.x_bytes, column_bytes)


def rows_at_once(N: int, at_once: int, c: Config, device: Device) -> int:
    """Rows of a tile that all threads together hold at once."""
    loaded = c.num_ctas * c.num_warps * device.warp_size * min(at_once, N & -N)
    return min(c.block_m, max(1, loaded // c.block_n))


def forward(N: int, work: Work, device: Device) -> Config:
    x_bytes = work.x_bytes
    width = next_power_of_2(N)
    # Values a thread.  Bytes in flight are the same for 32 and 64 (twice the registers, half the
    # threads), and 64 spread the row sums over more values: 12.5 -> 10.7 instructions each on sm_90 at
    # 4,096.  They are of several rows, which share what is loaded of weight and bias.
    wide = x_bytes <= 2 and width >= 256
    each = (64 if wide else 32) // (1 if x_bytes < 8 else 2)
    each //= next_power_of_2(work.tiles)
    warps = width // (32 * each)
    if width <= 1024:
        # A warp holds whole rows, and lays short ones side by side: no barrier.  A tile of fewer than
        # 64 columns would only be taller.
        warps = max(1, warps) if each == 64 or width > 256 else 2
        return Config(max(1, warps * 32 * each // max(64, width)), width, warps)
    if each == 64 and width <= 8192:
        # Two rows.  Where all 64 of each are values of the row, registers ask for twice the warps.
        lane = at_once(N, x_bytes)
        held = lane * -(-N // (32 * warps * lane))
        return Config(2, width, warps if held <= 56 else 2 * warps)
    if each == 64 and 12_288 <= N <= 16_384 and streams(N, work, device):
        # A multiprocessor has one or two of these rows, and DRAM would idle while they are summed and written.
        if N == 12_288 or not multiplies_pairs(device):
            return Config(1, width, 16, 1, stages(N * x_bytes, width * x_bytes, device), 1)
        # Pairs of weight and bias do not fit the registers beside a row that is wider.
        if largest_cluster(device, 2) == 2:
            return Config(1, width, 4, 2)
    if warps <= (8 if each == 64 else 16):
        return Config(1, width, warps)
    # More leave one program to a multiprocessor, which idles at each barrier.
    ctas = largest_cluster(device, warps // 8)
    if ctas > 1:
        return Config(1, width, 8, ctas)
    if each == 64 and width == 32_768:
        return Config(1, width, device.most_warps)
    if touched(N, x_bytes):
        # Of more values that come one at a time, those of several chunks would not fit the registers.
        columns, warps = (8192, device.most_warps) if work.tiles == 1 else (2048, 8)
        return Config(1, columns, warps, 1, 1 + min(6, -(-IN_FLIGHT // (columns * x_bytes))))
    return Config(1, 8192 if x_bytes < 8 else 4096, 8)


def multiplies_pairs(device: Device) -> bool:
    """Whether two fp32 values are multiplied at once: they must lie in neighbouring registers."""
    return device.target in ("sm_100", "sm_103")


def streams(N: int, work: Work, device: Device) -> bool:
    """Whether a program can copy whole rows ahead forward, and hold what they have in common.

    AMD's GPUs copy through registers, which leave room for one row ahead where one tile a program has three.
    """
    return work.of_all and aligned(N, work.x_bytes) and device.backend == "cuda"


def forward_candidates(N: int, work: Work, device: Device) -> Iterator[Config]:
    """Clusters come last, as whether there are any may have to be tried."""
    yield forward(N, work, device)
    width = next_power_of_2(N)
    if 8192 < width <= 16_384 and work.tiles == 1 and streams(N, work, device):  # of narrower rows there are enough
        for warps, number in itertools.product((8, 16), (2, 3, 4)):
            if number - 1 <= tiles_that_fit(width * work.streamed, device):
                yield Config(1, width, warps, 1, number, 1)
    tiles = [(warps, warps * 32 * each) for warps in launchable(device) for each in (*VALUES, 128)]
    for warps, tile in tiles:
        if tile >= width:
            yield Config(max(1, tile // max(64, width)), width, warps)
        elif tile >= 1024:  # narrower chunks only merge moments more often
            yield Config(1, tile, warps)
    for warps, tile in tiles:
        if tile < width and spread(device, width // tile):
            yield Config(1, width, warps, width // tile)


def forward_safe(N: int) -> Config:
    return Config(1, min(1024, next_power_of_2(N)), 4)


def column_sum(N: int) -> Config:
    """256 programs or more, so that each multiprocessor has two; none narrower than a 128-byte line."""
    width = min(512, max(32, next_power_of_2(N // 256 + 1) // 2))
    return Config(4096 // width, width, 4)


def column_sum_candidates() -> Iterator[Config]:
    for width in (32, 64, 128, 256, 512):
        for tile in (2048, 4096, 8192):
            for warps in (4, 8):
                yield Config(tile // width, width, warps)


def launchable(device: Device) -> Iterator[int]:
    """Numbers of warps."""
    return (warps for warps in WARPS if warps <= device.most_warps)


def spread(device: Device, ctas: int) -> bool:
    """Whether so many thread blocks of a cluster can share a row."""
    return ctas <= LARGEST and largest_cluster(device, ctas) == ctas


def fewest_programs(slots: int, device: Device) -> int:
    """Of so many that reside, how many suffice: twice those that put enough in flight, as none does all the time."""
    return min(slots, -(-slots * 2 * device.needed // IN_FLIGHT))


def stages(moved: int, held: int, device: Device) -> int:
    """As many tiles ahead as put IN_FLIGHT bytes in flight, while they fit.

    Of the bytes that shared memory holds for a tile, those past the row are not moved.
    """
    ahead = -(-IN_FLIGHT // moved)
    return 1 + max(1, min(ahead, tiles_that_fit(held, device), MOST_AHEAD))


def tiles_that_fit(tile_bytes: int, device: Device) -> int:
    """In shared memory, beside the reductions."""
    return device.shared_memory * 3 // 4 // tile_bytes
