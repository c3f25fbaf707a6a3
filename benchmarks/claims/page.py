"""The claims on one page: a table of verdicts, and a plot of each experiment."""

from __future__ import annotations

import base64
import html
import pathlib
import statistics
import string
from collections.abc import Iterator, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.claims.verdicts import (
    BATCHES,
    CELLS,
    DESCENTS,
    EXPLODED,
    RATES,
    REACHED,
    SCALES,
    SGD_RATES,
    TRAINED,
    USABLE,
    VANISHED,
    Key,
    Results,
    Verdict,
    by_batch,
    by_sgd,
    curves,
    descended,
    probed,
    speaker,
)
from benchmarks.plots import figure, png

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Of Okabe and Ito, told apart by the colour-blind, and by their lines where there is no colour.
STYLES: dict[str, dict[str, Any]] = {
    "no norm": {"color": "#0072B2", "ls": "--", "marker": "s"},
    "BatchNorm": {"color": "#009E73", "ls": ":", "marker": "^"},
    "LayerNorm": {"color": "#D55E00", "ls": "-", "marker": "o"},
}
NETS = ("MLP", *TRAINED)
Band = Sequence[Sequence[float]]


def _style(normalized: bool) -> tuple[str, dict[str, Any]]:
    name = "LayerNorm" if normalized else "no norm"
    return name, STYLES[name]


def _band(axes: Axes, x: Sequence[float], ys: Band, label: str, style: Mapping[str, Any], **more: Any) -> None:
    """The mean over seeds, and between the least and the most of them."""
    columns = list(zip(*ys))
    axes.plot(x, [statistics.mean(c) for c in columns], label=label, **{"lw": 1.6, "ms": 4, **style, **more})
    axes.fill_between(x, [min(c) for c in columns], [max(c) for c in columns], color=style["color"], alpha=0.15, lw=0)


def band_of_seeds(axes: Axes, curves: Band, label: str, normalized: bool) -> None:
    """Of curves by iteration."""
    _band(axes, range(1, len(curves[0]) + 1), curves, label, _style(normalized)[1], marker=None)


def _panels(count: int, height: float = 3.4) -> tuple[Figure, Sequence[Axes]]:
    f = figure(10.5, height)
    panels = f.subplots(1, count, squeeze=False)[0]
    for axes in panels:
        axes.grid(alpha=0.25)
    return f, panels


def _batches(results: Results) -> Figure:
    of = [name for name in ("digits", "mnist") if by_batch(name, "LayerNorm", 4) in results]
    f, panels = _panels(len(of))
    for axes, name in zip(panels, of):
        for norm, style in STYLES.items():
            errors = [[r["error"] for r in results[by_batch(name, norm, batch)]] for batch in BATCHES]
            _band(axes, [0, 1], list(zip(*errors)), norm, style)
        axes.set_xticks([0, 1], [str(batch) for batch in BATCHES])
        axes.set(xlabel="batch size", ylabel="test error, %", ylim=(0, None), xlim=(-0.2, 1.2))
        axes.set_title({"digits": "digits", "mnist": "MNIST, 5,000 images"}[name], fontsize=10)
    panels[0].legend(fontsize=8)
    return f


def _convergence(results: Results) -> Figure:
    f = figure(10.5, 6.2)
    nets = [net for net in NETS if net == "MLP" or speaker(net, True, RATES[0]) in results]
    grid = f.subplots(2, len(nets), squeeze=False)
    for column, net in enumerate(nets):
        for n in (False, True):
            name, style = _style(n)
            found = [r["curve"] for r in curves(results, net, n)]
            iterations = [point[0] for point in found[0]]
            seconds = [statistics.mean(c[i][1] for c in found) for i in range(len(iterations))]
            for row, x in enumerate((iterations, seconds)):
                _band(grid[row][column], x, [[point[2] for point in c] for c in found], name, style, marker=None)
        for row, what in enumerate(("iterations", "CPU seconds of training")):
            axes = grid[row][column]
            axes.axhline(REACHED[net], color="#555555", lw=0.8)
            axes.set(xlabel=what, ylabel="test error, %", yscale="log", ylim=(1, 100))
            axes.set_yticks([1, 2, 5, 10, 20, 50, 100], ["1", "2", "5", "10", "20", "50", "100"])
            axes.minorticks_off()
            axes.grid(alpha=0.25)
        grid[0][column].set_title(f"{net} on {'digits' if net == 'MLP' else 'JapaneseVowels'}", fontsize=10)
    grid[0][0].legend(fontsize=8)
    return f


def _rates(results: Results) -> Figure:
    nets = [net for net in NETS if net == "MLP" or speaker(net, True, RATES[0]) in results]
    f, panels = _panels(len(nets))
    for axes, net in zip(panels, nets):
        rates = SGD_RATES if net == "MLP" else RATES
        for n in (False, True):
            name, style = _style(n)
            keys = [by_sgd(name, rate) if net == "MLP" else speaker(net, n, rate) for rate in rates]
            _band(axes, rates, list(zip(*([r["error"] for r in results[key]] for key in keys))), name, style)
        axes.axhline(USABLE, color="#555555", lw=0.8)
        axes.set(xlabel=f"learning rate, {'SGD' if net == 'MLP' else 'Adam'}", ylabel="test error, %", xscale="log")
        axes.set_ylim(0, 100)
        axes.set_title(net, fontsize=10)
    panels[0].legend(fontsize=8)
    return f


