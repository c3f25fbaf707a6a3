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
    carry: bool = False,
    lengths: Tensor | None = None,
    reverse: bool = False,
    eps: float = 1e-5,
) -> tuple[Tensor, tuple[Tensor, Tensor], Tensor]:
    """(y, (h_n, c_n), cells): equations 20 to 22, in torch's gate order i, f, g, o."""
    T, H = len(x), c0.shape[-1]
    h, c = h0, c0
    outputs, cells = [x[:0]] * T, [x[:0]] * T
    for t in steps(T, reverse):
        gates = affine(h @ weight_hh.T, ln_hh_weight, bias_hh, eps)
        gates = gates + affine(x[t] @ weight_ih.T, ln_ih_weight, bias_ih, eps)
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
    ln_ih_weight: Tensor,
    ln_hh_weight: Tensor,
    *,
    joint: bool = False,
    lengths: Tensor | None = None,
    reverse: bool = False,
    eps: float = 1e-5,
) -> tuple[Tensor, Tensor]:
    """(y, h_n): equations 26 to 28, in torch's gate order r, z, n, where z keeps the old state."""
    T, H = len(x), h0.shape[-1]
    groups = (3 * H,) if joint else (2 * H, H)
    h = h0
    outputs = [x[:0]] * T
    for t in steps(T, reverse):
        r, z, n = grouped(x[t] @ weight_ih.T, ln_ih_weight, bias_ih, eps, groups).split(H, -1)
        hr, hz, hn = grouped(h @ weight_hh.T, ln_hh_weight, bias_hh, eps, groups).split(H, -1)
        candidate = torch.tanh(n + torch.sigmoid(r + hr) * hn)
        update = torch.sigmoid(z + hz)
        h = carried((1 - update) * candidate + update * h, h, t, lengths)
        outputs[t] = h
    return torch.stack(outputs), h


def affine(row: Tensor, weight: Tensor | None, bias: Tensor | None, eps: float) -> Tensor:
    """LN(row; weight, bias); without a weight the row is not normalized."""
    if weight is not None:
        return layer_norm(row, (row.shape[-1],), weight, bias, eps)
    return row if bias is None else row + bias


def grouped(row: Tensor, weight: Tensor, bias: Tensor | None, eps: float, groups: tuple[int, ...]) -> Tensor:
    """Each group of columns normalized by itself."""
    biases = [None] * len(groups) if bias is None else bias.split(groups)
    parts = zip(row.split(groups, -1), weight.split(groups), biases)
    return torch.cat([affine(part, w, b, eps) for part, w, b in parts], -1)


def carried(new: Tensor, old: Tensor, t: int, lengths: Tensor | None) -> Tensor:
    """The new state of the rows that are still running, the old one of those that are not."""
    return new if lengths is None else torch.where((t < lengths)[:, None], new, old)
