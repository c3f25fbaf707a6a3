"""Gated RMSNorm's own parts: y = x_hat weight silu(gate), or the gate before the norm, and the reverse of both.

Every argument is a tile of fp32 (fp64) values, one element of a row each; an absent weight is 1.
"""

import triton
import triton.language as tl


@triton.jit
def silu(gate):
    """silu(gate) = gate sigmoid(gate), and its derivative."""
    e = tl.exp(-gate)
    s = 1.0 / (1.0 + e)
    rest = tl.where(s > 0, e * s, 1.0)  # not 1 - s, which loses the digits of what a large gate multiplies
    return gate * s, s * (1.0 + gate * rest)


@triton.jit
def gated(x_hat, weight, gate):
    a, _ = silu(gate)
    return x_hat * weight * a


@triton.jit
def gated_bwd(dy, x_hat, weight, gate):
    """dx_hat, the term of dweight, and dgate."""
    a, slope = silu(gate)
    return dy * weight * a, (dy * x_hat * a, dy * x_hat * weight * slope)


@triton.jit
def gate_first(x, gate):
    a, _ = silu(gate)
    return x * a


@triton.jit
def gate_first_bwd(dx, x, gate):
    a, slope = silu(gate)
    return dx * a, dx * x * slope
