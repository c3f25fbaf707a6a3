"""The time steps of layer_norm_lstm in ATen, for tensors that no Triton kernel serves.

Only what depends on the step before is done step by step; the backward computes all gates and all
factors that they contribute to the gradients at once, before it walks back through time.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonln.ops.contract import stats_dtype
from tritonln.ops.recurrent import order, running, states

norm_backward = torch.ops.aten.native_layer_norm_backward


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
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """As layer_norm_lstm_triton.forward."""
    (T, B, _), H, dtype = x.shape, c0.shape[-1], stats_dtype(x)
    h, c = states(T, h0, x.dtype, reverse), states(T, c0, dtype, reverse)
    p = x.new_empty((T if save else 1, B, 4 * H))
    m = None if weight_hr is None else x.new_zeros((T + 1, B, H))
    weight_hh, w_hr = weight_hh.t(), None if weight_hr is None else weight_hr.t()
    w_hh, w_c, b_c = (None if w is None else w.to(dtype) for w in (ln_hh_weight, ln_c_weight, ln_c_bias))
    runs = None if lengths is None else running(T, lengths)
    moments: list[tuple[Tensor, Tensor]] = []
    for (t, previous, current), x_t in zip(order(T, reverse), ordered(x, reverse)):
        p_t = torch.mm(h[previous], weight_hh, out=p[t if save else 0])
        if w_hh is None:
            gates = p_t + x_t if p_t.dtype == dtype else p_t.to(dtype) + x_t
        else:
            gates, mean, rstd = torch.native_layer_norm(p_t.to(dtype), (4 * H,), w_hh, None, eps)
            gates += x_t
            moments.append((mean, rstd))
        i, f, g, o = gates.split(H, 1)
        gates[:, : 2 * H].sigmoid_()
        c_t = torch.mul(f, c[previous], out=c[current]).addcmul_(i, g.tanh_())
        n = c_t if w_c is None else torch.native_layer_norm(c_t, (H,), w_c, b_c, eps)[0]
        h_t = torch.mul(o.sigmoid_(), n.tanh(), out=h[current] if m is None else m[current])
        if carry:
            c_t.copy_(n)
        if w_hr is not None:
            torch.mm(h_t, w_hr, out=h[current])
        if runs is not None:
            torch.where(runs[t], c_t, c[previous], out=c_t)
            torch.where(runs[t], h[current], h[previous], out=h[current])
    return h, c, p if save else None, joined(moments, reverse) if save else None, m


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
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """As layer_norm_lstm_triton.backward."""
    (T, B, _), H, dtype = x.shape, c.shape[-1], stats_dtype(x)
    before = slice(1, None) if reverse else slice(None, -1)
    w_hh, w_c, b_c = (None if w is None else w.to(dtype) for w in (ln_hh_weight, ln_c_weight, ln_c_bias))
    p = p.to(dtype)
    gates = p + x
    if w_hh is not None:
        assert stats is not None
        mean, rstd = stats.view(T, B, 2).split(1, -1)
        mean, rstd = mean.contiguous(), rstd.contiguous()  # ATen reads them by their addresses
        gates = torch.addcmul(x.to(dtype), (p - mean) * rstd, w_hh)
    i, f, g, o = gates.split(H, -1)
    i, f, g, o = i.sigmoid(), f.sigmoid(), g.tanh(), o.sigmoid()
    raw = torch.addcmul(f * c[before], i, g)
    tanh_n = raw
    if w_c is not None:
        tanh_n, mean_c, rstd_c = torch.native_layer_norm(raw, (H,), w_c, b_c, eps)
    tanh_n = tanh_n.tanh()
    # What dh is multiplied with in dn and in do, and d_raw in di, df and dg.
    to_n = o * (1 - tanh_n * tanh_n)
    to_o = tanh_n * o * (1 - o)
    to_ifg = torch.stack([g * i * (1 - i), c[before] * f * (1 - f), i * (1 - g * g)], 2)
    runs = None if lengths is None else running(T, lengths)
    if runs is not None:
        to_n, to_o, to_ifg = to_n * runs, to_o * runs, to_ifg * runs[..., None]

    dgates = torch.empty((T, B, 4, H), dtype=dtype, device=x.device)
    dp = dgates if w_hh is None else torch.empty_like(dgates)
    dns = torch.empty_like(raw) if w_c is not None else None
    dh_total = None if weight_hr is None else x.new_empty((T, *h.shape[1:]))
    dh, dc = torch.zeros_like(h[0]), torch.zeros_like(c[0])
    kept = None
    for t, _, current in reversed(order(T, reverse)):
        if dy is not None:
            dh = dh + dy[current]
        if kept is not None:
            dh = dh + kept
        if dcells is not None:
            dc = dc + dcells[current]
        if runs is not None:
            kept = torch.where(runs[t], 0, dh)
        if weight_hr is not None:
            assert dh_total is not None
            dh_total[t] = dh if kept is None else dh - kept
            dh = dh_total[t] @ weight_hr
        dh = dh.to(dtype)
        dn = dh * to_n[t]
        if carry:
            dn += dc if runs is None else dc * runs[t]
        d_raw = dn
        if w_c is not None:
            assert dns is not None
            dns[t] = dn
            d_raw = norm_backward(dn, raw[t], (H,), mean_c[t], rstd_c[t], w_c, b_c, (True, False, False))[0]
        if not carry:
            d_raw = d_raw + dc
        torch.mul(to_ifg[t], d_raw.unsqueeze(1), out=dgates[t, :, :3])
        torch.mul(to_o[t], dh, out=dgates[t, :, 3])
        if w_hh is not None:
            row = dgates[t].view(B, 4 * H)
            dp[t] = norm_backward(row, p[t], (4 * H,), mean[t], rstd[t], w_hh, None, (True, False, False))[0].view(
                B, 4, H
            )
        dc = d_raw * f[t] if runs is None else torch.where(runs[t], d_raw * f[t], dc)
        dh = dp[t].view(B, 4 * H).to(weight_hh.dtype) @ weight_hh
    dw_c = db_c = None
    if w_c is not None:
        _, dw_c, db_c = norm_backward(dns, raw, (H,), mean_c, rstd_c, w_c, b_c, (False, True, b_c is not None))
    dgates, dp = (d.view(T, B, 4 * H).to(x.dtype) for d in (dgates, dp))
    return dgates, dp, dh if kept is None else dh + kept, dc, dw_c, db_c, dh_total


def ordered(x: Tensor, reverse: bool) -> list[Tensor]:
    steps = list(x.unbind(0))
    return steps[::-1] if reverse else steps


def joined(moments: list[tuple[Tensor, Tensor]], reverse: bool) -> Tensor | None:
    """(T, B, 2) from the (mean, rstd) of each step in the order they were walked."""
    if not moments:
        return None
    if reverse:
        moments = moments[::-1]
    means, rstds = zip(*moments)
    return torch.cat([torch.stack(means), torch.stack(rstds)], -1)
