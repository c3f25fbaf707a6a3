"""A character-level language model with tritonln's pre-norm transformer and with torch's: loss curves and step times.

    python -m benchmarks.character_model [--steps 300] [--seeds 2] [--out FOLDER]

The text is that of Python's own help (pydoc_data.topics), half a million characters that ship with CPython.  Both twins
begin with the same parameters and see the same batches; with dropout they drop alike where no kernels run.  "Within
noise" means that the largest difference of the twins' losses, averaged over ten steps, is below that of two seeds of
torch's twin.  Times are this thread's CPU time, or the clock's where there is a GPU.  Writes character-model.png.
"""

from __future__ import annotations

import argparse
import itertools
import os
import pathlib
import statistics
import time
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor, nn

import tritonln
from benchmarks.results_file import RESULTS

SIZE, HEADS, LAYERS, LENGTH, BATCH, RATE, WINDOW = 64, 4, 2, 64, 16, 3e-3, 10
TWINS = {"tritonln": tritonln.nn, "torch": nn}


def corpus() -> tuple[Tensor, int]:
    """The text as numbers of its characters, and how many there are."""
    from pydoc_data.topics import topics

    text = "\n".join(topics.values())
    known = {c: i for i, c in enumerate(sorted(set(text)))}
    return torch.tensor([known[c] for c in text]), len(known)


class Model(nn.Module):
    """Embeddings, a causal stack of pre-norm layers of `module`, and logits of the next character."""

    def __init__(self, module: Any, characters: int) -> None:
        super().__init__()
        self.characters, self.positions = nn.Embedding(characters, SIZE), nn.Embedding(LENGTH, SIZE)
        layer = module.TransformerEncoderLayer(
            SIZE, HEADS, 4 * SIZE, dropout=0.1, activation="gelu", norm_first=True
        )  # sequences first: batches of them would change the order in which torch draws what is dropped
        self.stack = module.TransformerEncoder(layer, LAYERS, nn.LayerNorm(SIZE), enable_nested_tensor=False)
        self.head = nn.Linear(SIZE, characters)

    def forward(self, text: Tensor) -> Tensor:
        """Logits (T, B, characters) of text (T, B)."""
        T = len(text)
        mask = nn.Transformer.generate_square_subsequent_mask(T, device=text.device)
        x = self.characters(text) + self.positions.weight[:T, None]
        return self.head(self.stack(x, mask, is_causal=True))


class Curve(NamedTuple):
    losses: list[float]
    seconds: float  # the median of a step


def train(module: Any, seed: int, steps: int) -> Curve:
    device = torch.accelerator.current_accelerator(check_available=True) or torch.device("cpu")
    clock = time.thread_time if device.type == "cpu" else time.perf_counter
    text, characters = corpus()
    text = text.to(device)
    torch.manual_seed(seed)
    model = Model(module, characters).to(device)
    optimizer = torch.optim.AdamW(model.parameters(), RATE)
    losses, seconds = [], []
    for _ in range(steps):
        start = clock()
        at = torch.randint(len(text) - LENGTH - 1, (BATCH,), device=device) + torch.arange(
            LENGTH + 1, device=device
        ).unsqueeze(1)
        some = text[at]
        loss = F.cross_entropy(model(some[:-1]).flatten(0, 1), some[1:].flatten())
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
        seconds.append(clock() - start)
    return Curve(losses, statistics.median(seconds))


def apart(a: Sequence[float], b: Sequence[float]) -> float:
    """The largest difference of two curves that are averaged over WINDOW steps."""
    differences = [x - y for x, y in zip(a, b)]
    sums = [0.0, *itertools.accumulate(differences)]
    return max(abs(late - early) for early, late in zip(sums, sums[WINDOW:])) / WINDOW


def plot(curves: dict[str, list[Curve]], path: pathlib.Path) -> None:
    from benchmarks.claims.page import STYLES
    from benchmarks.plots import figure, png

    f = figure(7, 3.4)
    axes = f.subplots()
    for (name, found), style in zip(curves.items(), (STYLES["LayerNorm"], STYLES["no norm"])):
        for i, curve in enumerate(found):
            label = f"{name}, {1e3 * statistics.median(c.seconds for c in found):.0f} ms a step" if i == 0 else None
            axes.plot(curve.losses, color=style["color"], ls=style["ls"], lw=1.2, label=label)
    axes.set(xlabel="step", ylabel="loss, nats a character", title="Pre-norm transformer on Python's help text")
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    path.write_bytes(png(f))


def main() -> None:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--steps", type=int, default=300)
    parser.add_argument("--seeds", type=int, default=2)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "claims")
    a = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = "0"  # a CPU's fast path is ATen
    torch.set_num_threads(1)  # of cores that are shared, two wait for one another
    curves: dict[str, list[Curve]] = {name: [] for name in TWINS}
    for seed, (name, module) in track(list(itertools.product(range(a.seeds), TWINS.items())), "training"):
        curves[name].append(train(module, seed, a.steps))
    table = Table("twin", "loss at the end, by seed", "ms a step, median")
    for name, found in curves.items():
        ends = " ".join(f"{statistics.mean(c.losses[-WINDOW:]):.3f}" for c in found)
        table.add_row(name, ends, f"{1e3 * statistics.median(c.seconds for c in found):.1f}")
    Console().print(table)
    twins = max(apart(x.losses, y.losses) for x, y in zip(*curves.values()))
    seeds = [apart(x.losses, y.losses) for x, y in itertools.combinations(curves["torch"], 2)]
    verdict = "" if not seeds else "within noise" if twins <= min(seeds) else "NOT within noise"
    print(f"twins are {twins:.2g} apart, torch's seeds {', '.join(f'{s:.2g}' for s in seeds)}: {verdict}")
    a.out.mkdir(parents=True, exist_ok=True)
    plot(curves, a.out / "character-model.png")
    print(a.out / "character-model.png")


if __name__ == "__main__":
    main()
