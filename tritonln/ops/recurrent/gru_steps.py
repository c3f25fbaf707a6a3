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


PAPER = (2, False)  # the variant that is tuned: gates that are normalized together, and whether the reset is inside


def _plan(of: Tunable, H: int, variant: tuple[int, bool], c: Config, device: Device) -> Plan:
    (kernel,) = of.kernels()
    group, inner = variant
    constants = (H, *x_widths(H, 3 if inner else group), *variant, c.block_m, c.block_n)
    return Plan(Launch(kernel, constants, device, c.num_warps, of=of), c.block_m, 0)


def x_widths(H: int, group: int) -> tuple[int, int]:
    """Of the rows of x_rz and x_n, which are one tensor where all gates are normalized together, or none of x."""
    return (3 * H, 3 * H) if group == 3 else (2 * H, H)


def _forward_keys(H: int, x: torch.dtype) -> Iterator[Key]:
    wide = arithmetic(x)
    for gain in dict.fromkeys((x, wide)):
        for stats in (wide, None):
            known = {"x_rz": x, "x_n": x, "p": x, "w_hh": gain, "b_hh": gain, "state": wide}
            yield FORWARD.key(H, **known, h=None if x == wide else x, stats=stats)


# A step at t = 0, with the paper's two groups.  Others are the same work but for reductions, and have the same key.
FORWARD: Tunable = Tunable(
    name="gru_step_fwd",
    operands={
        **{"x_rz": "1 M 2N", "x_n": "1 M N", "p": "M 3N", "w_hh": "3N", "b_hh": "3N", "lengths": "M"},
        **{"starts": "2 M", "state": "2 M N", "h": "2 M N", "stats": "2 M 2", "multiplied": "M N"},
    },
    results=("stats", "multiplied"),
    updated=("state", "h"),
    kernels=lambda: _kernels()[:1],
    plan=lambda key, c, device: _plan(FORWARD, key.N, PAPER, c, device),
    keys=_forward_keys,
    scalars=lambda M: (0, 0, 1, 0, 0, M, 1e-5),
    **recurrent.OF_STEPS,
)


def _backward_keys(H: int, x: torch.dtype) -> Iterator[Key]:
    wide = arithmetic(x)
    for gain in dict.fromkeys((x, wide)):
        known = {"dy": x, "dh": x, "x_rz": x, "x_n": x, "p": x, "w_hh": gain, "b_hh": gain, "state": wide}
        yield BACKWARD.key(H, **known, stats=wide, kept=wide, dgates=x, dm=x, dp=x)


BACKWARD: Tunable = Tunable(
    name="gru_step_bwd",
    operands={
        **{"dy": "2 M N", "dh": "M N", "x_rz": "1 M 2N", "x_n": "1 M N", "p": "M 3N", "w_hh": "3N", "b_hh": "3N"},
        **{"lengths": "M", "starts": "2 M", "state": "2 M N", "stats": "2 M 2"},
        **{"kept": "M N", "dh0": "M N", "dgates": "1 M 3N", "dm": "1 M N", "dp": "1 M 3N"},
    },
    results=("dgates", "dm", "dp"),
    updated=("kept", "dh0"),
    kernels=lambda: _kernels()[1:],
    plan=lambda key, c, device: _plan(BACKWARD, key.N, PAPER, c, device),
    keys=_backward_keys,
    scalars=lambda M: (0, 0, 1, 0, M),
    **recurrent.OF_STEPS,
)

register(FORWARD, BACKWARD)


@planned
def forward_plan(H: int, variant: tuple[int, bool], dtypes: tuple[torch.dtype | None, ...], device: Device) -> Plan:
    """For operands of these dtypes, in the kernel's order; None where there is none."""
    key = FORWARD.key(H, **dict(zip(FORWARD.operands, dtypes)))
    return _plan(FORWARD, H, variant, config_for(FORWARD, key, device), device)


@planned
def backward_plan(H: int, variant: tuple[int, bool], dtypes: tuple[torch.dtype | None, ...], device: Device) -> Plan:
    key = BACKWARD.key(H, **dict(zip(BACKWARD.operands, dtypes)))
    return _plan(BACKWARD, H, variant, config_for(BACKWARD, key, device), device)


def forward_plan_of(x: torch.dtype, s: GRUSteps, save: bool, device: Device) -> Plan:
    wide = arithmetic(x)
    stats = wide if save else None
    given = None if s.summed else x
    known = (given, given, x, *map(dtype_of, (s.gain, s.bias, s.lengths, s.starts)), wide)
    dtypes = (*known, None if x == wide else x, stats, None if s.starts is None else x)
    return forward_plan(s.weight_hh.shape[1], (s.group, s.inner), dtypes, device)


def backward_plan_of(x: torch.dtype, dy: torch.dtype | None, s: GRUSteps, device: Device) -> Plan:
    wide = arithmetic(x)
    given = None if s.summed else x
    known = (dy, x, given, given, x, *map(dtype_of, (s.gain, s.bias, s.lengths, s.starts)), wide)
    dh0 = None if s.starts is None else wide
    return backward_plan(s.weight_hh.shape[1], (s.group, s.inner), (*known, wide, wide, dh0, x, x, x), device)


# ---- from tensors to launches ------------------------------------------------------------------------


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
    tensors = (
        *(None if summed else x_rz, None if x_rz.shape[-1] == 3 * H else x_n, h, state, p, stats, multiplied),
        *(weight_hh, gain, bias, lengths, starts),
    )
    written = [0, *range(2, 7)] if inner else range(2, 7)
    step_graphs.run(forward_steps, tensors, written, (reverse, eps, plan), cuda_graph, device)
    return (h, state, None if summed else p, stats) if save else (h, None, None, None)


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
    w_hh: Tensor,
    b_hh: Tensor | None,
    lengths: Tensor | None,
    starts: Tensor | None,
    reverse: bool,
    eps: float,
    plan: Plan,
) -> None:
    """p is W_ih x where x_rz is None, and becomes the sum of both products."""
    T, B, H = len(h) - 1, h.shape[1], h.shape[-1]
    both = (h, None) if state is None else (state, h)
    tensors = [x_rz, candidate(x_rz, x_n, H), p, w_hh, b_hh, lengths, starts, *both, stats, multiplied]
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
    given = (None, None) if p is None else (x_rz, None if x_rz.shape[-1] == 3 * H else x_n)
    p = x_rz if p is None else p
    T, B = p.shape[:2]
    plan = backward_plan_of(p.dtype, dtype_of(dy), s, device)
    dgates, dp = torch.empty_like(p), torch.empty_like(p)
    dm = p.new_empty((T, B, H))
    dh, kept = p.new_zeros((B, H)), state.new_zeros((B, H))
    dh0 = None if starts is None else torch.zeros_like(kept)
    tensors = (
        *(contiguous(dy), *given, p, stats, state),
        *(weight_hh, gain, bias, lengths, starts, dgates, dm, dp, dh, kept, dh0),
    )
    step_graphs.run(backward_steps, tensors, range(11, 17), (reverse, plan), cuda_graph, device)
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
    w_hh: Tensor,
    b_hh: Tensor | None,
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
    inputs = (x_rz, candidate(x_rz, x_n, H), p, w_hh, b_hh, lengths, starts, state, stats)
    tensors = [dy, dh, *inputs, kept, dh0, dgates, dm, dp]
    launch, dps = plan.launch.repeated(plan.count(B), *tensors), dp.unbind(0)
    for t, previous, current in reversed(order(T, reverse)):
        launch(t, previous, current, T if reverse else 0, B)
        torch.mm(dps[t], weight_hh, out=dh)
