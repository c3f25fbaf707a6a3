"""The time steps of layer_norm_gru on Triton kernels: a product and one launch a step, in each direction.

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
from tritonln.ops.recurrent import order, states
from tritonln.tuning import recurrent


@functools.cache
def step_plan(backward: bool, H: int, joint: bool, kind: tuple[object, ...], device: Device) -> Plan:
    """`kind`: the dtypes of the tensors that the kernel gets, None where there is none."""
    from tritonln.kernels.layer_norm_gru import gru_step_bwd, gru_step_fwd

    c = recurrent.step(H, 8 if torch.float64 in kind else 4, device)
    kernel = gru_step_bwd if backward else gru_step_fwd
    widths = (3 * H, 3 * H) if joint else (2 * H, H)  # of the rows of x_rz and x_n
    return Plan(Launch(kernel, (H, *widths, joint, c.block_m, c.block_n), device, c.num_warps), c.block_m, 0)


def forward(
    x_rz: Tensor,
    x_n: Tensor,
    h0: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    ln_hh_weight: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    joint: bool,
    eps: float,
    save: bool,
    cuda_graph: bool,
    device: Device,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(h, state, p, stats_rz, stats_n) of all steps.

    h (T + 1, B, H) with the initial state in its slot, and the same in fp32, None where h is fp32 (fp64);
    p = W_hh h and the statistics of its groups, None unless saved.
    """
    (T, B, _), H, dtype = x_rz.shape, h0.shape[-1], arithmetic(x_rz.dtype)
    h = states(T, h0, x_rz.dtype, reverse)
    state = None if x_rz.dtype == dtype else states(T, h0, dtype, reverse)
    p = x_rz.new_empty((T if save else 1, B, 3 * H))
    stats_rz = p.new_empty((T, B, 2), dtype=dtype) if save else None
    stats_n = p.new_empty((T, B, 2), dtype=dtype) if save and not joint else None
    tensors = (
        *(x_rz, None if joint else x_n, h, state, p, stats_rz, stats_n),
        *(weight_hh, contiguous(ln_hh_weight), contiguous(bias_hh), lengths),
    )
    step_graphs.run(_forward, tensors, range(2, 7), (reverse, joint, eps, device), cuda_graph)
    return (h, state, p, stats_rz, stats_n) if save else (h, None, None, None, None)


def candidate(x_rz: Tensor, x_n: Tensor | None, H: int) -> Tensor:
    """x_n, which lies in the rows of x_rz where both are normalized together."""
    return x_rz[..., 2 * H :] if x_n is None else x_n


def _forward(
    x_rz: Tensor,
    x_n: Tensor | None,
    h: Tensor,
    state: Tensor | None,
    p: Tensor,
    stats_rz: Tensor | None,
    stats_n: Tensor | None,
    weight_hh: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None,
    lengths: Tensor | None,
    reverse: bool,
    joint: bool,
    eps: float,
    device: Device,
) -> None:
    (T, B, _), H = x_rz.shape, h.shape[-1]
    both = (h, None) if state is None else (state, h)
    tensors = [x_rz, candidate(x_rz, x_n, H), p, w_hh, b_hh, lengths, *both, stats_rz, stats_n]
    plan = step_plan(False, H, joint, tuple(map(dtype_of, tensors)), device)
    programs, weight_hh = plan.count(B), weight_hh.t()
    hs, ps = h.unbind(0), p.unbind(0) * (T // len(p))
    for t, previous, current in order(T, reverse):
        tensors[2] = torch.mm(hs[previous], weight_hh, out=ps[t])
        plan.launch(programs, tensors, (), (t, previous, current, B, eps))


def backward(
    dy: Tensor | None,
    x_rz: Tensor,
    x_n: Tensor,
    p: Tensor,
    stats_rz: Tensor,
    stats_n: Tensor | None,
    state: Tensor,
    weight_hh: Tensor,
    bias_hh: Tensor | None,
    ln_hh_weight: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    joint: bool,
    cuda_graph: bool,
    device: Device,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dgates, dm, dp, dh0) from the gradient dy of h: of the gates before their activations (T, B, 3H), of
    the candidate's recurrent part (T, B, H), and of p (T, B, 3H).
    """
    T, B, H = len(p), p.shape[1], state.shape[-1]
    dgates, dp = torch.empty_like(p), torch.empty_like(p)
    dm = p.new_empty((T, B, H))
    dh, kept = p.new_zeros((B, H)), state.new_zeros((B, H))
    tensors = (
        *(contiguous(dy), x_rz, None if joint else x_n, p, stats_rz, stats_n, state),
        *(weight_hh, contiguous(ln_hh_weight), contiguous(bias_hh), lengths, dgates, dm, dp, dh, kept),
    )
    step_graphs.run(_backward, tensors, range(11, 16), (reverse, joint, device), cuda_graph)
    return dgates, dm, dp, kept.add_(dh)


def _backward(
    dy: Tensor | None,
    x_rz: Tensor,
    x_n: Tensor | None,
    p: Tensor,
    stats_rz: Tensor,
    stats_n: Tensor | None,
    state: Tensor,
    weight_hh: Tensor,
    w_hh: Tensor,
    b_hh: Tensor | None,
    lengths: Tensor | None,
    dgates: Tensor,
    dm: Tensor,
    dp: Tensor,
    dh: Tensor,
    kept: Tensor,
    reverse: bool,
    joint: bool,
    device: Device,
) -> None:
    T, B, H = len(p), p.shape[1], state.shape[-1]
    inputs = (x_rz, candidate(x_rz, x_n, H), p, w_hh, b_hh, lengths, state, stats_rz, stats_n)
    tensors = [dy, dh, *inputs, kept, dgates, dm, dp]
    plan = step_plan(True, H, joint, tuple(map(dtype_of, tensors)), device)
    programs, ps, dps = plan.count(B), p.unbind(0), dp.unbind(0)
    for t, previous, current in reversed(order(T, reverse)):
        tensors[4] = ps[t]
        plan.launch(programs, tensors, (), (t, previous, current, B))
        torch.mm(dps[t], weight_hh, out=dh)
