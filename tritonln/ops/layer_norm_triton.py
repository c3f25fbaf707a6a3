"""The Triton launches of layer_norm: which kernel, how many programs, on which tensors.

Kernels are imported where a plan is made: importing tritonln does not load Triton.
"""

from __future__ import annotations

import functools
from typing import NamedTuple

import torch
from torch import Tensor

from tritonln.device import Device
from tritonln.launch import Launch
from tritonln.ops.contract import contiguous, contiguous_rows, dtype_of, empty_like, stats_dtype
from tritonln.tuning import config


class Plan(NamedTuple):
    """The launch of a kernel, and how its programs divide the rows."""

    launch: Launch
    rows_per_program: int
    programs: int  # of a persistent kernel, which then walks the rows; 0: one for every tile

    def count(self, M: int) -> int:
        tiles = -(-M // self.rows_per_program)
        return min(tiles, self.programs) if self.programs else tiles


@functools.cache
def forward_plan(
    N: int,
    x: torch.dtype,
    y: torch.dtype,
    weight: torch.dtype | None,
    bias: torch.dtype | None,
    save: bool,
    device: Device,
) -> Plan:
    """For tensors of these dtypes; None where there is none."""
    from tritonln.kernels.layer_norm import layer_norm_fwd
    from tritonln.kernels.layer_norm_wide import layer_norm_wide_fwd

    c = config.forward(N, x.itemsize, device)
    if c.block_n >= N:
        return Plan(Launch(layer_norm_fwd, (N, c.block_m, c.block_n), device, c.num_warps, c.num_ctas), c.block_m, 0)
    return Plan(Launch(layer_norm_wide_fwd, (N, c.block_n, c.stages), device, c.num_warps), 1, 0)


@functools.cache
def backward_plan(
    N: int,
    x: torch.dtype,
    dy: torch.dtype,
    weight: torch.dtype | None,
    bias: torch.dtype | None,
    needs: tuple[bool, bool, bool],
    device: Device,
) -> tuple[Plan, Plan, Plan]:
    """The gradient kernel, the same where one program does it all, and the sum over programs of its partial sums."""
    from tritonln.kernels.column_sum import column_sum
    from tritonln.kernels.layer_norm import layer_norm_bwd
    from tritonln.kernels.layer_norm_wide import layer_norm_wide_bwd

    c = config.backward(N, x.itemsize, device)
    one_tile = c.pieces * c.block_n >= N
    kernel = layer_norm_bwd if one_tile else layer_norm_wide_bwd
    constants = (N, *((c.pieces,) if one_tile else ()), c.block_m, c.block_n, c.stages)
    # Two objects, as one writes sums in fp32 and the other the gradients in their own dtypes.
    several, alone = (Launch(kernel, constants, device, c.num_warps, c.num_ctas) for _ in range(2))
    s = config.column_sum(N)
    return (
        Plan(several, c.block_m, c.programs),
        Plan(alone, c.block_m, 1),
        Plan(Launch(column_sum, (N, s.block_m, s.block_n), device, s.num_warps), s.block_n, 0),
    )


def forward(
    x: Tensor,
    N: int,
    weight: Tensor | None,
    bias: Tensor | None,
    eps: float,
    dtype: torch.dtype,
    save: bool,
    device: Device,
) -> tuple[Tensor, Tensor | None]:
    """(y, stats); stats are the (M, 2) means and reciprocal standard deviations, None unless saved."""
    M = x.numel() // N if N else 0
    y = empty_like(x, dtype)
    stats = torch.empty((M, 2), dtype=stats_dtype(x), device=x.device) if save else None
    if M:
        plan = forward_plan(N, x.dtype, dtype, dtype_of(weight), dtype_of(bias), save, device)
        rows, stride = contiguous_rows(x, N)
        plan.launch(plan.count(M), (rows, contiguous(weight), contiguous(bias), y, stats), (stride,), (M, eps))
    return y, stats


def backward(
    dy: Tensor,
    x: Tensor,
    N: int,
    weight: Tensor | None,
    bias: Tensor | None,
    stats: Tensor,
    needs: tuple[bool, bool, bool],
    device: Device,
) -> tuple[Tensor | None, Tensor | None, Tensor | None]:
    """The gradients of x, weight and bias, each None unless needed."""
    M = stats.shape[0]
    dx = empty_like(x, x.dtype) if needs[0] else None
    new = torch.empty_like if M else torch.zeros_like
    dw = new(weight.contiguous()) if weight is not None and needs[1] else None
    db = new(bias.contiguous()) if bias is not None and needs[2] else None
    if not M:
        return dx, dw, db
    gradients, alone, sums = backward_plan(N, x.dtype, dy.dtype, dtype_of(weight), dtype_of(bias), needs, device)
    P = gradients.count(M)
    rows, stride_x = contiguous_rows(x, N)
    dy_rows, stride_dy = contiguous_rows(dy, N)
    weight = contiguous(weight)
    if P == 1:  # the sums of the only program are the gradients
        alone.launch(1, (dy_rows, rows, weight, stats, dx, dw, db), (stride_dy, stride_x), (M,))
        return dx, dw, db
    dw_partial = None if dw is None else stats.new_empty((P, N))
    db_partial = None if db is None else stats.new_empty((P, N))
    tensors = (dy_rows, rows, weight, stats, dx, dw_partial, db_partial)
    gradients.launch(P, tensors, (stride_dy, stride_x), (M,))
    if dw is not None or db is not None:
        sums.launch(sums.count(N), (dw_partial, db_partial, dw, db), (), (P,))
    return dx, dw, db
