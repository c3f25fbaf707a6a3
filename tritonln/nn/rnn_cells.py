"""Single time steps of the layer-normalized LSTM and GRU, with the constructor and call of torch's cells.

``torch.jit.trace`` takes them, ``torch.jit.script`` does not.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tritonln.nn.fx import leaf
from tritonln.nn.rnn_parameters import (
    changed,
    gate_norm_sizes,
    lstm_norm_sizes,
    refuse,
    take_gru_options,
    take_lstm_options,
)
from tritonln.nn.rnn_parameters import reset as reset_values
from tritonln.ops.contract import owned
from tritonln.ops.recurrent.gru import layer_norm_gru
from tritonln.ops.recurrent.lstm import layer_norm_lstm
from tritonln.ops.sizes import agree


def register_norms(cell: torch.nn.Module, sizes: dict[str, int], device: Any, dtype: torch.dtype | None) -> None:
    for name, size in sizes.items():
        start = torch.zeros if "bias" in name else torch.ones
        cell.register_parameter(name, Parameter(start(size, device=device, dtype=dtype)))


def fits(cell: torch.nn.RNNCellBase, input: Tensor, states: tuple[Tensor, ...]) -> bool:
    """Whether sizes are as they should be; where not, torch's forward refuses in its words."""
    return (
        input.dim() in (1, 2)
        and input.shape[-1] == cell.input_size
        and all(agree(s.shape, (*input.shape[:-1], cell.hidden_size)) for s in states)
    )


class LayerNormLSTMCell(torch.nn.LSTMCell):
    """A step of :class:`tritonln.nn.LayerNormLSTM` in the place of :class:`torch.nn.LSTMCell`.

    Args:
        input_size, hidden_size, bias, device, dtype: as :class:`torch.nn.LSTMCell`'s.
        cell_norm, gate_norm, norm_groups, eps: as :class:`tritonln.nn.LayerNormLSTM`'s.

    Parameters have torch's names, and beside them ``ln_ih_weight``, ``ln_hh_weight``, ``ln_c_weight`` and
    ``ln_c_bias``, or ``ln_weight`` and ``ln_bias``.  A sequence is faster in one call of the layer, where the input
    product is hoisted.
    """

    ln_ih_weight: Tensor | None
    ln_hh_weight: Tensor | None
    ln_c_weight: Tensor | None
    ln_c_bias: Tensor | None
    ln_weight: Tensor | None
    ln_bias: Tensor | None
    cell_norm: str
    gate_norm: str
    norm_groups: str
    eps: float

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        cell_norm: str = "output",
        gate_norm: str = "products",
        norm_groups: str = "joint",
        eps: float = 1e-5,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)
        take_lstm_options(self, cell_norm, gate_norm, norm_groups, eps)
        for name in ("ln_ih_weight", "ln_hh_weight", "ln_c_weight", "ln_c_bias", "ln_weight", "ln_bias"):
            self.register_parameter(name, None)
        register_norms(self, lstm_norm_sizes(hidden_size, gate_norm, cell_norm, bias), device, dtype)

    def reset_parameters(self) -> None:
        reset_values(self, self.hidden_size)

    def extra_repr(self) -> str:
        return super().extra_repr() + changed(self)

    def forward(self, input: Tensor, hx: tuple[Tensor, Tensor] | None = None) -> Any:
        if isinstance(input, torch.fx.Proxy):
            return leaf(self, input, hx)
        states = (input.new_zeros(*input.shape[:-1], self.hidden_size),) * 2 if hx is None else tuple(hx)
        if len(states) > 2 or not fits(self, input, states):
            refuse(super().forward, input, hx)
        rows = input.shape[0] if input.dim() == 2 else 1
        h, c = (s.reshape(rows, self.hidden_size) for s in states)
        _, (h, c), _ = layer_norm_lstm(
            input.reshape(1, rows, self.input_size),
            *(h, c, self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh),
            *(self.ln_ih_weight, self.ln_hh_weight, self.ln_c_weight, self.ln_c_bias),
            ln_weight=self.ln_weight,
            ln_bias=self.ln_bias,
            norm_groups=self.norm_groups,
            carry=self.cell_norm == "carry",
            eps=self.eps,
            cuda_graph=False,
        )
        return owned(h.view(states[0].shape)), owned(c.view(states[1].shape))


class LayerNormGRUCell(torch.nn.GRUCell):
    """A step of :class:`tritonln.nn.LayerNormGRU` in the place of :class:`torch.nn.GRUCell`.

    Args:
        input_size, hidden_size, bias, device, dtype: as :class:`torch.nn.GRUCell`'s.
        gate_norm, norm_groups, reset, update_bias, eps: as :class:`tritonln.nn.LayerNormGRU`'s.

    Parameters have torch's names, and beside them ``ln_ih_weight`` and ``ln_hh_weight``, or ``ln_weight`` and
    ``ln_bias``.
    """

    ln_ih_weight: Tensor | None
    ln_hh_weight: Tensor | None
    ln_weight: Tensor | None
    ln_bias: Tensor | None
    gate_norm: str
    norm_groups: str
    reset: str
    update_bias: float
    eps: float

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        bias: bool = True,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        gate_norm: str = "products",
        norm_groups: str = "paper",
        reset: str = "recurrent",
        update_bias: float = 0.0,
        eps: float = 1e-5,
    ) -> None:
        super().__init__(input_size, hidden_size, bias, device, dtype)
        take_gru_options(self, gate_norm, norm_groups, reset, update_bias, eps)
        for name in ("ln_ih_weight", "ln_hh_weight", "ln_weight", "ln_bias"):
            self.register_parameter(name, None)
        register_norms(self, gate_norm_sizes(3 * hidden_size, gate_norm), device, dtype)

    def reset_parameters(self) -> None:
        reset_values(self, self.hidden_size)

    def extra_repr(self) -> str:
        return super().extra_repr() + changed(self)

    def forward(self, input: Tensor, hx: Tensor | None = None) -> Any:
        if isinstance(input, torch.fx.Proxy):
            return leaf(self, input, hx)
        h = input.new_zeros(*input.shape[:-1], self.hidden_size) if hx is None else hx
        if not fits(self, input, (h,)):
            refuse(super().forward, input, hx)
        rows = input.shape[0] if input.dim() == 2 else 1
        _, h_n = layer_norm_gru(
            input.reshape(1, rows, self.input_size),
            h.reshape(rows, self.hidden_size),
            *(self.weight_ih, self.weight_hh, self.bias_ih, self.bias_hh, self.ln_ih_weight, self.ln_hh_weight),
            ln_weight=self.ln_weight,
            ln_bias=self.ln_bias,
            norm_groups=self.norm_groups,
            reset=self.reset,
            update_bias=self.update_bias,
            eps=self.eps,
            cuda_graph=False,
        )
        return owned(h_n.view(h.shape))
