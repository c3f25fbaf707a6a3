"""LayerNorm for rows that fit one tile.

    y = x_hat w + b,   x_hat = (x - mean) rstd,   rstd = 1 / sqrt(var + eps)

    x, y, dy, dx    (M, N)   unit stride along N; row stride None: contiguous rows
    weight, bias    (N,)     or None
    stats           (M, 2)   (mean, rstd) of every row, fp32 (fp64 for fp64 x); None: not stored
    dw, db partial  (P, N)   fp32 (fp64), one row a program; None: not wanted

A tile is (BLOCK_M, BLOCK_N) with BLOCK_N >= N: it holds whole rows.  The pointers of weight and
bias are built in the tile's own two dimensions: one layout for everything, so nothing is
exchanged between threads but the row sums, and each load is as wide as those of x.
"""

import triton
import triton.language as tl

from .row import load_upcast, row_standardize, row_standardize_bwd, row_stride, store_stats


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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """dx = rstd (g - mean(g) - x_hat mean(g x_hat)) with g = dy w;  dw = sum dy x_hat;  db = sum dy.

    Program p owns the tiles p, p + P, p + 2P, ...: x and dy are read once, STAGES - 1 tiles ahead
    of use; dw and db stay in registers until the program writes its own row of partial sums.
    """
    program, P = tl.program_id(0), tl.num_programs(0)
    rows = tl.arange(0, BLOCK_M)[:, None]
    cols = tl.broadcast_to(tl.arange(0, BLOCK_N)[None, :], [BLOCK_M, BLOCK_N])
    in_row = cols < N
    stride_x, stride_dy = row_stride(stride_xm, N), row_stride(stride_dym, N)
    accumulator: tl.constexpr = stats_ptr.dtype.element_ty

    if weight_ptr is not None:
        weight = load_upcast(weight_ptr + cols, in_row)
    if dw_partial_ptr is not None:
        dw = tl.zeros([BLOCK_M, BLOCK_N], accumulator)
    if db_partial_ptr is not None:
        db = tl.zeros([BLOCK_M, BLOCK_N], accumulator)

    for tile in tl.range(program, tl.cdiv(M, BLOCK_M), P, num_stages=STAGES):
        row0 = tile * BLOCK_M
        in_rows = rows < M - row0
        inside = in_row & in_rows
        x = load_upcast(x_ptr + row0 * stride_x + (rows * stride_x + cols), inside)
        dy = load_upcast(dy_ptr + row0 * stride_dy + (rows * stride_dy + cols), inside)
        mean = tl.load(stats_ptr + row0 * 2 + rows * 2, mask=in_rows, other=0.0)
        rstd = tl.load(stats_ptr + row0 * 2 + rows * 2 + 1, mask=in_rows, other=0.0)
        x_hat = (x - mean) * rstd
        if dx_ptr is not None:
            dx_hat = dy
            if weight_ptr is not None:
                dx_hat *= weight
            dx = row_standardize_bwd(dx_hat, x_hat, rstd, N)
            tl.store(dx_ptr + row0 * N + (rows * N + cols), dx, mask=inside)
        if dw_partial_ptr is not None:
            dw += dy * x_hat
        if db_partial_ptr is not None:
            db += dy

    col = tl.arange(0, BLOCK_N)
    partial = program.to(tl.int64) * N + col
    if dw_partial_ptr is not None:
        tl.store(dw_partial_ptr + partial, tl.sum(dw, axis=0), mask=col < N)
    if db_partial_ptr is not None:
        tl.store(db_partial_ptr + partial, tl.sum(db, axis=0), mask=col < N)
