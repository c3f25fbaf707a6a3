"""CartPole with hidden velocities, learned by an LSTM policy with layer normalization and without it.

    python -m benchmarks.cartpole [--seeds 5] [--iterations 40] [--rate 1e-2] [--out FOLDER]

An episode is as good as it is long, 200 steps at most; a pole that is not held falls after some 20.  Both learn by the
same steps of PPO (benchmarks/claims/control.py), with resets in the sequence, some four minutes of CPU time.
Writes cartpole.png.
"""

from __future__ import annotations

import argparse
import os
import pathlib
import statistics
import sys
from collections.abc import Sequence

from benchmarks.results_file import RESULTS

LAST = 5  # iterations that are the end of a run
NAMES = {False: "LSTM", True: "LayerNormLSTM"}
Curves = dict[bool, list[list[float]]]  # with layer normalization or without: of each seed, by iteration


def verdict(what: str, plain: Sequence[float], normalized: Sequence[float]) -> str:
    """Of paired seeds: five of five alike happen to a coin one time in sixteen."""
    better = sum(n > p for p, n in zip(plain, normalized))
    difference = statistics.mean(normalized) - statistics.mean(plain)
    said = "no difference that these seeds show"
    if len(plain) > 1 and better in (0, len(plain)):
        said = f"layer normalization is {'better' if better else 'worse'} on every seed"
    return f"{what}: {difference:+.0f} steps, better on {better} of {len(plain)} seeds: {said}"


def plot(curves: Curves, path: pathlib.Path) -> None:
    from benchmarks.claims.page import band_of_seeds
    from benchmarks.plots import figure, png

    f = figure(7, 3.4)
    axes = f.subplots()
    for normalized, found in curves.items():
        band_of_seeds(axes, found, NAMES[normalized], normalized)
    axes.set(xlabel="iteration of 6,400 steps", ylabel="steps that the pole is held", ylim=(0, 200))
    axes.set_title("CartPole with hidden velocities, PPO: mean of seeds, least and most", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8)
    path.write_bytes(png(f))


def main() -> None:
    from rich.console import Console
    from rich.table import Table

    from benchmarks.claims.control import task
    from benchmarks.claims.data import Missing
    from benchmarks.claims.run import results_of

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=int, default=5)
    parser.add_argument("--iterations", type=int, default=40)
    parser.add_argument("--rate", type=float, default=1e-2)
    parser.add_argument("--out", type=pathlib.Path, default=RESULTS / "claims")
    a = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = "0"  # a CPU's fast path is ATen
    try:
        task()
    except Missing as error:
        sys.exit(f"python -m benchmarks.cartpole: {error}")
    work = [(("balance", n, a.rate, a.iterations), seed) for seed in range(a.seeds) for n in (False, True)]
    results = results_of(work)
    curves = {n: [r["lengths"] for r in results["balance", n, a.rate, a.iterations]] for n in (False, True)}
    ends, means = (
        {n: [statistics.mean(c[-last:]) for c in found] for n, found in curves.items()} for last in (LAST, a.iterations)
    )
    table = Table("policy", f"steps held, last {LAST} iterations, by seed", "mean", "mean of all iterations")
    for n, name in NAMES.items():
        seeds = " ".join(f"{end:.0f}" for end in ends[n])
        table.add_row(name, seeds, f"{statistics.mean(ends[n]):.0f}", f"{statistics.mean(means[n]):.0f}")
    Console().print(table)
    print(verdict("at the end", ends[False], ends[True]))
    print(verdict("all along", means[False], means[True]))
    a.out.mkdir(parents=True, exist_ok=True)
    plot(curves, a.out / "cartpole.png")
    print(a.out / "cartpole.png")


if __name__ == "__main__":
    main()
