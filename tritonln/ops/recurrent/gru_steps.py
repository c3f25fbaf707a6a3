"""The time steps of layer_norm_gru on Triton kernels: a product and one launch a step, in each direction.

The loops allocate nothing, so that they can be captured in a CUDA graph.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonln.device import Device
from tritonln.ops.contract import arithmetic, contiguous, dtype_of
from tritonln.ops.recurrent import step_graphs
from tritonln.ops.recurrent.gru_step_plans import backward_plan_of, forward_plan_of
from tritonln.ops.recurrent.shared import GRUSteps, order, states
from tritonln.plan import Plan


def forward(
    x_rz: Tensor, x_n: Tensor, h0: Tensor, s: GRUSteps, save: bool, cuda_graph: bool, device: Device
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """(h, state, p, stats) of all steps.  Where sums are normalized, they take the place of x_rz, rows of all gates.

    h (T + 1, B, H) with the initial state in its slot, and the same in fp32, None where h is fp32 (fp64);
    p = W_hh h and the statistics of the groups, None unless saved, and p also where it is in the sum.
    """
    (T, B, _), H, dtype = x_rz.shape, h0.shape[-1], arithmetic(x_rz.dtype)
    weight_hh, bias, gain, lengths, starts, reverse, group, summed, inner, eps = s
    plan = forward_plan_of(x_rz.dtype, s, save, device)
    h = states(T, h0, x_rz.dtype, reverse)
    state = None if x_rz.dtype == dtype else states(T, h0, dtype, reverse)
    p = x_rz if summed else x_rz.new_empty((T if save else 1, B, 3 * H))
    stats = p.new_empty((T, (2 + group) // group, B, 2), dtype=dtype) if save else None
    multiplied = None if starts is None else h0.contiguous().clone()
    gates = {"x_rz": None if summed else x_rz, "x_n": None if x_rz.shape[-1] == 3 * H else x_n}
    written = {"h": h, "state": state, "p": p, "stats": stats, "multiplied": multiplied}
    names = (*written, "x_rz") if inner else written
    tensors = {**gates, **written, **constant(s)}
    step_graphs.run(forward_steps, tensors, names, {"reverse": reverse, "eps": eps, "plan": plan}, cuda_graph, device)
    return (h, state, None if summed else p, stats) if save else (h, None, None, None)


def constant(s: GRUSteps) -> dict[str, Tensor | None]:
    """The tensors that no step changes, as the parameters of the loops."""
    weight_hh, bias, gain, lengths, starts, *_ = s
    return {"weight_hh": weight_hh, "gain_hh": gain, "bias_hh": bias, "lengths": lengths, "starts": starts}


def candidate(x_rz: Tensor | None, x_n: Tensor | None, H: int) -> Tensor | None:
    """x_n, which lies in the rows of x_rz where both are normalized together."""
    return x_rz[..., 2 * H :] if x_n is None and x_rz is not None else x_n


def forward_steps(
    x_rz: Tensor | None,
    x_n: Tensor | None,
    h: Tensor,
    state: Tensor | None,
    p: Tensor,
    stats: Tensor | None,
    multiplied: Tensor | None,
    weight_hh: Tensor,
    gain_hh: Tensor,
    bias_hh: Tensor | None,
    lengths: Tensor | None,
    starts: Tensor | None,
    reverse: bool,
    eps: float,
    plan: Plan,
) -> None:
    """p is W_ih x where x_rz is None, and becomes the sum of both products."""
    T, B, H = len(h) - 1, h.shape[1], h.shape[-1]
    both = (h, None) if state is None else (state, h)
    tensors = [x_rz, candidate(x_rz, x_n, H), p, gain_hh, bias_hh, lengths, starts, *both, stats, multiplied]
    launch, weight_hh = plan.launch.repeated(plan.count(B), *tensors), weight_hh.t()
    hs, ps = h.unbind(0), p.unbind(0)
    for t, previous, current in order(T, reverse):
        slot = t % len(ps)
        h_before = hs[previous] if multiplied is None else multiplied
        if x_rz is None:
            ps[slot].addmm_(h_before, weight_hh)
        else:
            torch.mm(h_before, weight_hh, out=ps[slot])
        launch(t, previous, current, T if reverse else 0, slot, B, eps)


def backward(
    dy: Tensor | None,
    x_rz: Tensor,
    x_n: Tensor,
    p: Tensor | None,
    stats: Tensor,
    state: Tensor,
    s: GRUSteps,
    cuda_graph: bool,
    device: Device,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dgates, dm, dp, dh0) from the gradient dy of h: of the gates before their activations (T, B, 3H), of
    the candidate's recurrent part (T, B, H), where the reset is inside of the norm of its sum, and of p (T, B, 3H).
    """
    weight_hh, bias, gain, lengths, starts, reverse, *_ = s
    H = state.shape[-1]
    x_rz_read, x_n_read = (None, None) if p is None else (x_rz, None if x_rz.shape[-1] == 3 * H else x_n)
    p = x_rz if p is None else p
    T, B = p.shape[:2]
    plan = backward_plan_of(p.dtype, dtype_of(dy), s, device)
    dgates, dp = torch.empty_like(p), torch.empty_like(p)
    dm = p.new_empty((T, B, H))
    dh, kept = p.new_zeros((B, H)), state.new_zeros((B, H))
    dh0 = None if starts is None else torch.zeros_like(kept)
    read = {"dy": contiguous(dy), "x_rz": x_rz_read, "x_n": x_n_read, "p": p, "stats": stats, "state": state}
    written = {"dgates": dgates, "dm": dm, "dp": dp, "dh": dh, "kept": kept, "dh0": dh0}
    tensors = {**read, **constant(s), **written}
    step_graphs.run(backward_steps, tensors, written, {"reverse": s.reverse, "plan": plan}, cuda_graph, device)
    kept += dh
    return dgates, dm, dp, kept if dh0 is None else kept + dh0


def backward_steps(
    dy: Tensor | None,
    x_rz: Tensor | None,
    x_n: Tensor | None,
    p: Tensor,
    stats: Tensor,
    state: Tensor,
    weight_hh: Tensor,
    gain_hh: Tensor,
    bias_hh: Tensor | None,
    lengths: Tensor | None,
    starts: Tensor | None,
    dgates: Tensor,
    dm: Tensor,
    dp: Tensor,
    dh: Tensor,
    kept: Tensor,
    dh0: Tensor | None,
    reverse: bool,
    plan: Plan,
) -> None:
    T, B, H = len(p), p.shape[1], state.shape[-1]
    inputs = (x_rz, candidate(x_rz, x_n, H), p, gain_hh, bias_hh, lengths, starts, state, stats)
    tensors = [dy, dh, *inputs, kept, dh0, dgates, dm, dp]
    launch, dps = plan.launch.repeated(plan.count(B), *tensors), dp.unbind(0)
    for t, previous, current in reversed(order(T, reverse)):
        launch(t, previous, current, T if reverse else 0, B)
        torch.mm(dps[t], weight_hh, out=dh)
