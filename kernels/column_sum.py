"""Column sums of the partial sums that the programs of a kernel leave behind.

    partials   of (S, P, N)  fp32 (fp64)      totals   of (S, N)  any floating dtype

S is 1, or the number of batches.  Both are tuples of operands (operands.py), total i that of partial i, absent where
it is not wanted.  Of the C programs that share a sum, the i-th owns columns i BLOCK_N .. (i + 1) BLOCK_N of all.  Rows
are added in a fixed order, so the same partial sums give the same bits on every run.  Each partial sum is read once.
"""

import triton
import triton.language as tl

from .row import row_starts, sum_rows


@triton.jit
def column_total(partial_ptr, col0, P, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    rows = tl.arange(0, BLOCK_P)[:, None]
    cols = col0 + tl.arange(0, BLOCK_N)[None, :]
    total = tl.zeros([BLOCK_P, BLOCK_N], partial_ptr.dtype.element_ty)
    for start in tl.range(0, P, BLOCK_P):
        inside = (rows < P - start) & (cols < N)
        total += tl.load(partial_ptr + start * N + (row_starts(rows, N) + cols), mask=inside, other=0.0)
    return tl.reshape(sum_rows(total, 1), [BLOCK_N])


@triton.jit
def add_up(partials, totals, program, P, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    C: tl.constexpr = (N + BLOCK_N - 1) // BLOCK_N
    s, col0 = (program // C).to(tl.int64), program % C * BLOCK_N
    col = col0 + tl.arange(0, BLOCK_N)
    for i in tl.static_range(len(totals)):
        if len(totals[i]) > 0:
            total = column_total(partials[i][0] + s * P * N, col0, P, N, BLOCK_P, BLOCK_N)
            tl.store(totals[i][0] + s * N + col, total, mask=col < N)


@triton.jit(do_not_specialize=["P"])
def column_sum(
    partials,
    totals,
    P: tl.int64,
    N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    add_up(partials, totals, tl.program_id(0), P, N, BLOCK_P, BLOCK_N)
