"""The two launches of kernels/wide_columns.py in place of one."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

from torch import Tensor

from tritonln.launch import Launch
from tritonln.ops.operands import SUMMED

Placed = tuple[Any, ...]  # operands as kernels take them


class WideColumns(NamedTuple):
    """Called as a Launch of a backward kernel is, with the number of shares of the rows."""

    sums: Launch
    dx: Launch
    chunks: int  # of a row
    finishing: Sequence[str]  # the kinds of the finishing operands
    adds: Sequence[str]  # the kinds of those whose partial sums the second launch adds up too

    @property
    def launches(self) -> tuple[Launch, Launch]:
        return self.sums, self.dx

    def __call__(
        self,
        shares: int,
        upstream: Placed,
        entering: Placed,
        finishing: Placed,
        stats: Tensor,
        d_entering: Placed,
        d_finishing: Placed,
        M: int,
        T: int,
        p: float,
        partials: Placed = (),
        totals: Placed = (),
        P: int = 0,
        adding: int = 0,
    ) -> None:
        """With what that launch would be given, P rows of each partial sum, and its programs, `adding`."""
        dy, _, x = upstream
        columns = tuple([d if kind in SUMMED else None for d, kind in zip(d_finishing, self.finishing)])
        others = tuple([None if kind in SUMMED else d for d, kind in zip(d_finishing, self.finishing)])
        second = any(d is not None for d in (*d_entering, *others))
        sums = stats.new_empty((M, self.chunks, stats.shape[1])) if second else None
        programs, none = shares * self.chunks, (None,) * len(entering)
        self.sums(
            programs, (dy, None, x), entering if x is None else none, finishing, stats, none, columns, sums, M, T, p
        )
        if second:
            rows = upstream, entering, finishing, stats, d_entering, others, sums
            self.dx(programs + adding, *rows, partials, totals, M, T, P, adding, p)
