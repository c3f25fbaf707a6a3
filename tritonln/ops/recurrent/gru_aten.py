"""The time steps of layer_norm_gru in ATen, for tensors that no Triton kernel serves.

Only what depends on the step before is done step by step; the backward computes all gates and all
factors that they contribute to the gradients at once, before it walks back through time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonln.ops.contract import arithmetic
from tritonln.ops.recurrent.lstm_aten import (
    INPUT_ONLY,
    joined,
    norm_backward,
    norms,
    sigmoid_backward,
    tanh_backward,
)
from tritonln.ops.recurrent.shared import GRUSteps, before, gone_on_from, order, running, states, widths


def forward(
    x_rz: Tensor,
    x_n: Tensor,
    h0: Tensor,
    s: GRUSteps,
    save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """As gru_steps.forward."""
    weight_hh, bias, gain, lengths, starts, reverse, group, summed, inner, eps = s
    (T, B, _), H, dtype = x_rz.shape, h0.shape[-1], arithmetic(x_rz.dtype)
    state = states(T, h0, dtype, reverse)
    h = state if x_rz.dtype == dtype else states(T, h0, x_rz.dtype, reverse)
    p = x_rz if summed else x_rz.new_empty((T if save else 1, B, 3 * H))
    groups = widths(3, group, H)
    w_hh, b_hh = gain.to(dtype), None if bias is None else bias.to(dtype)
    b_n = None if b_hh is None or summed else b_hh[-H:]
    b_rz, b_ln_n = (None, None) if b_hh is None else (b_hh[: 2 * H], b_hh[2 * H : 3 * H])
    runs = None if lengths is None else running(T, lengths)
    moments: list[tuple[Tensor, Tensor]] = []
    weight_hh = weight_hh.t()
    inputs = (state, h, p.expand(T, -1, -1), x_rz[..., : 2 * H], x_n)
    old, hs, ps, xs_rz, xs_n = (each.unbind(0) for each in inputs)
    initial = T if reverse else 0
    for t, previous, current in order(T, reverse):
        h_before, state_before = (before(slots, starts, previous, initial) for slots in (hs, old))
        p_t = ps[t].addmm_(h_before, weight_hh) if summed else torch.mm(h_before, weight_hh, out=ps[t])
        if inner:
            rz, m = xs_rz[t].add_(p_t[:, : 2 * H]).to(dtype), p_t[:, 2 * H :].to(dtype)
            rz, found = norms(rz, groups[:-1], w_hh[: 2 * H], b_rz, eps)
        else:
            gates, found = norms(p_t.to(dtype), groups, w_hh, b_hh if summed else None, eps)
            rz, m = gates.split_with_sizes((2 * H, H), 1)
        moments += found
        if not summed:
            m = m if b_n is None else m + b_n
        if not summed and not inner:
            rz += xs_rz[t]
        r, z = rz.sigmoid_().split_with_sizes((H, H), 1)
        if summed:
            n = torch.mul(r, m).tanh_()
        elif inner:
            s_n = xs_n[t].copy_(torch.addcmul(xs_n[t], r, m)).to(dtype)
            n, found = norms(s_n, groups[-1:], w_hh[2 * H :], b_ln_n, eps)
            moments += found
            n.tanh_()
        else:
            n = torch.addcmul(xs_n[t], r, m).tanh_()
        new_h = torch.lerp(n, state_before, z, out=old[current])
        if runs is not None:
            torch.where(runs[t], new_h, old[previous], out=new_h)
        if h is not state:
            hs[current].copy_(new_h)
    if not save:
        return h, None, None, None
    return h, None if h is state else state, None if summed else p, joined(moments, reverse, T)


def backward(
    dy: Tensor | None,
    x_rz: Tensor,
    x_n: Tensor,
    p: Tensor | None,
    stats: Tensor,
    state: Tensor,
    s: GRUSteps,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As gru_steps.backward, but the norms are computed again, and with them the statistics."""
    if s.inner and p is not None:
        return backward_inner(dy, x_rz, p, stats, state, s)
    weight_hh, bias, gain, lengths, starts, reverse, group, summed, _, eps = s
    (T, B, _), H, dtype = x_rz.shape, state.shape[-1], arithmetic(x_rz.dtype)
    groups = widths(3, group, H)
    p = x_rz if p is None else p
    w_hh, b_hh = gain.to(dtype), None if bias is None else bias.to(dtype)
    gates, moments = norms(p.to(dtype), groups, w_hh, b_hh if summed else None, eps)
    rz, m = gates.split((2 * H, H), -1)
    if summed:
        r, z = rz.sigmoid_().split((H,) * 2, -1)
        n = torch.mul(r, m).tanh_()
    else:
        m = m if b_hh is None else m + b_hh[2 * H :]
        r, z = rz.add_(x_rz[..., : 2 * H]).sigmoid_().split((H,) * 2, -1)
        n = torch.addcmul(x_n.to(dtype), r, m).tanh_()

    # What dh is multiplied with in the gradient of each gate before its activation, and of m.  The products take its
    # place: new memory costs time.
    dgates = torch.empty((T, B, 3 * H), dtype=dtype, device=p.device)
    d_r, d_z, d_n = dgates.split((H,) * 3, -1)
    tanh_backward(1 - z, n, grad_input=d_n)
    sigmoid_backward(d_n * m, r, grad_input=d_r)
    sigmoid_backward(gone_on_from(state, starts, reverse) - n, z, grad_input=d_z)
    dm = d_n * r
    if lengths is not None:
        runs = running(T, lengths)
        dgates *= runs
        dm *= runs
        z = torch.where(runs, z, 1)

    dp = torch.empty_like(p)
    dh, dh0 = torch.zeros_like(state[0]), torch.zeros_like(state[0])
    dys = None if dy is None else dy.unbind(0)
    products = list(zip(*(each.unbind(0) for each in (d_r, d_z, d_n, dm))))
    d_rz, zs, dps = (each.unbind(0) for each in (dgates[..., : 2 * H], z, dp))
    rows = (part.contiguous() for part in p.to(dtype).split(groups, -1))
    normalized = [
        (N, w, row.unbind(0), mean.unbind(0), rstd.unbind(0))
        for N, w, row, (mean, rstd) in zip(groups, w_hh.split(groups), rows, moments)
    ]
    for t, previous, current in reversed(order(T, reverse)):
        if dys is not None:
            dh += dys[current]
        for product in products[t]:
            product.mul_(dh)
        dq = torch.cat((d_rz[t], products[t][3]), 1).split_with_sizes(groups, 1)
        parts = [
            norm_backward(d, row[t], (N,), mean[t], rstd[t], w, None, INPUT_ONLY)[0]
            for d, (N, w, row, mean, rstd) in zip(dq, normalized)
        ]
        torch.cat(parts, 1, out=dps[t])
        dh_t, dh = dh, torch.addcmul((dps[t] @ weight_hh).to(dtype), dh, zs[t])
        if starts is not None:
            anew = starts[previous, :, None]
            dh0 += dh_t * zs[t] * anew
            dh = torch.where(anew, 0, dh)
    return dgates.to(p.dtype), dm.to(p.dtype), dp, dh + dh0


