"""Two operators as a user writes them, with nothing of tritonln but row_operator: the README shows the first."""

import torch.nn.functional as F
import triton
import triton.language as tl

import tritonln

# ---- y = GELU(x_hat weight + bias) -----------------------------------------------------------------


@triton.jit
def gelu_affine(x_hat, weight, bias):
    z = x_hat * weight + bias
    return 0.5 * z * (1 + tl.erf(z * 0.7071067811865476))


@triton.jit
def gelu_affine_bwd(dy, x_hat, weight, bias):
    z = x_hat * weight + bias
    slope = 0.5 * (1 + tl.erf(z * 0.7071067811865476)) + z * tl.exp(-0.5 * z * z) * 0.3989422804014327
    dz = dy * slope
    return dz * weight, (dz * x_hat, dz)


layer_norm_gelu = tritonln.row_operator(
    "layer_norm_gelu",
    gelu_affine,
    gelu_affine_bwd,
    columns={"weight": 1.0, "bias": 0.0},
    formula=lambda x_hat, weight, bias: F.gelu(x_hat * weight + bias),
)

# ---- y = scale clamp(x_hat, -limit, limit) of the sum of two streams, a limit and a scale for each column ----------


@triton.jit
def add(x, residual):
    return x + residual


@triton.jit
def add_bwd(dx, x, residual):
    return dx, dx


@triton.jit
def within(x_hat, limit):
    return tl.minimum(tl.maximum(x_hat, -limit), limit)


@triton.jit
def clamp(x_hat, limit, scale):
    return within(x_hat, limit) * scale


@triton.jit
def clamp_bwd(dy, x_hat, limit, scale):
    beyond = tl.abs(x_hat) > limit
    sign = tl.where(x_hat > 0, 1.0, -1.0)
    dx_hat = tl.where(beyond, 0.0, dy * scale)
    return dx_hat, (tl.where(beyond, dy * scale * sign, 0.0), dy * within(x_hat, limit))


clamped_norm = tritonln.row_operator(
    "clamped_norm",
    clamp,
    clamp_bwd,
    columns={"limit": 1.0, "scale": 1.0},
    streams=("x", "residual"),
    enter=add,
    enter_bwd=add_bwd,
    formula=lambda x_hat, limit, scale: x_hat.clamp(-limit, limit) * scale,
    enter_formula=lambda x, residual: x + residual,
)
