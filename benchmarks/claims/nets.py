"""The nets that claims are tried on."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_padded_sequence

from tritonln.nn import LayerNorm, LayerNormGRU, LayerNormLSTM
from tritonln.ops.layer_norm import layer_norm

SPEAKERS, COEFFICIENTS, HIDDEN = 9, 12, 64
NORMS: dict[str, Callable[[int], nn.Module]] = {
    "no norm": lambda size: nn.Identity(),
    "BatchNorm": nn.BatchNorm1d,
    "LayerNorm": LayerNorm,
}


def mlp(sizes: tuple[int, ...], norm: str) -> nn.Sequential:
    """Linear, norm, ReLU for each layer, and a linear layer at the end."""
    layers: list[nn.Module] = []
    for a, b in itertools.pairwise(sizes[:-1]):
        layers += [nn.Linear(a, b), NORMS[norm](b), nn.ReLU()]
    return nn.Sequential(*layers, nn.Linear(sizes[-2], sizes[-1]))


class RNN(nn.Module):
    """h' = tanh(W x + b + U h); with layer normalization of W x and of U h, each with a gain."""

    def __init__(self, inputs: int, hidden: int, normalized: bool = False) -> None:
        super().__init__()
        self.normalized, self.hidden_size = normalized, hidden
        self.weight_ih_l0, self.weight_hh_l0 = (
            nn.Parameter(torch.empty(hidden, n).uniform_(-1, 1) * hidden**-0.5) for n in (inputs, hidden)
        )
        self.bias = nn.Parameter(torch.zeros(hidden))
        self.gains = nn.Parameter(torch.ones(2, hidden))

    def forward(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """All states and the last one, of x (T, B, inputs)."""
        h, states = x.new_zeros(x.shape[1], self.hidden_size), []
        for inputs in self._norm(x @ self.weight_ih_l0.t(), 0).unbind(0):
            h = torch.tanh(inputs + self.bias + self._norm(h @ self.weight_hh_l0.t(), 1))
            states.append(h)
        return torch.stack(states), h

    def _norm(self, x: Tensor, which: int) -> Tensor:
        return layer_norm(x, self.hidden_size, self.gains[which]) if self.normalized else x


# Of inputs and hidden size: without layer normalization, and with it.
RECURRENT: dict[str, tuple[Callable[[int, int], nn.Module], Callable[[int, int], nn.Module]]] = {
    "RNN": (RNN, lambda inputs, hidden: RNN(inputs, hidden, normalized=True)),
    "LSTM": (nn.LSTM, LayerNormLSTM),
    "GRU": (nn.GRU, LayerNormGRU),
}


class Speaker(nn.Module):
    """The last state of a recurrent layer into a linear one."""

    def __init__(self, layer: Callable[[int, int], nn.Module]) -> None:
        super().__init__()
        self.rnn = layer(COEFFICIENTS, HIDDEN)
        self.out = nn.Linear(HIDDEN, SPEAKERS)

    def forward(self, frames: Tensor, lengths: Tensor) -> Tensor:
        packed = pack_padded_sequence(frames, lengths, batch_first=True, enforce_sorted=False)
        _, state = self.rnn(packed)
        return self.out((state[0] if isinstance(state, tuple) else state)[-1])
