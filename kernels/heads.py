"""Tiles of heads, which are the rows of q or of k: how they are read and written, and what is summed of a row.

A row is PIECES tiles of (BLOCK_M, BLOCK_N), with rotary its halves: what they exchange stays in a thread.  Values of a
row are tuples of PIECES tiles, fp32 (fp64).  Row i is head i % H of token i // H.

    operand     (pointer,) where all is contiguous, else (pointer, token stride, head stride)
    parameter   (pointer,) of (N,), or empty
    rotary      ((cos,), (sin,)), each (T, N) contiguous, or empty: token t has their row t % T
"""

import triton
import triton.language as tl

from .operands import from_row, pointers
from .row import at_columns, load_upcast, row_mean, row_square, sum_rows


@triton.jit
def head_pointers(operand, row0, rows, cols, H: tl.constexpr, N: tl.constexpr):
    if len(operand) == 1:
        return pointers(from_row(operand, row0, N), rows, cols, N)
    else:
        head = (row0 % H).to(tl.int32) + rows
        token_stride, head_stride = tl.cast(operand[1], tl.int64), tl.cast(operand[2], tl.int64)
        first = operand[0] + row0 // H * token_stride
        return first + (head // H * token_stride + head % H * head_stride + cols)


@triton.jit
def load_pieces(first, inside, N: tl.constexpr, PIECES: tl.constexpr):
    values = ()
    for i in tl.static_range(PIECES):
        values = values + (load_upcast(first + i * (N // PIECES), inside),)
    return values


@triton.jit
def store_pieces(first, values, inside, N: tl.constexpr, PIECES: tl.constexpr):
    for i in tl.static_range(PIECES):
        tl.store(first + i * (N // PIECES), values[i], mask=inside)


@triton.jit
def load_parameter(parameter, cols, in_row, ABSENT: tl.constexpr, N: tl.constexpr, PIECES: tl.constexpr):
    if len(parameter) > 0:
        return load_pieces(at_columns(parameter[0], cols, N // PIECES), in_row, N, PIECES)
    else:
        return (ABSENT, ABSENT)


@triton.jit
def load_rotary(rotary, row0, rows, cols, inside, T, H: tl.constexpr, N: tl.constexpr, like):
    """The halves of cos and those of sin, in the precision of `like`."""
    token = (row0 // H % T).to(tl.int32) + ((row0 % H).to(tl.int32) + rows) // H
    offsets = (token % T.to(tl.int32)).to(tl.int64) * N + cols
    cos, sin = load_pieces(rotary[0][0] + offsets, inside, N, 2), load_pieces(rotary[1][0] + offsets, inside, N, 2)
    dtype: tl.constexpr = like.dtype
    return (cos[0].to(dtype), cos[1].to(dtype)), (sin[0].to(dtype), sin[1].to(dtype))


@triton.jit
def squares_of(x):
    """The square of every element, those of the pieces of a row added up."""
    if len(x) == 1:
        return row_square(x[0], x[0].shape[1])
    else:
        return tl.fma(x[1], x[1], x[0] * x[0])


@triton.jit
def added(x):
    """The pieces of a row, added up."""
    if len(x) == 1:
        return x[0]
    else:
        return x[0] + x[1]


@triton.jit
def products_of(a, b):
    if len(a) == 1:
        return a[0] * b[0]
    else:
        return a[0] * b[0] + a[1] * b[1]


@triton.jit
def deviations(x, inside, N: tl.constexpr):
    """The pieces of rows less a rounded mean, as row_deviations has it."""
    if len(x) == 1:
        mean = row_mean(x[0], N)
        return (tl.where(inside, x[0] - mean, 0.0),)
    else:
        mean = row_mean(0.5 * x[0] + 0.5 * x[1], N // 2)  # of halves, whose sum could overflow
        return tl.where(inside, x[0] - mean, 0.0), tl.where(inside, x[1] - mean, 0.0)


@triton.jit
def store_totals(partial, sums, program, N: tl.constexpr, PIECES: tl.constexpr):
    """The sums over the rows of a tile, to the program's row of the partial sums."""
    if len(partial) > 0:
        col = tl.arange(0, sums[0].shape[1])[None, :]
        totals = ()
        for i in tl.static_range(PIECES):
            totals = totals + (sum_rows(sums[i], 1),)
        store_pieces(partial[0] + program * N + col, totals, col < N // PIECES, N, PIECES)
