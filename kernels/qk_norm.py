"""RMSNorm, or CENTRED LayerNorm, of every head of q and of k, and rotary embedding behind it: one launch for both.

    n = x_hat weight + bias      y = n, or n cos + rotate_half(n) sin
    x_hat = x rstd, rstd = 1 / sqrt(E[x^2] + eps), or CENTRED (x - mean) rstd, rstd = 1 / sqrt(Var[x] + eps)

with rotate_half((a, b)) = (-b, a) of the halves of a row.  Tuples have one entry for each stream, q and k:

    streams, upstream         x and dy: (tokens, HEADS[i], N), unit stride along N; (pointer,) where all is contiguous,
                              else (pointer, token stride, head stride); dy is empty where nothing is wanted of it
    results                   y: the same; may be the streams themselves, as a program reads a row before it writes it
    gradients                 dx: contiguous; empty where it is not wanted
    weights, biases           (pointer,) of (N,), empty: 1 and -0
    dw_partials, db_partials  (pointer,) of (P, N), fp32 (fp64): a program's sums of their gradients
    rotary                    ((cos,), (sin,)), each (T, N) contiguous, or empty: token t has their row t % T; T < 2^31

A row is HEADS[i] token + head, counted in its own stream.  heads.py has how a tile holds rows.
"""

import triton
import triton.language as tl

from .heads import (
    added,
    deviations,
    head_pointers,
    load_parameter,
    load_pieces,
    load_rotary,
    products_of,
    squares_of,
    store_pieces,
    store_totals,
)
from .operands import from_row, pointers
from .row import row_correction, row_rstd, row_sum, row_sum2, upcast


def named(specialization, direction):
    """What profiles show."""
    return f"qk_layer_norm_{direction}" if specialization.constants["CENTRED"] else f"qk_norm_{direction}"


@triton.jit
def normalized_heads(
    stream,
    weight,
    bias,
    rotary,
    result,
    row0,
    M,
    T,
    eps,
    H: tl.constexpr,
    N: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CENTRED: tl.constexpr,
):
    rows = tl.arange(0, BLOCK_M)[:, None]
    cols = tl.broadcast_to(tl.arange(0, BLOCK_N)[None, :], [BLOCK_M, BLOCK_N])
    in_row = cols < N // PIECES
    inside = in_row & (rows < M - row0)
    x = load_pieces(head_pointers(stream, row0, rows, cols, H, N), inside, N, PIECES)
    w = load_parameter(weight, cols, in_row, 1.0, N, PIECES)
    b = load_parameter(bias, cols, in_row, -0.0, N, PIECES)
    if CENTRED:
        x = deviations(x, inside, N)
        total, squares = row_sum2(added(x), squares_of(x))
        shift, var = row_correction(total, squares, N)
        rstd = row_rstd(var, eps)
    else:
        rstd = row_rstd(row_sum(squares_of(x)) * (1 / N), eps)
    n = ()
    for i in tl.static_range(PIECES):
        x_hat = x[i] * rstd
        if CENTRED:
            x_hat -= shift * rstd
        n = n + (x_hat * w[i] + b[i],)
    if len(rotary[0]) == 0:
        y = n
    else:
        cos, sin = load_rotary(rotary, row0, rows, cols, inside, T, H, N, x[0])
        y = (n[0] * cos[0] - n[1] * sin[0], n[1] * cos[1] + n[0] * sin[1])
    store_pieces(head_pointers(result, row0, rows, cols, H, N), y, inside, N, PIECES)


@triton.jit(do_not_specialize=["tokens", "T"], repr=lambda s: named(s, "fwd"))
def qk_norm_fwd(
    streams,
    weights,
    biases,
    rotary,
    results,
    tokens: tl.int64,
    T: tl.int64,
    eps: tl.float64,
    HEADS: tl.constexpr,
    N: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    CENTRED: tl.constexpr,
):
    """Programs take the tiles of the first stream, then those of the next."""
    tile = tl.program_id(0).to(tl.int64)
    for i in tl.static_range(len(streams)):
        M = tokens * HEADS[i]
        if (tile >= 0) & (tile * BLOCK_M < M):
            normalized_heads(
                streams[i], weights[i], biases[i], rotary, results[i],
                tile * BLOCK_M, M, T, eps, HEADS[i], N, PIECES, BLOCK_M, BLOCK_N, CENTRED,
            )  # fmt: skip
        tile -= tl.cdiv(M, BLOCK_M)


