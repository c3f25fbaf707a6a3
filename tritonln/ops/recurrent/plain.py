"""The recurrent operators in plain torch, for whoever looks through an operator and not only at its results.

Forward mode, torch.func, batched gradients, derivatives of derivatives and torch.jit.trace run here.  Roundings are
those of the other paths.  It costs some twenty operators a time step, and autograd keeps their results.  A trace
unbinds the steps, so that it refuses sequences of another length than its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

from tritonln.ops import row_formula
from tritonln.ops.contract import arithmetic
from tritonln.ops.layer_norm import LAYER_NORM
from tritonln.ops.recurrent.contract import without_autocast
from tritonln.ops.recurrent.shared import input_bias, order, running, starting, total_bias, without_padding
from tritonln.ops.rows import Settings


def lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    ln_ih_weight: Tensor | None,
    ln_hh_weight: Tensor | None,
    ln_c_weight: Tensor | None,
    ln_c_bias: Tensor | None,
    weight_hr: Tensor | None,
    ln_weight: Tensor | None,
    ln_bias: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
    carry: bool,
    norm_groups: str,
    eps: float,
    _: bool,
) -> tuple[Tensor, Tensor]:
    """h (T + 1, B, P) and c (T + 1, B, H), as lstm_sequence.forward."""
    T, H, dtype = x.shape[0], c0.shape[-1], arithmetic(x.dtype)
    runs = None if lengths is None else running(T, lengths)
    starts = starting(lengths, resets, reverse)
    groups = (4 * H,) if norm_groups == "joint" else (H,) * 4
    with without_autocast(x):
        products = F.linear(without_padding(x, lengths), weight_ih).to(dtype)
        gates_x = norm(products, ln_ih_weight, total_bias(bias_ih, bias_hh), eps).to(x.dtype).unbind(0)
        h, c = initial = h0, c0.to(dtype)
        hs, cs = [h], [c]
        for t, previous, _after in order(T, reverse):
            if starts is not None:
                h, c = (torch.where(starts[previous, :, None], a, b) for a, b in zip(initial, (h, c)))
            p = F.linear(h, weight_hh)
            if ln_weight is not None:
                gates = norms((p + gates_x[t]).to(dtype), ln_weight, ln_bias, eps, groups)
            else:
                gates = norm(p.to(dtype), ln_hh_weight, None, eps) + gates_x[t]
            i, f, g, o = gates.split((H,) * 4, -1)
            raw = f.sigmoid() * c + i.sigmoid() * g.tanh()
            n = norm(raw, ln_c_weight, ln_c_bias, eps)
            new_h, new_c = (o.sigmoid() * n.tanh()).to(x.dtype), n if carry else raw
            if weight_hr is not None:
                new_h = F.linear(new_h, weight_hr)
            h = new_h if runs is None else torch.where(runs[t], new_h, h)
            c = new_c if runs is None else torch.where(runs[t], new_c, c)
            hs.append(h)
            cs.append(c)
    return in_slots(hs, reverse), in_slots(cs, reverse)


def gru(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    ln_ih_weight: Tensor | None,
    ln_hh_weight: Tensor | None,
    ln_weight: Tensor | None,
    ln_bias: Tensor | None,
    lengths: Tensor | None,
    resets: Tensor | None,
    reverse: bool,
    norm_groups: str,
    reset: str,
    eps: float,
    _: bool,
) -> tuple[Tensor]:
    """h (T + 1, B, H), as gru_sequence.forward."""
    T, H, dtype = x.shape[0], h0.shape[-1], arithmetic(x.dtype)
    groups = {"joint": (3 * H,), "paper": (2 * H, H), "gates": (H,) * 3}[norm_groups]
    candidate = ln_weight is not None and reset == "candidate"
    b_n = None if bias_hh is None or candidate else bias_hh[2 * H :]
    w_rz, w_n = (None, None) if ln_weight is None else ln_weight.split((2 * H, H))
    b_rz, b_ln_n = (None, None) if ln_bias is None else ln_bias.split((2 * H, H))
    runs = None if lengths is None else running(T, lengths)
    starts = starting(lengths, resets, reverse)
    with without_autocast(x):
        products = F.linear(without_padding(x, lengths), weight_ih).to(dtype)
        bias = total_bias(bias_ih, bias_hh) if candidate else input_bias(bias_ih, bias_hh)
        gates_x = norms(products, ln_ih_weight, bias, eps, groups).to(x.dtype).unbind(0)
        h, state = initial = h0, h0.to(dtype)
        hs = [h]
        for t, previous, _after in order(T, reverse):
            if starts is not None:
                h, state = (torch.where(starts[previous, :, None], a, b) for a, b in zip(initial, (h, state)))
            p, x_t = F.linear(h, weight_hh), gates_x[t]
            if ln_weight is None:
                x_r, x_z, x_n = x_t.to(dtype).split((H,) * 3, -1)
                r, z, m = norms(p.to(dtype), ln_hh_weight, None, eps, groups).split((H,) * 3, -1)
                r, z, m = x_r + r, x_z + z, m if b_n is None else m + b_n
                n = (x_n + r.sigmoid() * m).tanh()
            elif candidate:
                r, z, m = norms((p + x_t).to(dtype), ln_weight, ln_bias, eps, groups).split((H,) * 3, -1)
                n = (r.sigmoid() * m).tanh()
            else:
                (x_rz, x_n), (p_rz, m) = (each.split((2 * H, H), -1) for each in (x_t, p))
                r, z = norms((p_rz + x_rz).to(dtype), w_rz, b_rz, eps, groups[:-1]).split((H,) * 2, -1)
                m = m.to(dtype) if b_n is None else m.to(dtype) + b_n
                n = norm(x_n.to(dtype) + r.sigmoid() * m, w_n, b_ln_n, eps).tanh()
            new = n + z.sigmoid() * (state - n)
            state = new if runs is None else torch.where(runs[t], new, state)
            h = state.to(x.dtype)
            hs.append(h)
    return (in_slots(hs, reverse),)


def norm(rows: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LN of rows in the dtype of their arithmetic; without a weight they are not normalized."""
    if weight is None:
        return rows if bias is None else rows + bias
    return row_formula.forward(LAYER_NORM, (rows, weight, bias), Settings(rows.shape[-1], eps, rows.dtype))[0]


