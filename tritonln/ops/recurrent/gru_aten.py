"""The time steps of layer_norm_gru in ATen, for tensors that no Triton kernel serves.

Only what depends on the step before is done step by step; the backward computes all gates and all
factors that they contribute to the gradients at once, before it walks back through time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonln.ops.contract import arithmetic
from tritonln.ops.recurrent.lstm_aten import INPUT_ONLY, norm_backward, sigmoid_backward, tanh_backward
from tritonln.ops.recurrent.shared import GRUSteps, order, running, states


def forward(
    x_rz: Tensor,
    x_n: Tensor,
    h0: Tensor,
    s: GRUSteps,
    save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """As gru_steps.forward."""
    weight_hh, bias_hh, ln_hh_weight, lengths, reverse, joint, eps = s
    (T, B, _), H, dtype = x_rz.shape, h0.shape[-1], arithmetic(x_rz.dtype)
    state = states(T, h0, dtype, reverse)
    h = state if x_rz.dtype == dtype else states(T, h0, x_rz.dtype, reverse)
    p = x_rz.new_empty((T if save else 1, B, 3 * H))
    widths = (3 * H,) if joint else (2 * H, H)
    w_hh = ln_hh_weight.to(dtype).split(widths)
    b_n = None if bias_hh is None else bias_hh[2 * H :].to(dtype)
    runs = None if lengths is None else running(T, lengths)
    moments: list[list[Tensor]] = [[], [], [], []]
    weight_hh = weight_hh.t()
    inputs = (state, h, p.expand(T, -1, -1), x_rz[..., : 2 * H], x_n)
    old, hs, ps, xs_rz, xs_n = (each.unbind(0) for each in inputs)
    for t, previous, current in order(T, reverse):
        p_t = torch.mm(hs[previous], weight_hh, out=ps[t]).to(dtype).split_with_sizes(widths, 1)
        rz, mean, rstd = torch.native_layer_norm(p_t[0], widths[:1], w_hh[0], None, eps)
        found = [mean, rstd]
        if joint:
            rz, m = rz.split_with_sizes((2 * H, H), 1)
            m = m if b_n is None else m + b_n
        else:
            m, *more = torch.native_layer_norm(p_t[1], (H,), w_hh[1], b_n, eps)
            found += more
        for kept, new in zip(moments, found):
            kept.append(new)
        r, z = rz.add_(xs_rz[t]).sigmoid_().split_with_sizes((H, H), 1)
        n = torch.addcmul(xs_n[t], r, m).tanh_()
        new_h = torch.lerp(n, old[previous], z, out=old[current])
        if runs is not None:
            torch.where(runs[t], new_h, old[previous], out=new_h)
        if h is not state:
            hs[current].copy_(new_h)
    if not save:
        return h, None, None, None, None
    steps = slice(None, None, -1) if reverse else slice(None)
    stats = [
        torch.cat([torch.cat(part[steps]) for part in moments[k : k + 2]], -1).view(T, B, 2)
        for k in (0, 2)
        if moments[k]
    ]
    return h, None if h is state else state, p, stats[0], None if joint else stats[1]


def backward(
    dy: Tensor | None,
    x_rz: Tensor,
    x_n: Tensor,
    p: Tensor,
    stats_rz: Tensor,
    stats_n: Tensor | None,
    state: Tensor,
    s: GRUSteps,
) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    """As gru_steps.backward, but the norms are computed again, and with them the statistics."""
    weight_hh, bias_hh, ln_hh_weight, lengths, reverse, joint, eps = s
    (T, B, _), H, dtype = x_rz.shape, state.shape[-1], arithmetic(x_rz.dtype)
    before = slice(1, None) if reverse else slice(None, -1)
    widths = (3 * H,) if joint else (2 * H, H)
    rows = [part.contiguous() for part in p.to(dtype).split(widths, -1)]
    w_hh = ln_hh_weight.to(dtype).split(widths)
    norms = [torch.native_layer_norm(row, (N,), w, None, eps) for row, N, w in zip(rows, widths, w_hh)]
    rz, m = norms[0][0].split((2 * H, H), -1) if joint else (norms[0][0], norms[1][0])
    m = m if bias_hh is None else m + bias_hh[2 * H :]
    r, z = rz.add_(x_rz[..., : 2 * H]).sigmoid_().split((H,) * 2, -1)
    n = torch.addcmul(x_n.to(dtype), r, m).tanh_()

    # What dh is multiplied with in the gradient of each gate before its activation, and of m.  The products take its
    # place: new memory costs time.
    dgates = torch.empty((T, B, 3 * H), dtype=dtype, device=p.device)
    d_r, d_z, d_n = dgates.split((H,) * 3, -1)
    tanh_backward(1 - z, n, grad_input=d_n)
    sigmoid_backward(d_n * m, r, grad_input=d_r)
    sigmoid_backward(state[before] - n, z, grad_input=d_z)
    dm = d_n * r
    if lengths is not None:
        runs = running(T, lengths)
        dgates *= runs
        dm *= runs
        z = torch.where(runs, z, 1)

    dp = torch.empty_like(p)
    dh = torch.zeros_like(state[0])
    dys = None if dy is None else dy.unbind(0)
    products = list(zip(*(each.unbind(0) for each in (d_r, d_z, d_n, dm))))
    d_rz, zs, dps = (each.unbind(0) for each in (dgates[..., : 2 * H], z, dp))
    groups = [
        (N, w, row.unbind(0), mean.unbind(0), rstd.unbind(0))
        for N, w, row, (_, mean, rstd) in zip(widths, w_hh, rows, norms)
    ]
    for t, _, current in reversed(order(T, reverse)):
        if dys is not None:
            dh += dys[current]
        for product in products[t]:
            product.mul_(dh)
        dq = d_rz[t], products[t][3]
        parts = [
            norm_backward(d, row[t], (N,), mean[t], rstd[t], w, None, INPUT_ONLY)[0]
            for d, (N, w, row, mean, rstd) in zip((torch.cat(dq, 1),) if joint else dq, groups)
        ]
        torch.cat(parts, 1, out=dps[t])
        dh = torch.addcmul((dps[t] @ weight_hh).to(dtype), dh, zs[t])
    return dgates.to(p.dtype), dm.to(p.dtype), dp, dh
