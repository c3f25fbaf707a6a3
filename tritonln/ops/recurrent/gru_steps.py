"""The time steps of layer_norm_gru on Triton kernels: a product and one launch a step, in each direction.

The loops allocate nothing, so that they can be captured in a CUDA graph.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from tritonln.configurations import recurrent
from tritonln.configurations.config import Config
from tritonln.configurations.lookup import config_for, planned
from tritonln.configurations.tunable import Key, Tunable, register
from tritonln.device import Device
from tritonln.launch import Launch, Plan
from tritonln.ops.contract import arithmetic, contiguous, dtype_of
from tritonln.ops.recurrent import step_graphs
from tritonln.ops.recurrent.shared import GRUSteps, order, states

# ---- from configurations to launches -------------------------------------------------------------


def _kernels() -> tuple[Any, Any]:
    from tritonln.kernels.recurrent.gru_steps import gru_step_bwd, gru_step_fwd

    return gru_step_fwd, gru_step_bwd


def _plan(of: Tunable, H: int, joint: bool, c: Config, device: Device) -> Plan:
    (kernel,) = of.kernels()
    return Plan(
        Launch(kernel, (H, *widths(H, joint), joint, c.block_m, c.block_n), device, c.num_warps, of=of), c.block_m, 0
    )


def widths(H: int, joint: bool) -> tuple[int, int]:
    """Of the rows of x_rz and x_n."""
    return (3 * H, 3 * H) if joint else (2 * H, H)


def _forward_keys(H: int, x: torch.dtype) -> Iterator[Key]:
    wide = arithmetic(x)
    for gain in dict.fromkeys((x, wide)):
        for stats in (wide, None):
            known = {"x_rz": x, "x_n": x, "p": x, "w_hh": gain, "b_hh": gain, "state": wide}
            yield FORWARD.key(H, **known, h=None if x == wide else x, stats_rz=stats, stats_n=stats)


# A step at t = 0, with the paper's two groups.  One group is the same work but for a reduction, and has the same key.
FORWARD: Tunable = Tunable(
    name="gru_step_fwd",
    operands={
        **{"x_rz": "1 M 2N", "x_n": "1 M N", "p": "M 3N", "w_hh": "3N", "b_hh": "3N", "lengths": "M"},
        **{"state": "2 M N", "h": "2 M N", "stats_rz": "1 M 2", "stats_n": "1 M 2"},
    },
    results=("stats_rz", "stats_n"),
    updated=("state", "h"),
    kernels=lambda: _kernels()[:1],
    plan=lambda key, c, device: _plan(FORWARD, key.N, False, c, device),
    keys=_forward_keys,
    scalars=lambda M: (0, 0, 1, 0, M, 1e-5),
    **recurrent.OF_STEPS,
)


def _backward_keys(H: int, x: torch.dtype) -> Iterator[Key]:
    wide = arithmetic(x)
    for gain in dict.fromkeys((x, wide)):
        known = {"dy": x, "dh": x, "x_rz": x, "x_n": x, "p": x, "w_hh": gain, "b_hh": gain, "state": wide}
        yield BACKWARD.key(H, **known, stats_rz=wide, stats_n=wide, kept=wide, dgates=x, dm=x, dp=x)


BACKWARD: Tunable = Tunable(
    name="gru_step_bwd",
    operands={
        **{"dy": "2 M N", "dh": "M N", "x_rz": "1 M 2N", "x_n": "1 M N", "p": "M 3N", "w_hh": "3N", "b_hh": "3N"},
        **{"lengths": "M", "state": "2 M N", "stats_rz": "1 M 2", "stats_n": "1 M 2", "kept": "M N"},
        **{"dgates": "1 M 3N", "dm": "1 M N", "dp": "1 M 3N"},
    },
    results=("dgates", "dm", "dp"),
    updated=("kept",),
    kernels=lambda: _kernels()[1:],
    plan=lambda key, c, device: _plan(BACKWARD, key.N, False, c, device),
    keys=_backward_keys,
    scalars=lambda M: (0, 0, 1, M),
    **recurrent.OF_STEPS,
)

register(FORWARD, BACKWARD)


@planned
def forward_plan(H: int, joint: bool, dtypes: tuple[torch.dtype | None, ...], device: Device) -> Plan:
    """For operands of these dtypes, in the kernel's order; None where there is none."""
    key = FORWARD.key(H, **dict(zip(FORWARD.operands, dtypes)))
    return _plan(FORWARD, H, joint, config_for(FORWARD, key, device), device)


@planned
def backward_plan(H: int, joint: bool, dtypes: tuple[torch.dtype | None, ...], device: Device) -> Plan:
    key = BACKWARD.key(H, **dict(zip(BACKWARD.operands, dtypes)))
    return _plan(BACKWARD, H, joint, config_for(BACKWARD, key, device), device)


def forward_plan_of(x: torch.dtype, s: GRUSteps, save: bool, device: Device) -> Plan:
    wide = arithmetic(x)
    stats = wide if save else None
    known = (x, x, x, s.ln_hh_weight.dtype, dtype_of(s.bias_hh), dtype_of(s.lengths), wide)
    dtypes = (*known, None if x == wide else x, stats, stats)
    return forward_plan(s.weight_hh.shape[1], s.joint, dtypes, device)