def norms(rows: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, groups: Sequence[int]) -> Tensor:
    """Each group of columns normalized by itself."""
    if weight is None:
        return norm(rows, None, bias, eps)
    biases = [None] * len(groups) if bias is None else bias.split(groups)
    parts = zip(rows.split(groups, -1), weight.split(groups), biases)
    return torch.cat([norm(row, w, b, eps) for row, w, b in parts], -1)


def in_slots(states: list[Tensor], reverse: bool) -> Tensor:
    """The states in the order that they were reached, in that of `order`'s slots."""
    return torch.stack(states[::-1] if reverse else states)


def gradients(
    operator: Callable[..., tuple[Tensor, ...]],
    inputs: Sequence[Tensor | None],
    constants: tuple[Any, ...],
    directions: Sequence[Tensor | None],
    needs: Sequence[bool],
) -> tuple[Tensor | None, ...]:
    """Of operator(*inputs, *constants), with a graph of their own where torch asks for one."""
    create_graph = torch.is_grad_enabled()
    with torch.enable_grad():
        # A tensor that is given in two places has a gradient for each.
        places = [None if t is None else t.view_as(t) for t in inputs]
        given = [(y, dy) for y, dy in zip(operator(*places, *constants), directions) if dy is not None]
        results, directions = zip(*given)
        wanted = [t for t, needed in zip(places, needs) if needed and t is not None]
        found = iter(torch.autograd.grad(results, wanted, directions, create_graph=create_graph, allow_unused=True))
    return tuple(next(found) if needed else None for needed in needs)
