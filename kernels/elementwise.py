"""Row operators without a norm.

    y = ENTER(*entering)

Operands, parts, shapes and dtypes are those of one_tile.py, and so are the parameters, as one launcher serves both:
there is nothing finishing, x is no result, and statistics are None.

Nothing is summed along a row, so that programs divide the columns too: program i is of the chunk i % CHUNKS of
BLOCK_N columns, and of share i // CHUNKS of the rows, which is what a whole program has in one_tile.py.
"""

import triton
import triton.language as tl

from .operands import (
    add_terms,
    batches,
    from_row,
    load_columns,
    load_rows,
    load_tile,
    pointers,
    share_of,
    store_rows,
    store_sums,
    zeros_for,
)
from .row import upcast


@triton.jit
def chunk_columns(chunk, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    return chunk * BLOCK_N + tl.broadcast_to(tl.arange(0, BLOCK_N)[None, :], [BLOCK_M, BLOCK_N])


@triton.jit(do_not_specialize=["M", "T"], repr=lambda s: s.constants["NAME"])
def elementwise_fwd(
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
    CHUNKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ENTER: tl.constexpr,
    ENTERING: tl.constexpr,
    NO_ENTERING: tl.constexpr,
    GROUPED: tl.constexpr,
    NAME: tl.constexpr,
):
    """A share is BLOCK_M rows.  All is read once and written once."""
    row0 = (tl.program_id(0) // CHUNKS).to(tl.int64) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)[:, None]
    cols = chunk_columns(tl.program_id(0) % CHUNKS, BLOCK_M, BLOCK_N)
    in_row = cols < N
    inside = in_row & (rows < M - row0)
    batch = batches(row0, rows, M, T, GROUPED)
    columns = load_columns(entering, ENTERING, NO_ENTERING, batch, cols, in_row, N)
    y = ENTER(*load_rows(entering, ENTERING, columns, row0, rows, batch, cols, inside, N, (0, 0)))
    tl.store(pointers(from_row((y_ptr,), row0, N), rows, cols, N), y, mask=inside)


@triton.jit(do_not_specialize=["M", "T"], repr=lambda s: s.constants["NAME"])
def elementwise_bwd(
    upstream,
    entering,
    finishing,
    stats_ptr,
    d_entering,
    d_finishing,
    M: tl.int64,
    T: tl.int64,
    p: tl.float64,
    N: tl.constexpr,
    CHUNKS: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    ENTER_BWD: tl.constexpr,
    ENTERING: tl.constexpr,
    NO_ENTERING: tl.constexpr,
    BATCHED: tl.constexpr,
    GROUPED: tl.constexpr,
    NAME: tl.constexpr,
):
    """All is read once, STAGES - 1 tiles ahead of use; sums stay in registers until the program writes its part of a
    row of them.
    """
    share, shares = tl.program_id(0) // CHUNKS, tl.num_programs(0) // CHUNKS
    batch, first, step, height, index, P = share_of(share, shares, M, T, BATCHED, GROUPED)
    within = tl.arange(0, BLOCK_M)[:, None]
    rows = within * step
    chunk = tl.program_id(0) % CHUNKS
    cols = chunk_columns(chunk, BLOCK_M, BLOCK_N)
    in_row = cols < N
    columns = load_columns(entering, ENTERING, NO_ENTERING, batch, cols, in_row, N)
    sums = zeros_for(d_entering, ENTERING, upcast(tl.zeros(cols.shape, upstream[0][0].dtype.element_ty)))

    for tile in tl.range(index, tl.cdiv(height, BLOCK_M), P, num_stages=STAGES):
        row0 = first + tile * BLOCK_M * step
        inside = in_row & (within < height - tile * BLOCK_M)
        each = batches(row0, rows, M, T, GROUPED)
        values = load_rows(entering, ENTERING, columns, row0, rows, each, cols, inside, N, (0, 0))
        terms = ENTER_BWD(load_tile(upstream[0], row0, rows, cols, inside, N), *values)
        sums = add_terms(sums, ENTERING, terms)
        store_rows(d_entering, ENTERING, terms, row0, rows, cols, inside, N)

    store_sums(d_entering, ENTERING, sums, share.to(tl.int64), chunk_columns(chunk, 1, BLOCK_N), N, 1)
