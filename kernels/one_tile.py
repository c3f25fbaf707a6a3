"""Row operators on rows that fit one tile.

    x = ENTER(*entering)      y = FINISH(x_hat, *finishing)      x_hat = (x - mean) rstd, or x rstd unless CENTRED

    entering, finishing   operands of the kinds that operands.py describes
    y, dy, x, dx          (M, N)  unit stride along N; x is a result too where x_ptr is not None, and what is normalized
                                  is then x as that rounds it
    stats                 (M, 2)  (mean, rstd) of every row, fp32 (fp64 for fp64 x); (M, 1) rstd unless CENTRED;
                                  None: not stored
    upstream              (dy, dx, x), three operands; x and dx only where x was a result; with RESTORE, y is for x
    d_entering, d_finishing       the gradients that are wanted, others empty; of operands "N" and "B N" instead
                          (P, N)  fp32 (fp64) partial sums, one row a program
    T                             rows of a batch, where an operand is one of batches, or of a group

The parts are device functions on tiles of fp32 (fp64) values:

    ENTER(*entering) -> x                   None: x is the only operand
    ENTER_BWD(dx, *entering) -> a term for each of these
    FINISH(x_hat, *finishing) -> y
    FINISH_BWD(dy, x_hat, *finishing) -> dx_hat, and a term for each of these
    RESTORE(y, *finishing) -> x_hat           the reverse of FINISH, where all of these are columns; None: x is read

A tile is (BLOCK_M, BLOCK_N) with BLOCK_N >= N: it holds whole rows.  Forward, a thread loads AT_ONCE neighbouring
columns at once where rows are aligned, and all threads together hold ROWS of its rows, so that one with values of
several rows has the same columns of each.

Backward, a row is PIECES pieces of BLOCK_N columns and the tile (PIECES BLOCK_M, BLOCK_N): its row i holds piece
i // BLOCK_M of row i % BLOCK_M, so that few warps share a row and N need not be near a power of two.  Where there is a
REST, the pieces are the whole ones among these, and the columns past them lie in a second tile, (BLOCK_M, REST): a
piece of few columns would cost as much as a whole one, and a fifth piece as much as eight.

The pointers of columns are built in the tile's own two dimensions: one layout for everything, so
nothing is exchanged between threads but the row sums, and each load is as wide as those of x.
"""

import triton
import triton.language as tl

from .noise import chances
from .operands import (
    add_terms,
    batches,
    entered,
    from_row,
    left,
    load_columns,
    load_rows,
    load_tile,
    pointers,
    share_of,
    store_rows,
    store_sums,
    touch_rows,
    zeros_for,
)
from .row import (
    each_to_pieces,
    known_x_hat,
    load_stats,
    narrow,
    normalize,
    normalize_bwd,
    row_sums,
    store_stats,
    summed_bwd,
    to_pieces,
)


@triton.jit
def normalized_rows(
    entering, x_ptr, columns, row0, rows, batch, chance, cols, in_row, inside, N, eps, ENTER: tl.constexpr,
    ENTERING: tl.constexpr, CENTRED: tl.constexpr,
):  # fmt: skip
    """(x_hat, stats); stores x where it is a result."""
    x = entered(load_rows(entering, ENTERING, columns, row0, rows, batch, cols, inside, N, chance), in_row, ENTER)
    if x_ptr is not None:
        tl.store(pointers(from_row((x_ptr,), row0, N), rows, cols, N), x, mask=inside)
        x = x.to(x_ptr.dtype.element_ty).to(x.dtype)
    return normalize(x, in_row, N, eps, CENTRED)


@triton.jit
def finish_rows(
    x_hat, stats, finishing, y_ptr, stats_ptr, columns, row0, rows, batch, chance, cols, inside, M, N,
    FINISH: tl.constexpr, FINISHING: tl.constexpr,
):  # fmt: skip
    """Stores y and the statistics."""
    y = FINISH(x_hat, *load_rows(finishing, FINISHING, columns, row0, rows, batch, cols, inside, N, chance))
    tl.store(pointers(from_row((y_ptr,), row0, N), rows, cols, N), y, mask=inside)
    if stats_ptr is not None:
        store_stats(stats_ptr, row0, rows, stats, M)


