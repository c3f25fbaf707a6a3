"""The recurrent operators in plain torch, for whoever looks through an operator and not only at its results.

Forward mode, torch.func, batched gradients, derivatives of derivatives and torch.jit.trace run here.  Roundings are
those of the other paths.  It costs some twenty operators a time step, and autograd keeps their results.
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
from tritonln.ops.recurrent.shared import input_bias, order, running, total_bias, without_autocast, without_padding


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
    lengths: Tensor | None,
    reverse: bool,
    carry: bool,
    eps: float,
    _: bool,
) -> tuple[Tensor, Tensor]:
    """h (T + 1, B, P) and c (T + 1, B, H), as lstm_sequence.forward."""
    T, H, dtype = x.shape[0], c0.shape[-1], arithmetic(x.dtype)
    runs = None if lengths is None else running(T, lengths)
    with without_autocast(x):
        products = F.linear(without_padding(x, lengths), weight_ih).to(dtype)
        gates_x = norm(products, ln_ih_weight, total_bias(bias_ih, bias_hh), eps).to(x.dtype)
        h, c = h0, c0.to(dtype)
        hs, cs = [h], [c]
        for t, *_slots in order(T, reverse):
            gates = norm(F.linear(h, weight_hh).to(dtype), ln_hh_weight, None, eps) + gates_x[t]
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
    ln_ih_weight: Tensor,
    ln_hh_weight: Tensor,
    lengths: Tensor | None,
    reverse: bool,
    joint: bool,
    eps: float,
    _: bool,
) -> tuple[Tensor]:
    """h (T + 1, B, H), as gru_sequence.forward."""
    T, H, dtype = x.shape[0], h0.shape[-1], arithmetic(x.dtype)
    widths = (3 * H,) if joint else (2 * H, H)
    b_n = None if bias_hh is None else bias_hh[2 * H :]
    runs = None if lengths is None else running(T, lengths)
    with without_autocast(x):
        products, bias = F.linear(without_padding(x, lengths), weight_ih).to(dtype), input_bias(bias_ih, bias_hh)
        gates_x = norms(products, ln_ih_weight, bias, eps, widths).to(x.dtype)
        h, state = h0, h0.to(dtype)
        hs = [h]
        for t, *_slots in order(T, reverse):
            x_r, x_z, x_n = gates_x[t].to(dtype).split((H,) * 3, -1)
            r, z, m = norms(F.linear(h, weight_hh).to(dtype), ln_hh_weight, None, eps, widths).split((H,) * 3, -1)
            m = m if b_n is None else m + b_n
            n = (x_n + (x_r + r).sigmoid() * m).tanh()
            new = n + (x_z + z).sigmoid() * (state - n)
            state = new if runs is None else torch.where(runs[t], new, state)
            h = state.to(x.dtype)
            hs.append(h)
    return (in_slots(hs, reverse),)


def norm(rows: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LN of rows in the dtype of their arithmetic; without a weight they are not normalized."""
    if weight is None:
        return rows if bias is None else rows + bias
    return row_formula.forward(LAYER_NORM, (rows,), rows.shape[-1], (weight, bias), eps, rows.dtype)


def norms(rows: Tensor, weight: Tensor, bias: Tensor | None, eps: float, widths: Sequence[int]) -> Tensor:
    """Each group of columns normalized by itself."""
    biases = [None] * len(widths) if bias is None else bias.split(widths)
    groups = zip(rows.split(widths, -1), weight.split(widths), biases)
    return torch.cat([norm(row, w, b, eps) for row, w, b in groups], -1)


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