@triton.jit
def heads_bwd(
    stream,
    dy,
    weight,
    rotary,
    dx,
    dw_partial,
    db_partial,
    first,
    M,
    T,
    eps,
    H: tl.constexpr,
    N: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    CENTRED: tl.constexpr,
):
    """dx = rstd (g - x_hat mean(g x_hat)) with g = dn weight, CENTRED less rstd mean(g), of the tiles first, first + P,
    ...
    """
    program, P = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    rows = tl.arange(0, BLOCK_M)[:, None]
    cols = tl.broadcast_to(tl.arange(0, BLOCK_N)[None, :], [BLOCK_M, BLOCK_N])
    in_row = cols < N // PIECES
    w = load_parameter(weight, cols, in_row, 1.0, N, PIECES)
    zero = upcast(tl.zeros(cols.shape, stream[0].dtype.element_ty))
    dw, db = (), ()
    for _ in tl.static_range(PIECES):
        dw, db = dw + (zero,), db + (zero,)
    for tile in tl.range(first, tl.cdiv(M, BLOCK_M), P, num_stages=STAGES):
        row0 = tile * BLOCK_M
        in_rows = rows < M - row0
        inside = in_row & in_rows
        x = load_pieces(head_pointers(stream, row0, rows, cols, H, N), inside, N, PIECES)
        dn = load_pieces(head_pointers(dy, row0, rows, cols, H, N), inside, N, PIECES)
        if len(rotary[0]) > 0:
            cos, sin = load_rotary(rotary, row0, rows, cols, inside, T, H, N, x[0])
            dn = (dn[0] * cos[0] + dn[1] * sin[1], dn[1] * cos[1] - dn[0] * sin[0])
        g = ()
        for i in tl.static_range(PIECES):
            g = g + (dn[i] * w[i],)
        if CENTRED:
            x = deviations(x, inside, N)
            total, squares = row_sum2(added(x), squares_of(x))
            shift, var = row_correction(total, squares, N)
            dot, total = row_sum2(products_of(g, x), added(g))
            overflown = var == float("inf")
            dot -= shift * total
        else:
            squares, dot = row_sum2(squares_of(x), products_of(g, x))
            overflown = squares == float("inf")
            var = squares * (1 / N)
        rstd = tl.where(in_rows, row_rstd(var, eps), 0.0)
        # Where the squares overflow, rstd and x_hat are 0, and the product with x may be infinite.
        share = tl.where(overflown, 0.0, dot * rstd) * (1 / N) * rstd
        more_dw, more_db, gradient = (), (), ()
        for i in tl.static_range(PIECES):
            x_hat = x[i] * rstd
            if CENTRED:
                x_hat -= shift * rstd
            more_dw, more_db = more_dw + (dw[i] + dn[i] * x_hat,), more_db + (db[i] + dn[i],)
            dx_i = g[i] * rstd - x_hat * share
            if CENTRED:
                dx_i -= total * (1 / N) * rstd
            gradient = gradient + (dx_i,)
        dw, db = more_dw, more_db
        if len(dx) > 0:
            store_pieces(pointers(from_row(dx, row0, N), rows, cols, N), gradient, inside, N, PIECES)
    store_totals(dw_partial, dw, program, N, PIECES)
    store_totals(db_partial, db, program, N, PIECES)


@triton.jit(do_not_specialize=["tokens", "T"], repr=lambda s: named(s, "bwd"))
def qk_norm_bwd(
    streams,
    upstream,
    weights,
    rotary,
    gradients,
    dw_partials,
    db_partials,
    tokens: tl.int64,
    T: tl.int64,
    eps: tl.float64,
    HEADS: tl.constexpr,
    N: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    CENTRED: tl.constexpr,
):
    """Program i of P owns the tiles i, i + P, ... of all streams, those of the next counted on from those of the last.

    rstd is computed anew: its row sum is joined with that of the product, and rows of 64 to 256 values would be 1 to 4
    in a hundred longer with it.
    """
    first, P = tl.program_id(0).to(tl.int64), tl.num_programs(0)
    for i in tl.static_range(len(streams)):
        if len(upstream[i]) > 0:
            M = tokens * HEADS[i]
            heads_bwd(
                streams[i], upstream[i], weights[i], rotary, gradients[i], dw_partials[i], db_partials[i],
                first, M, T, eps, HEADS[i], N, PIECES, BLOCK_M, BLOCK_N, STAGES, CENTRED,
            )  # fmt: skip
            # The number of tiles before the program's next one, less those of this stream.
            tiles = tl.cdiv(M, BLOCK_M)
            first += tl.cdiv(tl.maximum(tiles - first, 0), P) * P - tiles
