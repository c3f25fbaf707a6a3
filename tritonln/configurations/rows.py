"""Configurations of the row kernels: the analytic choice, and the candidates of a search.

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
    x_bytes, lane = work.x_bytes, _at_once(N, work.x_bytes)
    most_held = _most_held(N, x_bytes)
    each = most_held // next_power_of_2(-(-work.tiles // 5))
    width = next_power_of_2(N)
    # Past 8 warps 128 registers are left: for 16 values of five tiles where addresses are shared, of six without masks.
    fits = each * work.tiles <= (100 if width == N else 80) and x_bytes < 8 and aligned(N, x_bytes)
    warps = 16 if width > 256 * each and fits else 8
    tile = warps * 32 * each
    row = _row(N, work, warps, each, device)
    if row is not None:
        columns, pieces, rest = row
        columns = min(columns, width)
        height = _power_of_2_up_to(
            (tile + _spare(each, lane, x_bytes) * warps * 32) // max(64, columns * pieces + rest)
        )
        height = max(height, warps * 32 * lane // columns)
        held = height * (columns * next_power_of_2(pieces) + rest) * work.streamed
        ahead = 1 if _direct(N, x_bytes) else stages(height * N * work.streamed, held, device)
        # Where registers are scarce, one tile ahead: its place in shared memory is always the same.
        most = each * (3 / 4 if lane * x_bytes < 16 else 9 / 8 if columns <= 32 * lane else 1)
        if height * (columns * pieces + rest) > most * warps * 32:
            ahead = min(ahead, 2)
        return Config(height, columns, warps, 1, ahead, 1, next_power_of_2(pieces), rest)
    ctas = largest_cluster(device, width // tile)
    if ctas * tile == width:
        moved, held = N * work.streamed // ctas, width * work.streamed // ctas
        return Config(1, width, warps, ctas, stages(moved, held, device), 1)
    return _split(most_held, work, device)


def _at_once(N: int, x_bytes: int) -> int:
    """Values that a lane loads at once: 16 bytes, or what is aligned in every row."""
    return min(16 // x_bytes, N & -N)


def _direct(N: int, x_bytes: int) -> bool:
    """Whether values come one at a time: to registers then, all at once, as 16 bits cannot be copied ahead."""
    return x_bytes < 8 and _at_once(N, x_bytes) == 1


def _most_held(N: int, x_bytes: int) -> int:
    """Values a thread of five tiles.  fp32 loses some to the copies from shared memory, an fp64 value takes two."""
    return (32 if x_bytes <= 2 or _direct(N, x_bytes) else 16) // (1 if x_bytes < 8 else 2)


def _spare(each: int, lane: int, x_bytes: int) -> int:
    """Values that fit beside `each` where no address is shared and none is copied."""
    return each // 6 if lane == 1 and x_bytes == 2 else 0


def _row(N: int, work: Work, warps: int, each: int, device: Device) -> tuple[int, int, int] | None:
    """(columns of a piece, pieces, the rest) of a row of a tile; None: no tile holds it.

    A piece is what the fewest lanes load at once, 64 bytes or more: few lanes and warps exchange row sums.
    """
    lane = _at_once(N, work.x_bytes)
    columns = max(4 * lane, 64 // work.x_bytes)
    while columns <= 32 * lane * warps:
        found = _pieces(N, columns, lane, work, each, device)
        if found is not None:
            return columns, *found
        columns *= 2
    return None


def _pieces(N: int, columns: int, lane: int, work: Work, each: int, device: Device) -> tuple[int, int] | None:
    """(pieces, the rest); None where a thread does not hold them.

    That is `each` values of a row, and where 16-bit ones come one at a time a few more.  Of five tiles of whole lanes
    a piece and a rest more fit, but for rows over several warps on B200: it multiplies pairs of fp32, which must lie
    in neighbouring registers.
    """
    whole, left = divmod(N, columns)
    if lane * work.x_bytes < 16:
        held = -(-N // columns)
        return (held, 0) if held * lane <= each + _spare(each, lane, work.x_bytes) else None
    several = columns > 32 * lane  # warps share a row
    most = max(1, each // lane)
    more = most + (work.x_bytes == 2 and (most + 1) * lane * work.tiles <= 200)
    if left == 0:
        return (whole, 0) if whole <= more else None
    # A rest of up to half a piece is as many lanes' as a piece: half or a quarter of its values, or 4 bytes, each.
    # It has addresses of its own, for which there are registers where two streams are read.
    rest = max(next_power_of_2(left), columns // lane * max(1, 4 // work.x_bytes))
    two = work.streamed <= 2 * work.x_bytes
    if two and 2 * rest <= columns and 2 * whole >= most:
        fits = whole <= (most if several and device.target in ("sm_100", "sm_103") else more)
        return (whole, rest) if fits else None
    # Where a piece is the last that fits, fewer registers go to masks if it is masked alone.
    alone = two and most < more and whole == (most if several else most - 1)
    return None if whole >= (more if two else most) else (whole, columns) if alone else (whole + 1, 0)


def _split(each: int, work: Work, device: Device) -> Config:
    """Rows over programs, in chunks of at most 1,024 columns.

    A warp has a row of a tile, so that the sums of its chunk pass no barrier; what it loads at once is a piece.  128
    registers a thread, which let four programs of 4 warps reside, hold five tiles of 16 values.  Programs of 8 warps
    would be half as many and write half the partial sums, but the sums of more rows' chunks meet in shared memory's
    banks.
    """
    registers = work.tiles * max(4, work.x_bytes) // 4  # for one value of each tile
    while each * registers > 200:
        each //= 2
    columns = 512 // work.x_bytes
    pieces = max(1, 32 * each // columns)
    programs = 4 if each * registers <= 80 else 2
    held = 4 * columns * pieces * work.streamed * programs
    return Config(4, columns, 4, 1, stages(held, held, device), programs, pieces)


def _power_of_2_up_to(n: int) -> int:
    return 1 << n.bit_length() - 1 if n else 0


def stages(moved: int, held: int, device: Device) -> int:
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
        whole = [(width, 1, 0), _row(N, work, warps, _most_held(N, x_bytes), device)]
        for columns, pieces, rest in dict.fromkeys(row for row in whole if row is not None):
            held = (columns * min(pieces, -(-N // columns)) + rest) / (warps * 32)  # values a thread of one row
            for rows in (1 << i for i in range(12)):
                if 2 <= held * rows <= 220 / work.tiles:
                    moved = rows * (columns * next_power_of_2(pieces) + rest) * work.streamed
                    for stages, programs in _residencies(moved, warps, device):
                        yield Config(rows, columns, warps, 1, stages, programs, next_power_of_2(pieces), rest)
        for each in VALUES[:3]:
            tile = warps * 32 * each
            if width > tile and _spread(device, ctas := width // tile):
                for stages, programs in _residencies(width * work.streamed // ctas, warps, device):
                    yield Config(1, width, warps, ctas, stages, programs)
            for rows in (8, 16, 32):  # a group's partial sums are 16 / rows bytes a 16-bit value read
                if 64 <= tile // rows <= width // 2:
                    yield Config(rows, tile // rows, warps)
    columns = 512 // x_bytes  # of rows over programs
    for warps, pieces in itertools.product((4, 8), (1, 2, 4, 8)):
        if 4 <= pieces * columns // 32 <= 200 / work.tiles and pieces * columns <= N // 8:
            for stages, programs in _residencies(warps * columns * pieces * work.streamed, warps, device):
                yield Config(warps, columns, warps, 1, stages, programs, pieces)


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
