"""LayerNorm for rows wider than one tile: the row is walked in chunks of BLOCK_N, twice.

The formula, shapes and dtypes are those of layer_norm.py.  Each pass reads the row from its
beginning, and the first asks L2 to keep what the second will read again.
"""

import triton
import triton.language as tl

from .row import load_upcast, merge_moments, row_moments, row_rstd, row_stride, row_sum


@triton.jit
def chunk_moments(x_ptr, cols, COUNT: tl.constexpr):
    return row_moments(load_upcast(x_ptr + cols, cols < COUNT, "evict_last"), cols < COUNT, COUNT)


@triton.jit(do_not_specialize=["M"])
def layer_norm_wide_fwd(
    x_ptr,
    weight_ptr,
    bias_ptr,
    y_ptr,
    stats_ptr,
    stride_xm,
    M: tl.int64,
    eps: tl.float64,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
):
    """Program i owns row i.  x is read twice (once from L2), y written once."""
    row = tl.program_id(0).to(tl.int64)
    cols = tl.arange(0, BLOCK_N)[None, :]
    x_ptr += row * row_stride(stride_xm, N)
    y_ptr += row * N

    FULL: tl.constexpr = N - N % BLOCK_N  # values in full chunks
    mean, squares = chunk_moments(x_ptr, cols, BLOCK_N)
    for start in tl.range(BLOCK_N, FULL, BLOCK_N, num_stages=STAGES):
        chunk_mean, chunk_squares = chunk_moments(x_ptr + start, cols, BLOCK_N)
        mean, squares = merge_moments(mean, squares, start, chunk_mean, chunk_squares, BLOCK_N)
    if FULL < N:
        chunk_mean, chunk_squares = chunk_moments(x_ptr + FULL, cols, N - FULL)
        mean, squares = merge_moments(mean, squares, FULL, chunk_mean, chunk_squares, N - FULL)
    rstd = row_rstd(squares * (1 / N), eps)
    if stats_ptr is not None:
        first = tl.arange(0, 2)[None, :] == 0
        tl.store(stats_ptr + row * 2 + tl.arange(0, 2)[None, :], tl.where(first, mean, rstd))

    for start in tl.range(0, N, BLOCK_N, num_stages=STAGES):
        inside = cols < N - start
        y = (load_upcast(x_ptr + start + cols, inside, "evict_first") - mean) * rstd
        if weight_ptr is not None:
            y *= load_upcast(weight_ptr + start + cols, inside)
        if bias_ptr is not None:
            y += load_upcast(bias_ptr + start + cols, inside)
        tl.store(y_ptr + start + cols, y, mask=inside)


@triton.jit
def standardized(x, mean, rstd, inside, MASKED: tl.constexpr):
    """x_hat; where the last chunk is not full, zero outside: 0 - mean may overflow, and dy = 0 times that is NaN."""
    x_hat = (x - mean) * rstd
    return tl.where(inside, x_hat, 0.0) if MASKED else x_hat


@triton.jit(do_not_specialize=["M"])
def layer_norm_wide_bwd(
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
    """Program p owns the BLOCK_M rows from p BLOCK_M on, and row p of the partial sums.

    x and dy are read twice: first for the two sums of every row, then, chunk by chunk through all
    the rows of the group, for dx, dw and db.  A group's partial sums are written once.
    """
    program = tl.program_id(0).to(tl.int64)
    row0 = program * BLOCK_M
    rows = tl.arange(0, BLOCK_M)[:, None]
    cols = tl.broadcast_to(tl.arange(0, BLOCK_N)[None, :], [BLOCK_M, BLOCK_N])
    col = tl.arange(0, BLOCK_N)
    in_rows = rows < M - row0
    stride_x, stride_dy, stride_dx = row_stride(stride_xm, N), row_stride(stride_dym, N), row_stride(None, N)
    x_ptr += row0 * stride_x
    dy_ptr += row0 * stride_dy
    dx_offset = row0 * N
    mean = tl.load(stats_ptr + row0 * 2 + rows * 2, mask=in_rows, other=0.0)
    rstd = tl.load(stats_ptr + row0 * 2 + rows * 2 + 1, mask=in_rows, other=0.0)

    if dx_ptr is not None:
        dot = tl.zeros([BLOCK_M, BLOCK_N], mean.dtype)
        total = tl.zeros([BLOCK_M, BLOCK_N], mean.dtype)
        for start in tl.range(0, N, BLOCK_N, num_stages=STAGES):
            inside = in_rows & (cols < N - start)
            x = load_upcast(x_ptr + start + (rows * stride_x + cols), inside, "evict_last")
            dx_hat = load_upcast(dy_ptr + start + (rows * stride_dy + cols), inside, "evict_last")
            if weight_ptr is not None:
                dx_hat *= load_upcast(weight_ptr + start + cols, cols < N - start)
            dot += dx_hat * standardized(x, mean, rstd, inside, N % BLOCK_N != 0)
            total += dx_hat
        dot_term, total_term = row_sum(dot) * (1 / N) * rstd, row_sum(total) * (1 / N) * rstd

    for start in tl.range(0, N, BLOCK_N, num_stages=STAGES):
        inside = in_rows & (cols < N - start)
        x = load_upcast(x_ptr + start + (rows * stride_x + cols), inside, "evict_first")
        dy = load_upcast(dy_ptr + start + (rows * stride_dy + cols), inside, "evict_first")
        x_hat = standardized(x, mean, rstd, inside, N % BLOCK_N != 0)
        if dx_ptr is not None:
            dx_hat = dy
            if weight_ptr is not None:
                dx_hat *= load_upcast(weight_ptr + start + cols, cols < N - start)
            dx = dx_hat * rstd - (x_hat * dot_term + total_term)
            tl.store(dx_ptr + dx_offset + start + (rows * stride_dx + cols), dx, mask=inside)
        partial = program * N + start + col
        if dw_partial_ptr is not None:
            tl.store(dw_partial_ptr + partial, tl.sum(dy * x_hat, axis=0), mask=col < N - start)
        if db_partial_ptr is not None:
            tl.store(db_partial_ptr + partial, tl.sum(dy, axis=0), mask=col < N - start)
