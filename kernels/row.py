"""Row-wise reductions as device functions, for these kernels and for yours.

Shapes: a tile is (BLOCK_M, BLOCK_N), a row statistic is (BLOCK_M, 1).  `inside` is the tile's
mask; a tile holds zeros outside it.  N is the number of values that are really in a row.
Where rows come in PIECES, tile and statistic have PIECES BLOCK_M rows, all first pieces first.
Arithmetic is fp32, and fp64 for fp64 tiles.
"""

import triton
import triton.language as tl


@triton.jit
def load_upcast(pointers, inside, EVICTION: tl.constexpr = None):
    """Values in the precision of the arithmetic, zero outside."""
    return upcast(tl.load(pointers, mask=inside, other=0.0, eviction_policy=EVICTION))


@triton.jit
def at_columns(pointer, cols, N: tl.constexpr):
    """Pointers to values that rows of N have in common, of which no more are loaded at once than are aligned in every
    row.  Triton gives all that is loaded the layout of the widest, in which lanes would not load neighbours of a row.
    """
    at = pointer + cols
    if N % 8 != 0 and N > 1:
        at = tl.max_contiguous(at, [1, N & -N])
    return at


@triton.jit
def upcast(values):
    """fp64 stays, all else becomes fp32."""
    if values.dtype == tl.float64:
        return values
    else:
        return values.to(tl.float32)


@triton.jit
def row_sum(a):
    return tl.sum(a, axis=1, keep_dims=True)


@triton.jit
def row_mean(x, N):
    """Rounded to nearest, and no sum overflows: a tile's width is a power of two, division by which rounds nothing."""
    WIDTH: tl.constexpr = x.shape[1]
    mean = row_sum(x * (1 / WIDTH))
    if N != WIDTH:
        quotient = mean * (1 / (N / WIDTH))
        mean = tl.fma(tl.fma(-quotient, N / WIDTH, mean), 1 / (N / WIDTH), quotient)
    return mean


