"""The noise of dropout: drawn by the place of an element, so that any kernel in any configuration draws the same.

Philox-4x32 with 7 rounds, the fewest that pass every test of randomness: Salmon, Moraes, Dror and Shaw, Parallel
Random Numbers: As Easy as 1, 2, 3 (2011), table 2.  Key: the seed.  Counter: (column // 4, row, row >> 32, 0); its four
words are those of four columns.
"""

import triton
import triton.language as tl


@triton.jit
def chances(p, like):
    """(p, 1 / (1 - p)), the latter in the precision of the arithmetic; `like` points to fp64 if that is it."""
    p = tl.zeros([1, 1], tl.float64) + p  # a Python float in the interpreter
    scale = 1.0 / tl.where(p < 1.0, 1.0 - p, 1.0)
    if like.dtype.element_ty == tl.float64:
        return p.to(tl.float32), scale
    else:
        return p.to(tl.float32), scale.to(tl.float32)


@triton.jit
def noise(seed, row, col, p, scale):
    """`scale` where an element is kept, else 0.  row: (BLOCK_M, 1), int64.

    Four columns of one thread share the rounds: the compiler finds that they are the same.
    """
    last = tl.full([1, 1], 0, tl.uint32)
    a, b, c, d = tl.philox(seed, (col >> 2).to(tl.uint32), row.to(tl.uint32), (row >> 32).to(tl.uint32), last, 7)
    lane = col & 3
    word = tl.where(lane < 2, tl.where(lane == 0, a, b), tl.where(lane == 2, c, d))
    return tl.where((word >> 8).to(tl.float32) * (2.0**-24) >= p, scale, 0.0)
