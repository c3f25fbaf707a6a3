"""Layer-normalized recurrent layers with the constructor, call, results and parameter names of torch's own."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from tritonln.nn.fx import leaf
from tritonln.nn.rnn_base import LayerNormRNNBase, copied, sizes_of
from tritonln.nn.rnn_parameters import gate_norm_sizes, lstm_norm_sizes, refuse, take_gru_options, take_lstm_options
from tritonln.ops.recurrent.gru import layer_norm_gru
from tritonln.ops.recurrent.lstm import layer_norm_lstm


class LayerNormLSTM(LayerNormRNNBase):
    r"""A layer-normalized LSTM in the place of :class:`torch.nn.LSTM`.

    .. math::
        (i, f, g, o) &= \mathrm{LN}(W_{hh} h_{t-1}; w_{hh}, b_{hh}) + \mathrm{LN}(W_{ih} x_t; w_{ih}, b_{ih}) \\
        c_t &= \sigma(f) \, c_{t-1} + \sigma(i) \tanh(g) \\
        h_t &= \sigma(o) \tanh(\mathrm{LN}(c_t; w_c, b_c))

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device,
            dtype: as :class:`torch.nn.LSTM`'s.  ``bias`` is that of all norms, or of the products in a sum.
        cell_norm: where LN(c) goes.  ``"output"``: into h only, as in the paper and in haste; ``"carry"``: also
            to the next step in the place of c, as in fastrnns and TensorFlow Addons; ``"none"``: nowhere.
        gate_norm: what is normalized: ``"products"``, as above; ``"sum"``: W_hh h + W_ih x with the biases, by one
            norm with a gain and a bias of its own; or ``"none"``.  With both ``"none"`` this is
            :class:`torch.nn.LSTM`.
        norm_groups: ``"joint"``: the 4H values of a row together; ``"gates"``, of a sum: the H of each gate.
        eps: added to each variance.
        cuda_graph: on CUDA, replay steps that are not one launch as a graph, from the second call of a shape on.

    Parameters have torch's names and shapes (``weight_ih_l0``, ``weight_hh_l0``, ``bias_ih_l0``, ``bias_hh_l0``,
    ``weight_hr_l0``, ``..._reverse``), the biases being those of the norms, and beside them
    ``ln_ih_weight_l0`` and ``ln_hh_weight_l0`` (4H,), ``ln_c_weight_l0`` and ``ln_c_bias_l0`` (H,); of a sum
    ``ln_weight_l0`` and ``ln_bias_l0`` (4H,) in the place of the first two.  Gains are vectors: an initializer for
    matrices that goes by names should ask for ``p.dim() > 1``.  :mod:`tritonln.nn.rnn_weights` has a table of the
    options that make published nets.

    Call and results are :class:`torch.nn.LSTM`'s.  With ``return_cells=True`` a third result is a tuple with the
    cell states of every step of each layer, shaped as an output of that layer with H features.  ``resets``, bool and
    laid out as the input without its features, are the steps at which another sequence begins, such as an episode:
    no state passes from before to there, nor back from there in a reverse direction; each goes on from ``hx``, or
    from zeros.  Dtypes, arithmetic, what is saved for backward and errors: :func:`tritonln.layer_norm_lstm`.

    Source: Ba, Kiros and Hinton, Layer Normalization (2016, arXiv 1607.06450), section 3.1.
    """

    parameter_kinds = (
        *("weight_ih", "weight_hh", "bias_ih", "bias_hh", "ln_ih_weight", "ln_hh_weight"),
        *("ln_c_weight", "ln_c_bias", "weight_hr", "ln_weight", "ln_bias"),
    )
    cell_norm: str
    gate_norm: str
    norm_groups: str
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
        gate_norm: str = "products",
        norm_groups: str = "joint",
        eps: float = 1e-5,
        cuda_graph: bool = True,
    ) -> None:
        super().__init__(
            *("LSTM", input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size),
            device=device,
            dtype=dtype,
        )
        take_lstm_options(self, cell_norm, gate_norm, norm_groups, eps)
        self.cuda_graph = cuda_graph
        self.register_norms(device, dtype)

    def norm_sizes(self) -> dict[str, int]:
        return lstm_norm_sizes(self.hidden_size, self.gate_norm, self.cell_norm, self.bias)

    def direction(
        self, x: Tensor, states: tuple[Tensor, ...], parameters: dict[str, Any]
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        options = {"norm_groups": self.norm_groups, "carry": self.cell_norm == "carry"}
        return layer_norm_lstm(x, *states, **{**parameters, **options})

    def forward(  # type: ignore[override]
        self,
        input: Tensor | PackedSequence,
        hx: tuple[Tensor, Tensor] | None = None,
        *,
        resets: Tensor | PackedSequence | None = None,
        return_cells: bool = False,
    ) -> Any:
        if isinstance(input, torch.fx.Proxy):
            return leaf(self, input, hx, resets=resets, return_cells=return_cells)
        states = () if hx is None else tuple(hx)
        if len(states) > 2 or not self.fits(input, states):
            refuse(torch.nn.LSTM.forward, self, input, hx)
        y, final, cells = self.run(input, states, (self.proj_size or self.hidden_size, self.hidden_size), resets)
        return (y, final, cells) if return_cells else (y, final)

    @classmethod
    def from_lstm(cls, lstm: torch.nn.LSTM, **options: Any) -> LayerNormLSTM:
        """A layer of the same sizes with copies of an LSTM's weights and biases, to train on from there.

        Not the same function unless ``gate_norm="none", cell_norm="none"``.  ``options`` are cell_norm, gate_norm,
        norm_groups, eps and cuda_graph.
        """
        return copied(cls(**sizes_of(lstm), proj_size=lstm.proj_size, **options), lstm)


class LayerNormGRU(LayerNormRNNBase):
    r"""A layer-normalized GRU in the place of :class:`torch.nn.GRU`.

    .. math::
        (r, z) &= \sigma(\mathrm{LN}(W_{hh}^{rz} h_{t-1}; w_{hh}, b_{hh})
                  + \mathrm{LN}(W_{ih}^{rz} x_t; w_{ih}, b_{ih})) \\
        n &= \tanh(\mathrm{LN}(W_{ih}^n x_t; w_{ih}, b_{ih}) + r \, \mathrm{LN}(W_{hh}^n h_{t-1}; w_{hh}, b_{hh})) \\
        h_t &= (1 - z) \, n + z \, h_{t-1}

    Args:
        input_size, hidden_size, num_layers, bias, batch_first, dropout, bidirectional, proj_size, device,
            dtype: as :class:`torch.nn.GRU`'s, which has no projection either.  ``bias`` is that of the norms, or of
            the products in a sum.
        gate_norm: what is normalized: ``"products"``, as above; ``"sum"``: W_hh h + W_ih x with the biases, by one
            norm with a gain and a bias of its own.
        norm_groups: ``"paper"``: the 2H values of r and z are normalized together, and the H of n;
            ``"joint"``: all 3H together, as in haste; ``"gates"``, of a sum: the H of each gate.
        reset: ``"recurrent"``: r is a factor of W_hh h, in a sum inside of its norm; ``"candidate"``, of a sum: of
            all that tanh is taken of, as in Dreamer.
        update_bias: added to the argument of the update 1 - z, a sigmoid as z is; -1 in Dreamer.
        eps: added to each variance.
        cuda_graph: on CUDA, replay steps that are not one launch as a graph, from the second call of a shape on.

    Parameters have torch's names and shapes, the biases being those of the norms, and beside them
    ``ln_ih_weight_l0`` and ``ln_hh_weight_l0`` (3H,), of a sum ``ln_weight_l0`` and ``ln_bias_l0`` (3H,), in torch's
    gate order r, z, n.  z keeps the old state as in
    torch; the paper's z is 1 - z.  Call and results are :class:`torch.nn.GRU`'s, with ``resets`` as
    :class:`LayerNormLSTM` has them, and as it under autocast and TorchScript; dtypes, arithmetic, what is saved for
    backward and errors are those of :func:`tritonln.layer_norm_gru`.

    Source: Ba, Kiros and Hinton, Layer Normalization (2016, arXiv 1607.06450), section 3.1 and supplement.
    """

    parameter_kinds = (
        *("weight_ih", "weight_hh", "bias_ih", "bias_hh", "ln_ih_weight", "ln_hh_weight"),
        *("ln_weight", "ln_bias"),
    )
    gate_norm: str
    norm_groups: str
    reset: str
    update_bias: float

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
        gate_norm: str = "products",
        norm_groups: str = "paper",
        reset: str = "recurrent",
        update_bias: float = 0.0,
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
        take_gru_options(self, gate_norm, norm_groups, reset, update_bias, eps)
        self.cuda_graph = cuda_graph
        self.register_norms(device, dtype)

    def norm_sizes(self) -> dict[str, int]:
        return gate_norm_sizes(3 * self.hidden_size, self.gate_norm)

    def direction(
        self, x: Tensor, states: tuple[Tensor, ...], parameters: dict[str, Any]
    ) -> tuple[Tensor, tuple[Tensor, ...], Tensor]:
        options = {"norm_groups": self.norm_groups, "reset": self.reset, "update_bias": self.update_bias}
        y, h_n = layer_norm_gru(x, *states, **{**parameters, **options})
        return y, (h_n,), y

    def forward(  # type: ignore[override]
        self,
        input: Tensor | PackedSequence,
        hx: Tensor | None = None,
        *,
        resets: Tensor | PackedSequence | None = None,
    ) -> Any:
        if isinstance(input, torch.fx.Proxy):
            return leaf(self, input, hx, resets=resets)
        states = () if hx is None else (hx,)
        if not self.fits(input, states):
            refuse(torch.nn.GRU.forward, self, input, hx)
        y, (final,), _ = self.run(input, states, (self.hidden_size,), resets)
        return y, final

    @classmethod
    def from_gru(cls, gru: torch.nn.GRU, **options: Any) -> LayerNormGRU:
        """A layer of the same sizes with copies of a GRU's weights and biases, to train on from there.

        ``options`` are gate_norm, norm_groups, reset, update_bias, eps and cuda_graph.
        """
        return copied(cls(**sizes_of(gru), **options), gru)
