"""Layer-normalized recurrent layers with the constructor, call, results and parameter names of torch's own."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter, init
from torch.nn.utils.rnn import PackedSequence

from tritonln.nn.fx import leaf
from tritonln.nn.rnn_layout import laid_out
from tritonln.nn.rnn_parameters import changed, gru_norm_sizes, lstm_norm_sizes, one_of, reset
from tritonln.ops.recurrent.gru import layer_norm_gru
from tritonln.ops.recurrent.lstm import layer_norm_lstm


class _LayerNormRNN(torch.nn.RNNBase, abc.ABC):
    """What the two layers share.  They are no torch.nn.LSTM and GRU: those torch.compile refuses to trace."""

    parameter_kinds: tuple[str, ...]
    eps: float
    cuda_graph: bool

    @abc.abstractmethod
    def norm_sizes(self) -> dict[str, int]:
        """The parameters of the norms beside their biases, and their lengths."""

    @abc.abstractmethod
    def direction(
        self, x: Tensor, states: tuple[Tensor, ...], parameters: dict[str, Any]
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        """Output, final states and cells of one direction of one layer."""

    def register_norms(self, device: Any, dtype: torch.dtype | None) -> None:
        for names, suffix in zip(self._all_weights, self.suffixes()):
            for kind, size in self.norm_sizes().items():
                names.append(kind + suffix)
                self.register_parameter(kind + suffix, Parameter(torch.empty(size, device=device, dtype=dtype)))
                init.constant_(getattr(self, kind + suffix), 0.0 if kind == "ln_c_bias" else 1.0)

    def suffixes(self) -> Iterator[str]:
        for layer in range(self.num_layers):
            yield f"_l{layer}"
            if self.bidirectional:
                yield f"_l{layer}_reverse"

    def reset_parameters(self) -> None:
        reset(self, self.hidden_size)

    def flatten_parameters(self) -> None:
        """Does nothing; it is here for code that calls it on torch's layers."""

    def extra_repr(self) -> str:
        return super().extra_repr() + changed(self)

    def fits(self, input: Tensor | PackedSequence, states: tuple[Tensor, ...]) -> bool:
        """Whether there are as many dimensions as there should be; where not, torch's forward refuses in its words."""
        if isinstance(input, PackedSequence):
            return all(s.dim() == 3 for s in states)
        return input.dim() in (2, 3) and all(s.dim() == input.dim() for s in states)

    def run(
        self, input: Tensor | PackedSequence, states: tuple[Tensor, ...], sizes: tuple[int, ...]
    ) -> tuple[Any, tuple[Tensor, ...], tuple[Any, ...]]:
        """All layers, from and to the caller's layout.  `sizes` are the features of the states."""
        if isinstance(input, PackedSequence):
            self.check_input(input.data, input.batch_sizes)
        x, layout = laid_out(input, self.batch_first)
        rows = self.num_layers * (1 + self.bidirectional)
        if states:
            states = tuple(layout.state(s) for s in states)
        else:
            states = tuple(x.new_zeros(rows, x.shape[1], size) for size in sizes)
        hidden: Any = states if len(sizes) > 1 else states[0]
        self.check_forward_args(x.transpose(0, 1) if self.batch_first else x, hidden, None)

        common = {"lengths": layout.running(x), "eps": self.eps, "cuda_graph": self.cuda_graph}
        finals, cells, outputs = [], [], []
        for row, suffix in enumerate(self.suffixes()):
            reverse = suffix.endswith("reverse")
            parameters = {kind: getattr(self, kind + suffix, None) for kind in self.parameter_kinds}
            y, final, c = self.direction(x, tuple(s[row] for s in states), {**parameters, **common, "reverse": reverse})
            finals.append(final)
            outputs.append((y, c))
            if reverse or not self.bidirectional:
                x, c = (t[0] if len(t) == 1 else torch.cat(t, -1) for t in zip(*outputs))
                cells.append(layout.output(c))
                outputs = []
                if row < rows - 1 and self.dropout:
                    x = F.dropout(x, self.dropout, self.training)
        return layout.output(x), tuple(layout.final(torch.stack(s)) for s in zip(*finals)), tuple(cells)


