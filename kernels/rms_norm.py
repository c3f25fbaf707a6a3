"""RMSNorm's own parts: y = x_hat weight, and its reverse.

Every argument is a tile of fp32 (fp64) values, one element of a row each; an absent weight is 1.
"""

import triton
import triton.language as tl  # noqa: F401  Triton's interpreter asks for it


@triton.jit
def scaled(x_hat, weight):
    return x_hat * weight


@triton.jit
def scaled_bwd(dy, x_hat, weight):
    """dx_hat, and the term of dweight."""
    return dy * weight, (dy * x_hat,)
