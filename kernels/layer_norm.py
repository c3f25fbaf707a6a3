"""LayerNorm for rows that fit one tile.

    y = x_hat w + b,   x_hat = (x - mean) rstd,   rstd = 1 / sqrt(var + eps)

    x, y, dy, dx    (M, N)   unit stride along N; row stride None: contiguous rows
    weight, bias    (N,)     or None
    stats           (M, 2)   (mean, rstd) of every row, fp32 (fp64 for fp64 x); None: not stored
    dw, db partial  (P, N)   fp32 (fp64), one row a program; None: not wanted

A tile is (BLOCK_M, BLOCK_N) with BLOCK_N >= N: it holds whole rows.  Backward, a row is PIECES
pieces of BLOCK_N columns and the tile (PIECES BLOCK_M, BLOCK_N): its row i holds piece i // BLOCK_M
of row i % BLOCK_M, so that few warps share a row and N need not be near a power of two.

The pointers of weight and bias are built in the tile's own two dimensions: one layout for
everything, so nothing is exchanged between threads but the row sums, and each load is as wide as
those of x.
"""

import triton
import triton.language as tl

from .row import load_upcast, row_standardize, row_standardize_bwd, row_stride, store_stats, sum_rows


@triton.jit(do_not_specialize=["M"])
def layer_norm_fwd(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    stats_ptr,
    stride_xm,
    M: tl.int64,
    eps: tl.float64,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
):
    """Program i owns rows i BLOCK_M .. (i + 1) BLOCK_M.  x is read once, y written once."""
    row0 = tl.program_id(0).to(tl.int64) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)[:, None]
    cols = tl.broadcast_to(tl.arange(0, BLOCK_N)[None, :], [BLOCK_M, BLOCK_N])
    in_row = cols < N
    inside = in_row & (rows < M - row0)
    stride_x = row_stride(stride_xm, N)

    x = load_upcast(x_ptr + row0 * stride_x + (rows * stride_x + cols), inside)
    y, mean, rstd = row_standardize(x, in_row, N, eps)
    if weight_ptr is not None:
        y *= load_upcast(weight_ptr + cols, in_row)
    if bias_ptr is not None:
        y += load_upcast(bias_ptr + cols, in_row)
    tl.store(y_ptr + row0 * N + (rows * N + cols), y, mask=inside)
    if stats_ptr is not None:
        store_stats(stats_ptr, row0, rows, mean, rstd, M)


@triton.jit(do_not_specialize=["M"])
def layer_norm_bwd(
    dy_ptr,
    x_ptr,
    weight_ptr,
    stats_ptr,
    dx_ptr,
    dw_partial_ptr,
    db_partial_ptr,
    stride_dym,
    stride_xm,
    M: tl.int64,
    N: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dx = rstd (g - mean(g) - x_hat mean(g x_hat)) with g = dy w;  dw = sum dy x_hat;  db = sum dy.

    Program p owns the tiles p, p + P, p + 2P, ...: x and dy are read once, STAGES - 1 tiles ahead
    of use; dw and db stay in registers until the program writes its own row of partial sums.
    """
    program, P = tl.program_id(0), tl.num_programs(0)
    piece = tl.arange(0, PIECES * BLOCK_M)[:, None]
    rows = piece % BLOCK_M
    start = piece // BLOCK_M * BLOCK_N
    cols = start + tl.arange(0, BLOCK_N)[None, :]
    in_row = cols < N
    stride_x, stride_dy = row_stride(stride_xm, N), row_stride(stride_dym, N)
    accumulator: tl.constexpr = stats_ptr.dtype.element_ty

    if weight_ptr is not None:
        weight = load_upcast(weight_ptr + cols, in_row)
    if dw_partial_ptr is not None:
        dw = tl.zeros(cols.shape, accumulator)
    if db_partial_ptr is not None:
        db = tl.zeros(cols.shape, accumulator)

    for tile in tl.range(program, tl.cdiv(M, BLOCK_M), P, num_stages=STAGES):
        row0 = tile * BLOCK_M
        in_rows = rows < M - row0
        inside = in_row & in_rows
        x = load_upcast(x_ptr + row0 * stride_x + (rows * stride_x + cols), inside)
        dy = load_upcast(dy_ptr + row0 * stride_dy + (rows * stride_dy + cols), inside)
        mean = tl.load(stats_ptr + row0 * 2 + rows * 2, mask=in_rows, other=0.0)
        rstd = tl.load(stats_ptr + row0 * 2 + rows * 2 + 1, mask=in_rows, other=0.0)
        # Zeros known when compiling: what follows is left out for the pieces past the row.
        dy = tl.where(start < N, dy, 0.0)
        x_hat = tl.where(in_row, (x - mean) * rstd, 0.0)
        if dw_partial_ptr is not None:
            dw = tl.fma(dy, x_hat, dw)
        if db_partial_ptr is not None:
            db += dy
        if dx_ptr is not None:
            dx_hat = dy
            if weight_ptr is not None:
                dx_hat *= weight
            dx = row_standardize_bwd(dx_hat, x_hat, rstd, N, PIECES)
            tl.store(dx_ptr + row0 * N + (rows * N + cols), dx, mask=inside)

    col = tl.arange(0, PIECES)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    partial = program.to(tl.int64) * N + col
    if dw_partial_ptr is not None:
        tl.store(dw_partial_ptr + partial, sum_rows(dw, PIECES), mask=col < N)
    if db_partial_ptr is not None:
        tl.store(db_partial_ptr + partial, sum_rows(db, PIECES), mask=col < N)
