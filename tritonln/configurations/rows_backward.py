"""Configurations of the row kernels backward, as rows.py has those forward.

In the order of preference a row is held whole by one program, by a cluster of them, or is split over programs that walk
chunks of it.  dy and x are streamed through tiles that persistent programs fetch ahead.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from typing import NamedTuple

from tritonln.configurations.config import Config, next_power_of_2
from tritonln.configurations.rows import (
    IN_FLIGHT,
    MOST_AHEAD,
    VALUES,
    Work,
    aligned,
    at_once,
    launchable,
    multiplies_pairs,
    spread,
    stages,
    tiles_that_fit,
    touched,
)
from tritonln.device import Device

PORTABLE = 8  # blocks of a cluster, which every GPU with clusters can place
ENOUGH = 32 * 1024  # bytes in flight of a multiprocessor where more would cost registers


class Row(NamedTuple):
    """How a tile holds a row: in pieces of as many columns, and what they leave of it in a narrower one."""

    columns: int
    pieces: int = 1
    rest: int = 0

    @property
    def padded(self) -> int:
        """The columns of its registers, as Triton counts pieces: in powers of two."""
        return self.columns * next_power_of_2(self.pieces) + self.rest


def backward(N: int, work: Work, device: Device) -> Config:
    width = next_power_of_2(N)
    each = _most_held(N, work.x_bytes) // next_power_of_2(-(-work.tiles // 5))
    warps = _warps(N, each, work)
    row = _row(N, work, warps, each, device)
    if row is not None:
        return _whole_rows(N, row._replace(columns=min(row.columns, width)), work, warps, each, device)
    ctas = _blocks(N, width, warps * 32 * each, work, device)
    if ctas > 1:
        moved, held = N * work.streamed // ctas, width * work.streamed // ctas
        return Config(1, width, warps, ctas, stages(moved, held, device), 1)
    # As many in fp32 of odd N as of others: where a lane reads one value at a time, more pieces meet in a bank.
    return _split(32 // max(1, work.x_bytes // 2), work, device)


def _most_held(N: int, x_bytes: int) -> int:
    """Values a thread of five tiles, which in 16 bits just fit 255 registers at 8 warps.

    fp32 loses some to the copies from shared memory, an fp64 value takes two registers.
    """
    return (32 if x_bytes <= 2 or touched(N, x_bytes) else 16) // (1 if x_bytes < 8 else 2)


def _warps(N: int, each: int, work: Work) -> int:
    """8, or 16 of rows that are wider than their tile.

    Past 8 warps 128 registers are left: for 16 values of five tiles where addresses are shared, of six without masks.
    """
    width = next_power_of_2(N)
    fits = each * work.tiles <= (100 if width == N else 80) and work.x_bytes < 8 and aligned(N, work.x_bytes)
    return 16 if width > 256 * each and fits else 8


def _spare(each: int, lane: int, x_bytes: int) -> int:
    """Values that fit beside `each` where no address is shared and none is copied."""
    return each // 6 if lane == 1 and x_bytes == 2 else 0


# ---- a row in one program ------------------------------------------------------------------------


def _whole_rows(N: int, row: Row, work: Work, warps: int, each: int, device: Device) -> Config:
    columns, pieces, rest = row
    lane, threads = at_once(N, work.x_bytes), warps * 32
    values = columns * pieces + rest  # that a row takes of a tile
    room = (each + _spare(each, lane, work.x_bytes)) * threads
    height = _power_of_2_up_to(room // max(64, values))
    height = max(1, height, threads * lane // columns)  # each thread loads at least once
    moved, held = height * N * work.streamed, height * row.padded * work.streamed
    scarce = each * (7 / 8 if lane * work.x_bytes < 16 else 9 / 8 if columns <= 32 * lane else 1)
    if touched(N, work.x_bytes):
        ahead = 1 + min(6, -(-IN_FLIGHT // moved))  # at most: the first of a program are not brought
    elif height * values > scarce * threads:
        # Registers are scarce: one tile ahead if that is enough, as its place in shared memory is always the same.
        ahead = min(stages(moved, held, device), 1 + -(-ENOUGH // moved))
    else:
        ahead = stages(moved, held, device)
    return Config(height, columns, warps, 1, ahead, 1, next_power_of_2(pieces), rest)


def _row(N: int, work: Work, warps: int, each: int, device: Device) -> Row | None:
    """None: no tile holds it.

    A piece is what the fewest lanes load at once, 64 bytes or more: few lanes and warps exchange row sums.
    """
    lane = at_once(N, work.x_bytes)
    columns = max(4 * lane, 64 // work.x_bytes)
    while columns <= 32 * lane * warps:
        row = _pieces(N, columns, lane, work, warps, each, device)
        if row is not None:
            return row
        columns *= 2
    return None


def _pieces(N: int, columns: int, lane: int, work: Work, warps: int, each: int, device: Device) -> Row | None:
    """A row in pieces of these columns; None where a thread does not hold them.

    That is `each` values of a row, and where 16-bit ones come one at a time a few more.  Of five tiles of whole lanes
    a piece and a rest more fit, but for B200: it multiplies pairs of fp32, which must lie in neighbouring registers.
    There a piece more fits, and as a rest only where a row is of several warps.
    """
    whole, left = divmod(N, columns)
    pieces = whole + (left > 0)
    two_streams = work.streamed <= 2 * work.x_bytes
    if lane * work.x_bytes < 16:
        fits = pieces * lane <= each + _spare(each, lane, work.x_bytes)
        return _apart(columns, pieces, left, work) if fits else None
    several_warps, pairs = columns > 32 * lane, multiplies_pairs(device)
    most = max(1, each // lane)
    more = most + (work.x_bytes == 2 and (most + 1) * lane * work.tiles <= 200)
    apart = _apart(columns, pieces, left, work)
    if work.x_bytes == 4 and warps > 8 and columns == 32 * lane * warps and pieces == most and not pairs:
        apart = Row(2 * columns, 1, 2 * columns)  # of four pieces, ptxas would keep two to eight values in memory
    if left == 0:
        if pieces > more:
            return None
        if not pairs or pieces <= most:
            return apart
        if columns == 128 * lane and pieces == 5:  # of pieces of four warps, ptxas would keep two values in memory
            return Row(4 * columns, 1, columns)
        return apart if several_warps else Row(columns, pieces)
    # A rest of up to half a piece is as many lanes' as a piece: half or a quarter of its values, or 4 bytes, each.
    # It has addresses of its own, for which there are registers where two streams are read.  For B200's pairs a fourth
    # piece is no worse, and beside four pieces of half a warp there are none for half a piece, nor beside four of
    # several warps: there a tile has half the rows, in pieces of twice the columns, or its one row is one piece.
    rest = max(next_power_of_2(left), columns // lane * max(1, 4 // work.x_bytes))
    full = two_streams and whole == most < more and 2 * left >= columns
    if pairs and full and several_warps:
        joins = 2 if columns < 32 * lane * warps else whole
        return Row(joins * columns, whole // joins, rest)
    joined = pairs and (pieces == 4 or (whole == most and columns == 16 * lane and 2 * rest == columns))
    if two_streams and 2 * rest <= columns and 2 * whole >= most and not joined:
        return Row(columns, whole, rest) if whole <= (most if pairs else more) else None
    if pieces > (more if two_streams else most):
        return None
    if pairs and pieces > most and not several_warps:
        return Row(columns, pieces)
    # Where a piece is the last that fits, fewer registers go to masks if it is masked alone.
    if two_streams and most < more and whole == (most if several_warps else most - 1):
        return Row(columns, whole, columns)
    return apart


def _apart(columns: int, pieces: int, left: int, work: Work) -> Row:
    """One piece more than a power of two is a rest: Triton would count on to the next one.

    In fp32, where nothing is masked, that saves few instructions and takes more registers.
    """
    one_more = pieces > 2 and pieces - 1 & pieces - 2 == 0
    if one_more and work.streamed <= 2 * work.x_bytes and (left > 0 or work.x_bytes == 2):
        return Row(columns, pieces - 1, columns)
    return Row(columns, pieces)


def _power_of_2_up_to(n: int) -> int:
    return 1 << n.bit_length() - 1 if n else 0


# ---- a row over programs -------------------------------------------------------------------------


def _blocks(N: int, width: int, tile: int, work: Work, device: Device) -> int:
    """Of a cluster, with a tile each; 1 where none holds the row."""
    halves = 2 * width // tile
    crowded = work.streamed <= 2 * work.x_bytes and tile * work.tiles >= 40_960  # of 65,536 registers
    enough = MOST_AHEAD * N * work.streamed // halves >= ENOUGH
    if multiplies_pairs(device) and crowded and enough and halves <= PORTABLE and spread(device, halves):
        return halves  # more blocks would be harder to place
    return width // tile if spread(device, width // tile) else 1


def _split(each: int, work: Work, device: Device) -> Config:
    """Chunks of at most 1,024 columns.

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


