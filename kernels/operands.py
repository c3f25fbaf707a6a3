"""How a row operator's operands reach its kernels, and how their values are read and written.

An operand is a tuple, empty where it is absent:

    (pointer,)             (M, N) contiguous rows, or (N,) columns
    (pointer, stride)      (M, N) rows that are `stride` values apart

`streams` are the operands that are read row by row, `columns` those with one value for each column, the
same in every row.  ABSENT holds for each of the columns the number that stands for it where it is absent.
A device function that takes an operator's streams or columns takes them one by one: PART(x_hat, *columns).
"""

import triton
import triton.language as tl

from .row import load_upcast, row_starts


@triton.jit
def from_row(operand, row0, N):
    """The operand without the rows before row0."""
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
def load_streams(streams, row0, rows, cols, inside, N, EVICTION: tl.constexpr = None):
    values = ()
    for i in tl.static_range(len(streams)):
        values = values + (load_upcast(pointers(from_row(streams[i], row0, N), rows, cols, N), inside, EVICTION),)
    return values


@triton.jit
def load_columns(columns, ABSENT: tl.constexpr, cols, in_row):
    values = ()
    for i in tl.static_range(len(columns)):
        if len(columns[i]) == 0:
            values = values + (ABSENT[i],)
        else:
            values = values + (load_upcast(columns[i][0] + cols, in_row),)
    return values


@triton.jit
def entered(values, in_row, ENTER: tl.constexpr):
    """x from the values of the streams, zero outside the row."""
    if ENTER is None:
        return values[0]
    else:
        return tl.where(in_row, ENTER(*values), 0.0)


@triton.jit
def store_gradients(gradients, dx, values, row0, rows, cols, inside, N, ENTER_BWD: tl.constexpr):
    """The gradients of the streams that are wanted, from dx and the streams' values."""
    terms = (dx,)
    if ENTER_BWD is not None:
        terms = ENTER_BWD(dx, *values)
    for i in tl.static_range(len(gradients)):
        if len(gradients[i]) > 0:
            tl.store(pointers(from_row(gradients[i], row0, N), rows, cols, N), terms[i], mask=inside)
