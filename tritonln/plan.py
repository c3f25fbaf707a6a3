"""How many programs of a launch there are."""

from __future__ import annotations

from typing import Any, NamedTuple

# Of a program, as long as enough of these have them: it moves less than half as much for its partial sums, which for
# two columns in fp32, written and read, are the bytes of 2.7 rows of x, dy and dx in 16 bits.
LEAST_ROWS = 6


class Plan(NamedTuple):
    """The launch of a kernel, and how its programs divide the rows (or columns)."""

    launch: Any  # a Launch, or what takes its place
    rows_per_program: int
    programs: int  # of a persistent kernel, which then walks the rows; 0: one for every tile
    fewest: int | None = None  # that suffice, where each leaves partial sums; None: all

    def count(self, M: int, batches: int = 1) -> int:
        """Programs for M rows, of which none has rows of two batches."""
        tiles = -(-M // (batches * self.rows_per_program))
        if not self.programs:
            return batches * tiles
        most = min(tiles, max(1, self.programs // batches))
        if self.fewest is None:
            return batches * most
        each = max(-(-tiles // most), -(-LEAST_ROWS // self.rows_per_program))
        return batches * min(most, max(self.fewest // batches, -(-tiles // each)))
