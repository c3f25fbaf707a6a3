"""How a row operator's operands reach its kernels, and how their values are read and written.

An operand is a tuple, empty where it is absent.  Its kind says how it lies:

    "M N"    (pointer,) contiguous rows; (pointer, stride) rows that are `stride` values apart
    "B N"    the same, one row for each batch: T rows that follow one another are a batch
    "G N"    the same, one row for each group: row i is of group i % G, and T = M // G rows are
    "N"      (pointer,) one value for each column, the same in every row
    "B"      (pointer,) one value for each batch
    "noise"  (pointer,) a seed, int64: its values are 0 with probability p and 1 / (1 - p) else (noise.py)

ABSENT holds for each operand the number that stands for it where it is absent.  A device function that takes an
operator's operands takes their values one by one: PART(x_hat, *values).  Of its terms, one for each operand, those of
"M N" are the operand's gradient, and those of "N", "B N" and "G N" are summed over rows; the other kinds have none.
"""

import triton
import triton.language as tl

from .noise import noise
from .row import at_columns, load_upcast, row_starts, sum_rows, upcast

CACHED = tl.constexpr("")  # as any store: Triton 3.6 takes no string for the default of a parameter


@triton.jit
def from_row(operand, row0, N):
    """The operand without the rows before row0, which may be more than 2^31 values."""
    row0 = tl.cast(row0, tl.int64)
    if len(operand) == 1:
        return (operand[0] + row0 * N,)
    else:
        return operand[0] + row0 * operand[1], operand[1]


@triton.jit
def pointers(operand, rows, cols, N):
    if len(operand) == 1:
        return operand[0] + (row_starts(rows, N) + cols)
    else:
        return operand[0] + (rows * tl.cast(operand[1], tl.int64) + cols)


@triton.jit
def load_tile(operand, row0, rows, cols, inside, N, EVICTION: tl.constexpr = None):
    return load_upcast(pointers(from_row(operand, row0, N), rows, cols, N), inside, EVICTION)


