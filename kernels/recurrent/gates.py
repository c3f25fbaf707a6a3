"""A row of G gates of H values each, held as a tuple of G tiles, and the activations.

Tiles are (BLOCK_M, BLOCK_H) and zero outside; H need not be a power of two.  Normalization is over
all the tiles of a tuple, that is, over rows of len(tiles) H values; `_groups`: over GROUP tiles that follow one
another, and what is left of them.  Statistics of G groups lie as (T, G, B, 2).
"""

import triton
import triton.language as tl

from ..row import at_columns, load_upcast, row_correction, row_mean, row_rstd, row_square, row_sum2, store_stats


@triton.jit
def own_tile(B, H, BLOCK_M: tl.constexpr, BLOCK_H: tl.constexpr):
    """The rows that are this program's: (the first, all from there on, columns, which of these are in a row, what is
    in both).  Only the first is 64 bits wide: tiles of such offsets take registers that there are not.
    """
    row0 = tl.program_id(0).to(tl.int64) * BLOCK_M
    rows = tl.arange(0, BLOCK_M)[:, None]
    cols = tl.broadcast_to(tl.arange(0, BLOCK_H)[None, :], [BLOCK_M, BLOCK_H])
    in_row = cols < H
    return row0, rows, cols, in_row, in_row & (rows < B - row0)


@triton.jit
def load_gates(ptr, offsets, inside, H, G: tl.constexpr):
    """Gate k lies k H values after the first.  No tiles where ptr is None."""
    tiles = ()
    if ptr is not None:
        for k in tl.static_range(G):
            tiles = tiles + (load_upcast(at_columns(ptr + k * H, offsets, H), inside),)
    return tiles


@triton.jit
def store_gates(ptr, offsets, inside, H, tiles):
    for k in tl.static_range(len(tiles)):
        tl.store(at_columns(ptr + k * H, offsets, H), tiles[k], mask=inside)


@triton.jit
def add(a, b):
    """a where b is absent."""
    if len(b) == 0:
        return a
    else:
        sums = ()
        for k in tl.static_range(len(a)):
            sums = sums + (a[k] + b[k],)
        return sums


@triton.jit
def multiply(a, b):
    products = ()
    for k in tl.static_range(len(a)):
        products = products + (a[k] * b[k],)
    return products


@triton.jit
def total(tiles):
    result = tiles[0]
    for k in tl.static_range(1, len(tiles)):
        result += tiles[k]
    return result


@triton.jit
def standardize(tiles, in_row, H, eps):
    """row_standardize over all tiles.  Returns (x_hat tiles, mean, rstd)."""
    N: tl.constexpr = len(tiles) * H
    # A quarter of each value, so that no sum of four overflows.
    mean = row_mean(total(multiply(tiles, (0.25,) * len(tiles))), 0.25 * N)
    deviations, squared = (), ()
    for k in tl.static_range(len(tiles)):
        deviations = deviations + (tl.where(in_row, tiles[k] - mean, 0.0),)
        squared = squared + (row_square(deviations[k], H),)
    rest, squares = row_sum2(total(deviations), total(squared))
    shift, var = row_correction(rest, squares, N)
    rstd = row_rstd(var, eps)
    x_hat = ()
    for k in tl.static_range(len(tiles)):
        x_hat = x_hat + (deviations[k] * rstd - shift * rstd,)
    return x_hat, mean + shift, rstd


@triton.jit
def standardized(tiles, mean, rstd):
    """x_hat from statistics that are known."""
    x_hat = ()
    for k in tl.static_range(len(tiles)):
        x_hat = x_hat + ((tiles[k] - mean) * rstd,)
    return x_hat


@triton.jit
def standardize_bwd(dx_hat, x_hat, rstd, H):
    """row_standardize_bwd over all tiles; of single values, whose x_hat is constant, exactly zero."""
    N: tl.constexpr = len(x_hat) * H
    if N == 1:
        return (tl.zeros_like(x_hat[0]),)
    else:
        dot, rest = row_sum2(total(multiply(dx_hat, x_hat)), total(dx_hat))
        dx = ()
        for k in tl.static_range(len(x_hat)):
            dx = dx + (dx_hat[k] * rstd - (x_hat[k] * (dot * (1 / N) * rstd) + rest * (1 / N) * rstd),)
        return dx


@triton.jit
def part(tiles, FIRST: tl.constexpr, COUNT: tl.constexpr):
    """COUNT tiles from FIRST on, or what is left of them."""
    kept = ()
    for k in tl.static_range(FIRST, len(tiles)):
        if k < FIRST + COUNT:
            kept = kept + (tiles[k],)
    return kept


@triton.jit
def standardize_groups(tiles, in_row, H, eps, GROUP: tl.constexpr):
    """(x_hat tiles, the mean of each group, its rstd)"""
    x_hat, means, rstds = (), (), ()
    for k in tl.static_range(0, len(tiles), GROUP):
        group_hat, mean, rstd = standardize(part(tiles, k, GROUP), in_row, H, eps)
        x_hat, means, rstds = x_hat + group_hat, means + (mean,), rstds + (rstd,)
    return x_hat, means, rstds


@triton.jit
def standardized_groups(tiles, means, rstds, GROUP: tl.constexpr):
    x_hat = ()
    for k in tl.static_range(len(means)):
        x_hat = x_hat + standardized(part(tiles, k * GROUP, GROUP), means[k], rstds[k])
    return x_hat


@triton.jit
def standardize_groups_bwd(dx_hat, x_hat, rstds, H, GROUP: tl.constexpr):
    dx = ()
    for k in tl.static_range(len(rstds)):
        dx = dx + standardize_bwd(part(dx_hat, k * GROUP, GROUP), part(x_hat, k * GROUP, GROUP), rstds[k], H)
    return dx


@triton.jit
def store_groups(stats_ptr, means, rstds, row0, t, B, BLOCK_M: tl.constexpr):
    """Those of a step; nowhere where stats_ptr is None."""
    if stats_ptr is not None:
        for k in tl.static_range(len(means)):
            slot = (t * len(means) + k) * B * 2
            store_stats(stats_ptr + slot, row0, tl.arange(0, BLOCK_M)[:, None], (means[k], rstds[k]), B)


@triton.jit
def load_groups(stats_ptr, row0, rows, t, B, G: tl.constexpr):
    """(the mean of each group, its rstd)"""
    means, rstds = (), ()
    for k in tl.static_range(G):
        # Of two loads each is laid out as its use is; of a pair both would be as the pair.
        at = stats_ptr + ((t * G + k) * B + row0) * 2 + rows * 2
        means = means + (tl.load(at, mask=rows < B - row0, other=0.0),)
        rstds = rstds + (tl.load(at + 1, mask=rows < B - row0, other=0.0),)
    return means, rstds


@triton.jit
def where(inside, tiles):
    """The tiles with zero outside."""
    kept = ()
    for k in tl.static_range(len(tiles)):
        kept = kept + (tl.where(inside, tiles[k], 0.0),)
    return kept


@triton.jit
def tanh(x):
    """(1 - e) / (1 + e) with e = exp(-2 |x|); in fp32 a series near zero, where 1 - e cancels."""
    e = tl.exp(-2.0 * tl.abs(x))
    far = (1.0 - e) / (1.0 + e)
    far = tl.where(x < 0, -far, far)
    if x.dtype == tl.float64:
        return far
    else:
        s = x * x
        near = x + x * s * (-1 / 3 + s * (2 / 15 + s * (-17 / 315 + s * (62 / 2835))))
        return tl.where(s < 0.0625, near, far)
