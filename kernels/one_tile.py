"""Row operators on rows that fit one tile.

    x = ENTER(*streams)      y = FINISH(x_hat, *columns)      x_hat = (x - mean) rstd, or x rstd unless CENTRED

    streams, their gradients, y, dy   (M, N)  unit stride along N; dy as the only one of a tuple
    columns                           (N,)
    stats                             (M, 2)  (mean, rstd) of every row, fp32 (fp64 for fp64 x); (M, 1) rstd unless
                                              CENTRED; None: not stored
    sums                              (P, N)  fp32 (fp64) partial sums of the columns' gradients, one row a program

`operands.py` says how operands are passed.  The parts are device functions on tiles of fp32 (fp64) values:

    ENTER(*streams) -> x                              None: x is the only stream
    ENTER_BWD(dx, *streams) -> a gradient for each stream
    FINISH(x_hat, *columns) -> y
    FINISH_BWD(dy, x_hat, *columns) -> dx_hat, and for each column the terms whose sum over all rows is its gradient

A tile is (BLOCK_M, BLOCK_N) with BLOCK_N >= N: it holds whole rows.  Backward, a row is PIECES
pieces of BLOCK_N columns and the tile (PIECES BLOCK_M, BLOCK_N): its row i holds piece i // BLOCK_M
of row i % BLOCK_M, so that few warps share a row and N need not be near a power of two.

The pointers of columns are built in the tile's own two dimensions: one layout for everything, so
nothing is exchanged between threads but the row sums, and each load is as wide as those of x.
"""

import triton
import triton.language as tl

from .operands import entered, from_row, load_columns, load_streams, pointers, store_gradients
from .row import (
    load_stats,
    normalize,
    normalize_bwd,
    normalized,
    store_stats,
    sum_rows,
)


@triton.jit(do_not_specialize=["M"], repr=lambda s: s.constants["NAME"])
def one_tile_fwd(
    streams,
    columns,
    y_ptr,
    stats_ptr,
    M: tl.int64,
    eps: tl.float64,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ENTER: tl.constexpr,
    FINISH: tl.constexpr,
    ABSENT: tl.constexpr,
    CENTRED: tl.constexpr,
    NAME: tl.constexpr,
):
    """Program i owns rows i BLOCK_M .. (i + 1) BLOCK_M.  The streams are read once, y written once."""
    row0 = tl.program_id(0).to(tl.int64) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)[:, None]
    cols = tl.broadcast_to(tl.arange(0, BLOCK_N)[None, :], [BLOCK_M, BLOCK_N])
    in_row = cols < N
    inside = in_row & (rows < M - row0)

    x = entered(load_streams(streams, row0, rows, cols, inside, N), in_row, ENTER)
    x_hat, stats = normalize(x, in_row, N, eps, CENTRED)
    y = FINISH(x_hat, *load_columns(columns, ABSENT, cols, in_row))
    tl.store(pointers(from_row((y_ptr,), row0, N), rows, cols, N), y, mask=inside)
    if stats_ptr is not None:
        store_stats(stats_ptr, row0, rows, stats, M)


@triton.jit(do_not_specialize=["M"], repr=lambda s: s.constants["NAME"])
def one_tile_bwd(
    dy,
    streams,
    columns,
    stats_ptr,
    gradients,
    sums,
    M: tl.int64,
    N: tl.constexpr,
    PIECES: tl.constexpr,
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
    """dx = rstd (g - mean(g) - x_hat mean(g x_hat)) with g = dx_hat; mean(g) is left out unless CENTRED.

    Program p owns the tiles p, p + P, p + 2P, ...: the streams and dy are read once, STAGES - 1 tiles ahead of use;
    the columns' sums stay in registers until the program writes its own row of them.
    """
    program, P = tl.program_id(0), tl.num_programs(0)
    piece = tl.arange(0, PIECES * BLOCK_M)[:, None]
    rows = piece % BLOCK_M
    start = piece // BLOCK_M * BLOCK_N
    cols = start + tl.arange(0, BLOCK_N)[None, :]
    in_row = cols < N
    accumulator: tl.constexpr = stats_ptr.dtype.element_ty

    column_values = load_columns(columns, ABSENT, cols, in_row)
    totals = ()
    for _ in tl.static_range(len(sums)):
        totals = totals + (tl.zeros(cols.shape, accumulator),)

    for tile in tl.range(program, tl.cdiv(M, BLOCK_M), P, num_stages=STAGES):
        row0 = tile * BLOCK_M
        in_rows = rows < M - row0
        inside = in_row & in_rows
        values = load_streams(streams, row0, rows, cols, inside, N)
        gy = load_streams(dy, row0, rows, cols, inside, N)[0]
        stats = load_stats(stats_ptr, row0, rows, in_rows, CENTRED)
        # Zeros known when compiling: what follows is left out for the pieces past the row.
        gy = tl.where(start < N, gy, 0.0)
        x_hat = normalized(entered(values, in_row, ENTER), stats, in_row)
        dx_hat, terms = FINISH_BWD(gy, x_hat, *column_values)
        added = ()
        for i in tl.static_range(len(sums)):
            added = added + (totals[i] + terms[i],)
        totals = added
        dx = normalize_bwd(dx_hat, x_hat, stats, N, PIECES)
        store_gradients(gradients, dx, values, row0, rows, cols, inside, N, ENTER_BWD)

    col = tl.arange(0, PIECES)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    for i in tl.static_range(len(sums)):
        if len(sums[i]) > 0:
            tl.store(sums[i][0] + program.to(tl.int64) * N + col, sum_rows(totals[i], PIECES), mask=col < N)
