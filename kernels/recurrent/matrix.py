"""A weight matrix of G square blocks that stays on the chip, and products with it.

A block is a tile (BLOCK_H, BLOCK_H), zero outside its H rows and columns.  Compiled, tl.dot keeps tiles that a
loop does not change in shared memory or registers.
"""

import triton
import triton.language as tl
from triton import knobs

INTERPRETED = tl.constexpr(knobs.runtime.interpret)


@triton.jit
def load_blocks(ptr, stride_k, stride_n, H, G: tl.constexpr, BLOCK_H: tl.constexpr):
    """Block g lies g H H values after the first; rows are summed over."""
    k, n = tl.arange(0, BLOCK_H)[:, None], tl.arange(0, BLOCK_H)[None, :]
    blocks = ()
    for g in tl.static_range(G):
        pointers = ptr + g * H * H + k * stride_k + n * stride_n
        blocks = blocks + (tl.load(pointers, mask=(k < H) & (n < H), other=0.0),)
    return blocks


@triton.jit
def product(a, b, PRECISION: tl.constexpr):
    """a b in fp32."""
    if INTERPRETED and a.dtype == tl.bfloat16:  # tl.dot would multiply the bits of bf16, taken for integers
        return tl.dot(a.to(tl.float32), b.to(tl.float32), input_precision=PRECISION)
    else:
        return tl.dot(a, b, input_precision=PRECISION)


@triton.jit
def products(a, blocks, x, PRECISION: tl.constexpr):
    """a with each block, and x added where there is one, rounded to a's dtype as in memory they would be."""
    tiles = ()
    for g in tl.static_range(len(blocks)):
        tile = product(a, blocks[g], PRECISION)
        if len(x) > 0:
            tile += x[g]
        tiles = tiles + (tile.to(a.dtype).to(tl.float32),)
    return tiles


@triton.jit
def sum_of_products(tiles, blocks, PRECISION: tl.constexpr):
    """Each tile, rounded to the blocks' dtype, with its block; fp32."""
    total = product(tiles[0].to(blocks[0].dtype), blocks[0], PRECISION)
    for g in tl.static_range(1, len(blocks)):
        total += product(tiles[g].to(blocks[g].dtype), blocks[g], PRECISION)
    return total