def _states(results: Results) -> Figure:
    f = figure(10.5, 6.2)
    grid = f.subplots(2, len(CELLS), squeeze=False)
    for column, cell in enumerate(CELLS):
        for n in (False, True):
            name, style = _style(n)
            for scale, width in ((1.5, 1.0), (8.0, 2.2)):
                for row, what in enumerate(("saturated", "norm")):
                    seeds = [r[what] for r in results[probed(cell, n, scale)]]
                    steps = range(1, len(seeds[0]) + 1)
                    label = f"{name}, scale {scale:g}"
                    _band(grid[row][column], steps, seeds, label, style, marker=None, lw=width)
        for row, what in enumerate(("fraction of |h| > 0.9", "norm of the state")):
            grid[row][column].set(xlabel="time step", ylabel=what, ylim=(0, None))
            grid[row][column].grid(alpha=0.25)
        grid[0][column].set_title(cell, fontsize=10)
    grid[0][0].legend(fontsize=7)
    return f


def _gradients(results: Results) -> Figure:
    f, panels = _panels(len(CELLS))
    for axes, cell in zip(panels, CELLS):
        for n in (False, True):
            name, style = _style(n)
            ends = [[max(r["gradient"][-1], 1e-30) for r in results[probed(cell, n, s)]] for s in SCALES]
            _band(axes, SCALES, list(zip(*ends)), name, style)
        for limit in (EXPLODED, VANISHED):
            axes.axhline(limit, color="#555555", lw=0.8)
        axes.set(xlabel="recurrent scale", ylabel="gradient 50 steps back / last", yscale="log", xscale="log")
        axes.set_xticks(SCALES, [f"{s:g}" for s in SCALES])
        axes.minorticks_off()
        axes.set_title(cell, fontsize=10)
    panels[0].legend(fontsize=8)
    return f


def _smoothness(results: Results) -> Figure:
    f = figure(10.5, 6.2)
    grid = f.subplots(2, len(DESCENTS), squeeze=False)
    for column, rate in enumerate(DESCENTS):
        for name in ("no norm", "LayerNorm"):
            for row, what in enumerate(("losses", "changes")):
                seeds = [r[what] for r in results[descended(name, rate)]]
                _band(grid[row][column], range(len(seeds[0])), seeds, name, STYLES[name], marker=None)
        grid[0][column].set(xlabel="step of gradient descent", ylabel="loss", ylim=(0, None))
        grid[1][column].set(xlabel="step of gradient descent", ylabel="|change of gradient| / |gradient|", yscale="log")
        grid[0][column].set_title(f"rate {rate:g}", fontsize=10)
        for row in (0, 1):
            grid[row][column].grid(alpha=0.25)
    grid[0][0].legend(fontsize=8)
    return f


# File, plot, the experiment it needs, and what it shows; lines are means over seeds, bands from the least to the most.
PLOTS = (
    ("batch-size.png", _batches, "train_mlp", "Test error by batch size: MLPs, Adam at 0.001, 500 and 400 iterations."),
    ("convergence.png", _convergence, "train_mlp", "Test error while training; the line is the error to be reached."),
    ("learning-rate.png", _rates, "train_mlp", "Test error after 150 (MLP) and 120 iterations, by learning rate."),
    (
        "hidden-state.png",
        _states,
        "probe",
        "States of new recurrent layers; thin: scale 1.5, thick: 8. With LayerNorm both are one.",
    ),
    ("gradients.png", _gradients, "probe", "Gradient of an input 50 steps back over that of the last input."),
    ("smoothness.png", _smoothness, "descend", "Full-batch gradient descent of an MLP with four layers on digits."),
)


def write(folder: pathlib.Path, results: Results, found: Sequence[Verdict], facts: Mapping[str, str]) -> pathlib.Path:
    """claims.html and its plots; returns the page's path."""
    folder.mkdir(parents=True, exist_ok=True)
    parts = []
    for name, caption, picture in _drawn(results):
        (folder / name).write_bytes(picture)
        data = base64.b64encode(picture).decode()
        words = html.escape(caption)
        parts.append(
            f'<figure><img alt="{words}" src="data:image/png;base64,{data}"><figcaption>{words}</figcaption></figure>'
        )
    here = pathlib.Path(__file__).parent.parent / "page"
    page = string.Template((here / "claims.html").read_text()).substitute(
        style=(here / "style.css").read_text(),
        verdicts="\n".join(map(_row, found)),
        plots="\n".join(parts),
        facts="\n".join(f"<tr><td>{html.escape(k)}</td><td>{html.escape(v)}</td></tr>" for k, v in facts.items()),
    )
    target = folder / "claims.html"
    target.write_text(page)
    return target


def _drawn(results: Results) -> Iterator[tuple[str, str, bytes]]:
    run = {key[0] for key in results}
    for name, plot, experiment, caption in PLOTS:
        if experiment in run:
            yield name, caption, png(plot(results))


def _row(v: Verdict) -> str:
    mark = v.verdict.split()[0]
    cells = (v.claim, v.criterion, f"{v.found}. {v.remark}" if v.remark else v.found)
    return "<tr>" + "".join(f"<td>{html.escape(c)}</td>" for c in cells) + f'<td class="{mark}">{v.verdict}</td></tr>'


__all__ = ["Key", "write"]
