"""Norms whose result is stored in 8 bits, with what it was divided by: q = round(y / scale).

    x = ENTER(*entering)      y = FINISH(x_hat, *finishing), as in one_tile.py

    q           (M, N)        int8, or the bytes of FORMAT "e4m3" or "e5m2": rounded to nearest, ties to even; past the
                              largest number that one; NaN stays NaN, of which int8 has none
    x           (M, N)        where x_ptr is not None, and what is normalized is then x as that rounds it
    scale       (M,)          fp32, of a row: its largest |y| over the largest number of FORMAT
    exponents   (M, N/BLOCK)  bytes, of BLOCK columns: the scale is a power of two, kept as 127 plus its exponent, that
                              puts the largest |y| in the highest binade of FORMAT
    given       (1,)          fp32, the scale of all rows

One of the scales is there: `scale` or `exponents` to be stored, or `given`.  y / scale is y times the rounded
reciprocal of scale, and no scale is below the smallest normal number of its format.

Source of the exponents: OCP Microscaling Formats 1.0, section 6.3.
"""

import triton
import triton.language as tl

from .chunks import merge_chunks, stats_of_chunks
from .operands import batches, entered, from_row, load_columns, load_rows, pointers
from .row import normalize, normalized, row_starts
from .wide import moments_of, values_of, x_of

BLOCK = tl.constexpr(32)


@triton.jit
def plus(x, residual):
    return x + residual


