"""The time steps of layer_norm_lstm on Triton kernels: a product and one launch a step, in each direction.

The loops allocate nothing, so that they can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonln.device import Device
from tritonln.ops.column_sums import column_sums_plan
from tritonln.ops.contract import arithmetic, contiguous, dtype_of
from tritonln.ops.recurrent import step_graphs
from tritonln.ops.recurrent.lstm_step_plans import backward_plan_of, forward_plan_of
from tritonln.ops.recurrent.shared import LSTMSteps, order, running, states
from tritonln.plan import Plan


def forward(
    x: Tensor, h0: Tensor, c0: Tensor, s: LSTMSteps, save: bool, cuda_graph: bool, device: Device
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(h, c, p, stats, m) of all steps.  Where the sum of products is normalized, it takes the place of x.

    h (T + 1, B, P) and c (T + 1, B, H) with the initial state in its slot; p = W_hh h and the statistics that rows
    are normalized by, None unless saved, and p also where the sum is normalized; m is h before the projection, None
    where there is none.
    """
    (T, B, _), H = x.shape, c0.shape[-1]
    h, c = states(T, h0, x.dtype, s.reverse), states(T, c0, arithmetic(x.dtype), s.reverse)
    p = x if s.summed else x.new_empty((T if save else 1, B, 4 * H))
    stats = c.new_empty((T, 4 // s.group, B, 2)) if save and s.gain is not None else None
    m = None if s.weight_hr is None else x.new_zeros((T + 1, B, H))
    plan = forward_plan_of(x.dtype, s, save, device)
    multiplied = None if s.starts is None else h0.contiguous().clone()
    written = {"h": h, "c": c, "p": p, "stats": stats, "m": m, "multiplied": multiplied}
    tensors = {"x": None if s.summed else x, **written, **constant(s)}
    step_graphs.run(
        forward_steps, tensors, written, {"reverse": s.reverse, "eps": s.eps, "plan": plan}, cuda_graph, device
    )
    return h, c, p if save and not s.summed else None, stats, m


def constant(s: LSTMSteps) -> dict[str, Tensor | None]:
    """The tensors that no step changes, as the parameters of the loops."""
    return {
        **{"weight_hh": s.weight_hh, "weight_hr": s.weight_hr, "gain_hh": s.gain, "bias_hh": s.bias},
        **{"gain_c": s.ln_c_weight, "bias_c": s.ln_c_bias, "lengths": s.lengths, "starts": s.starts},
    }


def forward_steps(
    x: Tensor | None,
    h: Tensor,
    c: Tensor,
    p: Tensor,
    stats: Tensor | None,
    m: Tensor | None,
    multiplied: Tensor | None,
    weight_hh: Tensor,
    weight_hr: Tensor | None,
    gain_hh: Tensor | None,
    bias_hh: Tensor | None,
    gain_c: Tensor | None,
    bias_c: Tensor | None,
    lengths: Tensor | None,
    starts: Tensor | None,
    reverse: bool,
    eps: float,
    plan: Plan,
) -> None:
    """p is W_ih x where x is None, and becomes the sum of both products."""
    (T, B), initial = (len(h) - 1, h.shape[1]), len(h) - 1 if reverse else 0
    carried = h if lengths is not None and m is None else None
    written = h if m is None else m, c, stats, multiplied if m is None else None
    tensors = [x, p, gain_hh, bias_hh, gain_c, bias_c, lengths, starts, carried, *written]
    launch, weight_hh = plan.launch.repeated(plan.count(B), *tensors), weight_hh.t()
    hs, ps = h.unbind(0), p.unbind(0)
    runs = None if lengths is None or m is None else running(T, lengths)
    for t, previous, current in order(T, reverse):
        slot = t % len(ps)
        h_before = hs[previous] if multiplied is None else multiplied
        if x is None:
            ps[slot].addmm_(h_before, weight_hh)
        else:
            torch.mm(h_before, weight_hh, out=ps[slot])
        launch(t, previous, current, initial, slot, B, eps)
        if m is not None and weight_hr is not None:
            torch.mm(m[current], weight_hr.t(), out=hs[current])
            if runs is not None:
                torch.where(runs[t], hs[current], hs[previous], out=hs[current])
            if multiplied is not None and starts is not None:
                torch.where(starts[current, :, None], hs[initial], hs[current], out=multiplied)


def backward(
    dy: Tensor | None,
    dcells: Tensor | None,
    x: Tensor,
    p: Tensor | None,
    stats: Tensor | None,
    h: Tensor,
    c: Tensor,
    s: LSTMSteps,
    cuda_graph: bool,
    device: Device,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(dgates, dp, dh0, dc0, dgain_c, dbias_c, dh) from the gradients dy and dcells of h and c.

    dgates and dp (T, B, 4H), the same tensor where gates are not normalized; dh (T, B, P), the whole gradient
    of h, which that of the projection is made of, None where there is none.
    """
    (T, B, _), H, P = x.shape, c.shape[-1], h.shape[-1]
    plan = backward_plan_of(x.dtype, dtype_of(dy), dtype_of(dcells), s, device)
    programs = plan.count(B)
    dgates = torch.empty_like(x)
    dp = None if s.gain is None else torch.empty_like(x)
    dh, dc = x.new_zeros((B, P)), c.new_zeros((B, H))
    kept = None if s.lengths is None else x.new_zeros((B, P))
    total = None if s.weight_hr is None else x.new_empty((T, B, P))
    dm = None if s.weight_hr is None else x.new_empty((B, H))
    dgain_c, dbias_c = (None if w is None else c.new_zeros((programs, H)) for w in (s.ln_c_weight, s.ln_c_bias))
    dc0 = None if s.starts is None else torch.zeros_like(dc)
    given, p = (None, x) if s.summed else (x, p)
    read = {"dy": contiguous(dy), "dcells": contiguous(dcells), "x": given, "p": p, "stats": stats, "c": c}
    written = {
        **{"dgates": dgates, "dp": dp, "dh": dh, "dc": dc, "dc0": dc0},
        **{"kept": kept, "total": total, "dm": dm, "dgain_c": dgain_c, "dbias_c": dbias_c},
    }
    tensors = {**read, **constant(s), **written}
    step_graphs.run(
        backward_steps, tensors, written, {"reverse": s.reverse, "eps": s.eps, "plan": plan}, cuda_graph, device
    )
    if kept is not None:
        dh += kept
    if dc0 is not None:
        dc += dc0
    return dgates, dgates if dp is None else dp, dh, dc, *added_up(dgain_c, dbias_c, device), total


def added_up(dgain_c: Tensor | None, dbias_c: Tensor | None, device: Device) -> tuple[Tensor | None, Tensor | None]:
    """The sums of the programs' partial sums."""
    if dgain_c is None:
        return None, None
    programs, H = dgain_c.shape
    sums = dgain_c.new_empty(H), None if dbias_c is None else dbias_c.new_empty(H)
    plan = column_sums_plan(H, dgain_c.dtype, (dgain_c.dtype, dtype_of(dbias_c)), device)
    plan.launch(plan.count(H), (dgain_c, dbias_c), tuple(sums), programs)
    return sums


def backward_steps(
    dy: Tensor | None,
    dcells: Tensor | None,
    x: Tensor | None,
    p: Tensor,
    stats: Tensor | None,
    c: Tensor,
    weight_hh: Tensor,
    weight_hr: Tensor | None,
    gain_hh: Tensor | None,
    bias_hh: Tensor | None,
    gain_c: Tensor | None,
    bias_c: Tensor | None,
    lengths: Tensor | None,
    starts: Tensor | None,
    dgates: Tensor,
    dp: Tensor | None,
    dh: Tensor,
    dc: Tensor,
    dc0: Tensor | None,
    kept: Tensor | None,
    total: Tensor | None,
    dm: Tensor | None,
    dgain_c: Tensor | None,
    dbias_c: Tensor | None,
    reverse: bool,
    eps: float,
    plan: Plan,
) -> None:
    T, B = len(p), p.shape[1]
    projected = total is not None
    tensors = [
        *(None if projected else dy, dm if projected else dh, dcells, x, p, gain_hh, bias_hh, gain_c, bias_c),
        *(lengths, starts, None if projected else starts, c, stats),
        *(None if projected else kept, dc, dc0, dgates, dp, dgain_c, dbias_c),
    ]
    launch, dps = plan.launch.repeated(plan.count(B), *tensors), (dgates if dp is None else dp).unbind(0)
    idle = None if lengths is None or total is None else ~running(T, lengths)
    initial = T if reverse else 0
    for t, previous, current in reversed(order(T, reverse)):
        if total is not None and weight_hr is not None:
            if dy is not None:
                dh += dy[current]
            if idle is not None and kept is not None:
                dh += kept
                dh -= torch.mul(dh, idle[t], out=kept)
            total[t] = dh
            torch.mm(dh, weight_hr, out=dm)
        launch(t, previous, current, initial, B, eps)
        torch.mm(dps[t], weight_hh, out=dh)
        if total is not None and starts is not None:
            dh.masked_fill_(starts[previous, :, None], 0)
