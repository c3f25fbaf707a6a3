"""Test errors of recurrent nets on JapaneseVowels after a short training, with and without layer normalization.

    python -m benchmarks.japanese_vowels [--seeds 3] [--iterations 150]

Nine speakers say two vowels, 270 utterances to train on and 370 to test, from the package aeon in this project's extra
`claims`.  One layer, H = 64, the last state into a linear layer, batches of 32, Adam.
"""

from __future__ import annotations

import argparse
import os
import statistics

from rich.console import Console
from rich.progress import track
from rich.table import Table

from benchmarks.claims.experiments import train_speaker

CASES = [
    ("LSTM", False, 1e-3),
    ("LSTM", True, 1e-3),
    ("LSTM", False, 1e-2),
    ("LSTM", True, 1e-2),
    ("GRU", False, 1e-3),
    ("GRU", True, 1e-3),
]
# Of the mean error of the case before, at most: what this project asks of itself.
ASKED = {("LSTM", 1e-3): 1 / 2, ("LSTM", 1e-2): 2 / 3, ("GRU", 1e-3): 1 / 2}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--iterations", type=int, default=150)
    a = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = "0"  # a CPU's fast path is ATen
    table = Table("layer", "rate", "test errors, %", "mean", "over the plain layer's", "asked")
    before = 0.0
    for cell, normalized, rate in track(CASES, "training", transient=True):
        errors = [train_speaker(cell, normalized, rate, a.iterations, seed)["error"] for seed in range(a.seeds)]
        mean = statistics.mean(errors)
        ratio = (f"{mean / before:.2f}", f"{ASKED[cell, rate]:.2f}") if normalized else ("", "")
        name = f"LayerNorm{cell}" if normalized else cell
        table.add_row(name, f"{rate:g}", " ".join(f"{e:.1f}" for e in errors), f"{mean:.1f}", *ratio)
        before = mean
    Console().print(table)


if __name__ == "__main__":
    main()
