"""The configuration of a launch."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class Config:
    """BLOCK_M rows by BLOCK_N columns a tile; less than the row length, in all pieces, walks the row in chunks."""

    block_m: int
    block_n: int
    num_warps: int  # of each of the num_ctas thread blocks that share a tile
    num_ctas: int = 1
    num_stages: int = 1  # tiles in flight: the one in use and the prefetched ones
    programs: int = 0  # of a persistent kernel, resident on each multiprocessor; 0: one program for every tile
    pieces: int = 1  # of BLOCK_N columns each, that a tile holds of a row
    rest: int = 0  # columns of a tile beside it, of what whole pieces leave of a row


STEPS = Config(0, 0, 0)  # of a kernel of a whole sequence: not this kernel, but those of single time steps


def next_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()
