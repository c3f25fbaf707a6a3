"""The time steps of layer_norm_lstm in ATen, for tensors that no Triton kernel serves.

Only what depends on the step before is done step by step, in as few operators as there can be.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritonln.ops.contract import arithmetic
from tritonln.ops.recurrent.shared import LSTMSteps, before, gone_on_from, order, running, states, widths

aten_norm_backward = torch.ops.aten.native_layer_norm_backward.default
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
    """As lstm_steps.forward, but the gates take the place of x, activated: the backward wants them.

    Where the sum is normalized, it takes that place.
    """
    weight_hh, gain, bias, ln_c_weight, ln_c_bias, weight_hr, lengths, starts, reverse, carry, group, summed, eps = s
    (T, B, _), H, dtype = x.shape, c0.shape[-1], arithmetic(x.dtype)
    h, c = states(T, h0, x.dtype, reverse), states(T, c0, dtype, reverse)
    p = x if summed else x.new_empty((T if save else 1, B, 4 * H))
    m = None if weight_hr is None else x.new_zeros((T + 1, B, H))
    weight_hh, w_hr = weight_hh.t(), None if weight_hr is None else weight_hr.t()
    w_hh, b_hh, w_c, b_c = (None if w is None else w.to(dtype) for w in (gain, bias, ln_c_weight, ln_c_bias))
    runs = None if lengths is None else running(T, lengths)
    moments: list[tuple[Tensor, Tensor]] = []
    groups = widths(4, group, H)
    in_place = x.dtype == dtype and not summed
    hs, cs, ps, xs = (each.unbind(0) for each in (h, c, p.expand(T, -1, -1), x))
    initial = T if reverse else 0
    for t, previous, current in order(T, reverse):
        h_before, c_before = (before(slots, starts, previous, initial) for slots in (hs, cs))
        gates = xs[t].addmm_(h_before, weight_hh) if summed else torch.mm(h_before, weight_hh, out=ps[t])
        if not in_place:
            gates = gates.to(dtype)
        if w_hh is not None:
            gates, found = norms(gates, groups, w_hh, b_hh, eps)
            moments += found
        if not summed:
            gates = torch.add(xs[t], gates, out=xs[t] if in_place else gates)
        i_and_f, g, o = gates.split_with_sizes((2 * H, H, H), 1)
        i, f = i_and_f.sigmoid_().split_with_sizes((H, H), 1)
        g.tanh_()
        o.sigmoid_()
        c_t = torch.mul(f, c_before, out=cs[current]).addcmul_(i, g)
        n = c_t if w_c is None else torch.native_layer_norm(c_t, (H,), w_c, b_c, eps)[0]
        h_t = torch.mul(o, n.tanh(), out=hs[current] if m is None else m[current])
        if not in_place and not summed:
            xs[t].copy_(gates)
        if carry:
            c_t.copy_(n)
        if w_hr is not None:
            torch.mm(h_t, w_hr, out=hs[current])
        if runs is not None:
            torch.where(runs[t], c_t, cs[previous], out=c_t)
            torch.where(runs[t], hs[current], hs[previous], out=hs[current])
    return h, c, p if save and not summed else None, joined(moments, reverse, T) if save else None, m


def backward(
    dy: Tensor | None,
    dcells: Tensor | None,
    x: Tensor,
    p: Tensor | None,
    stats: Tensor | None,
    h: Tensor,
    c: Tensor,
    s: LSTMSteps,
) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor | None, Tensor | None, Tensor | None]:
    """As lstm_steps.backward."""
    weight_hh, gain, bias, ln_c_weight, ln_c_bias, weight_hr, lengths, starts, reverse, carry, group, summed, eps = s
    (T, B, _), H, dtype = x.shape, c.shape[-1], arithmetic(x.dtype)
    w_hh, b_hh, w_c, b_c = (None if w is None else w.to(dtype) for w in (gain, bias, ln_c_weight, ln_c_bias))
    groups = widths(4, group, H)
    gates = x.to(dtype)
    if summed and w_hh is not None:
        p = x
        gates, _ = norms(gates, groups, w_hh, b_hh, eps)
        for columns, activate in zip(gates.split((2 * H, H, H), -1), (Tensor.sigmoid_, Tensor.tanh_, Tensor.sigmoid_)):
            activate(columns)
    runs = None if lengths is None else running(T, lengths)
    c_before, after = gone_on_from(c, starts, reverse), slice(None, -1) if reverse else slice(1, None)
    i, f, g, o = gates.split((H,) * 4, -1)
    raw = n = c[after]
    if runs is not None or carry:
        raw = n = torch.addcmul(f * c_before, i, g)
    if w_c is not None:
        n, mean_c, rstd_c = torch.native_layer_norm(raw, (H,), w_c, b_c, eps)
        means_c, rstds_c = mean_c.unbind(0), rstd_c.unbind(0)
    tanh_n = n.tanh()

    # What dh is multiplied with in the gradients of n and of o before its activation, and that of raw in those of
    # the other gates.  The products take its place: new memory costs time.
    dns, dgates = torch.empty_like(tanh_n), torch.empty((T, B, 4 * H), dtype=dtype, device=x.device)
    d_i, d_f, d_g, d_o = dgates.split((H,) * 4, -1)
    tanh_backward(o, tanh_n, grad_input=dns)
    sigmoid_backward(tanh_n, o, grad_input=d_o)
    sigmoid_backward(g, i, grad_input=d_i)
    sigmoid_backward(c_before, f, grad_input=d_f)
    tanh_backward(i, g, grad_input=d_g)
    dp = torch.empty_like(x) if w_hh is not None or x.dtype != dtype else dgates
    if w_hh is not None and stats is not None and p is not None:
        normalized = [
            (N, w, row.unbind(0), pair[..., :1].contiguous().unbind(0), pair[..., 1:].contiguous().unbind(0))
            for N, w, row, pair in zip(groups, w_hh.split(groups), p.to(dtype).split(groups, -1), stats.unbind(1))
        ]
    dh_total = None if weight_hr is None else x.new_empty((T, *h.shape[1:]))
    dh, dc, dc0 = torch.zeros_like(h[0]), torch.zeros_like(c[0]), torch.zeros_like(c[0])
    kept = None
    through_raw = dgates.view(T, B, 4, H)[:, :, :3]
    each = (f, raw, dns, dp, dgates, d_o, through_raw)
    fs, raws, dn, dps, rows, d_os, of_raw = (t.unbind(0) for t in each)
    dys, dcs = (None if each is None else each.unbind(0) for each in (dy, dcells))
    for t, previous, current in reversed(order(T, reverse)):
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
        d_raw = dn[t].mul_(dh)
        if carry:
            d_raw += dc_here
        if w_c is not None:
            d_raw = norm_backward(d_raw, raws[t], (H,), means_c[t], rstds_c[t], w_c, b_c, INPUT_ONLY)[0]
        if not carry:
            d_raw += dc_here
        of_raw[t].mul_(d_raw.unsqueeze(1))
        d_os[t].mul_(dh)
        dp_t = rows[t]
        if w_hh is not None:
            parts = [
                norm_backward(d, row[t], (N,), mean[t], rstd[t], w, None, INPUT_ONLY)[0]
                for d, (N, w, row, mean, rstd) in zip(dp_t.split_with_sizes(groups, 1), normalized)
            ]
            dp_t = parts[0] if len(parts) == 1 else torch.cat(parts, 1)
        if dp is not dgates:
            dps[t].copy_(dp_t)
        dc = d_raw * fs[t] if runs is None else torch.where(runs[t], d_raw * fs[t], dc)
        dh = torch.mm(dps[t], weight_hh)
        if starts is not None:
            anew = starts[previous, :, None]
            dc0 += dc * anew
            dc, dh = torch.where(anew, 0, dc), torch.where(anew, 0, dh)
    dw_c = db_c = None
    if w_c is not None:
        _, dw_c, db_c = norm_backward(dns, raw, (H,), mean_c, rstd_c, w_c, b_c, (False, True, b_c is not None))
    return dgates.to(x.dtype), dp, dh if kept is None else dh + kept, dc + dc0, dw_c, db_c, dh_total


def norm_backward(dy: Tensor, rows: Tensor, shape: tuple[int, ...], *rest: Any) -> tuple[Any, ...]:
    """ATen's; of single values, whose norm is constant, the gradient of the rows is exactly zero."""
    dx, dw, db = aten_norm_backward(dy, rows, shape, *rest)
    return dx.zero_() if shape == (1,) and dx is not None else dx, dw, db


def norms(
    rows: Tensor, groups: tuple[int, ...], weight: Tensor, bias: Tensor | None, eps: float
) -> tuple[Tensor, list[tuple[Tensor, Tensor]]]:
    """LN of each group of columns, and the (mean, rstd) of each."""
    if len(groups) == 1:
        y, mean, rstd = torch.native_layer_norm(rows, groups, weight, bias, eps)
        return y, [(mean, rstd)]
    biases = [None] * len(groups) if bias is None else bias.split(groups)
    found = [
        torch.native_layer_norm(row, (N,), w, b, eps)
        for row, N, w, b in zip(rows.split(groups, -1), groups, weight.split(groups), biases)
    ]
    return torch.cat([y for y, *_ in found], -1), [(mean, rstd) for _, mean, rstd in found]


def joined(moments: list[tuple[Tensor, Tensor]], reverse: bool, T: int) -> Tensor | None:
    """(T, G, B, 2) from the (mean, rstd) of each group of each step in the order they were walked."""
    if not moments:
        return None
    means, rstds = (torch.cat(part).view(T, len(moments) // T, -1, 1) for part in zip(*moments))
    stats = torch.cat([means, rstds], -1)
    return stats.flip(0) if reverse else stats