@triton.jit
def batches(row0, rows, M, T, GROUPED: tl.constexpr):
    """The batch, or the group, of each of the rows row0 + rows, of those past the last one its."""
    if GROUPED:
        return tl.minimum(row0 + rows, M - 1) % (M // T)
    else:
        return tl.minimum(row0 + rows, M - 1) // T


@triton.jit
def share_of(program, P, M, T, BATCHED: tl.constexpr, GROUPED: tl.constexpr):
    """(batch, first row, step, rows, index, count): of P programs, this is the index-th of `count` that share rows."""
    if GROUPED:
        count = (P // (M // T)).to(tl.int32)
        group = (program // count).to(tl.int64)
        return group, group, M // T, T, program % count, count
    elif BATCHED:
        count = (P // (M // T)).to(tl.int32)
        batch = (program // count).to(tl.int64)
        return batch, batch * T, 1, T, program % count, count
    else:
        return 0, 0, 1, M, program, P


@triton.jit
def first_rows(a, ROWS: tl.constexpr):
    if a.shape[0] == ROWS:
        return a
    else:
        upper, lower = tl.split(tl.permute(tl.reshape(a, [2, a.shape[0] // 2, a.shape[1]]), (1, 2, 0)))
        return first_rows(upper, ROWS)


@triton.jit
def load_shared(pointers, in_row, ROWS: tl.constexpr):
    """What all rows of a tile have in common, loaded for the first ROWS of them alone."""
    M: tl.constexpr = in_row.shape[0]
    N: tl.constexpr = in_row.shape[1]
    first = first_rows(load_upcast(pointers, in_row & (tl.arange(0, M)[:, None] < ROWS)), ROWS)
    return tl.reshape(tl.broadcast_to(first[None, :, :], [M // ROWS, ROWS, N]), [M, N])


@triton.jit
def load_columns(
    operands, KINDS: tl.constexpr, ABSENT: tl.constexpr, batch, cols, in_row, N, ROWS: tl.constexpr = None
):
    """The values that all tiles of a batch have in common; for other operands a number in their place.

    ROWS: that all threads together hold at once.  One that holds more has the same columns of each.
    """
    values = ()
    for i in tl.static_range(len(operands)):
        if len(operands[i]) == 0:
            values = values + (ABSENT[i],)
        elif KINDS[i] == "N" and ROWS is not None:
            values = values + (load_shared(at_columns(operands[i][0], cols, N), in_row, ROWS),)
        elif KINDS[i] == "N":
            values = values + (load_upcast(at_columns(operands[i][0], cols, N), in_row),)
        elif KINDS[i] == "B N" or KINDS[i] == "G N":
            values = values + (load_upcast(from_row(operands[i], batch, N)[0] + cols, in_row),)
        else:
            values = values + (0.0,)
    return values


@triton.jit
def load_rows(
    operands, KINDS: tl.constexpr, columns, row0, rows, batch, cols, inside, N, chance, EVICTION: tl.constexpr = None
):
    """The values of all operands, of which `columns` holds those that load_columns has loaded; `chance` is of noise."""
    values = ()
    for i in tl.static_range(len(operands)):
        if len(operands[i]) == 0:
            values = values + (columns[i],)
        elif KINDS[i] == "M N":
            values = values + (load_tile(operands[i], row0, rows, cols, inside, N, EVICTION),)
        elif KINDS[i] == "B":
            values = values + (upcast(tl.load(operands[i][0] + batch)),)
        elif KINDS[i] == "noise":
            values = values + (noise(tl.load(operands[i][0]), row0 + rows, cols, *chance),)
        else:
            values = values + (columns[i],)
    return values


@triton.jit
def touch(operand, row0, rows, in_rows, first, WIDTH: tl.constexpr, N):
    """Brings WIDTH columns, from `first` on, of rows that are read later to L2, by loading one value of each of their
    sectors, which have 32 bytes.

    Nothing uses these values, so nothing waits for them; a load that is volatile is kept all the same.
    """
    EACH: tl.constexpr = 256 // operand[0].dtype.element_ty.primitive_bitwidth
    cols = first + EACH * tl.arange(0, triton.next_power_of_2((WIDTH + EACH - 1) // EACH))[None, :]
    at = pointers(from_row(operand, row0, N), rows, cols, N)
    tl.load(at, mask=in_rows & (cols < N), volatile=True)


@triton.jit
def touch_rows(operands, KINDS: tl.constexpr, row0, rows, in_rows, first, WIDTH: tl.constexpr, N):
    for i in tl.static_range(len(operands)):
        if len(operands[i]) > 0 and KINDS[i] == "M N":
            touch(operands[i], row0, rows, in_rows, first, WIDTH, N)


@triton.jit
def entered(values, in_row, ENTER: tl.constexpr):
    """x, zero outside the row."""
    if ENTER is None:
        return values[0]
    else:
        return tl.where(in_row, ENTER(*values), 0.0)


@triton.jit
def left(dx, values, ENTER_BWD: tl.constexpr):
    """A term for each operand that x is made of."""
    if ENTER_BWD is None:
        return (dx,)
    else:
        return ENTER_BWD(dx, *values)


@triton.jit
def store_rows(gradients, KINDS: tl.constexpr, terms, row0, rows, cols, inside, N, CACHE: tl.constexpr = CACHED):
    for i in tl.static_range(len(gradients)):
        if len(gradients[i]) > 0 and KINDS[i] == "M N":
            at = pointers(from_row(gradients[i], row0, N), rows, cols, N)
            tl.store(at, terms[i], mask=inside, cache_modifier=CACHE)


@triton.jit
def zeros_for(gradients, KINDS: tl.constexpr, like):
    totals = ()
    for _ in tl.static_range(len(gradients)):  # KINDS tell 3.6 its callers apart, which it knows by pointers alone
        totals = totals + (tl.zeros(like.shape, like.dtype),)
    return totals


@triton.jit
def add_terms(totals, KINDS: tl.constexpr, terms):
    sums = ()
    for i in tl.static_range(len(totals)):
        if KINDS[i] == "N" or KINDS[i] == "B N" or KINDS[i] == "G N":
            sums = sums + (totals[i] + terms[i],)
        else:
            sums = sums + (totals[i],)
    return sums


@triton.jit
def store_sums(partials, KINDS: tl.constexpr, totals, row, col, N, PIECES: tl.constexpr):
    """The sums over the rows of a tile, to a row of the partial sums."""
    for i in tl.static_range(len(partials)):
        if len(partials[i]) > 0 and KINDS[i] != "M N":
            tl.store(partials[i][0] + row * N + col, sum_rows(totals[i], PIECES), mask=col < N)
