"""Column sums of the partial gradients that the persistent kernels leave behind.

    dw_partial, db_partial   (P, N)  fp32 (fp64)      dw, db   (N,)  any floating dtype; None: not wanted

Program i owns columns i BLOCK_N .. (i + 1) BLOCK_N of both.  Rows are added in a fixed order, so
the same partial sums give the same bits on every run.  Each partial sum is read once.
"""

import triton
import triton.language as tl

from .row import row_stride, sum_rows


@triton.jit
def column_total(partial_ptr, P, N: tl.constexpr, BLOCK_P: tl.constexpr, BLOCK_N: tl.constexpr):
    rows = tl.arange(0, BLOCK_P)[:, None]
    cols = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    total = tl.zeros([BLOCK_P, BLOCK_N], partial_ptr.dtype.element_ty)
    for start in tl.range(0, P, BLOCK_P):
        inside = (rows < P - start) & (cols < N)
        total += tl.load(partial_ptr + start * N + (rows * row_stride(None, N) + cols), mask=inside, other=0.0)
    return tl.reshape(sum_rows(total, 1), [BLOCK_N])


@triton.jit(do_not_specialize=["P"])
def column_sum(
    dw_partial_ptr,
    db_partial_ptr,
    dw_ptr,
    db_ptr,
    P: tl.int64,
    N: tl.constexpr,
    BLOCK_P: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    col = tl.program_id(0) * BLOCK_N + tl.arange(0, BLOCK_N)
    if dw_ptr is not None:
        tl.store(dw_ptr + col, column_total(dw_partial_ptr, P, N, BLOCK_P, BLOCK_N), mask=col < N)
    if db_ptr is not None:
        tl.store(db_ptr + col, column_total(db_partial_ptr, P, N, BLOCK_P, BLOCK_N), mask=col < N)
