"""Configurations of row kernels without sums along a row: tiles of some columns of some rows.

As for other rows, nothing depends on how many rows there are.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator

from tritonln.configurations.config import Config, next_power_of_2
from tritonln.configurations.rows import Work, stages
from tritonln.device import Device

WIDTHS = (1024, 512, 256, 128)


def columns(N: int) -> int:
    """Of a chunk: as many as pad a row least."""
    return min(next_power_of_2(N), min(WIDTHS, key=lambda width: -(-N // width) * width))


def forward(N: int, work: Work) -> Config:
    """32 bytes of each stream a thread: as many programs as fill a multiprocessor have some 64 KiB in flight."""
    return _tile(columns(N), 4, 32 // work.x_bytes)


def forward_candidates(N: int, work: Work) -> Iterator[Config]:
    yield forward(N, work)
    for width, warps, each in _tiles(N):
        yield _tile(width, warps, each)


def backward(N: int, work: Work, device: Device) -> Config:
    """As forward, with what is summed beside it, in 4 programs of a multiprocessor that stay.

    The narrower a chunk, the fewer programs share its columns, each of which writes a partial sum: at N = 1,024 and
    4,096 rows 2 % of all bytes, of chunks of 1,024 columns 17 %.
    """
    width, each = min(next_power_of_2(N), WIDTHS[-1]), 32 // work.x_bytes
    held = 4 * 4 * 32 * each * work.streamed
    return _tile(width, 4, each, stages(held, held, device), 4)


def backward_candidates(N: int, work: Work, device: Device) -> Iterator[Config]:
    yield backward(N, work, device)
    for (width, warps, each), ahead, programs in itertools.product(_tiles(N), (1, 2, 3), (2, 4, 8)):
        if warps * 32 * each * work.streamed * ahead * programs <= device.shared_memory * 3 // 4:
            yield _tile(width, warps, each, ahead, programs)


def safe(N: int, programs: int = 0) -> Config:
    return Config(16, min(64, next_power_of_2(N)), 4, programs=programs)


def _tiles(N: int) -> Iterator[tuple[int, int, int]]:
    widths = dict.fromkeys(min(width, next_power_of_2(N)) for width in WIDTHS)
    return itertools.product(widths, (2, 4, 8), (4, 8, 16, 32))


def _tile(width: int, warps: int, each: int, ahead: int = 1, programs: int = 0) -> Config:
    return Config(max(1, warps * 32 * each // max(32, width)), width, warps, 1, ahead, programs)
