"""The Triton launches of layer_norm: which kernel, how many programs, on which tensors.

Kernels are imported where a plan is made: importing tritonln does not load Triton.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tritonln.device import Device
from tritonln.launch import Launch, Plan
from tritonln.ops.contract import arithmetic, contiguous, contiguous_rows, dtype_of, empty_like
from tritonln.tuning import layer_norm as configurations
from tritonln.tuning.config import Config
from tritonln.tuning.lookup import config_for, current_policy, planned
from tritonln.tuning.tunable import Key, Tunable

# ---- from configurations to launches -------------------------------------------------------------


def _forward_kernels() -> tuple[Any, Any]:
    from tritonln.kernels.layer_norm import layer_norm_fwd
    from tritonln.kernels.layer_norm_wide import layer_norm_wide_fwd

    return layer_norm_fwd, layer_norm_wide_fwd


def _forward(key: Key, c: Config, device: Device) -> Plan:
    one_tile, wide = _forward_kernels()
    if c.block_n >= key.N:
        launch = Launch(one_tile, (key.N, c.block_m, c.block_n), device, c.num_warps, c.num_ctas)
    else:
        launch = Launch(wide, (key.N, c.block_n, c.num_stages), device, c.num_warps)
    return Plan(launch, c.block_m, 0)


def _forward_keys(N: int, x: torch.dtype) -> Iterator[Key]:
    for parameter in dict.fromkeys((x, arithmetic(x))):
        for stats in (arithmetic(x), None):
            yield FORWARD.key(N, x=x, weight=parameter, bias=parameter, y=x, stats=stats)


FORWARD = Tunable(
    name="layer_norm_fwd",
    operands={"x": "M N", "weight": "N", "bias": "N", "y": "M N", "stats": "M 2"},
    results=("y", "stats"),
    kernels=_forward_kernels,
    plan=_forward,
    choice=lambda key, device: configurations.forward(key.N, key.operands["x"].itemsize, device),
    candidates=lambda key, device: configurations.forward_candidates(key.N, key.operands["x"].itemsize, device),
    safe=lambda key: configurations.forward_safe(key.N),
    keys=_forward_keys,
    strides=1,
    scalars=lambda M: (M, 1e-5),
)


def _backward_kernels() -> tuple[Any, Any]:
    from tritonln.kernels.layer_norm import layer_norm_bwd
    from tritonln.kernels.layer_norm_wide import layer_norm_wide_bwd

    return layer_norm_bwd, layer_norm_wide_bwd


def _backward(key: Key, c: Config, device: Device) -> Plan:
    one_tile, wide = _backward_kernels()
    tile = c.block_m, c.block_n, c.num_stages
    if c.pieces * c.block_n >= key.N:
        launch = Launch(one_tile, (key.N, c.pieces, *tile), device, c.num_warps, c.num_ctas)
    else:
        launch = Launch(wide, (key.N, *tile), device, c.num_warps)
    return Plan(launch, c.block_m, c.programs * device.multiprocessors // c.num_ctas)


def _backward_keys(N: int, x: torch.dtype) -> Iterator[Key]:
    for parameter in dict.fromkeys((x, arithmetic(x))):
        yield _backward_key(N, x, x, parameter, (True, True, True))


def _backward_key(
    N: int, x: torch.dtype, dy: torch.dtype, weight: torch.dtype | None, needs: tuple[bool, bool, bool]
) -> Key:
    sums = arithmetic(x)
    dx, dw, db = (dtype if needed else None for dtype, needed in zip((x, sums, sums), needs))
    return BACKWARD.key(N, dy=dy, x=x, weight=weight, stats=sums, dx=dx, dw_partial=dw, db_partial=db)


BACKWARD = Tunable(
    name="layer_norm_bwd",
    operands={
        **{"dy": "M N", "x": "M N", "weight": "N", "stats": "M 2", "dx": "M N"},
        **{"dw_partial": "P N", "db_partial": "P N"},
    },
    results=("dx", "dw_partial", "db_partial"),
    kernels=_backward_kernels,
    plan=_backward,
    choice=lambda key, device: configurations.backward(key.N, key.operands["x"].itemsize, device),
    candidates=lambda key, device: configurations.backward_candidates(key.N, key.operands["x"].itemsize, device),
    safe=lambda key: configurations.backward_safe(key.N),
    keys=_backward_keys,
    strides=2,
)


def _sums_kernels() -> tuple[Any]:
    from tritonln.kernels.column_sum import column_sum

    return (column_sum,)


def _sums(key: Key, c: Config, device: Device) -> Plan:
    (column_sum,) = _sums_kernels()
    return Plan(Launch(column_sum, (key.N, c.block_m, c.block_n), device, c.num_warps), c.block_n, 0)


def _sums_keys(N: int, x: torch.dtype) -> Iterator[Key]:
    for parameter in dict.fromkeys((x, arithmetic(x))):
        yield _sums_key(N, arithmetic(x), parameter, parameter)


def _sums_key(N: int, partial: torch.dtype, dw: torch.dtype | None, db: torch.dtype | None) -> Key:
    partials = {f"{name}_partial": partial for name, dtype in (("dw", dw), ("db", db)) if dtype is not None}
    return SUMS.key(N, **partials, dw=dw, db=db)


SUMS = Tunable(
    name="column_sum",
    operands={"dw_partial": "M N", "db_partial": "M N", "dw": "N", "db": "N"},
    results=("dw", "db"),
    kernels=_sums_kernels,
    plan=_sums,
    choice=lambda key, device: configurations.column_sum(key.N),
    candidates=lambda key, device: configurations.column_sum_candidates(),
    safe=lambda key: Config(16, 32, 4),
    keys=_sums_keys,
    programs_over="N",
    most_rows=lambda device: device.multiprocessors,  # one of each program before it
)

TUNABLES = (FORWARD, BACKWARD, SUMS)


@planned
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
    if save and current_policy().name != "lookup":  # a backward pass may not search, nor should it be the one to fail
        backward_plan(N, x, y, weight, bias, (True, weight is not None, bias is not None), device)
    key = FORWARD.key(N, x=x, weight=weight, bias=bias, y=y, stats=arithmetic(x) if save else None)
    return _forward(key, config_for(FORWARD, key, device), device)


@planned
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
    key = _backward_key(N, x, dy, weight, needs)
    c = config_for(BACKWARD, key, device)
    # Two objects, as one writes sums in fp32 and the other the gradients in their own dtypes.
    several, alone = (_backward(key, c, device) for _ in range(2))
    dw, db = (dtype if needed else None for dtype, needed in zip((weight, bias), needs[1:]))
    if dw is None and db is None:
        return several, alone, several
    return several, alone, sums_plan(N, arithmetic(x), dw, db, device)


@planned
def sums_plan(N: int, partial: torch.dtype, dw: torch.dtype | None, db: torch.dtype | None, device: Device) -> Plan:
    """The column sums of partial sums, for gradients of these dtypes; None for one that is not wanted."""
    key = _sums_key(N, partial, dw, db)
    return _sums(key, config_for(SUMS, key, device), device)


# ---- from tensors to launches ------------------------------------------------------------------------


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
    stats = torch.empty((M, 2), dtype=arithmetic(x.dtype), device=x.device) if save else None
    if M:
        w, b = None if weight is None else weight.dtype, None if bias is None else bias.dtype
        plan = forward_plan(N, x.dtype, dtype, w, b, save, device)
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
    M = x.numel() // N if N else 0
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