@triton.jit(do_not_specialize=["M", "T"], repr=lambda s: s.constants["NAME"])
def one_tile_fwd(
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    ENTER: tl.constexpr,
    FINISH: tl.constexpr,
    ENTERING: tl.constexpr,
    FINISHING: tl.constexpr,
    NO_ENTERING: tl.constexpr,
    NO_FINISHING: tl.constexpr,
    GROUPED: tl.constexpr,
    CENTRED: tl.constexpr,
    NAME: tl.constexpr,
):
    """Program i owns rows i BLOCK_M .. (i + 1) BLOCK_M.  All is read once and written once."""
    row0 = tl.program_id(0).to(tl.int64) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)[:, None]
    cols = tl.max_contiguous(tl.broadcast_to(tl.arange(0, BLOCK_N)[None, :], [BLOCK_M, BLOCK_N]), [1, AT_ONCE])
    in_row = cols < N
    inside = in_row & (rows < M - row0)
    batch, chance = batches(row0, rows, M, T, GROUPED), chances(p, y_ptr)

    columns = load_columns(entering, ENTERING, NO_ENTERING, batch, cols, in_row, N, ROWS)
    x_hat, stats = normalized_rows(
        entering, x_ptr, columns, row0, rows, batch, chance, cols, in_row, inside, N, eps, ENTER, ENTERING, CENTRED
    )
    columns = load_columns(finishing, FINISHING, NO_FINISHING, batch, cols, in_row, N, ROWS)
    finish_rows(
        x_hat, stats, finishing, y_ptr, stats_ptr, columns, row0, rows, batch, chance, cols, inside, M, N, FINISH,
        FINISHING,
    )  # fmt: skip


@triton.jit
def with_rest(terms, rest, PIECES: tl.constexpr):
    """Both added up in the shape of the rest, each thread its own values."""
    WIDTH: tl.constexpr = rest[0].shape[1]
    if len(rest) == 2:
        return narrow(terms[0], PIECES, WIDTH) + rest[0], narrow(terms[1], PIECES, WIDTH) + rest[1]
    else:
        return (narrow(terms[0], PIECES, WIDTH) + rest[0],)


@triton.jit
def opened(
    dy, x, entering, finishing, enter_columns, finish_columns, stats, row0, rows, each, chance, cols, in_row, inside,
    some, N, ENTER: tl.constexpr, FINISH_BWD: tl.constexpr, RESTORE: tl.constexpr, ENTERING: tl.constexpr,
    FINISHING: tl.constexpr,
):  # fmt: skip
    """(x_hat, dx_hat, the terms of `finishing`, the values of `entering`), of a tile or of what is left of its rows."""
    enter_values = load_rows(entering, ENTERING, enter_columns, row0, rows, each, cols, inside, N, chance)
    finish_values = load_rows(finishing, FINISHING, finish_columns, row0, rows, each, cols, inside, N, chance)
    # Zeros known when compiling: what follows is left out for the pieces past the row.
    gy = tl.where(some, load_tile(dy, row0, rows, cols, inside, N), 0.0)
    source = load_tile(x, row0, rows, cols, inside, N) if len(x) > 0 else entered(enter_values, in_row, ENTER)
    x_hat = known_x_hat(source, stats, finish_columns, in_row, RESTORE)
    dx_hat, terms = FINISH_BWD(gy, x_hat, *finish_values)
    return x_hat, dx_hat, terms, enter_values


@triton.jit
def closed(
    gx, dx, enter_values, enter_sums, finish_terms, d_entering, d_finishing, row0, rows, cols, inside, N,
    ENTER_BWD: tl.constexpr, ENTERING: tl.constexpr, FINISHING: tl.constexpr,
):  # fmt: skip
    """Stores the gradients of rows; the sums of entering columns with those of this tile."""
    if len(dx) > 0:
        gx += load_tile(dx, row0, rows, cols, inside, N)
    enter_terms = left(gx, enter_values, ENTER_BWD)
    store_rows(d_entering, ENTERING, enter_terms, row0, rows, cols, inside, N)
    store_rows(d_finishing, FINISHING, finish_terms, row0, rows, cols, inside, N)
    return add_terms(enter_sums, ENTERING, enter_terms)


