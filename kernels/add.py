"""The parts of the add_ norms: x_out = residual + row_scale noise x, and its reverse; or residual + gate x.

Every argument is a tile of fp32 (fp64) values, one element of a row each; an absent factor is 1, and an absent residual
-0, which adding changes nothing.  The reverse reads x for the gate's
gradient only.
"""

import triton
import triton.language as tl  # noqa: F401  Triton's interpreter asks for it


@triton.jit
def add(x, residual, row_scale, noise):
    return residual + x * (row_scale * noise)


@triton.jit
def add_bwd(dx, x, residual, row_scale, noise):
    """The gradients of x and of residual."""
    return dx * (row_scale * noise), dx


@triton.jit
def add_gated(x, residual, gate):
    return residual + x * gate


@triton.jit
def add_gated_bwd(dx, x, residual, gate):
    """The gradients of x and of residual, and the term of the gate's."""
    return dx * gate, dx, dx * x
