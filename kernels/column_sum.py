"""Column sums of the partial sums that the programs of a kernel leave behind.

    partials   of (P, N)  fp32 (fp64)      totals   of (N,)  any floating dtype

Both are tuples of operands (operands.py), total i that of partial i, absent where it is not wanted.
Program i owns columns i BLOCK_N .. (i + 1) BLOCK_N of all.  Rows are added in a fixed order, so
the same partial sums give the same bits on every run.  Each partial sum is read once.
"""

import triton
import triton.language as tl

from .row import row_starts, sum_rows


@triton.jit
def column_total(partial_ptr, P, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    rows = tl.arange(0, BLOCK_P)[:, None]
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    total = tl.zeros([BLOCK_P, BLOCK_N], partial_ptr.dtype.element_ty)
    for start in tl.range(0, P, BLOCK_P):
        inside = (rows < P - start) & (cols < N)
        total += tl.load(partial_ptr + start * N + (row_starts(rows, N) + cols), mask=inside, other=0.0)
    return tl.reshape(sum_rows(total, 1), [BLOCK_N])


@triton.jit(do_not_specialize=["P"])
def column_sum(
    partials,
    totals,
    P: tl.int64,
    N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    col = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    for i in tl.static_range(len(totals)):
        if len(totals[i]) > 0:
            tl.store(totals[i][0] + col, column_total(partials[i][0], P, N, BLOCK_P, BLOCK_N), mask=col < N)