@triton.jit
def larger(a, b):
    return tl.maximum(a, b, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def within(y, least, most):
    """What is past the bounds is they; NaN stays NaN."""
    return tl.maximum(tl.minimum(y, most, propagate_nan=tl.PropagateNan.ALL), least, propagate_nan=tl.PropagateNan.ALL)


@triton.jit
def largest(FORMAT: tl.constexpr):
    return 448.0 if FORMAT == "e4m3" else 57344.0 if FORMAT == "e5m2" else 127.0


@triton.jit
def byte_of(a, sign, MANTISSA: tl.constexpr):
    """The bits of a number with MANTISSA bits after the first, from those of its absolute value a in fp32."""
    BIAS: tl.constexpr = 2 ** (6 - MANTISSA) - 1
    SHIFT: tl.constexpr = 23 - MANTISSA
    bits = a.to(tl.int32, bitcast=True)
    normal = ((bits + ((1 << (SHIFT - 1)) - 1) + ((bits >> SHIFT) & 1)) >> SHIFT) - ((127 - BIAS) << MANTISSA)
    # Below them numbers are a fixed distance apart, as are those of fp32 just past this one.
    PAST: tl.constexpr = 2.0 ** (24 - BIAS - MANTISSA)
    subnormal = (a + PAST).to(tl.int32, bitcast=True) - ((24 - BIAS - MANTISSA + 127) << 23)
    magnitude = tl.where(a < 2.0 ** (1 - BIAS), subnormal, normal)
    return tl.where(a == a, magnitude | sign, 127).to(tl.uint8)


@triton.jit
def rounded(y, FORMAT: tl.constexpr, NATIVE: tl.constexpr):
    """y in FORMAT, as q holds it; NATIVE: the GPU converts."""
    if FORMAT == "int8":
        return ((within(y, -128.0, 127.0) + 12582912.0) - 12582912.0).to(tl.int8)  # fp32 past 1.5 2^23: integers only
    elif NATIVE:
        kind: tl.constexpr = tl.float8e4nv if FORMAT == "e4m3" else tl.float8e5
        return y.to(kind).to(tl.uint8, bitcast=True)  # by cvt.satfinite
    else:
        y = within(y, -largest(FORMAT), largest(FORMAT))
        sign = (y.to(tl.int32, bitcast=True) >> 24) & 128
        return byte_of(tl.abs(y), sign, 3 if FORMAT == "e4m3" else 2)


@triton.jit
def row_scale(most, FORMAT: tl.constexpr):
    """(scale, 1 / scale) from the largest |y| of rows."""
    MOST: tl.constexpr = largest(FORMAT)
    scale = larger(tl.div_rn(most, tl.full(most.shape, MOST, tl.float32)), 2.0**-126)
    return scale, tl.div_rn(tl.full(most.shape, 1.0, tl.float32), scale)


@triton.jit
def block_scales(y, FORMAT: tl.constexpr):
    """(exponents, y / scale) with a scale for every BLOCK columns of a tile."""
    HIGHEST: tl.constexpr = 8 if FORMAT == "e4m3" else 15
    blocks = tl.reshape(y, [y.shape[0], y.shape[1] // BLOCK, BLOCK])
    most = tl.reduce(tl.abs(blocks), 2, larger)
    biased = most.to(tl.int32, bitcast=True) >> 23
    exponent = tl.maximum(biased - HIGHEST, 0)
    reciprocal = ((254 - exponent) << 23).to(tl.float32, bitcast=True)
    quotients = tl.reshape(blocks * tl.reshape(reciprocal, [y.shape[0], y.shape[1] // BLOCK, 1]), y.shape)
    return tl.where(biased == 255, 255, exponent).to(tl.uint8), quotients


@triton.jit
def store_exponents(exponents_ptr, row0, rows, start, exponents, M, N):
    """The scales of a tile whose first column is `start`."""
    col = start // BLOCK + tl.arange(0, exponents.shape[1])[None, :]
    inside = (rows < M - row0) & (col < N // BLOCK)
    tl.store(exponents_ptr + row0 * (N // BLOCK) + (row_starts(rows, N // BLOCK) + col), exponents, mask=inside)


@triton.jit(do_not_specialize=["M"], repr=lambda s: s.constants["NAME"])
def quantized_fwd(
    entering,
    finishing,
    given_ptr,
    q_ptr,
    x_ptr,
    scale_ptr,
    exponents_ptr,
    M: tl.int64,
    eps: tl.float64,
    N: tl.constexpr,
    BLOCK_M: tl.constexpr,
    BLOCK_N: tl.constexpr,
    ROWS: tl.constexpr,
    AT_ONCE: tl.constexpr,
    FORMAT: tl.constexpr,
    NATIVE: tl.constexpr,
    ENTER: tl.constexpr,
    FINISH: tl.constexpr,
    ENTERING: tl.constexpr,
    FINISHING: tl.constexpr,
    NO_ENTERING: tl.constexpr,
    NO_FINISHING: tl.constexpr,
    CENTRED: tl.constexpr,
    NAME: tl.constexpr,
):
    """Of rows that fit one tile: program i owns rows i BLOCK_M .. (i + 1) BLOCK_M.  All is read and written once."""
    row0 = tl.program_id(0).to(tl.int64) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)[:, None]
    cols = tl.max_contiguous(tl.broadcast_to(tl.arange(0, BLOCK_N)[None, :], [BLOCK_M, BLOCK_N]), [1, AT_ONCE])
    in_row = cols < N
    inside = in_row & (rows < M - row0)
    batch = batches(row0, rows, M, M, False)

    columns = load_columns(entering, ENTERING, NO_ENTERING, batch, cols, in_row, N, ROWS)
    x = entered(load_rows(entering, ENTERING, columns, row0, rows, batch, cols, inside, N, (0, 0)), in_row, ENTER)
    if x_ptr is not None:
        tl.store(pointers(from_row((x_ptr,), row0, N), rows, cols, N), x, mask=inside)
        x = x.to(x_ptr.dtype.element_ty).to(x.dtype)
    x_hat, stats = normalize(x, in_row, N, eps, CENTRED)
    y = FINISH(x_hat, *load_columns(finishing, FINISHING, NO_FINISHING, batch, cols, in_row, N, ROWS))
    if exponents_ptr is not None:
        exponents, y = block_scales(tl.where(in_row, y, 0.0), FORMAT)
        store_exponents(exponents_ptr, row0, rows, 0, exponents, M, N)
    elif given_ptr is not None:
        y *= tl.div_rn(tl.full([1, 1], 1.0, tl.float32), tl.load(given_ptr + tl.zeros([1, 1], tl.int32)))
    else:
        most = tl.reduce(tl.where(in_row, tl.abs(y), 0.0), 1, larger, keep_dims=True)
        scale, reciprocal = row_scale(most, FORMAT)
        tl.store(scale_ptr + row0 + rows, scale, mask=rows < M - row0)
        y *= reciprocal
    tl.store(pointers(from_row((q_ptr,), row0, N), rows, cols, N), rounded(y, FORMAT, NATIVE), mask=inside)


@triton.jit
def y_of(
    entering, finishing, x_ptr, stats, row0, rows, batch, cols, inside, N,
    ENTER: tl.constexpr, FINISH: tl.constexpr, ENTERING: tl.constexpr, FINISHING: tl.constexpr,
    NO_ENTERING: tl.constexpr, NO_FINISHING: tl.constexpr, EVICTION: tl.constexpr,
):  # fmt: skip
    """(x, y) of a chunk of a row whose statistics are known."""
    values = values_of(entering, row0, rows, batch, (0, 0), cols, inside, inside, N, ENTERING, NO_ENTERING, EVICTION)
    x = x_of(values, x_ptr, inside, ENTER)
    columns = load_columns(finishing, FINISHING, NO_FINISHING, batch, cols, inside, N)
    return x, tl.where(inside, FINISH(normalized(x, stats, inside), *columns), 0.0)


@triton.jit(do_not_specialize=["M"], repr=lambda s: s.constants["NAME"])
def quantized_wide_fwd(
    entering,
    finishing,
    given_ptr,
    q_ptr,
    x_ptr,
    scale_ptr,
    exponents_ptr,
    M: tl.int64,
    eps: tl.float64,
    N: tl.constexpr,
    BLOCK_N: tl.constexpr,
    STAGES: tl.constexpr,
    AHEAD: tl.constexpr,
    AT_ONCE: tl.constexpr,
    FORMAT: tl.constexpr,
    NATIVE: tl.constexpr,
    ENTER: tl.constexpr,
    FINISH: tl.constexpr,
    ENTERING: tl.constexpr,
    FINISHING: tl.constexpr,
    NO_ENTERING: tl.constexpr,
    NO_FINISHING: tl.constexpr,
    CENTRED: tl.constexpr,
    NAME: tl.constexpr,
):
    """Of wider rows, walked in chunks: program i owns row i.  What x is made of is read twice, and once more where the
    row has a scale of its own; from L2 but for the first time.
    """
    row0 = tl.program_id(0).to(tl.int64)
    rows = tl.zeros([1, 1], tl.int32)
    cols = tl.max_contiguous(tl.arange(0, BLOCK_N)[None, :], [1, AT_ONCE])
    batch = batches(row0, rows, M, M, False)

    FULL: tl.constexpr = N - N % BLOCK_N  # values in full chunks
    moments = moments_of(
        entering, x_ptr, row0, rows, batch, (0, 0), cols, 0, BLOCK_N, N, ENTER, ENTERING, NO_ENTERING, CENTRED, AHEAD
    )
    for start in tl.range(BLOCK_N, FULL, BLOCK_N, num_stages=STAGES):
        chunk = moments_of(
            entering, x_ptr, row0, rows, batch, (0, 0), cols, start, BLOCK_N, N, ENTER, ENTERING,
            NO_ENTERING, CENTRED, AHEAD,
        )  # fmt: skip
        moments = merge_chunks(moments, start, chunk, BLOCK_N)
    if FULL < N:
        chunk = moments_of(
            entering, x_ptr, row0, rows, batch, (0, 0), cols, FULL, N - FULL, N, ENTER, ENTERING,
            NO_ENTERING, CENTRED, 0,
        )  # fmt: skip
        moments = merge_chunks(moments, FULL, chunk, N - FULL)
    stats = stats_of_chunks(moments, N, eps)

    reciprocal = tl.full([1, 1], 1.0, tl.float32)
    if given_ptr is not None:
        reciprocal = tl.div_rn(reciprocal, tl.load(given_ptr + rows))
    elif exponents_ptr is None:
        most = tl.zeros([1, BLOCK_N], tl.float32)
        for start in tl.range(0, N, BLOCK_N, num_stages=STAGES):
            x, y = y_of(
                entering, finishing, x_ptr, stats, row0, rows, batch, start + cols, cols < N - start, N,
                ENTER, FINISH, ENTERING, FINISHING, NO_ENTERING, NO_FINISHING, "evict_last",
            )  # fmt: skip
            most = larger(most, tl.abs(y))
        scale, reciprocal = row_scale(tl.reduce(most, 1, larger, keep_dims=True), FORMAT)
        tl.store(scale_ptr + row0 + rows, scale)

    for start in tl.range(0, N, BLOCK_N, num_stages=STAGES):
        col = start + cols
        inside = cols < N - start
        x, y = y_of(
            entering, finishing, x_ptr, stats, row0, rows, batch, col, inside, N,
            ENTER, FINISH, ENTERING, FINISHING, NO_ENTERING, NO_FINISHING, "evict_first",
        )  # fmt: skip
        if x_ptr is not None:
            tl.store(x_ptr + row0 * N + col, x, mask=inside)
        if exponents_ptr is not None:
            exponents, y = block_scales(y, FORMAT)
            store_exponents(exponents_ptr, row0, rows, start, exponents, M, N)
        else:
            y *= reciprocal
        tl.store(q_ptr + row0 * N + col, rounded(y, FORMAT, NATIVE), mask=inside)
