"""Row operators backward on rows wider than one tile, in two kernels whose programs divide the columns too.

Operands, parts, shapes and dtypes are those of one_tile.py.  A row is CHUNKS chunks, each of PIECES pieces of BLOCK_N
columns, which lie in a tile as they do there.

    sums    (M, CHUNKS, 2)  fp32 (fp64)  of each chunk of a row the sum of dx_hat x_hat and that of dx_hat: dx needs
                            those of the whole row; (M, CHUNKS, 1) only the former unless CENTRED; None: not needed

    partials, totals        those of column_sum.py, which the second kernel adds up; of (S, P, N) and of (S, N)

Statistics are known, so that what `finishing` columns get depends on no other chunk: the first kernel adds it up, and
writes the sums of chunks.  The second adds up the chunks of each row and writes all that depends on them.  Each reads
all once; the second walks backward, and so begins with what the last-level cache still has of the first, and its
stores leave that there (.cs: evicted first, PTX ISA, cache operators).

Program i is of chunk i % CHUNKS and of share i // CHUNKS of the rows, which is what a whole program has in one_tile.py.
Of the second kernel, `adding` programs come before these: they do what would be a launch of column_sum.
"""

import triton
import triton.language as tl

from .column_sum import add_up
from .noise import chances
from .operands import (
    add_terms,
    batches,
    left,
    load_columns,
    load_tile,
    share_of,
    store_rows,
    store_sums,
    zeros_for,
)
from .row import each_to_pieces, load_stats, normalize_bwd, row_sum, row_sums, summed_bwd
from .wide import chunk_bwd


