"""LayerNorm's own parts: y = x_hat weight + bias, and its reverse.

Every argument is a tile of fp32 (fp64) values, one element of a row each; an absent weight is 1 and an absent
bias -0, which adding changes nothing.
"""

import triton
import triton.language as tl  # noqa: F401  Triton's interpreter asks for it

from .restore import inverse


@triton.jit
def affine(x_hat, weight, bias):
    return x_hat * weight + bias


@triton.jit
def affine_bwd(dy, x_hat, weight, bias):
    """dx_hat, and the terms of dweight and dbias."""
    return dy * weight, (dy * x_hat, dy)


@triton.jit
def affine_restore(y, weight, bias):
    """x_hat."""
    return (y - bias) * inverse(weight, bias)