class LayerNormLSTM(_LayerNormRNN):
    r"""A layer-normalized LSTM in the place of :class:`torch.nn.LSTM`.

    .. math::
        (i, f, g, o) &= \mathrm{LN}(W_{hh} h_{t-1}; w_{hh}, b_{hh}) + \mathrm{LN}(W_{ih} x_t; w_{ih}, b_{ih}) \\
        c_t &= \sigma(f) \, c_{t-1} + \sigma(i) \tanh(g) \\
        h_t &= \sigma(o) \tanh(\mathrm{LN}(c_t; w_c, b_c))

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device,
            dtype: as :class:`torch.nn.LSTM`'s.  ``bias`` is that of all norms.
        cell_norm: where LN(c) goes.  ``"output"``: into h only, as in the paper and in haste; ``"carry"``: also
            to the next step in the place of c, as in fastrnns and TensorFlow Addons; ``"none"``: nowhere.
        gate_norm: ``"joint"``: the 4H values of each product are normalized together; ``"none"``: not at all.
            With both ``"none"`` this is :class:`torch.nn.LSTM`.
        eps: added to each variance.
        cuda_graph: on CUDA, replay steps that are not one launch as a graph, from the second call of a shape on.

    Parameters have torch's names and shapes (``weight_ih_l0``, ``weight_hh_l0``, ``bias_ih_l0``, ``bias_hh_l0``,
    ``weight_hr_l0``, ``..._reverse``), the biases being those of the norms, and beside them
    ``ln_ih_weight_l0`` and ``ln_hh_weight_l0`` (4H,), ``ln_c_weight_l0`` and ``ln_c_bias_l0`` (H,).

    Call and results are :class:`torch.nn.LSTM`'s.  With ``return_cells=True`` a third result is a tuple with the
    cell states of every step of each layer, shaped as an output of that layer with H features.  Dtypes,
    arithmetic, what is saved for backward and errors: :func:`tritonln.layer_norm_lstm`.

    Source: Ba, Kiros and Hinton, Layer Normalization (2016, arXiv 1607.06450), section 3.1.
    """

    parameter_kinds = (
        *("weight_ih", "weight_hh", "bias_ih", "bias_hh", "ln_ih_weight", "ln_hh_weight"),
        *("ln_c_weight", "ln_c_bias", "weight_hr"),
    )
    check_forward_args = torch.nn.LSTM.check_forward_args  # type: ignore[assignment]
    get_expected_cell_size = torch.nn.LSTM.get_expected_cell_size
    permute_hidden = torch.nn.LSTM.permute_hidden  # type: ignore[assignment]

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        cell_norm: str = "output",
        gate_norm: str = "joint",
        eps: float = 1e-5,
        cuda_graph: bool = True,
    ) -> None:
        super().__init__(
            *("LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size),
            device=device,
            dtype=dtype,
        )
        self.cell_norm = one_of("cell_norm", cell_norm, ("output", "carry", "none"))
        self.gate_norm = one_of("gate_norm", gate_norm, ("joint", "none"))
        self.eps, self.cuda_graph = eps, cuda_graph
        self.register_norms(device, dtype)

    def norm_sizes(self) -> dict[str, int]:
        return lstm_norm_sizes(self.hidden_size, self.gate_norm, self.cell_norm, self.bias)

    def direction(
        self, x: Tensor, states: tuple[Tensor, ...], parameters: dict[str, Any]
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        return layer_norm_lstm(x, *states, **parameters, carry=self.cell_norm == "carry")

    def forward(  # type: ignore[override]
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        return_cells: bool = False,
    ) -> Any:
        if isinstance(input, torch.fx.Proxy):
            return leaf(self, input, hx, return_cells=return_cells)
        states = () if hx is None else tuple(hx)
        if not self.fits(input, states):
            return torch.nn.LSTM.forward(self, input, hx)  # type: ignore[call-overload]
        y, final, cells = self.run(input, states, (self.proj_size or self.hidden_size, self.hidden_size))
        return (y, final, cells) if return_cells else (y, final)

    @classmethod
    def from_lstm(cls, lstm: torch.nn.LSTM, **options: Any) -> LayerNormLSTM:
        """A layer of the same sizes with copies of an LSTM's weights and biases, to train on from there.

        Not the same function unless ``gate_norm="none", cell_norm="none"``.  ``options`` are cell_norm, gate_norm,
        eps and cuda_graph.
        """
        return copied(cls(**sizes_of(lstm), proj_size=lstm.proj_size, **options), lstm)


class LayerNormGRU(_LayerNormRNN):
    r"""A layer-normalized GRU in the place of :class:`torch.nn.GRU`.

    .. math::
        (r, z) &= \sigma(\mathrm{LN}(W_{hh}^{rz} h_{t-1}; w_{hh}, b_{hh})
                  + \mathrm{LN}(W_{ih}^{rz} x_t; w_{ih}, b_{ih})) \\
        n &= \tanh(\mathrm{LN}(W_{ih}^n x_t; w_{ih}, b_{ih}) + r \, \mathrm{LN}(W_{hh}^n h_{t-1}; w_{hh}, b_{hh})) \\
        h_t &= (1 - z) \, n + z \, h_{t-1}

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device,
            dtype: as :class:`torch.nn.GRU`'s, which has no projection either.  ``bias`` is that of the norms.
        norm_groups: ``"paper"``: the 2H values of r and z are normalized together, and the H of n;
            ``"joint"``: all 3H together, as in haste.
        eps: added to each variance.
        cuda_graph: on CUDA, replay steps that are not one launch as a graph, from the second call of a shape on.

    Parameters have torch's names and shapes, the biases being those of the norms, and beside them
    ``ln_ih_weight_l0`` and ``ln_hh_weight_l0`` (3H,), in torch's gate order r, z, n.  z keeps the old state as in
    torch; the paper's z is 1 - z.  Call and results are :class:`torch.nn.GRU`'s; dtypes, arithmetic, what is
    saved for backward and errors are those of :func:`tritonln.layer_norm_gru`.

    Source: Ba, Kiros and Hinton, Layer Normalization (2016, arXiv 1607.06450), section 3.1 and supplement.
    """

    parameter_kinds = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "ln_ih_weight", "ln_hh_weight")

    def __init__(
        self,
        input_size: int,
        hidden_size: int,
        num_layers: int = 1,
        bias: bool = True,
        batch_first: bool = False,
        dropout: float = 0.0,
        bidirectional: bool = False,
        proj_size: int = 0,
        device: Any = None,
        dtype: torch.dtype | None = None,
        *,
        norm_groups: str = "paper",
        eps: float = 1e-5,
        cuda_graph: bool = True,
    ) -> None:
        if proj_size:
            raise ValueError("proj_size argument is only supported for LSTM, not RNN or GRU")
        super().__init__(
            *("GRU", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional),
            device=device,
            dtype=dtype,
        )
        self.norm_groups = one_of("norm_groups", norm_groups, ("paper", "joint"))
        self.eps, self.cuda_graph = eps, cuda_graph
        self.register_norms(device, dtype)

    def norm_sizes(self) -> dict[str, int]:
        return gru_norm_sizes(self.hidden_size)

    def direction(
        self, x: Tensor, states: tuple[Tensor, ...], parameters: dict[str, Any]
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        y, h_n = layer_norm_gru(x, *states, **parameters, joint=self.norm_groups == "joint")
        return y, (h_n,), y

    def forward(self, input: Tensor | PackedSequence, hx: Tensor | None = None) -> Any:  # type: ignore[override]
        if isinstance(input, torch.fx.Proxy):
            return leaf(self, input, hx)
        states = () if hx is None else (hx,)
        if not self.fits(input, states):
            return torch.nn.GRU.forward(self, input, hx)  # type: ignore[call-overload]
        y, (final,), _ = self.run(input, states, (self.hidden_size,))
        return y, final

    @classmethod
    def from_gru(cls, gru: torch.nn.GRU, **options: Any) -> LayerNormGRU:
        """A layer of the same sizes with copies of a GRU's weights and biases, to train on from there.

        ``options`` are norm_groups, eps and cuda_graph.
        """
        return copied(cls(**sizes_of(gru), **options), gru)


def sizes_of(rnn: torch.nn.RNNBase) -> dict[str, Any]:
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
    weight = rnn.weight_hh_l0
    return {**{name: getattr(rnn, name) for name in names}, "device": weight.device, "dtype": weight.dtype}


def copied(new: Any, rnn: torch.nn.RNNBase) -> Any:
    with torch.no_grad():
        for name in rnn._flat_weights_names:
            getattr(new, name).copy_(getattr(rnn, name))
    return new.train(rnn.training)
