"""The time steps of layer_norm_lstm on Triton kernels: a product and one launch a step, in each direction.

The loops allocate nothing, so that they can be captured in a CUDA graph.
"""

from __future__ import annotations

import functools

import torch
from torch import Tensor

from tritonln.device import Device
from tritonln.launch import Launch, Plan
from tritonln.ops import step_graphs
from tritonln.ops.contract import arithmetic, contiguous, dtype_of
from tritonln.ops.layer_norm_triton import sums_plan
from tritonln.ops.recurrent import order, running, states
from tritonln.tuning import recurrent


@functools.cache
def step_plan(backward: bool, H: int, carry: bool, kind: tuple[object, ...], device: Device) -> Plan:
    """`kind`: the dtypes of the tensors that the kernel gets, None where there is none."""
    from tritonln.kernels.layer_norm_lstm import lstm_step_bwd, lstm_step_fwd

    c = recurrent.step(H, 8 if torch.float64 in kind else 4, device)
    kernel = lstm_step_bwd if backward else lstm_step_fwd
    return Plan(Launch(kernel, (H, carry, c.block_m, c.block_n), device, c.num_warps), c.block_m, 0)


def forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_hh: Tensor,
    ln_hh_weight: Tensor | None,
    ln_c_weight: Tensor | None,
    ln_c_bias: Tensor | None,
    weight_hr: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    carry: bool,
    eps: float,
    save: bool,
    cuda_graph: bool,
    device: Device,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(h, c, p, stats, m) of all steps.

    h (T + 1, B, P) and c (T + 1, B, H) with the initial state in its slot; p = W_hh h and the statistics of
    its rows, None unless saved; m is h before the projection, None where there is none.
    """
    (T, B, _), H = x.shape, c0.shape[-1]
    h, c = states(T, h0, x.dtype, reverse), states(T, c0, arithmetic(x.dtype), reverse)
    p = x.new_empty((T if save else 1, B, 4 * H))
    stats = c.new_empty((T, B, 2)) if save and ln_hh_weight is not None else None
    m = None if weight_hr is None else x.new_zeros((T + 1, B, H))
    parameters = (contiguous(ln_hh_weight), contiguous(ln_c_weight), contiguous(ln_c_bias))
    tensors = (x, h, c, p, stats, m, weight_hh, weight_hr, *parameters, lengths)
    step_graphs.run(_forward, tensors, (1, 2, 3, 4, 5), (reverse, carry, eps, device), cuda_graph)
    return h, c, p if save else None, stats, m


def _forward(
    x: Tensor,
    h: Tensor,
    c: Tensor,
    p: Tensor,
    stats: Tensor | None,
    m: Tensor | None,
    weight_hh: Tensor,
    weight_hr: Tensor | None,
    w_hh: Tensor | None,
    w_c: Tensor | None,
    b_c: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    carry: bool,
    eps: float,
    device: Device,
) -> None:
    T, B, H = len(x), x.shape[1], c.shape[-1]
    carried = h if lengths is not None and m is None else None
    tensors = [x, p, w_hh, w_c, b_c, lengths, carried, h if m is None else m, c, stats]
    plan = step_plan(False, H, carry, tuple(map(dtype_of, tensors)), device)
    programs, weight_hh = plan.count(B), weight_hh.t()
    hs, ps = h.unbind(0), p.unbind(0) * (T // len(p))
    runs = None if lengths is None or m is None else running(T, lengths)
    for t, previous, current in order(T, reverse):
        tensors[1] = torch.mm(hs[previous], weight_hh, out=ps[t])
        plan.launch(programs, tensors, (), (t, previous, current, B, eps))
        if m is not None and weight_hr is not None:
            torch.mm(m[current], weight_hr.t(), out=hs[current])
            if runs is not None:
                torch.where(runs[t], hs[current], hs[previous], out=hs[current])


def backward(
    dy: Tensor | None,
    dcells: Tensor | None,
    x: Tensor,
    p: Tensor,
    stats: Tensor | None,
    h: Tensor,
    c: Tensor,
    weight_hh: Tensor,
    ln_hh_weight: Tensor | None,
    ln_c_weight: Tensor | None,
    ln_c_bias: Tensor | None,
    weight_hr: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    carry: bool,
    eps: float,
    cuda_graph: bool,
    device: Device,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(dgates, dp, dh0, dc0, dw_c, db_c, dh) from the gradients dy and dcells of h and c.

    dgates and dp (T, B, 4H), the same tensor where gates are not normalized; dh (T, B, P), the whole gradient
    of h, which that of the projection is made of, None where there is none.
    """
    (T, B, _), H, P = x.shape, c.shape[-1], h.shape[-1]
    dgates = torch.empty_like(x)
    dp = None if ln_hh_weight is None else torch.empty_like(x)
    dh, dc = x.new_zeros((B, P)), c.new_zeros((B, H))
    kept = None if lengths is None else x.new_zeros((B, P))
    total = None if weight_hr is None else x.new_empty((T, B, P))
    dm = None if weight_hr is None else x.new_empty((B, H))
    parameters = (contiguous(ln_hh_weight), contiguous(ln_c_weight), contiguous(ln_c_bias))
    programs = step_plan(True, H, carry, (x.dtype,), device).count(B)
    dw_c, db_c = (None if w is None else c.new_zeros((programs, H)) for w in parameters[1:])
    tensors = (
        *(contiguous(dy), contiguous(dcells), x, p, stats, c, weight_hh, weight_hr, *parameters, lengths),
        *(dgates, dp, dh, dc, kept, total, dm, dw_c, db_c),
    )
    written = range(len(tensors) - 9, len(tensors))
    step_graphs.run(_backward, tensors, written, (reverse, carry, eps, device), cuda_graph)
    if kept is not None:
        dh += kept
    sums = [None if t is None else t.new_empty(H) for t in (dw_c, db_c)]
    if dw_c is not None:
        plan = sums_plan(H, dw_c.dtype, dw_c.dtype, dtype_of(db_c), device)
        plan.launch(plan.count(H), (dw_c, db_c, *sums), (), (programs,))
    return dgates, dgates if dp is None else dp, dh, dc, sums[0], sums[1], total