# ---- what a search may choose from ---------------------------------------------------------------


def backward_candidates(N: int, work: Work, device: Device) -> Iterator[Config]:
    """Clusters come last, as whether there are any may have to be tried."""
    yield backward(N, work, device)
    for warps in launchable(device):
        yield from _candidates_of_whole_rows(N, work, warps, device)
        yield from _candidates_of_chunks(N, warps)
    columns = 512 // work.x_bytes  # of rows over programs
    for warps, pieces in itertools.product((4, 8), (1, 2, 4, 8)):
        if 4 <= pieces * columns // 32 <= 200 / work.tiles and pieces * columns <= N // 8:
            for ahead, programs in _residencies(warps * columns * pieces * work.streamed, warps, device):
                yield Config(warps, columns, warps, 1, ahead, programs, pieces)
    for warps in launchable(device):
        yield from _candidates_of_clusters(N, work, warps, device)


def _candidates_of_whole_rows(N: int, work: Work, warps: int, device: Device) -> Iterator[Config]:
    rows = Row(next_power_of_2(N)), _row(N, work, warps, _most_held(N, work.x_bytes), device)
    for row in dict.fromkeys(row for row in rows if row is not None):
        columns, pieces, rest = row
        held = (columns * min(pieces, -(-N // columns)) + rest) / (warps * 32)  # values a thread of one row
        for height in (1 << i for i in range(12)):
            if 2 <= held * height <= 220 / work.tiles:
                for ahead, programs in _residencies(height * row.padded * work.streamed, warps, device):
                    yield Config(height, columns, warps, 1, ahead, programs, next_power_of_2(pieces), rest)


def _candidates_of_chunks(N: int, warps: int) -> Iterator[Config]:
    """One after the other."""
    for each, height in itertools.product(VALUES[:3], (8, 16, 32)):
        columns = warps * 32 * each // height
        if 64 <= columns <= next_power_of_2(N) // 2:  # a group's partial sums are 16 / height bytes a 16-bit value read
            yield Config(height, columns, warps)


def _candidates_of_clusters(N: int, work: Work, warps: int, device: Device) -> Iterator[Config]:
    width = next_power_of_2(N)
    for tile in (warps * 32 * each for each in VALUES[:3]):
        if width > tile and spread(device, ctas := width // tile):
            for ahead, programs in _residencies(width * work.streamed // ctas, warps, device):
                yield Config(1, width, warps, ctas, ahead, programs)


def _residencies(tile_bytes: int, warps: int, device: Device) -> Iterator[tuple[int, int]]:
    """Stages of a program and programs of a multiprocessor whose tiles fit."""
    for programs in (1, 2, 4):
        if programs * warps < 8:  # two warps for each scheduler: fewer do not issue as fast as memory feeds them
            continue
        ahead = max(1, min(tiles_that_fit(tile_bytes * programs, device), 3))
        for number in range(1, ahead + 2):
            yield number, programs


def backward_safe(N: int) -> Config:
    return Config(16, 64, 4) if N > 64 else Config(16, next_power_of_2(N), 4, programs=1)