@triton.jit
def columns_of(chunk, N: tl.constexpr, PIECES: tl.constexpr, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """(columns, which of them are in the row) of a chunk; nothing is masked where chunks divide the row."""
    WIDTH: tl.constexpr = PIECES * BLOCK_N
    piece = tl.arange(0, PIECES * BLOCK_M)[:, None]
    within = piece // BLOCK_M * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    cols = chunk * WIDTH + within
    if N % WIDTH == 0:
        return cols, within < WIDTH
    else:
        return cols, within < N - chunk * WIDTH


@triton.jit
def store_chunk(sums_ptr, row0, row, chunk, in_rows, sums, CHUNKS: tl.constexpr):
    at = sums_ptr + ((row0 + row) * CHUNKS + chunk) * len(sums)
    if len(sums) == 2 and sums[0].shape[0] > 1:
        M: tl.constexpr = sums[0].shape[0]
        tl.store(
            at + tl.arange(0, 2)[None, :], tl.join(tl.reshape(sums[0], [M]), tl.reshape(sums[1], [M])), mask=in_rows
        )
    else:
        for i in tl.static_range(len(sums)):
            tl.store(at + i, sums[i], mask=in_rows)


@triton.jit
def load_chunks(sums_ptr, row0, row, in_rows, CHUNKS: tl.constexpr, CENTRED: tl.constexpr):
    """The sums of every row: its chunks are added in an order that depends on the configuration alone."""
    M: tl.constexpr = row.shape[0]
    S: tl.constexpr = 1 + CENTRED
    WIDTH: tl.constexpr = min(64, triton.next_power_of_2(CHUNKS))
    of_row = tl.arange(0, WIDTH * S)[None, :]
    sums = tl.zeros([M, WIDTH * S], sums_ptr.dtype.element_ty)
    for first in tl.static_range(0, CHUNKS * S, WIDTH * S):
        inside = in_rows & (of_row < CHUNKS * S - first)
        sums += tl.load(sums_ptr + (row0 + row) * (CHUNKS * S) + first + of_row, mask=inside, other=0.0)
    if CENTRED:
        dot, total = tl.split(tl.sum(tl.reshape(sums, [M, WIDTH, 2]), axis=1))
        return dot[:, None], total[:, None]
    else:
        return (row_sum(sums),)


@triton.jit(do_not_specialize=["M", "T"], repr=lambda s: s.constants["NAME"])
def wide_sums_bwd(
    upstream,
    entering,
    finishing,
    stats_ptr,
    d_entering,
    d_finishing,
    sums_ptr,
    M: tl.int64,
    T: tl.int64,
    p: tl.float64,
    N: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    ENTER: tl.constexpr,
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
    """The sums of chunks, and the partial sums of finishing columns; it has no d_entering."""
    dy, dx, x = upstream
    CHUNKS: tl.constexpr = (N + PIECES * BLOCK_N - 1) // (PIECES * BLOCK_N)
    chunk, share = tl.program_id(0) % CHUNKS, tl.program_id(0) // CHUNKS
    batch, first, step, height, index, P = share_of(share, tl.num_programs(0) // CHUNKS, M, T, BATCHED, GROUPED)
    chance = chances(p, stats_ptr)
    row = tl.arange(0, BLOCK_M)[:, None]
    within = tl.arange(0, PIECES * BLOCK_M)[:, None] % BLOCK_M
    rows = within * step
    cols, in_row = columns_of(chunk, N, PIECES, BLOCK_M, BLOCK_N)

    enter_columns = load_columns(entering, ENTERING, NO_ENTERING, batch, cols, in_row, N)
    finish_columns = load_columns(finishing, FINISHING, NO_FINISHING, batch, cols, in_row, N)
    sums = zeros_for(d_finishing, FINISHING, tl.zeros(cols.shape, stats_ptr.dtype.element_ty))

    for tile in tl.range(index, tl.cdiv(height, BLOCK_M), P, num_stages=STAGES):
        row0 = first + tile * BLOCK_M * step
        in_rows = within < height - tile * BLOCK_M
        in_tile = row < height - tile * BLOCK_M
        each = batches(row0, rows, M, T, GROUPED)
        stats = each_to_pieces(load_stats(stats_ptr, row0, row * step, in_tile, CENTRED), PIECES)
        x_hat, dx_hat, terms, values = chunk_bwd(
            dy, x, entering, finishing, enter_columns, finish_columns, stats, row0, rows, each, chance, cols, in_row,
            in_row & in_rows, N, ENTER, FINISH_BWD, RESTORE, ENTERING, FINISHING, "evict_last",
        )  # fmt: skip
        sums = add_terms(sums, FINISHING, terms)
        if sums_ptr is not None:
            of_chunk = row_sums(summed_bwd(dx_hat, x_hat, CENTRED), PIECES)
            store_chunk(sums_ptr, row0, row * step, chunk, in_tile, of_chunk, CHUNKS)

    col = (chunk * PIECES + tl.arange(0, PIECES)[:, None]) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    store_sums(d_finishing, FINISHING, sums, share.to(tl.int64), col, N, PIECES)


@triton.jit(do_not_specialize=["M", "T", "P", "adding"], repr=lambda s: s.constants["NAME"])
def wide_dx_bwd(
    upstream,
    entering,
    finishing,
    stats_ptr,
    d_entering,
    d_finishing,
    sums_ptr,
    partials,
    totals,
    M: tl.int64,
    T: tl.int64,
    P: tl.int64,
    adding: tl.int64,
    p: tl.float64,
    N: tl.constexpr,
    PIECES: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    ADD_P: tl.constexpr,
    ADD_N: tl.constexpr,
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
    """The gradients of rows, and the partial sums of entering columns; backward through all, programs and tiles.

    Before them, of programs, come those that add up the partial sums of the first kernel, where the cache has these.
    """
    if len(totals) > 0:
        adds = tl.program_id(0) < adding
        if adds:
            add_up(partials, totals, tl.program_id(0), P, N, ADD_P, ADD_N)
            return
    dy, dx, x = upstream
    CHUNKS: tl.constexpr = (N + PIECES * BLOCK_N - 1) // (PIECES * BLOCK_N)
    program = tl.num_programs(0) - 1 - tl.program_id(0)
    chunk, share = program % CHUNKS, program // CHUNKS
    shares = (tl.num_programs(0) - adding.to(tl.int32)) // CHUNKS
    batch, first, step, height, index, count = share_of(share, shares, M, T, BATCHED, GROUPED)
    chance = chances(p, stats_ptr)
    row = tl.arange(0, BLOCK_M)[:, None]
    within = tl.arange(0, PIECES * BLOCK_M)[:, None] % BLOCK_M
    rows = within * step
    cols, in_row = columns_of(chunk, N, PIECES, BLOCK_M, BLOCK_N)

    enter_columns = load_columns(entering, ENTERING, NO_ENTERING, batch, cols, in_row, N)
    finish_columns = load_columns(finishing, FINISHING, NO_FINISHING, batch, cols, in_row, N)
    sums = zeros_for(d_entering, ENTERING, tl.zeros(cols.shape, stats_ptr.dtype.element_ty))

    tiles = tl.cdiv(tl.cdiv(height, BLOCK_M) - index, count)
    for done in tl.range(0, tiles, num_stages=STAGES):
        tile = index + (tiles - 1 - done) * count
        row0 = first + tile * BLOCK_M * step
        in_rows = within < height - tile * BLOCK_M
        inside = in_row & in_rows
        in_tile = row < height - tile * BLOCK_M
        each = batches(row0, rows, M, T, GROUPED)
        stats = each_to_pieces(load_stats(stats_ptr, row0, row * step, in_tile, CENTRED), PIECES)
        x_hat, dx_hat, finish_terms, values = chunk_bwd(
            dy, x, entering, finishing, enter_columns, finish_columns, stats, row0, rows, each, chance, cols, in_row,
            inside, N, ENTER, FINISH_BWD, RESTORE, ENTERING, FINISHING, "evict_first",
        )  # fmt: skip
        of_row = load_chunks(sums_ptr, row0, row * step, in_tile, CHUNKS, CENTRED)
        gx = normalize_bwd(dx_hat, x_hat, each_to_pieces(of_row, PIECES), stats[len(stats) - 1], N)
        if len(dx) > 0:
            gx += load_tile(dx, row0, rows, cols, inside, N, "evict_first")
        enter_terms = left(gx, values, ENTER_BWD)
        sums = add_terms(sums, ENTERING, enter_terms)
        store_rows(d_entering, ENTERING, enter_terms, row0, rows, cols, inside, N, ".cs")
        store_rows(d_finishing, FINISHING, finish_terms, row0, rows, cols, inside, N, ".cs")

    col = (chunk * PIECES + tl.arange(0, PIECES)[:, None]) * BLOCK_N + tl.arange(0, BLOCK_N)[None, :]
    store_sums(d_entering, ENTERING, sums, share.to(tl.int64), col, N, PIECES)
