"""The time steps of layer_norm_gru in ATen, for tensors that no Triton kernel serves.

Only what depends on the step before is done step by step; the backward computes all gates and all
factors that they contribute to the gradients at once, before it walks back through time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonln.ops.contract import arithmetic
from tritonln.ops.recurrent import GRUSteps, order, running, states

norm_backward = torch.ops.aten.native_layer_norm_backward


def forward(
    x_rz: Tensor,
    x_n: Tensor,
    h0: Tensor,
    s: GRUSteps,
    save: bool,
) -> tuple[Tensor, Tensor | None, Tensor | None, Tensor | None, Tensor | None]:
    """As layer_norm_gru_triton.forward."""
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
    for t, previous, current in order(T, reverse):
        p_t = torch.mm(h[previous], weight_hh, out=p[t if save else 0]).to(dtype).split(widths, 1)
        rz, mean, rstd = torch.native_layer_norm(p_t[0], widths[:1], w_hh[0], None, eps)
        found = [mean, rstd]
        if joint:
            rz, m = rz.split((2 * H, H), 1)
            m = m if b_n is None else m + b_n
        else:
            m, *more = torch.native_layer_norm(p_t[1], (H,), w_hh[1], b_n, eps)
            found += more
        for kept, new in zip(moments, found):
            kept.append(new)
        r, z = (rz + x_rz[t, :, : 2 * H]).sigmoid_().split(H, 1)
        n = torch.addcmul(x_n[t], r, m).tanh_()
        new_h = torch.lerp(n, state[previous], z)
        if runs is not None:
            new_h = torch.where(runs[t], new_h, state[previous])
        state[current] = new_h
        if h is not state:
            h[current] = new_h
    if not save:
        return h, None, None, None, None
    steps = slice(None, None, -1) if reverse else slice(None)
    stats = [torch.cat([torch.stack(pair[steps]) for pair in moments[k : k + 2]], -1) for k in (0, 2) if moments[k]]
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
    """As layer_norm_gru_triton.backward."""
    weight_hh, bias_hh, ln_hh_weight, lengths, reverse, joint, _ = s
    (T, B, _), H, dtype = x_rz.shape, state.shape[-1], arithmetic(x_rz.dtype)
    before = slice(1, None) if reverse else slice(None, -1)
    widths = (3 * H,) if joint else (2 * H, H)
    rows = [part.contiguous() for part in p.to(dtype).split(widths, -1)]
    # ATen reads statistics by their addresses.
    stats = [[part.contiguous() for part in pair.split(1, -1)] for pair in (stats_rz, stats_n) if pair is not None]
    w_hh = ln_hh_weight.to(dtype).split(widths)
    hats = [(row - mean) * rstd * w for row, (mean, rstd), w in zip(rows, stats, w_hh)]
    r, z, m = torch.cat(hats, -1).split(H, -1)
    m = m if bias_hh is None else m + bias_hh[2 * H :]
    r, z = (r + x_rz[..., :H]).sigmoid_(), (z + x_rz[..., H : 2 * H]).sigmoid_()
    n = torch.addcmul(x_n.to(dtype), r, m).tanh_()
    # What dh is multiplied with in the gradient of each gate before its activation, and of m.
    to_n = (1 - z) * (1 - n * n)
    to_r, to_z, to_m = to_n * m * r * (1 - r), (state[before] - n) * z * (1 - z), to_n * r
    if lengths is not None:
        runs = running(T, lengths)
        to_n, to_r, to_z, to_m = (f * runs for f in (to_n, to_r, to_z, to_m))
        z = torch.where(runs, z, 1)
    factors = [torch.stack([to_r, to_z, to_m], 2)] if joint else [torch.stack([to_r, to_z], 2), to_m.unsqueeze(2)]

    dp = torch.empty((T, B, 3 * H), dtype=dtype, device=p.device)
    dh_all = torch.empty_like(to_n)
    dh = torch.zeros_like(state[0])
    for t, _, current in reversed(order(T, reverse)):
        if dy is not None:
            dh = dh + dy[current]
        dh_all[t] = dh
        parts = [
            norm_backward(
                (f[t] * dh.unsqueeze(1)).flatten(1), row[t], (N,), mean[t], rstd[t], w, None, (True, False, False)
            )[0]
            for f, row, (mean, rstd), w, N in zip(factors, rows, stats, w_hh, widths)
        ]
        dp_t = torch.cat(parts, 1, out=dp[t]).to(weight_hh.dtype)
        dh = torch.addcmul((dp_t @ weight_hh).to(dtype), dh, z[t])
    dgates = (torch.stack([to_r, to_z, to_n], 2) * dh_all.unsqueeze(2)).flatten(2)
    return dgates.to(p.dtype), (to_m * dh_all).to(p.dtype), dp.to(p.dtype), dh