@triton.jit
def sum_pieces(a, PIECES: tl.constexpr):
    """(BLOCK_M, BLOCK_N): the pieces of every row added up, each thread its own values."""
    return tl.sum(tl.reshape(a, [PIECES, a.shape[0] // PIECES, a.shape[1]]), axis=0)


@triton.jit
def sum_rows(a, PIECES: tl.constexpr):
    """(PIECES, BLOCK_N): the sum over rows of every column.

    The lower half of the rows is added to the upper one until one is left: Triton's own sum lays rows of
    different warps in shared memory so that a warp finds all that it writes in one bank.
    """
    if a.shape[0] == PIECES:
        return a
    else:
        halves = tl.reshape(a, [PIECES, 2, a.shape[0] // (2 * PIECES), a.shape[1]])
        upper, lower = tl.split(tl.permute(halves, (0, 2, 3, 1)))
        return sum_rows(tl.reshape(upper + lower, [a.shape[0] // 2, a.shape[1]]), PIECES)


@triton.jit
def to_pieces(value, PIECES: tl.constexpr):
    """A statistic, (BLOCK_M,) or (BLOCK_M, 1), at every piece of its row."""
    M: tl.constexpr = value.shape[0]
    return tl.reshape(tl.broadcast_to(tl.reshape(value, [M])[None, :], [PIECES, M]), [PIECES * M, 1])


@triton.jit
def each_to_pieces(values, PIECES: tl.constexpr):
    if len(values) == 2:
        return to_pieces(values[0], PIECES), to_pieces(values[1], PIECES)
    elif values[0].shape[0] == 1:  # of one row for all its pieces: Triton would spread it over a tile of another layout
        return (tl.reshape(values[0], [1, 1]),)
    else:
        return (to_pieces(values[0], PIECES),)


@triton.jit
def row_sum2(a, b):
    """The row sums of two tiles by one reduction, so with the barriers of one."""
    M: tl.constexpr = a.shape[0]
    N: tl.constexpr = a.shape[1]
    # Through one dimension, which costs nothing compiled: the interpreter then adds along contiguous
    # memory, pairwise, and not one number after the other.
    stacked = tl.reshape(tl.reshape(tl.permute(tl.join(a, b), (0, 2, 1)), [2 * M * N]), [2 * M, N])
    sum_a, sum_b = tl.split(tl.reshape(tl.sum(stacked, axis=1), [M, 2]))
    return sum_a[:, None], sum_b[:, None]


@triton.jit
def row_sums(terms, PIECES: tl.constexpr = 1):
    """The row sums of one tile or of two, (BLOCK_M, 1)."""
    if len(terms) == 2:
        a, b = row_sum2(sum_pieces(terms[0], PIECES), sum_pieces(terms[1], PIECES))
        return a, b
    else:
        return (row_sum(sum_pieces(terms[0], PIECES)),)


@triton.jit
def narrow(a, PIECES: tl.constexpr, WIDTH: tl.constexpr):
    """(BLOCK_M, WIDTH): the pieces of every row and neighbours in it added up, each thread its own values."""
    a = sum_pieces(a, PIECES)
    return tl.sum(tl.reshape(a, [a.shape[0], WIDTH, a.shape[1] // WIDTH]), axis=2)


@triton.jit
def row_square(a, N):
    """a^2, rounded before lanes exchange it where rows are so short that each may hold one value of one.

    Contracted into the first exchange, each lane's own square would not be, and the lanes of a row would not agree
    on the last bit of its sum.  What is a multiply-add already cannot be contracted again.
    """
    if N < 64:
        return tl.fma(a, a, 0.0)
    else:
        return a * a


@triton.jit
def row_correction(total, squares, N):
    """(shift, var) from the sums of the deviations and of their squares."""
    # Squares overflow to an infinite variance, from which nothing that is infinite too may be subtracted.
    shift = tl.where(squares == float("inf"), 0.0, total * (1 / N))
    return shift, squares * (1 / N) - shift * shift


@triton.jit
def row_deviations(x, inside, N):
    """First pass: the deviations from a rounded mean, and what that mean's rounding left over.

    Returns (mean, var, deviation, shift) with x - E[x] = deviation - shift.  The correction term
    `shift` is Chan, Golub and LeVeque's (1983, equation 1.7): it takes the error of the mean out
    of the variance.
    """
    mean = row_mean(x, N)
    deviation = tl.where(inside, x - mean, 0.0)
    total, squares = row_sum2(deviation, row_square(deviation, N))
    shift, var = row_correction(total, squares, N)
    return mean + shift, var, deviation, shift


@triton.jit
def row_moments(x, inside, N):
    """Mean and (biased) variance of every row, two-pass in registers."""
    mean, var, deviation, shift = row_deviations(x, inside, N)
    return mean, var


@triton.jit
def merge_squares(mean_a, squares_a, count_a, mean_b, squares_b, count_b):
    """Mean and sum of squared deviations of the union of two sets from those of each (Chan et al. 1983, equation 2.1).

    Squares only grow, so that they are infinite where those of one tile are, and never the difference of two
    infinite numbers.
    """
    share_b = tl.cast(count_b, mean_b.dtype) / (count_a + count_b)
    half = 0.5 * mean_b - 0.5 * mean_a  # of the difference, which may overflow
    squares = squares_a + squares_b + 4.0 * (half * half) * share_b * count_a
    return mean_a + 2.0 * half * share_b, squares


@triton.jit
def merge_moments(mean_a, var_a, count_a, mean_b, var_b, count_b):
    """Mean and variance of the union of two sets from those of each."""
    mean, squares = merge_squares(mean_a, var_a * count_a, count_a, mean_b, var_b * count_b, count_b)
    return mean, squares / (count_a + count_b)


@triton.jit
def row_rstd(var, eps):
    # In fp64 first: eps is a Python float in the interpreter, and would be rounded to fp32 there.
    var += (tl.zeros([1, 1], tl.float64) + eps).to(var.dtype)
    # The hardware's rsqrt takes subnormal numbers for zero; powers of two round nothing.
    tiny = var < 2.0**-100
    rstd = tl.rsqrt(tl.where(tiny, var * 2.0**100, var))
    return tl.where(tiny, rstd * 2.0**50, rstd)


@triton.jit
def row_standardize(x, inside, N, eps):
    """x_hat = (x - mean) rstd with rstd = 1 / sqrt(var + eps).  Returns (x_hat, mean, rstd)."""
    mean, var, deviation, shift = row_deviations(x, inside, N)
    rstd = row_rstd(var, eps)
    # One multiply-add an element; `shift` is tiny, so nothing cancels.
    return deviation * rstd - shift * rstd, mean, rstd


@triton.jit
def row_standardize_bwd(dx_hat, x_hat, rstd, N):
    """dx = rstd (dx_hat - mean(dx_hat) - x_hat mean(dx_hat x_hat)), the gradient of row_standardize."""
    return normalize_bwd(dx_hat, x_hat, row_sum2(dx_hat * x_hat, dx_hat), rstd, N)


@triton.jit
def row_starts(rows, N):
    """Where contiguous rows begin: in 32 bits, unless the rows of a tile are too many values for that."""
    if N < 2**23:
        return rows * N
    else:
        return rows.to(tl.int64) * N


@triton.jit
def normalize(x, in_row, N, eps, CENTRED: tl.constexpr):
    """x_hat and the statistics that make it, (mean, rstd), or (rstd,) of rows that are not centred."""
    if CENTRED:
        x_hat, mean, rstd = row_standardize(x, in_row, N, eps)
        return x_hat, (mean, rstd)
    else:
        rstd = row_rstd(row_sum(row_square(x, N)) * (1 / N), eps)
        return x * rstd, (rstd,)


@triton.jit
def normalized(x, stats, in_row):
    """x_hat from statistics that are known, zero outside the row."""
    if len(stats) == 2:
        return tl.where(in_row, (x - stats[0]) * stats[1], 0.0)
    else:
        return x * stats[0]


@triton.jit
def known_x_hat(source, stats, columns, in_row, RESTORE: tl.constexpr):
    """x_hat from x and its statistics, or by RESTORE from y and the finishing columns, zero outside the row."""
    if RESTORE is None:
        return normalized(source, stats, in_row)
    else:
        return tl.where(in_row, RESTORE(source, *columns), 0.0)


@triton.jit
def summed_bwd(dx_hat, x_hat, CENTRED: tl.constexpr):
    """The tiles whose row sums normalize_bwd takes."""
    if CENTRED:
        return dx_hat * x_hat, dx_hat
    else:
        return (dx_hat * x_hat,)


@triton.jit
def normalize_bwd(dx_hat, x_hat, sums, rstd, N):
    """dx, the gradient of normalize."""
    # rstd multiplied in before the columns are: two multiply-adds an element.
    if len(sums) == 2:
        return dx_hat * rstd - (x_hat * (sums[0] * (1 / N) * rstd) + sums[1] * (1 / N) * rstd)
    else:
        return dx_hat * rstd - x_hat * (sums[0] * (1 / N) * rstd)


@triton.jit
def store_stats(stats_ptr, row0, rows, stats, M):
    """Those of a row side by side, so that one store and one layout change write both."""
    if len(stats) == 2 and stats[0].shape[0] == 1:
        first = tl.arange(0, 2)[None, :] == 0
        tl.store(stats_ptr + row0 * 2 + tl.arange(0, 2)[None, :], tl.where(first, stats[0], stats[1]))
    elif len(stats) == 2:
        flat: tl.constexpr = [stats[0].shape[0]]
        pair = tl.join(tl.reshape(stats[0], flat), tl.reshape(stats[1], flat))
        tl.store(stats_ptr + row0 * 2 + (rows * 2 + tl.arange(0, 2)[None, :]), pair, mask=rows < M - row0)
    else:
        tl.store(stats_ptr + row0 + rows, stats[0], mask=rows < M - row0)


@triton.jit
def load_stats(stats_ptr, row0, rows, in_rows, CENTRED: tl.constexpr):
    """Those of the rows row0 + rows, zero where these are not `in_rows`; one load has the pair of a row."""
    if CENTRED:
        pair = stats_ptr + row0 * 2 + (rows * 2 + tl.arange(0, 2)[None, :])
        mean, rstd = tl.split(tl.load(pair, mask=in_rows, other=0.0))
        return mean[:, None], rstd[:, None]
    else:
        return (tl.load(stats_ptr + row0 + rows, mask=in_rows, other=0.0),)
