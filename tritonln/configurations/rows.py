"""Configurations of the row kernels: the analytic choice, and the candidates of a search.

A choice depends on the row length, the dtypes and the device, never on the number of rows: the
result of a row must not depend on how many others there are, and a new batch size must not
compile anything.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import NamedTuple

from tritonln.clusters import LARGEST, largest_cluster
from tritonln.configurations.config import Config, next_power_of_2
from tritonln.device import Device

WARPS = (1, 2, 4, 8, 16, 32)
VALUES = (8, 16, 32, 64)  # of a tile that a thread holds: fewer leave too little in flight, more spill


class Work(NamedTuple):
    """What a row kernel does for each column of a row.

    Rules of thumb below are those of layer_norm: one stream of x forward; backward dy and x are streamed, and five
    tiles are alive at once, those of x, dy, w, dw and db.
    """

    x_bytes: int  # of the widest value of a stream
    streamed: int  # bytes of all streams together
    tiles: int  # that are held at once


def aligned(N: int, x_bytes: int) -> bool:
    """Whether every row starts at a 16-byte boundary.  Elsewhere each value has an address and a mask of its own."""
    return N * x_bytes % 16 == 0


def forward(N: int, work: Work, device: Device) -> Config:
    x_bytes = work.x_bytes
    width = next_power_of_2(N)
    # Values a thread.  Bytes in flight are the same for 32 and 64 (twice the registers, half the
    # threads), and 64 spread the row sums over more values: 12.5 -> 10.7 instructions each on sm_90 at
    # 4,096.  Up to 1,024 they are of several rows, which share what is loaded of weight and bias.
    wide = x_bytes <= 2 and width >= 256
    each = ((64 if wide else 32) if aligned(N, x_bytes) else 16) // (1 if x_bytes < 8 else 2)
    each //= next_power_of_2(work.tiles)
    warps = width // (32 * each)
    if width <= 1024:
        # A warp holds whole rows, and lays short ones side by side: no barrier.  A tile of fewer than
        # 64 columns would only be taller.
        warps = max(1, warps) if each == 64 or width > 256 else 2
        return Config(max(1, warps * 32 * each // max(64, width)), width, warps)
    if warps <= (8 if each == 64 else 16):
        return Config(1, width, warps)
    # More leave one program to a multiprocessor, which idles at each barrier.
    ctas = largest_cluster(device, warps // 8)
    if ctas > 1:
        return Config(1, width, 8, ctas)
    if each == 64 and width == 32_768:
        return Config(1, width, device.most_warps)
    return Config(1, 8192 if x_bytes < 8 else 4096, 8)


def forward_candidates(N: int, work: Work, device: Device) -> Iterator[Config]:
    yield forward(N, work, device)
    width = next_power_of_2(N)
    for warps in _launchable(device):
        for each in VALUES:
            tile = warps * 32 * each
            if tile >= width:
                yield Config(max(1, tile // max(64, width)), width, warps)
                continue
            if _spread(device, width // tile):
                yield Config(1, width, warps, width // tile)
            if tile >= 1024:  # narrower chunks only merge moments more often
                yield Config(1, tile, warps)


def forward_safe(N: int) -> Config:
    return Config(1, min(1024, next_power_of_2(N)), 4)


def backward(N: int, work: Work, device: Device) -> Config:
    """8 warps of 32 16-bit values a thread: five tiles of them just fit 255 registers."""
    x_bytes = work.x_bytes
    # fp32 loses some of those to the copies from shared memory, an fp64 value takes two.
    each = (32 if aligned(N, x_bytes) and x_bytes <= 2 else 16) // (1 if x_bytes < 8 else 2)
    each //= next_power_of_2(-(-work.tiles // 5))
    width = next_power_of_2(N)
    # Past 8 warps 128 registers are left, enough for 16 values where addresses are shared.
    warps = 16 if width > 256 * each and each == 16 and aligned(N, x_bytes) else 8
    tile = warps * 32 * each
    columns, pieces = _pieces(N, x_bytes, warps, max(1, each * x_bytes // 16)) if aligned(N, x_bytes) else (width, 1)
    if width <= tile:
        rows = max(warps * 512 // x_bytes // columns, tile // (max(64, columns) * pieces))
        moved, held = rows * N * work.streamed, rows * columns * pieces * work.streamed
        return Config(rows, columns, warps, 1, _stages(moved, held, device), 1, pieces)
    ctas = largest_cluster(device, width // tile)
    if ctas * tile == width:
        moved, held = N * work.streamed // ctas, width * work.streamed // ctas
        return Config(1, width, warps, ctas, _stages(moved, held, device), 1)
    # A group of 16 rows writes 1 byte of partial sums for each value it reads; 4 warps leave room
    # for three programs, 48 KiB in flight.
    return Config(16, 8 * each, 4)


def _pieces(N: int, x_bytes: int, warps: int, most: int = 4) -> tuple[int, int]:
    """Columns of a piece and how many hold a row, a power of two.

    A piece is what the fewest warps load at once: few warps exchange row sums, and pieces past the
    row cost nothing.  A thread holds 16 bytes of each, so 4 of five tiles fill the registers; 5 fit
    where nothing is masked.
    """
    columns = 512 // x_bytes
    while columns < warps * 512 // x_bytes and most * columns < N and not (x_bytes == 2 and (most + 1) * columns == N):
        columns *= 2
    return min(columns, next_power_of_2(N)), next_power_of_2(-(-N // columns))


def _stages(moved: int, held: int, device: Device) -> int:
    """As many tiles ahead as put 48 KiB in flight (Little's law asks for 36 on B200), while they fit.

    Of the bytes that shared memory holds for a tile, those past the row are not moved.
    """
    ahead = -(-48 * 1024 // moved)
    return 1 + max(1, min(ahead, _fitting(held, device), 3))  # more only adds barriers


def _fitting(tile_bytes: int, device: Device) -> int:
    """Tiles that shared memory has room for beside the reductions."""
    return device.shared_memory * 3 // 4 // tile_bytes


def backward_candidates(N: int, work: Work, device: Device) -> Iterator[Config]:
    yield backward(N, work, device)
    x_bytes = work.x_bytes
    width = next_power_of_2(N)
    for warps in _launchable(device):
        whole = [(width, 1), _pieces(N, x_bytes, warps)] if aligned(N, x_bytes) else [(width, 1)]
        for columns, pieces in dict.fromkeys(whole):
            held = columns * -(-N // columns) / (warps * 32)  # values a thread of one row
            for rows in (1 << i for i in range(12)):
                if 2 <= held * rows <= 200 / work.tiles:
                    for stages, programs in _residencies(rows * columns * pieces * work.streamed, warps, device):
                        yield Config(rows, columns, warps, 1, stages, programs, pieces)
        for each in VALUES[:3]:
            tile = warps * 32 * each
            if width > tile and _spread(device, ctas := width // tile):
                for stages, programs in _residencies(width * work.streamed // ctas, warps, device):
                    yield Config(1, width, warps, ctas, stages, programs)
            for rows in (8, 16, 32):  # a group's partial sums are 16 / rows bytes a 16-bit value read
                if 64 <= tile // rows <= width // 2:
                    yield Config(rows, tile // rows, warps)


def _residencies(tile_bytes: int, warps: int, device: Device) -> Iterator[tuple[int, int]]:
    """Stages of a program and programs of a multiprocessor whose tiles fit."""
    for programs in (1, 2, 4):
        if programs * warps < 8:  # two warps for each scheduler: fewer do not issue as fast as memory feeds them
            continue
        ahead = max(1, min(_fitting(tile_bytes * programs, device), 3))
        for stages in range(1, ahead + 2):
            yield stages, programs


def backward_safe(N: int) -> Config:
    return Config(16, 64, 4) if N > 64 else Config(16, next_power_of_2(N), 4, programs=1)


def column_sum(N: int) -> Config:
    """About 128 programs, none narrower than a 128-byte line."""
    width = min(512, max(32, next_power_of_2(N) // 128))
    return Config(4096 // width, width, 4)


def column_sum_candidates() -> Iterator[Config]:
    for width in (32, 64, 128, 256, 512):
        for tile in (2048, 4096, 8192):
            for warps in (4, 8):
                yield Config(tile // width, width, warps)


def _launchable(device: Device) -> Iterator[int]:
    return (warps for warps in WARPS if warps <= device.most_warps)


def _spread(device: Device, ctas: int) -> bool:
    return ctas <= LARGEST and largest_cluster(device, ctas) == ctas
