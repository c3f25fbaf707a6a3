"""Row operators on rows wider than one tile: the row is walked in chunks of BLOCK_N, twice.

Operands, parts, shapes and dtypes are those of one_tile.py.  Each pass reads the row from its
beginning, and the first asks L2 to keep what the second will read again.
"""

import triton
import triton.language as tl

from .chunks import chunk_moments, merge_chunks, stats_of_chunks
from .noise import chances
from .operands import (
    batches,
    entered,
    left,
    load_columns,
    load_rows,
    load_tile,
    share_of,
    store_rows,
    store_sums,
    touch_rows,
)
from .row import (
    known_x_hat,
    load_stats,
    normalized,
    row_sum,
    store_stats,
)


@triton.jit
def values_of(
    operands, row0, rows, batch, chance, cols, in_row, inside, N,
    KINDS: tl.constexpr, ABSENT: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    columns = load_columns(operands, KINDS, ABSENT, batch, cols, in_row, N)
    return load_rows(operands, KINDS, columns, row0, rows, batch, cols, inside, N, chance, EVICTION)


@triton.jit
def x_of(values, x_ptr, in_row, ENTER: tl.constexpr):
    """x, as x_ptr rounds it."""
    x = entered(values, in_row, ENTER)
    if x_ptr is not None:
        x = x.to(x_ptr.dtype.element_ty).to(x.dtype)
    return x


@triton.jit
def moments_of(
    entering, x_ptr, row0, rows, batch, chance, cols, start, COUNT: tl.constexpr, N,
    ENTER: tl.constexpr, ENTERING: tl.constexpr, NO_ENTERING: tl.constexpr, CENTRED: tl.constexpr,
    AHEAD: tl.constexpr,
):  # fmt: skip
    """chunk_moments of the COUNT columns from `start` on; brings those that come AHEAD chunks later to L2."""
    if AHEAD:
        touch_rows(entering, ENTERING, row0, rows, rows == 0, start + AHEAD * COUNT, COUNT, N)
    inside = cols < COUNT
    values = values_of(
        entering, row0, rows, batch, chance, start + cols, inside, inside, N, ENTERING, NO_ENTERING, "evict_last"
    )
    return chunk_moments(x_of(values, x_ptr, inside, ENTER), inside, COUNT, CENTRED)


@triton.jit(do_not_specialize=["M", "T"], repr=lambda s: s.constants["NAME"])
def wide_fwd(
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
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    AHEAD: tl.constexpr,
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
    """Program i owns row i.  What x is made of is read twice (once from L2), all else is read or written once."""
    row0 = tl.program_id(0).to(tl.int64)
    rows = tl.zeros([1, 1], tl.int32)
    cols = tl.max_contiguous(tl.arange(0, BLOCK_N)[None, :], [1, AT_ONCE])
    batch, chance = batches(row0, rows, M, T, GROUPED), chances(p, y_ptr)

    FULL: tl.constexpr = N - N % BLOCK_N  # values in full chunks
    moments = moments_of(
        entering, x_ptr, row0, rows, batch, chance, cols, 0, BLOCK_N, N, ENTER, ENTERING, NO_ENTERING, CENTRED, AHEAD
    )
    for start in tl.range(BLOCK_N, FULL, BLOCK_N, num_stages=STAGES):
        chunk = moments_of(
            entering, x_ptr, row0, rows, batch, chance, cols, start, BLOCK_N, N, ENTER, ENTERING,
            NO_ENTERING, CENTRED, AHEAD,
        )  # fmt: skip
        moments = merge_chunks(moments, start, chunk, BLOCK_N)
    if FULL < N:
        chunk = moments_of(
            entering, x_ptr, row0, rows, batch, chance, cols, FULL, N - FULL, N, ENTER, ENTERING,
            NO_ENTERING, CENTRED, 0,
        )  # fmt: skip
        moments = merge_chunks(moments, FULL, chunk, N - FULL)
    stats = stats_of_chunks(moments, N, eps)
    if stats_ptr is not None:
        store_stats(stats_ptr, row0, rows, stats, M)

    for start in tl.range(0, N, BLOCK_N, num_stages=STAGES):
        col = start + cols
        inside = cols < N - start
        values = values_of(
            entering, row0, rows, batch, chance, col, inside, inside, N, ENTERING, NO_ENTERING, "evict_first"
        )
        x = x_of(values, x_ptr, inside, ENTER)
        if x_ptr is not None:
            tl.store(x_ptr + row0 * N + col, x, mask=inside)
        values = values_of(
            finishing, row0, rows, batch, chance, col, inside, inside, N, FINISHING, NO_FINISHING, "evict_first"
        )
        y = FINISH(normalized(x, stats, inside), *values)
        tl.store(y_ptr + row0 * N + col, y, mask=inside)


@triton.jit
def chunk_bwd(
    dy, x, entering, finishing, enter_columns, finish_columns, stats, row0, rows, each, chance, cols, in_row, inside, N,
    ENTER: tl.constexpr, FINISH_BWD: tl.constexpr, RESTORE: tl.constexpr, ENTERING: tl.constexpr,
    FINISHING: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    """(x_hat, dx_hat, the terms of `finishing`, the values of `entering`)"""
    values = load_rows(entering, ENTERING, enter_columns, row0, rows, each, cols, inside, N, chance, EVICTION)
    source = load_tile(x, row0, rows, cols, inside, N, EVICTION) if len(x) > 0 else entered(values, in_row, ENTER)
    x_hat = known_x_hat(source, stats, finish_columns, in_row, RESTORE)
    gy = load_tile(dy, row0, rows, cols, inside, N, EVICTION)
    others = load_rows(finishing, FINISHING, finish_columns, row0, rows, each, cols, inside, N, chance, EVICTION)
    dx_hat, terms = FINISH_BWD(gy, x_hat, *others)
    return x_hat, dx_hat, terms, values


@triton.jit(do_not_specialize=["M", "T"], repr=lambda s: s.constants["NAME"])
def wide_bwd(
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
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
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
    """Program p owns row p of the partial sums, and of the rows, or BATCHED of those of its batch, a group of BLOCK_M.

    All is read twice: first for the sums of every row, then, chunk by chunk through all the rows of the group, for
    gradients and the columns' sums.  A group's partial sums are written once.
    """
    dy, dx, x = upstream
    program = tl.program_id(0).to(tl.int64)
    batch, first, step, height, index, _ = share_of(tl.program_id(0), tl.num_programs(0), M, T, BATCHED, GROUPED)
    chance = chances(p, stats_ptr)
    start_m = index.to(tl.int64) * BLOCK_M
    row0 = first + start_m * step
    within = tl.arange(0, BLOCK_M)[:, None]
    rows = within * step
    cols = tl.broadcast_to(tl.arange(0, BLOCK_N)[None, :], [BLOCK_M, BLOCK_N])
    col = tl.arange(0, BLOCK_N)[None, :]
    in_rows = within < height - start_m
    each = batches(row0, rows, M, T, GROUPED)
    stats = load_stats(stats_ptr, row0, rows, in_rows, CENTRED)

    dot = tl.zeros([BLOCK_M, BLOCK_N], stats[0].dtype)
    total = dot
    for start in tl.range(0, N, BLOCK_N, num_stages=STAGES):
        in_row = cols < N - start
        inside = in_rows & in_row
        enter_columns = load_columns(entering, ENTERING, NO_ENTERING, batch, start + cols, in_row, N)
        finish_columns = load_columns(finishing, FINISHING, NO_FINISHING, batch, start + cols, in_row, N)
        x_hat, dx_hat, finish_terms, enter_values = chunk_bwd(
            dy, x, entering, finishing, enter_columns, finish_columns, stats, row0, rows, each, chance, start + cols,
            in_row, inside, N, ENTER, FINISH_BWD, RESTORE, ENTERING, FINISHING, "evict_last",
        )  # fmt: skip
        dot += dx_hat * x_hat
        total += dx_hat
    rstd = stats[len(stats) - 1]
    dot_term, total_term = row_sum(dot) / N * rstd, row_sum(total) / N * rstd

    for start in tl.range(0, N, BLOCK_N, num_stages=STAGES):
        in_row = cols < N - start
        inside = in_rows & in_row
        enter_columns = load_columns(entering, ENTERING, NO_ENTERING, batch, start + cols, in_row, N)
        finish_columns = load_columns(finishing, FINISHING, NO_FINISHING, batch, start + cols, in_row, N)
        x_hat, dx_hat, finish_terms, enter_values = chunk_bwd(
            dy, x, entering, finishing, enter_columns, finish_columns, stats, row0, rows, each, chance, start + cols,
            in_row, inside, N, ENTER, FINISH_BWD, RESTORE, ENTERING, FINISHING, "evict_first",
        )  # fmt: skip
        gx = dx_hat * rstd - x_hat * dot_term
        if CENTRED:
            gx -= total_term
        if len(dx) > 0:
            gx += load_tile(dx, row0, rows, start + cols, inside, N, "evict_first")
        enter_terms = left(gx, enter_values, ENTER_BWD)
        store_rows(d_entering, ENTERING, enter_terms, row0, rows, start + cols, inside, N)
        store_rows(d_finishing, FINISHING, finish_terms, row0, rows, start + cols, inside, N)
        store_sums(d_entering, ENTERING, enter_terms, program, start + col, N, 1)
        store_sums(d_finishing, FINISHING, finish_terms, program, start + col, N, 1)
