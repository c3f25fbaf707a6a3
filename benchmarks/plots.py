"""The plots of a report, with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from benchmarks.results_file import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLORS = {
    "tritonln": "#0b6e4f", "eager": "#8d99ae", "compile": "#5e60ce", "cudnn": "#76b900", "liger": "#e76f51",
    "fla": "#e9c46a", "quack": "#2a9d8f", "flash_attn": "#9d4edd", "apex": "#577590", "transformer_engine": "#bc6c25",
    "copy": "#222222",
}  # fmt: skip
SHORT = {"forward": "forward", "backward": "backward", "both": "forward and backward", "no_grad": "forward, no_grad"}


def figure(width: float, height: float) -> Figure:
    from matplotlib.figure import Figure

    # Without pyplot nothing asks for a display, and nothing is kept.
    return Figure(figsize=(width, height), layout="constrained")


def png(figure: Figure) -> bytes:
    buffer = io.BytesIO()
    # No date or version inside, so that the same results give the same file.
    figure.savefig(buffer, format="png", dpi=110, metadata={"Software": None})
    return buffer.getvalue()


def plots(header: Record, timed: Sequence[Record], host: Sequence[Record]) -> dict[str, bytes]:
    """PNG files by name, for what the results hold."""
    found = {}
    for direction in ("no_grad", "forward", "backward", "both"):
        for dtype in dict.fromkeys(r["dtype"] for r in timed):
            some = [r for r in timed if (r["pass"], r["dtype"], r["group"]) == (direction, dtype, "hidden")]
            if some:
                found[f"bandwidth-{direction}-{dtype}.png"] = png(bandwidth(header, some, direction, dtype))
    ours = [r for r in timed if r["provider"] == "tritonln" and r["operator"] == "layer_norm"]
    for other in ("eager", "cudnn", "liger", "fla"):
        theirs = {r["id"].rsplit("/", 1)[0]: r for r in timed if r["provider"] == other}
        ratios = [(r, theirs[i]["seconds"] / r["seconds"]) for r in ours if (i := r["id"].rsplit("/", 1)[0]) in theirs]
        if ratios:
            found[f"speedup-{other}.png"] = png(speedup(header, ratios, other))
    if host:
        found["host.png"] = png(host_time(host))
    return found


def note(header: Record) -> str:
    """What the reader must know before the first figure."""
    if header["kind"] == "modelled":
        return f"modelled for {header['target_device']}, not measured"
    return f"{header['kind']} on {header['device']}"


def bandwidth(header: Record, cells: Sequence[Record], direction: str, dtype: str) -> Figure:
    f = figure(8, 4.2)
    axes = f.subplots()
    for provider in dict.fromkeys(r["provider"] for r in cells):
        points = sorted((r["N"], r["GB/s"]) for r in cells if r["provider"] == provider)
        axes.plot(*zip(*points), marker="o", ms=4, lw=1.6, label=provider, color=COLORS.get(provider))
    roof = header.get("copy_bandwidth") or header["bandwidth"]
    says = "measured copy" if "copy_bandwidth" in header else "data sheet"
    axes.axhline(roof / 1e9, color="#c1121f", lw=1.2, ls="--", label=f"{says}, {roof / 1e9:.0f} GB/s")
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("N (row length), x at constant bytes")
    axes.set_ylabel("GB/s of the least bytes")
    axes.set_title(f"layer_norm, {SHORT[direction]}, {dtype}: {note(header)}", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=2)
    return f


def speedup(header: Record, ratios: Sequence[tuple[Record, float]], other: str) -> Figure:
    """A panel a pass: the other's time over tritonln's, over row length and rows."""
    from matplotlib.colors import LogNorm

    directions = [d for d in SHORT if any(r["pass"] == d for r, _ in ratios)]
    f = figure(4.6 * len(directions) + 0.8, 4.4)
    panels = f.subplots(1, len(directions), squeeze=False)[0]
    points: Any = None
    scale = LogNorm(0.5, 2)  # twice as fast and half as fast are equally far from 1
    for axes, direction in zip(panels, directions):
        some = [(r["N"], r["M"], value) for r, value in ratios if r["pass"] == direction]
        N, M, values = zip(*some)
        points = axes.scatter(N, M, c=values, cmap="RdYlGn", norm=scale, marker="s", s=120, edgecolors="#555")
        for n, m, value in some:
            ink = "black" if 0.62 < value < 1.6 else "white"
            axes.annotate(f"{value:.2g}", (n, m), fontsize=6, ha="center", va="center", color=ink)
        axes.set_xscale("log", base=2)
        axes.set_yscale("log", base=2)
        axes.set_xlabel("N")
        axes.set_ylabel("M (rows)")
        axes.set_title(SHORT[direction], fontsize=10)
        axes.margins(0.1)
    bar = f.colorbar(points, ax=list(panels), label=f"{other} / tritonln, seconds", ticks=[0.5, 1, 2], format="%g")
    bar.minorticks_off()
    f.suptitle(f"speed-up over {other}: {note(header)}", fontsize=10)
    return f


def host_time(host: Sequence[Record]) -> Figure:
    from statistics import median

    f = figure(8, 3.2)
    axes = f.subplots()
    directions = list(dict.fromkeys(r["pass"] for r in host))
    providers = list(dict.fromkeys(r["provider"] for r in host))
    width = 0.8 / len(providers)
    for i, provider in enumerate(providers):
        heights = [
            median(r["samples"]) for d in directions for r in host if (r["provider"], r["pass"]) == (provider, d)
        ]
        bars = axes.bar(
            [j + i * width for j in range(len(heights))], heights, width, label=provider, color=COLORS.get(provider)
        )
        axes.bar_label(bars, fmt="%.0f", fontsize=7)
    axes.set_xticks([j + 0.4 - width / 2 for j in range(len(directions))], [SHORT[d] for d in directions])
    axes.set_ylabel("host us a call")
    axes.set_title(
        f"host time, {host[0]['M']} x {host[0]['N']}, CPU time on a stub driver (eager: with its arithmetic)",
        fontsize=10,
    )
    axes.legend(fontsize=8)
    return f
