"""Test errors of recurrent nets on JapaneseVowels after a short training, with and without layer normalization.

    python -m benchmarks.japanese_vowels [--seeds 3] [--iterations 150]

Nine speakers say two vowels; 12 cepstrum coefficients a frame, 7 to 29 frames, 270 utterances to train on and
370 to test (Kudo, Toyama and Shimbo 1999, UCI; the files are part of the `aeon` package, in this project's
extra `vowels`).  One layer, H = 64, the last state into a linear layer, batches of 32, Adam.
"""

from __future__ import annotations

import argparse
import os
import statistics
from collections.abc import Callable

import torch
from aeon.datasets import load_japanese_vowels
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor, nn
from torch.nn.utils.rnn import pack_sequence

from tritonln.nn import LayerNormGRU, LayerNormLSTM

HIDDEN, BATCH, SPEAKERS = 64, 32, 9
CASES = [
    ("LSTM", nn.LSTM, 1e-3),
    ("LayerNormLSTM", LayerNormLSTM, 1e-3),
    ("LSTM", nn.LSTM, 1e-2),
    ("LayerNormLSTM", LayerNormLSTM, 1e-2),
    ("GRU", nn.GRU, 1e-3),
    ("LayerNormGRU", LayerNormGRU, 1e-3),
]
# Of the mean error of the case before, at most: what this project asks of itself.
ASKED = {("LayerNormLSTM", 1e-3): 1 / 2, ("LayerNormLSTM", 1e-2): 2 / 3, ("LayerNormGRU", 1e-3): 1 / 2}


class Speaker(nn.Module):
    def __init__(self, layer: Callable[[int, int], nn.RNNBase]) -> None:
        super().__init__()
        self.rnn = layer(12, HIDDEN)
        self.out = nn.Linear(HIDDEN, SPEAKERS)

    def forward(self, utterances: list[Tensor]) -> Tensor:
        _, state = self.rnn(pack_sequence(utterances, enforce_sorted=False))
        return self.out((state[0] if isinstance(state, tuple) else state)[-1])


def load(split: str) -> tuple[list[Tensor], Tensor]:
    series, labels = load_japanese_vowels(split)
    return [torch.tensor(s.T, dtype=torch.float32) for s in series], torch.tensor([int(y) - 1 for y in labels])


def test_error(layer: Callable[[int, int], nn.RNNBase], rate: float, seed: int, iterations: int) -> float:
    """Percent of the test utterances that are given to another speaker."""
    torch.manual_seed(seed)
    (x, y), (x_test, y_test) = load("train"), load("test")
    net = Speaker(layer)
    optimizer = torch.optim.Adam(net.parameters(), rate)
    for _ in range(iterations):
        batch = torch.randint(len(x), (BATCH,))
        loss = nn.functional.cross_entropy(net([x[i] for i in batch]), y[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    with torch.no_grad():
        return 100 * float((net(x_test).argmax(1) != y_test).float().mean())


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=150)
    a = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = "0"  # a CPU's fast path is ATen
    table = Table("layer", "rate", "test errors, %", "mean", "over the plain layer's", "asked")
    before = 0.0
    for name, layer, rate in track(CASES, "training", transient=True):
        errors = [test_error(layer, rate, seed, a.iterations) for seed in range(a.seeds)]
        mean = statistics.mean(errors)
        asked = ASKED.get((name, rate))
        ratio = ("", "") if asked is None else (f"{mean / before:.2f}", f"{asked:.2f}")
        table.add_row(name, f"{rate:g}", " ".join(f"{e:.1f}" for e in errors), f"{mean:.1f}", *ratio)
        before = mean
    Console().print(table)


if __name__ == "__main__":
    main()