@triton.jit(do_not_specialize=["M", "T"], repr=lambda s: s.constants["NAME"])
def one_tile_bwd(
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
    PIECES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    REST: tl.constexpr,
    STAGES: tl.constexpr,
    AHEAD: tl.constexpr,
    ENTER: tl.constexpr,
    ENTER_BWD: tl.constexpr,
    FINISH_BWD: tl.constexpr,
    RESTORE: tl.constexpr,
    ENTERING: tl.constexpr,
    FINISHING: tl.constexpr,
    NO_ENTERING: tl.constexpr,
    NO_FINISHING: tl.constexpr,
    BATCHED: tl.constexpr,
    GROUPED: tl.constexpr,
    CENTRED: tl.constexpr,
    NAME: tl.constexpr,
):
    """rstd (g - mean(g) - x_hat mean(g x_hat)) + dx with g = dx_hat reaches the operands that x is made of; mean(g) is
    left out unless CENTRED.

    Program i of the P that share M rows, or BATCHED the T rows of a batch or a group, owns their tiles i, i + P, ...:
    all is read once, STAGES - 1 tiles ahead of use, or brought to L2 AHEAD tiles before it; sums stay in registers
    until the program writes its row of them.
    """
    dy, dx, x = upstream
    batch, first, step, height, index, P = share_of(tl.program_id(0), tl.num_programs(0), M, T, BATCHED, GROUPED)
    chance = chances(p, stats_ptr)
    WHOLE: tl.constexpr = min(PIECES, N // BLOCK_N) * BLOCK_N if REST else N
    row = tl.arange(0, BLOCK_M)[:, None]
    piece = tl.arange(0, PIECES * BLOCK_M)[:, None]
    within = piece % BLOCK_M
    rows = within * step
    start = piece // BLOCK_M * BLOCK_N
    cols = start + tl.arange(0, BLOCK_N)[None, :]
    in_row = cols < WHOLE

    enter_columns = load_columns(entering, ENTERING, NO_ENTERING, batch, cols, in_row, N)
    finish_columns = load_columns(finishing, FINISHING, NO_FINISHING, batch, cols, in_row, N)
    zero = tl.zeros(cols.shape, stats_ptr.dtype.element_ty)
    enter_sums, finish_sums = zeros_for(d_entering, ENTERING, zero), zeros_for(d_finishing, FINISHING, zero)
    if REST:
        rest = tl.broadcast_to(WHOLE + tl.arange(0, REST)[None, :], [BLOCK_M, REST])
        in_rest = rest < N
        enter_rest = load_columns(entering, ENTERING, NO_ENTERING, batch, rest, in_rest, N)
        finish_rest = load_columns(finishing, FINISHING, NO_FINISHING, batch, rest, in_rest, N)
        zero = tl.zeros(rest.shape, stats_ptr.dtype.element_ty)
        enter_rests, finish_rests = zeros_for(d_entering, ENTERING, zero), zeros_for(d_finishing, FINISHING, zero)

    for tile in tl.range(index, tl.cdiv(height, BLOCK_M).to(tl.int32), P, num_stages=STAGES):
        start_m = tl.cast(tile, tl.int64) * BLOCK_M
        row0 = first + start_m * step
        left_rows = tl.minimum(height - start_m, BLOCK_M).to(tl.int32)
        in_rows = within < left_rows
        inside = in_row & in_rows
        each = batches(row0, rows, M, T, GROUPED)
        stats = load_stats(stats_ptr, row0, row * step, row < left_rows, CENTRED)
        rstd = stats[len(stats) - 1]
        x_hat, dx_hat, finish_terms, enter_values = opened(
            dy, x, entering, finishing, enter_columns, finish_columns, each_to_pieces(stats, PIECES), row0, rows, each,
            chance, cols, in_row, inside, start < WHOLE, N, ENTER, FINISH_BWD, RESTORE, ENTERING, FINISHING,
        )  # fmt: skip
        finish_sums = add_terms(finish_sums, FINISHING, finish_terms)
        summed = summed_bwd(dx_hat, x_hat, CENTRED)
        if REST:
            inside_rest = in_rest & (row < left_rows)
            x_rest, dx_rest, terms_rest, values_rest = opened(
                dy, x, entering, finishing, enter_rest, finish_rest, stats, row0, row * step,
                batches(row0, row * step, M, T, GROUPED), chance, rest, in_rest, inside_rest, True, N, ENTER,
                FINISH_BWD, RESTORE, ENTERING, FINISHING,
            )  # fmt: skip
            finish_rests = add_terms(finish_rests, FINISHING, terms_rest)
            of_row = row_sums(with_rest(summed, summed_bwd(dx_rest, x_rest, CENTRED), PIECES))
        else:
            of_row = row_sums(summed, PIECES)
        enter_sums = closed(
            normalize_bwd(dx_hat, x_hat, each_to_pieces(of_row, PIECES), to_pieces(rstd, PIECES), N), dx, enter_values,
            enter_sums, finish_terms, d_entering, d_finishing, row0, rows, cols, inside, N, ENTER_BWD, ENTERING,
            FINISHING,
        )  # fmt: skip
        if REST:
            enter_rests = closed(
                normalize_bwd(dx_rest, x_rest, of_row, rstd, N), dx, values_rest, enter_rests, terms_rest, d_entering,
                d_finishing, row0, row * step, rest, inside_rest, N, ENTER_BWD, ENTERING, FINISHING,
            )  # fmt: skip
        if AHEAD:
            later = start_m + AHEAD * P * BLOCK_M
            in_later = row < height - later
            touch_rows(upstream, ("M N", "M N", "M N"), first + later * step, row * step, in_later, 0, N, N)
            touch_rows(entering, ENTERING, first + later * step, row * step, in_later, 0, N, N)
            touch_rows(finishing, FINISHING, first + later * step, row * step, in_later, 0, N, N)

    program = tl.program_id(0).to(tl.int64)
    col = tl.arange(0, PIECES)[:, None] * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    store_sums(d_entering, ENTERING, enter_sums, program, col, N, PIECES)
    store_sums(d_finishing, FINISHING, finish_sums, program, col, N, PIECES)
    if REST:
        col = WHOLE + tl.arange(0, REST)[None, :]
        store_sums(d_entering, ENTERING, enter_rests, program, col, N, 1)
        store_sums(d_finishing, FINISHING, finish_rests, program, col, N, 1)
