"""What restoring x_hat from y = x_hat weight + bias takes, within the limits of limits.py."""

import triton
import triton.language as tl

from .limits import LEAST_WEIGHT, MOST_BIAS

# The limits are held by whoever keeps y: what is past them by a factor of 2 was written where he could not see it.
WEIGHT_SQUARE = tl.constexpr((LEAST_WEIGHT / 2) ** 2)
BIAS_SQUARE = tl.constexpr((MOST_BIAS * 2) ** 2)  # over that of weight


@triton.jit
def inverse(weight, bias):
    """1 / weight; NaN, and so no wrong gradient, where x_hat cannot be restored."""
    square = weight * weight
    near = 1.0 / weight  # by an approximate instruction, whose error this takes out
    exact = near + near * (1.0 - weight * near)
    return tl.where((square >= WEIGHT_SQUARE) & (bias * bias <= BIAS_SQUARE * square), exact, float("nan"))
