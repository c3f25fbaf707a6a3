"""Row operators on rows wider than one tile: the row is walked in chunks of BLOCK_N, twice.

Operands, parts, shapes and dtypes are those of one_tile.py.  Each pass reads the row from its
beginning, and the first asks L2 to keep what the second will read again.
"""

import triton
import triton.language as tl

from .operands import entered, load_columns, load_streams, store_gradients
from .row import (
    chunk_moments,
    load_stats,
    merge_chunks,
    normalized,
    row_sum,
    stats_of_chunks,
    store_stats,
    sum_rows,
)


@triton.jit
def moments_of(streams, row0, rows, cols, start, COUNT: tl.constexpr, N, ENTER: tl.constexpr, CENTRED: tl.constexpr):
    """chunk_moments of the COUNT columns from `start` on."""
    inside = cols < COUNT
    x = entered(load_streams(streams, row0, rows, start + cols, inside, N, "evict_last"), inside, ENTER)
    return chunk_moments(x, inside, COUNT, CENTRED)


@triton.jit(do_not_specialize=["M"], repr=lambda s: s.constants["NAME"])
def wide_fwd(
    streams,
    columns,
    y_ptr,
    stats_ptr,
    M: tl.int64,
    eps: tl.float64,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    ENTER: tl.constexpr,
    FINISH: tl.constexpr,
    ABSENT: tl.constexpr,
    CENTRED: tl.constexpr,
    NAME: tl.constexpr,
):
    """Program i owns row i.  The streams are read twice (once from L2), y written once."""
    row0 = tl.program_id(0).to(tl.int64)
    rows = tl.zeros([1, 1], tl.int32)
    cols = tl.arange(0, BLOCK_N)[None, :]

    FULL: tl.constexpr = N - N % BLOCK_N  # values in full chunks
    moments = moments_of(streams, row0, rows, cols, 0, BLOCK_N, N, ENTER, CENTRED)
    for start in tl.range(BLOCK_N, FULL, BLOCK_N, num_stages=STAGES):
        chunk = moments_of(streams, row0, rows, cols, start, BLOCK_N, N, ENTER, CENTRED)
        moments = merge_chunks(moments, start, chunk, BLOCK_N)
    if FULL < N:
        chunk = moments_of(streams, row0, rows, cols, FULL, N - FULL, N, ENTER, CENTRED)
        moments = merge_chunks(moments, FULL, chunk, N - FULL)
    stats = stats_of_chunks(moments, N, eps)
    if stats_ptr is not None:
        store_stats(stats_ptr, row0, rows, stats, M)

    for start in tl.range(0, N, BLOCK_N, num_stages=STAGES):
        inside = cols < N - start
        x = entered(load_streams(streams, row0, rows, start + cols, inside, N, "evict_first"), inside, ENTER)
        y = FINISH(normalized(x, stats, inside), *load_columns(columns, ABSENT, start + cols, inside))
        tl.store(y_ptr + row0 * N + start + cols, y, mask=inside)


@triton.jit(do_not_specialize=["M"], repr=lambda s: s.constants["NAME"])
def wide_bwd(
    dy,
    streams,
    columns,
    stats_ptr,
    gradients,
    sums,
    M: tl.int64,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    ENTER: tl.constexpr,
    ENTER_BWD: tl.constexpr,
    FINISH_BWD: tl.constexpr,
    ABSENT: tl.constexpr,
    CENTRED: tl.constexpr,
    NAME: tl.constexpr,
):
    """Program p owns the BLOCK_M rows from p BLOCK_M on, and row p of the partial sums.

    The streams and dy are read twice: first for the sums of every row, then, chunk by chunk through all
    the rows of the group, for dx and the columns' sums.  A group's partial sums are written once.
    """
    program = tl.program_id(0).to(tl.int64)
    row0 = program * BLOCK_M
    rows = tl.arange(0, BLOCK_M)[:, None]
    cols = tl.broadcast_to(tl.arange(0, BLOCK_N)[None, :], [BLOCK_M, BLOCK_N])
    col = tl.arange(0, BLOCK_N)[None, :]
    in_rows = rows < M - row0
    stats = load_stats(stats_ptr, row0, rows, in_rows, CENTRED)

    dot = tl.zeros([BLOCK_M, BLOCK_N], stats[0].dtype)
    total = dot
    for start in tl.range(0, N, BLOCK_N, num_stages=STAGES):
        in_row = cols < N - start
        inside = in_rows & in_row
        x = entered(load_streams(streams, row0, rows, start + cols, inside, N, "evict_last"), in_row, ENTER)
        gy = load_streams(dy, row0, rows, start + cols, inside, N, "evict_last")[0]
        x_hat = normalized(x, stats, in_row)
        dx_hat, terms = FINISH_BWD(gy, x_hat, *load_columns(columns, ABSENT, start + cols, in_row))
        dot += dx_hat * x_hat
        total += dx_hat
    rstd = stats[len(stats) - 1]
    dot_term, total_term = row_sum(dot) / N * rstd, row_sum(total) / N * rstd

    for start in tl.range(0, N, BLOCK_N, num_stages=STAGES):
        in_row = cols < N - start
        inside = in_rows & in_row
        values = load_streams(streams, row0, rows, start + cols, inside, N, "evict_first")
        gy = load_streams(dy, row0, rows, start + cols, inside, N, "evict_first")[0]
        x_hat = normalized(entered(values, in_row, ENTER), stats, in_row)
        dx_hat, terms = FINISH_BWD(gy, x_hat, *load_columns(columns, ABSENT, start + cols, in_row))
        dx = dx_hat * rstd - x_hat * dot_term
        if CENTRED:
            dx -= total_term
        store_gradients(gradients, dx, values, row0, rows, start + cols, inside, N, ENTER_BWD)
        for i in tl.static_range(len(sums)):
            if len(sums[i]) > 0:
                tl.store(sums[i][0] + program * N + start + col, sum_rows(terms[i], 1), mask=col < N - start)
