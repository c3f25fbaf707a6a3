"""Adaptive normalization's own parts: y = (x_hat weight + bias) (1 + scale) + shift, and its reverse.

Every argument is a tile of fp32 (fp64) values, one element of a row each; an absent weight is 1, an absent scale 0, an
absent bias or shift -0, which adding changes nothing.
"""

import triton
import triton.language as tl  # noqa: F401  Triton's interpreter asks for it


@triton.jit
def modulated(x_hat, weight, bias, scale, shift):
    return (x_hat * weight + bias) * (1.0 + scale) + shift


@triton.jit
def modulated_bwd(dy, x_hat, weight, bias, scale, shift):
    """dx_hat, and the terms of dweight, dbias, dscale and dshift."""
    dn = dy * (1.0 + scale)
    return dn * weight, (dn * x_hat, dn, dy * (x_hat * weight + bias), dy)