def backward_inner(
    dy: Tensor | None, sums: Tensor, p: Tensor, stats: Tensor, state: Tensor, s: GRUSteps
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """backward where the reset is inside of the norm of the candidate's sum."""
    weight_hh, bias, gain, lengths, starts, reverse, group, *_, eps = s
    (T, B, _), H, dtype = sums.shape, state.shape[-1], arithmetic(sums.dtype)
    groups = widths(3, group, H)
    w_hh, b_hh = gain.to(dtype), None if bias is None else bias.to(dtype)
    gates, moments = norms(sums.to(dtype), groups, w_hh, None if b_hh is None else b_hh[: 3 * H], eps)
    r, z = gates[..., : 2 * H].sigmoid().split((H, H), -1)
    n, m = gates[..., 2 * H :].tanh(), p[..., 2 * H :].to(dtype)
    m = m if b_hh is None else m + b_hh[3 * H :]

    # As above; of r it is what the gradient of the candidate's sum is multiplied with.
    factors = torch.empty((T, B, 3 * H), dtype=dtype, device=p.device)
    d_r, d_z, d_n = factors.split((H,) * 3, -1)
    sigmoid_backward(m, r, grad_input=d_r)
    sigmoid_backward(gone_on_from(state, starts, reverse) - n, z, grad_input=d_z)
    tanh_backward(1 - z, n, grad_input=d_n)
    if lengths is not None:
        runs = running(T, lengths)
        factors *= runs
        z = torch.where(runs, z, 1)

    dp, ds_n = torch.empty_like(p), p.new_empty((T, B, H))
    dh, dh0 = torch.zeros_like(state[0]), torch.zeros_like(state[0])
    normalized = [
        (row, (N,), mean, rstd, w)
        for N, w, row, (mean, rstd) in zip(groups, w_hh.split(groups), sums.to(dtype).split(groups, -1), moments)
    ]

    def through_norm(t: int, k: int, d: Tensor) -> Tensor:
        row, N, mean, rstd, w = normalized[k]
        dx: Tensor = norm_backward(d, row[t].contiguous(), N, mean[t], rstd[t], w, None, INPUT_ONLY)[0]
        return dx

    for t, previous, current in reversed(order(T, reverse)):
        if dy is not None:
            dh += dy[current]
        d_z[t].mul_(dh)
        d_n[t].mul_(dh)
        of_n = through_norm(t, -1, d_n[t])
        d_r[t].mul_(of_n)
        of_rz = [through_norm(t, k, d) for k, d in enumerate(factors[t, :, : 2 * H].split(groups[:-1], -1))]
        ds_n[t] = of_n
        torch.cat([*of_rz, of_n * r[t]], 1, out=dp[t])
        dh_t, dh = dh, torch.addcmul((dp[t] @ weight_hh).to(dtype), dh, z[t])
        if starts is not None:
            anew = starts[previous, :, None]
            dh0 += dh_t * z[t] * anew
            dh = torch.where(anew, 0, dh)
    return factors.to(p.dtype), ds_n, dp, dh + dh0
