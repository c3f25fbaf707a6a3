"""Row operators forward on rows of which a multiprocessor holds few: each program streams through many.

Operands, parts, shapes and dtypes are those of one_tile.py; a tile is a row, and no operand is one of batches or of
groups.
"""

import triton
import triton.language as tl

from .noise import chances
from .one_tile import finish_rows, normalized_rows
from .operands import batches, load_columns


@triton.jit(do_not_specialize=["M", "T"], repr=lambda s: s.constants["NAME"])
def streamed_fwd(
    entering,
    finishing,
    y_ptr,
    x_ptr,
    stats_ptr,
    M: tl.int64,
    T: tl.int64,
    eps: tl.float64,
    p: tl.float64,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    AT_ONCE: tl.constexpr,
    ENTER: tl.constexpr,
    FINISH: tl.constexpr,
    ENTERING: tl.constexpr,
    FINISHING: tl.constexpr,
    NO_ENTERING: tl.constexpr,
    NO_FINISHING: tl.constexpr,
    GROUPED: tl.constexpr,
    CENTRED: tl.constexpr,
    NAME: tl.constexpr,
):
    """Program i of P owns rows i, i + P, ...: what they have in common is read once and stays in registers, and a row
    is read STAGES - 1 rows ahead of use, so that memory does not idle while one is summed and written.
    """
    rows = tl.zeros([1, 1], tl.int32)
    cols = tl.max_contiguous(tl.arange(0, BLOCK_N)[None, :], [1, AT_ONCE])
    in_row = cols < N
    chance = chances(p, y_ptr)
    enter_columns = load_columns(entering, ENTERING, NO_ENTERING, 0, cols, in_row, N)
    finish_columns = load_columns(finishing, FINISHING, NO_FINISHING, 0, cols, in_row, N)

    for row in tl.range(tl.program_id(0), M.to(tl.int32), tl.num_programs(0), num_stages=STAGES):
        row0 = tl.cast(row, tl.int64)
        batch = batches(row0, rows, M, T, GROUPED)
        x_hat, stats = normalized_rows(
            entering, x_ptr, enter_columns, row0, rows, batch, chance, cols, in_row, in_row, N, eps, ENTER, ENTERING,
            CENTRED,
        )  # fmt: skip
        finish_rows(
            x_hat, stats, finishing, y_ptr, stats_ptr, finish_columns, row0, rows, batch, chance, cols, in_row, M, N,
            FINISH, FINISHING,
        )  # fmt: skip
