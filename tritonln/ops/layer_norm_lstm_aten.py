"""The time steps of layer_norm_lstm in ATen, for tensors that no Triton kernel serves.

Only what depends on the step before is done step by step, in as few operators as there can be.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor

from tritonln.ops.contract import arithmetic
from tritonln.ops.recurrent import LSTMSteps, order, running, states

norm_backward = torch.ops.aten.native_layer_norm_backward
INPUT_ONLY = (True, False, False)


def forward(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    s: LSTMSteps,
    save: bool,
) -> tuple[Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """As layer_norm_lstm_triton.forward, but the gates take the place of x, activated: the backward wants them."""
    weight_hh, ln_hh_weight, ln_c_weight, ln_c_bias, weight_hr, lengths, reverse, carry, eps = s
    (T, B, _), H, dtype = x.shape, c0.shape[-1], arithmetic(x.dtype)
    h, c = states(T, h0, x.dtype, reverse), states(T, c0, dtype, reverse)
    p = x.new_empty((T if save else 1, B, 4 * H))
    m = None if weight_hr is None else x.new_zeros((T + 1, B, H))
    weight_hh, w_hr = weight_hh.t(), None if weight_hr is None else weight_hr.t()
    w_hh, w_c, b_c = (None if w is None else w.to(dtype) for w in (ln_hh_weight, ln_c_weight, ln_c_bias))
    runs = None if lengths is None else running(T, lengths)
    moments: list[tuple[Tensor, Tensor]] = []
    hs, cs, xs, ps = h.unbind(0), c.unbind(0), x.unbind(0), p.unbind(0)
    for t, previous, current in order(T, reverse):
        p_t = torch.mm(hs[previous], weight_hh, out=ps[t if save else 0]).to(dtype)
        if w_hh is not None:
            p_t, mean, rstd = torch.native_layer_norm(p_t, (4 * H,), w_hh, None, eps)
            moments.append((mean, rstd))
        gates = xs[t].add_(p_t) if x.dtype == dtype else p_t + xs[t]
        i, f, g, o = gates.split(H, 1)
        gates.narrow(1, 0, 2 * H).sigmoid_()
        c_t = torch.mul(f, cs[previous], out=cs[current]).addcmul_(i, g.tanh_())
        n = c_t if w_c is None else torch.native_layer_norm(c_t, (H,), w_c, b_c, eps)[0]
        h_t = torch.mul(o.sigmoid_(), n.tanh(), out=hs[current] if m is None else m[current])
        if gates is not xs[t]:
            xs[t].copy_(gates)
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
    """As layer_norm_lstm_triton.backward."""
    weight_hh, ln_hh_weight, ln_c_weight, ln_c_bias, weight_hr, lengths, reverse, carry, eps = s
    (T, B, _), H, dtype = x.shape, c.shape[-1], arithmetic(x.dtype)
    w_hh, w_c, b_c = (None if w is None else w.to(dtype) for w in (ln_hh_weight, ln_c_weight, ln_c_bias))
    mean = rstd = None
    if w_hh is not None and stats is not None:
        mean, rstd = (part.contiguous().unbind(0) for part in stats.view(T, B, 2).split(1, -1))
    runs = None if lengths is None else running(T, lengths)
    before = slice(1, None) if reverse else slice(None, -1)
    gates = x.to(dtype)
    i, f, g, o = gates.split(H, -1)
    raw = torch.addcmul(f * c[before], i, g)
    n = raw
    if w_c is not None:
        n, mean_c, rstd_c = torch.native_layer_norm(raw, (H,), w_c, b_c, eps)
    tanh_n = n.tanh()
    to_n = o * (1 - tanh_n * tanh_n)  # what dh is multiplied with in dn
    factors = torch.addcmul(gates, gates, gates, value=-1)  # and dh or d_raw in dgates; sigmoid' = s - s^2
    torch.mul(factors[..., :H], g, out=factors[..., :H])
    torch.mul(factors[..., H : 2 * H], c[before], out=factors[..., H : 2 * H])
    torch.addcmul(i, i * g, g, value=-1, out=factors[..., 2 * H : 3 * H])
    torch.mul(factors[..., 3 * H :], tanh_n, out=factors[..., 3 * H :])

    dgates = torch.empty((T, B, 4 * H), dtype=dtype, device=x.device)
    dp = dgates if w_hh is None else torch.empty_like(dgates)
    dns = torch.empty_like(raw)
    dh_total = None if weight_hr is None else x.new_empty((T, *h.shape[1:]))
    dh, dc = torch.zeros_like(h[0]), torch.zeros_like(c[0])
    kept = None
    rows = zip(*(t.unbind(0) for t in (f, raw, to_n, factors, dgates, dp, dns, p)))
    steps = list(zip(order(T, reverse), ordered(rows, reverse)))
    for (t, _, current), (f_t, raw_t, to_n_t, factors_t, dgates_t, dp_t, dn, p_t) in reversed(steps):
        if dy is not None:
            dh = dh + dy[current]
        if kept is not None:
            dh = dh + kept
        if dcells is not None:
            dc = dc + dcells[current]
        if runs is not None:
            kept = torch.where(runs[t], 0, dh)
            dh = dh - kept
        if weight_hr is not None and dh_total is not None:
            dh_total[t] = dh
            dh = dh @ weight_hr
        dh = dh.to(dtype)
        dc_here = dc if runs is None else dc * runs[t]
        d_raw = torch.mul(dh, to_n_t, out=dn)
        if carry:
            dn += dc_here
        if w_c is not None:
            d_raw = norm_backward(dn, raw_t, (H,), mean_c[t], rstd_c[t], w_c, b_c, INPUT_ONLY)[0]
        if not carry:
            d_raw = d_raw + dc_here
        for k, (factor, row) in enumerate(zip(factors_t.split(H, 1), dgates_t.split(H, 1))):
            torch.mul(dh if k == 3 else d_raw, factor, out=row)
        if mean is not None and rstd is not None:
            p_t = p_t.to(dtype)
            dp_t.copy_(norm_backward(dgates_t, p_t, (4 * H,), mean[t], rstd[t], w_hh, None, INPUT_ONLY)[0])
        dc = d_raw * f_t if runs is None else torch.where(runs[t], d_raw * f_t, dc)
        dh = dp_t.to(weight_hh.dtype) @ weight_hh
    dw_c = db_c = None
    if w_c is not None:
        _, dw_c, db_c = norm_backward(dns, raw, (H,), mean_c, rstd_c, w_c, b_c, (False, True, b_c is not None))
    return dgates.to(x.dtype), dp.to(x.dtype), dh if kept is None else dh + kept, dc, dw_c, db_c, dh_total


def ordered(rows: Iterable[Any], reverse: bool) -> list[Any]:
    """What belongs to each step, in the order in which they are walked."""
    return list(rows)[::-1] if reverse else list(rows)


def joined(moments: list[tuple[Tensor, Tensor]], reverse: bool) -> Tensor | None:
    """(T, B, 2) from the (mean, rstd) of each step in the order they were walked."""
    if not moments:
        return None
    if reverse:
        moments = moments[::-1]
    means, rstds = zip(*moments)
    return torch.cat([torch.stack(means), torch.stack(rstds)], -1)
