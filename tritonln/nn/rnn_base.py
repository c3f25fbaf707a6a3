"""What the layer-normalized recurrent layers share: their parameters, and the walk through layers and directions."""

from __future__ import annotations

import abc
from collections.abc import Iterator
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Parameter, init
from torch.nn.utils.rnn import PackedSequence

from tritonln.nn.rnn_layout import laid_out
from tritonln.nn.rnn_parameters import changed
from tritonln.nn.rnn_parameters import reset as reset_values
from tritonln.ops.recurrent.contract import check_resets


class LayerNormRNNBase(torch.nn.RNNBase, abc.ABC):
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
                init.constant_(getattr(self, kind + suffix), 0.0 if "bias" in kind else 1.0)

    def suffixes(self) -> Iterator[str]:
        for layer in range(self.num_layers):
            yield f"_l{layer}"
            if self.bidirectional:
                yield f"_l{layer}_reverse"

    def reset_parameters(self) -> None:
        reset_values(self, self.hidden_size)

    def flatten_parameters(self) -> None:
        """Does nothing; it is here for code that calls it on torch's layers."""

    def extra_repr(self) -> str:
        return super().extra_repr() + changed(self)

    def fits(self, input: Tensor | PackedSequence, states: tuple[Tensor, ...]) -> bool:
        """Whether there are as many dimensions as there should be; where not, torch's forward refuses in its words."""
        if isinstance(input, PackedSequence):
            return all(s.dim() == 3 for s in states)
        return input.dim() in (2, 3) and all(s.dim() == input.dim() for s in states)

    def check_resets(self, input: Tensor | PackedSequence, resets: Tensor | PackedSequence | None) -> None:
        name = type(self).__name__
        if isinstance(input, PackedSequence) and resets is not None:
            if not isinstance(resets, PackedSequence) or not resets.batch_sizes.equal(input.batch_sizes):
                raise RuntimeError(f"{name}: expected resets to be packed as the input is, got {type(resets).__name__}")
            check_resets(name, resets.data, input.data)
        elif isinstance(resets, PackedSequence):
            raise RuntimeError(f"{name}: expected resets to be a tensor as the input is, got PackedSequence")
        else:
            check_resets(name, resets, input)  # type: ignore[arg-type]

    def run(
        self,
        input: Tensor | PackedSequence,
        states: tuple[Tensor, ...],
        sizes: tuple[int, ...],
        resets: Tensor | PackedSequence | None,
    ) -> tuple[Any, tuple[Tensor, ...], tuple[Any, ...]]:
        """All layers, from and to the caller's layout.  `sizes` are the features of the states."""
        if isinstance(input, PackedSequence):
            self.check_input(input.data, input.batch_sizes)
        self.check_resets(input, resets)
        x, layout = laid_out(input, self.batch_first)
        rows = self.num_layers * (1 + self.bidirectional)
        if states:
            states = tuple(layout.state(s) for s in states)
        else:
            states = tuple(x.new_zeros(rows, x.shape[1], size) for size in sizes)
        hidden: Any = states if len(sizes) > 1 else states[0]
        self.check_forward_args(x.transpose(0, 1) if self.batch_first else x, hidden, None)

        common = {"lengths": layout.running(x), "eps": self.eps, "cuda_graph": self.cuda_graph}
        begins = layout.resets(resets)
        finals, cells, outputs = [], [], []
        for row, suffix in enumerate(self.suffixes()):
            reverse = suffix.endswith("reverse")
            parameters = {kind: getattr(self, kind + suffix, None) for kind in self.parameter_kinds}
            # Where one sequence begins, another ends: that is where the way back begins.
            anew = begins.roll(-1, 0) if reverse and begins is not None else begins
            options = {**common, "reverse": reverse, "resets": anew}
            y, final, c = self.direction(x, tuple(s[row] for s in states), {**parameters, **options})
            finals.append(final)
            outputs.append((y, c))
            if reverse or not self.bidirectional:
                x, c = (t[0] if len(t) == 1 else torch.cat(t, -1) for t in zip(*outputs))
                cells.append(layout.output(c))
                outputs = []
                if row < rows - 1 and self.dropout:
                    x = F.dropout(x, self.dropout, self.training)
        return layout.output(x), tuple(layout.final(torch.stack(s)) for s in zip(*finals)), tuple(cells)


def sizes_of(rnn: torch.nn.RNNBase) -> dict[str, Any]:
    names = ("input_size", "hidden_size", "num_layers", "bias", "batch_first", "dropout", "bidirectional")
    weight = rnn.weight_hh_l0
    return {**{name: getattr(rnn, name) for name in names}, "device": weight.device, "dtype": weight.dtype}


def copied(new: Any, rnn: torch.nn.RNNBase) -> Any:
    with torch.no_grad():
        for name in rnn._flat_weights_names:
            getattr(new, name).copy_(getattr(rnn, name))
    return new.train(rnn.training)
