"""The time steps of layer_norm_lstm in ATen, for tensors that no Triton kernel serves.

Only what depends on the step before is done step by step, in as few operators as there can be.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonln.ops.contract import arithmetic
from tritonln.ops.recurrent.shared import LSTMSteps, order, running, states

norm_backward = torch.ops.aten.native_layer_norm_backward.default
sigmoid_backward = torch.ops.aten.sigmoid_backward.grad_input
tanh_backward = torch.ops.aten.tanh_backward.grad_input
INPUT_ONLY = (True, False, False)


def forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    s: LSTMSteps,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """As lstm_steps.forward, but the gates take the place of x, activated: the backward wants them."""
    weight_hh, ln_hh_weight, ln_c_weight, ln_c_bias, weight_hr, lengths, reverse, carry, eps = s
    (T, B, _), H, dtype = x.shape, c0.shape[-1], arithmetic(x.dtype)
    h, c = states(T, h0, x.dtype, reverse), states(T, c0, dtype, reverse)
    p = x.new_empty((T if save else 1, B, 4 * H))
    m = None if weight_hr is None else x.new_zeros((T + 1, B, H))
    weight_hh, w_hr = weight_hh.t(), None if weight_hr is None else weight_hr.t()
    w_hh, w_c, b_c = (None if w is None else w.to(dtype) for w in (ln_hh_weight, ln_c_weight, ln_c_bias))
    runs = None if lengths is None else running(T, lengths)
    moments: list[tuple[Tensor, Tensor]] = []
    gates = x if x.dtype == dtype else torch.empty((1, B, 4 * H), dtype=dtype, device=x.device).expand(T, -1, -1)
    hs, cs, ps, rows = (each.unbind(0) for each in (h, c, p.expand(T, -1, -1), gates))
    xs = rows if gates is x else x.unbind(0)
    i, f, g, o = (part.unbind(0) for part in gates.split((H,) * 4, -1))
    i_and_f = gates[..., : 2 * H].unbind(0)
    for t, previous, current in order(T, reverse):
        p_t = torch.mm(hs[previous], weight_hh, out=ps[t])
        if gates is not x:
            p_t = p_t.to(dtype)
        if w_hh is not None:
            p_t, mean, rstd = torch.native_layer_norm(p_t, (4 * H,), w_hh, None, eps)
            moments.append((mean, rstd))
        torch.add(xs[t], p_t, out=rows[t])
        i_and_f[t].sigmoid_()
        g[t].tanh_()
        o[t].sigmoid_()
        c_t = torch.mul(f[t], cs[previous], out=cs[current]).addcmul_(i[t], g[t])
        n = c_t if w_c is None else torch.native_layer_norm(c_t, (H,), w_c, b_c, eps)[0]
        h_t = torch.mul(o[t], n.tanh(), out=hs[current] if m is None else m[current])
        if gates is not x:
            xs[t].copy_(rows[t])
        if carry:
            c_t.copy_(n)
        if w_hr is not None:
            torch.mm(h_t, w_hr, out=hs[current])
        if runs is not None:
            torch.where(runs[t], c_t, cs[previous], out=c_t)
            torch.where(runs[t], hs[current], hs[previous], out=hs[current])
    return h, c, p if save else None, joined(moments, reverse) if save else None, m


def backward(
    dy: Tensor | None,
    dcells: Tensor | None,
    x: Tensor,
    p: Tensor,
    stats: Tensor | None,
    h: Tensor,
    c: Tensor,
    s: LSTMSteps,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """As lstm_steps.backward."""
    weight_hh, ln_hh_weight, ln_c_weight, ln_c_bias, weight_hr, lengths, reverse, carry, eps = s
    (T, B, _), H, dtype = x.shape, c.shape[-1], arithmetic(x.dtype)
    w_hh, w_c, b_c = (None if w is None else w.to(dtype) for w in (ln_hh_weight, ln_c_weight, ln_c_bias))
    runs = None if lengths is None else running(T, lengths)
    before, after = (slice(1, None), slice(None, -1)) if reverse else (slice(None, -1), slice(1, None))
    i, f, g, o = x.to(dtype).split((H,) * 4, -1)
    raw = n = c[after]
    if runs is not None or carry:
        raw = n = torch.addcmul(f * c[before], i, g)
    if w_c is not None:
        n, mean_c, rstd_c = torch.native_layer_norm(raw, (H,), w_c, b_c, eps)
        means_c, rstds_c = mean_c.unbind(0), rstd_c.unbind(0)
    tanh_n = n.tanh()

    dns, dgates = torch.empty_like(tanh_n), torch.empty((T, B, 4 * H), dtype=dtype, device=x.device)
    dp = torch.empty_like(x) if w_hh is not None or x.dtype != dtype else dgates
    if w_hh is not None and stats is not None:
        ps = p.to(dtype).unbind(0)
        means, rstds = (part.contiguous().unbind(0) for part in stats.view(T, B, 2).split(1, -1))
    dh_total = None if weight_hr is None else x.new_empty((T, *h.shape[1:]))
    dh, dc = torch.zeros_like(h[0]), torch.zeros_like(c[0])
    kept = None
    i, f, g, o, cs, raws, tanhs = (each.unbind(0) for each in (i, f, g, o, c[before], raw, tanh_n))
    dn, dps, rows = dns.unbind(0), dp.unbind(0), dgates.unbind(0)
    d_i, d_f, d_g, d_o = (part.unbind(0) for part in dgates.split((H,) * 4, -1))
    dys, dcs = (None if each is None else each.unbind(0) for each in (dy, dcells))
    for t, _, current in reversed(order(T, reverse)):
        if dys is not None:
            dh += dys[current]
        if kept is not None:
            dh += kept
        if dcs is not None:
            dc += dcs[current]
        if runs is not None:
            kept = torch.where(runs[t], 0, dh)
            dh -= kept
        if weight_hr is not None and dh_total is not None:
            dh_total[t] = dh
            dh = torch.mm(dh, weight_hr)
        dc_here = dc if runs is None else dc * runs[t]
        d_raw = tanh_backward(torch.mul(dh, o[t], out=dn[t]), tanhs[t], grad_input=dn[t])
        if carry:
            d_raw += dc_here
        if w_c is not None:
            d_raw = norm_backward(d_raw, raws[t], (H,), means_c[t], rstds_c[t], w_c, b_c, INPUT_ONLY)[0]
        if not carry:
            d_raw += dc_here
        sigmoid_backward(torch.mul(d_raw, g[t], out=d_i[t]), i[t], grad_input=d_i[t])
        sigmoid_backward(torch.mul(d_raw, cs[t], out=d_f[t]), f[t], grad_input=d_f[t])
        tanh_backward(torch.mul(d_raw, i[t], out=d_g[t]), g[t], grad_input=d_g[t])
        sigmoid_backward(torch.mul(dh, tanhs[t], out=d_o[t]), o[t], grad_input=d_o[t])
        dp_t = rows[t]
        if w_hh is not None:
            dp_t = norm_backward(dp_t, ps[t], (4 * H,), means[t], rstds[t], w_hh, None, INPUT_ONLY)[0]
        if dp is not dgates:
            dps[t].copy_(dp_t)
        dc = d_raw * f[t] if runs is None else torch.where(runs[t], d_raw * f[t], dc)
        dh = torch.mm(dps[t], weight_hh)
    dw_c = db_c = None
    if w_c is not None:
        _, dw_c, db_c = norm_backward(dns, raw, (H,), mean_c, rstd_c, w_c, b_c, (False, True, b_c is not None))
    return dgates.to(x.dtype), dp, dh if kept is None else dh + kept, dc, dw_c, db_c, dh_total


def joined(moments: list[tuple[Tensor, Tensor]], reverse: bool) -> Tensor | None:
    """(T, B, 2) from the (mean, rstd) of each step in the order they were walked."""
    if not moments:
        return None
    if reverse:
        moments = moments[::-1]
    means, rstds = zip(*moments)
    return torch.cat([torch.cat(means), torch.cat(rstds)], -1).view(len(means), -1, 2)
