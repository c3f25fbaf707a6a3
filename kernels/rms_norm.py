"""RMSNorm's own parts: y = x_hat weight, and its reverse.

Every argument is a tile of fp32 (fp64) values, one element of a row each; an absent weight is 1.
"""

import triton
import triton.language as tl

from .restore import inverse


@triton.jit
def scaled(x_hat, weight):
    return x_hat * weight


@triton.jit
def scaled_bwd(dy, x_hat, weight):
    """dx_hat, and the term of dweight."""
    return dy * weight, (dy * x_hat,)


@triton.jit
def scaled_restore(y, weight):
    """x_hat."""
    return y * inverse(weight, 0.0)


# ---- x_hat rounded to the dtype of x before it meets the weight, as in transformers' Llama --------------


@triton.jit
def scaled_bf16(x_hat, weight):
    return x_hat.to(tl.bfloat16).to(tl.float32) * weight


@triton.jit
def scaled_bf16_bwd(dy, x_hat, weight):
    return dy * weight, (dy * x_hat.to(tl.bfloat16).to(tl.float32),)


@triton.jit
def scaled_fp16(x_hat, weight):
    return x_hat.to(tl.float16).to(tl.float32) * weight


@triton.jit
def scaled_fp16_bwd(dy, x_hat, weight):
    return dy * weight, (dy * x_hat.to(tl.float16).to(tl.float32),)
