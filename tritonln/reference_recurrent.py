"""The oracle of the layer-normalized LSTM and GRU: plain torch, one line an equation.

Same arguments and results as tritonln.ops.recurrent.lstm and layer_norm_gru, in the dtype of the
arguments and differentiable as often as one likes.  Equation numbers are those of Ba, Kiros and
Hinton (2016, arXiv 1607.06450), supplementary material.
"""

from __future__ import annotations

from collections.abc import Iterator

import torch
from torch import Tensor

from tritonln.reference import layer_norm


def steps(T: int, reverse: bool) -> Iterator[int]:
    return iter(range(T - 1, -1, -1) if reverse else range(T))


def layer_norm_lstm(
    x: Tensor,
    h0: Tensor,
    c0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None = None,
    bias_hh: Tensor | None = None,
    ln_ih_weight: Tensor | None = None,
    ln_hh_weight: Tensor | None = None,
    ln_c_weight: Tensor | None = None,
    ln_c_bias: Tensor | None = None,
    weight_hr: Tensor | None = None,
    *,
    ln_weight: Tensor | None = None,
    ln_bias: Tensor | None = None,
    norm_groups: str = "joint",
    carry: bool = False,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    eps: float = 1e-5,
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """(y, (h_n, c_n), cells): equations 20 to 22, in torch's gate order i, f, g, o."""
    T, H = len(x), c0.shape[-1]
    h, c = h0, c0
    outputs, cells = [x[:0]] * T, [x[:0]] * T
    for t in steps(T, reverse):
        h, c = started(h0, h, t, resets, lengths), started(c0, c, t, resets, lengths)
        gates = affine(h @ weight_hh.T, ln_hh_weight, bias_hh, eps)
        gates = gates + affine(x[t] @ weight_ih.T, ln_ih_weight, bias_ih, eps)
        if ln_weight is not None:
            gates = grouped(gates, ln_weight, ln_bias, eps, (4 * H,) if norm_groups == "joint" else (H,) * 4)
        i, f, g, o = gates.split(H, -1)
        new_c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
        normed = affine(new_c, ln_c_weight, ln_c_bias, eps)
        new_h = torch.sigmoid(o) * torch.tanh(normed)
        if weight_hr is not None:
            new_h = new_h @ weight_hr.T
        h = carried(new_h, h, t, lengths)
        c = carried(normed if carry else new_c, c, t, lengths)
        outputs[t], cells[t] = h, c
    return torch.stack(outputs), (h, c), torch.stack(cells)


def layer_norm_gru(
    x: Tensor,
    h0: Tensor,
    weight_ih: Tensor,
    weight_hh: Tensor,
    bias_ih: Tensor | None,
    bias_hh: Tensor | None,
    ln_ih_weight: Tensor | None = None,
    ln_hh_weight: Tensor | None = None,
    *,
    ln_weight: Tensor | None = None,
    ln_bias: Tensor | None = None,
    norm_groups: str = "paper",
    reset: str = "recurrent",
    update_bias: float = 0.0,
    lengths: Tensor | None = None,
    resets: Tensor | None = None,
    reverse: bool = False,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """(y, h_n): equations 26 to 28, in torch's gate order r, z, n, where z keeps the old state."""
    T, H = len(x), h0.shape[-1]
    groups = {"joint": (3 * H,), "paper": (2 * H, H), "gates": (H, H, H)}[norm_groups]
    h = h0
    outputs = [x[:0]] * T
    for t in steps(T, reverse):
        h = started(h0, h, t, resets, lengths)
        r, z, n = grouped(x[t] @ weight_ih.T, ln_ih_weight, bias_ih, eps, groups).split(H, -1)
        hr, hz, hn = grouped(h @ weight_hh.T, ln_hh_weight, bias_hh, eps, groups).split(H, -1)
        if ln_weight is not None and reset == "candidate":
            sums = torch.cat([r + hr, z + hz, n + hn], -1)
            reset_gate, keep, candidate = grouped(sums, ln_weight, ln_bias, eps, groups).split(H, -1)
            candidate = torch.tanh(torch.sigmoid(reset_gate) * candidate)
        elif ln_weight is not None:
            (w_rz, w_n), (b_rz, b_n) = ln_weight.split((2 * H, H)), none_split(ln_bias, (2 * H, H))
            reset_gate, keep = grouped(torch.cat([r + hr, z + hz], -1), w_rz, b_rz, eps, groups[:-1]).split(H, -1)
            candidate = torch.tanh(affine(n + torch.sigmoid(reset_gate) * hn, w_n, b_n, eps))
        else:
            keep, candidate = z + hz, torch.tanh(n + torch.sigmoid(r + hr) * hn)
        keep = torch.sigmoid(keep - update_bias)
        h = carried((1 - keep) * candidate + keep * h, h, t, lengths)
        outputs[t] = h
    return torch.stack(outputs), h


def affine(row: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LN(row; weight, bias); without a weight the row is not normalized."""
    if weight is not None:
        return layer_norm(row, (row.shape[-1],), weight, bias, eps)
    return row if bias is None else row + bias


def none_split(bias: Tensor | None, groups: tuple[int, ...]) -> tuple[Tensor | None, ...]:
    return (None,) * len(groups) if bias is None else bias.split(groups)


def grouped(row: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float, groups: tuple[int, ...]) -> Tensor:
    """Each group of columns normalized by itself; not at all without a weight."""
    if weight is None:
        return affine(row, None, bias, eps)
    parts = zip(row.split(groups, -1), weight.split(groups), none_split(bias, groups))
    return torch.cat([affine(part, w, b, eps) for part, w, b in parts], -1)


def started(initial: Tensor, state: Tensor, t: int, resets: Tensor | None, lengths: Tensor | None) -> Tensor:
    """The state before a step: the initial one of the rows that start anew there."""
    return state if resets is None else torch.where(resets[t][:, None], carried(initial, state, t, lengths), state)


def carried(new: Tensor, old: Tensor, t: int, lengths: Tensor | None) -> Tensor:
    """The new state of the rows that are still running, the old one of those that are not."""
    return new if lengths is None else torch.where((t < lengths)[:, None], new, old)
