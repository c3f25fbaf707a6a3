"""Configurations of the kernels of heads: many short rows, of which a tile holds several.

A row is `pieces` tiles of columns, its halves where they are rotated.  As for other rows, nothing depends on how many
rows there are.
"""

from __future__ import annotations

from collections.abc import Iterator

from tritonln.configurations.config import Config, next_power_of_2

MOST = 1024  # values of a row


def forward(N: int, x_bytes: int, pieces: int) -> Config:
    """32 values of a row a thread, with rotary 64 more of cos and sin; a warp holds whole rows."""
    columns = next_power_of_2(N // pieces)
    warps = 2 if columns * x_bytes <= 512 else 1
    return _tile(columns, pieces, warps, 32 if x_bytes <= 2 else 16)


def backward(N: int, x_bytes: int, pieces: int) -> Config:
    """16 values a thread of each of x, dy, the sum and, with rotary, cos and sin; 16 warps on each multiprocessor."""
    return _tile(next_power_of_2(N // pieces), pieces, 4, 16 if x_bytes <= 4 else 8, programs=4)


def safe(N: int, pieces: int, programs: int = 0) -> Config:
    return Config(1, next_power_of_2(N // pieces), 4, programs=programs, pieces=pieces)


def forward_candidates(N: int, x_bytes: int, pieces: int) -> Iterator[Config]:
    yield forward(N, x_bytes, pieces)
    for warps in (1, 2, 4, 8):
        for each in (8, 16, 32, 64):
            yield _tile(next_power_of_2(N // pieces), pieces, warps, each)


def backward_candidates(N: int, x_bytes: int, pieces: int) -> Iterator[Config]:
    yield backward(N, x_bytes, pieces)
    for warps in (1, 2, 4, 8):
        for each in (8, 16, 32):
            for stages in (1, 2, 3):
                for programs in (1, 2, 4, 8):
                    yield _tile(next_power_of_2(N // pieces), pieces, warps, each, stages, programs)


def _tile(columns: int, pieces: int, warps: int, each: int, stages: int = 1, programs: int = 0) -> Config:
    rows = max(1, warps * 32 * each // max(64, columns * pieces))
    return Config(rows, columns, warps, 1, stages, programs, pieces)