def _backward(
    dy: Tensor | None,
    dcells: Tensor | None,
    x: Tensor,
    p: Tensor,
    stats: Tensor | None,
    c: Tensor,
    weight_hh: Tensor,
    weight_hr: Tensor | None,
    w_hh: Tensor | None,
    w_c: Tensor | None,
    b_c: Tensor | None,
    lengths: Tensor | None,
    dgates: Tensor,
    dp: Tensor | None,
    dh: Tensor,
    dc: Tensor,
    kept: Tensor | None,
    total: Tensor | None,
    dm: Tensor | None,
    dw_c: Tensor | None,
    db_c: Tensor | None,
    reverse: bool,
    carry: bool,
    eps: float,
    device: Device,
) -> None:
    T, B, H = len(x), x.shape[1], c.shape[-1]
    projected = total is not None
    tensors = [
        *(None if projected else dy, dm if projected else dh, dcells, x, p, w_hh, w_c, b_c, lengths, c, stats),
        *(None if projected else kept, dc, dgates, dp, dw_c, db_c),
    ]
    plan = step_plan(True, H, carry, tuple(map(dtype_of, tensors)), device)
    programs, ps, dps = plan.count(B), p.unbind(0), (dgates if dp is None else dp).unbind(0)
    idle = None if lengths is None or total is None else ~running(T, lengths)
    for t, previous, current in reversed(order(T, reverse)):
        if total is not None and weight_hr is not None:
            if dy is not None:
                dh += dy[current]
            if idle is not None and kept is not None:
                dh += kept
                dh -= torch.mul(dh, idle[t], out=kept)
            total[t] = dh
            torch.mm(dh, weight_hr, out=dm)
        tensors[4] = ps[t]
        plan.launch(programs, tensors, (), (t, previous, current, B, eps))
        torch.mm(dps[t], weight_hh, out=dh)