def backward_plan_of(x: torch.dtype, dy: torch.dtype | None, s: GRUSteps, device: Device) -> Plan:
    wide = arithmetic(x)
    known = (dy, x, x, x, x, s.ln_hh_weight.dtype, dtype_of(s.bias_hh), dtype_of(s.lengths), wide, wide)
    return backward_plan(s.weight_hh.shape[1], s.joint, (*known, wide, wide, x, x, x), device)


# ---- from tensors to launches ------------------------------------------------------------------------


def forward(
    x_rz: Tensor, x_n: Tensor, h0: Tensor, s: GRUSteps, save: bool, cuda_graph: bool, device: Device
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """(h, state, p, stats_rz, stats_n) of all steps.

    h (T + 1, B, H) with the initial state in its slot, and the same in fp32, None where h is fp32 (fp64);
    p = W_hh h and the statistics of its groups, None unless saved.
    """
    (T, B, _), H, dtype = x_rz.shape, h0.shape[-1], arithmetic(x_rz.dtype)
    weight_hh, bias_hh, ln_hh_weight, lengths, reverse, joint, eps = s
    plan = forward_plan_of(x_rz.dtype, s, save, device)
    h = states(T, h0, x_rz.dtype, reverse)
    state = None if x_rz.dtype == dtype else states(T, h0, dtype, reverse)
    p = x_rz.new_empty((T if save else 1, B, 3 * H))
    stats_rz = p.new_empty((T, B, 2), dtype=dtype) if save else None
    stats_n = p.new_empty((T, B, 2), dtype=dtype) if save and not joint else None
    tensors = (
        *(x_rz, None if joint else x_n, h, state, p, stats_rz, stats_n),
        *(weight_hh, ln_hh_weight, bias_hh, lengths),
    )
    step_graphs.run(forward_steps, tensors, range(2, 7), (reverse, eps, plan), cuda_graph, device)
    return (h, state, p, stats_rz, stats_n) if save else (h, None, None, None, None)


def candidate(x_rz: Tensor, x_n: Tensor | None, H: int) -> Tensor:
    """x_n, which lies in the rows of x_rz where both are normalized together."""
    return x_rz[..., 2 * H :] if x_n is None else x_n


def forward_steps(
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
    eps: float,
    plan: Plan,
) -> None:
    (T, B, _), H = x_rz.shape, h.shape[-1]
    both = (h, None) if state is None else (state, h)
    tensors = [x_rz, candidate(x_rz, x_n, H), p, w_hh, b_hh, lengths, *both, stats_rz, stats_n]
    launch, weight_hh = plan.launch.repeated(plan.count(B), *tensors), weight_hh.t()
    hs, ps = h.unbind(0), p.unbind(0)
    for t, previous, current in order(T, reverse):
        slot = t % len(ps)
        torch.mm(hs[previous], weight_hh, out=ps[slot])
        launch(t, previous, current, slot, B, eps)


def backward(
    dy: Tensor | None,
    x_rz: Tensor,
    x_n: Tensor,
    p: Tensor,
    stats_rz: Tensor,
    stats_n: Tensor | None,
    state: Tensor,
    s: GRUSteps,
    cuda_graph: bool,
    device: Device,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """(dgates, dm, dp, dh0) from the gradient dy of h: of the gates before their activations (T, B, 3H), of
    the candidate's recurrent part (T, B, H), and of p (T, B, 3H).
    """
    T, B, H = len(p), p.shape[1], state.shape[-1]
    weight_hh, bias_hh, ln_hh_weight, lengths, reverse, joint, _ = s
    plan = backward_plan_of(p.dtype, dtype_of(dy), s, device)
    dgates, dp = torch.empty_like(p), torch.empty_like(p)
    dm = p.new_empty((T, B, H))
    dh, kept = p.new_zeros((B, H)), state.new_zeros((B, H))
    tensors = (
        *(contiguous(dy), x_rz, None if joint else x_n, p, stats_rz, stats_n, state),
        *(weight_hh, ln_hh_weight, bias_hh, lengths, dgates, dm, dp, dh, kept),
    )
    step_graphs.run(backward_steps, tensors, range(11, 16), (reverse, plan), cuda_graph, device)
    return dgates, dm, dp, kept.add_(dh)


def backward_steps(
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
    plan: Plan,
) -> None:
    T, B, H = len(p), p.shape[1], state.shape[-1]
    inputs = (x_rz, candidate(x_rz, x_n, H), p, w_hh, b_hh, lengths, state, stats_rz, stats_n)
    tensors = [dy, dh, *inputs, kept, dgates, dm, dp]
    launch, dps = plan.launch.repeated(plan.count(B), *tensors), dp.unbind(0)
    for t, previous, current in reversed(order(T, reverse)):
        launch(t, previous, current, B)
        torch.mm(dps[t], weight_hh, out=dh)
