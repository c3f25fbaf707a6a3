"""Statistics of rows that come in chunks, one after the other.

Shapes are those of row.py; the moments of a chunk are (mean, sum of squared deviations), or (sum of squares,) of rows
that are not centred, each (BLOCK_M, 1).
"""

import triton
import triton.language as tl

from .row import merge_squares, row_moments, row_rstd, row_sum


@triton.jit
def chunk_moments(x, inside, COUNT: tl.constexpr, CENTRED: tl.constexpr):
    """Of a chunk of COUNT values of every row: the mean, and the sum of squared deviations from it; or, of rows that
    are not centred, the sum of squares.
    """
    if CENTRED:
        mean, var = row_moments(x, inside, COUNT)
        return mean, var * COUNT
    else:
        return (row_sum(x * x),)


@triton.jit
def merge_chunks(a, count_a, b, count_b):
    """chunk_moments of the union of two chunks."""
    if len(a) == 2:
        mean, squares = merge_squares(a[0], a[1], count_a, b[0], b[1], count_b)
        return mean, squares
    else:
        return (a[0] + b[0],)


@triton.jit
def stats_of_chunks(moments, N: tl.constexpr, eps):
    """The statistics of rows from chunk_moments of the whole of them."""
    if len(moments) == 2:
        return moments[0], row_rstd(moments[1] * (1 / N), eps)
    else:
        return (row_rstd(moments[0] * (1 / N), eps),)
