"""The plots of a report, with matplotlib."""

from __future__ import annotations

import io
from collections.abc import Sequence
from typing import TYPE_CHECKING

from benchmarks.results_file import Record

if TYPE_CHECKING:
    from matplotlib.figure import Figure

# Of Okabe and Ito, and of Tol, told apart by the colour-blind; each provider has a marker of its own too.
COLORS = {
    "tritonln": "#D55E00", "eager": "#0072B2", "compile": "#CC79A7", "cudnn": "#009E73", "liger": "#56B4E9",
    "fla": "#E69F00", "quack": "#332288", "flash_attn": "#882255", "apex": "#999933", "transformer_engine": "#117733",
    "copy": "#222222",
}  # fmt: skip
MARKERS = dict(zip(COLORS, "osD^vPX<>p*"))
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
    ours = [r for r in timed if r["provider"] == "tritonln" and r["operator"] == "layer_norm" and r["group"] in SWEEPS]
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
        marker = MARKERS.get(provider, "o")
        axes.plot(*zip(*points), marker=marker, ms=4.5, lw=1.6, label=provider, color=COLORS.get(provider))
    roof = header.get("copy_bandwidth") or header["bandwidth"]
    says = "measured copy" if "copy_bandwidth" in header else "data sheet"
    axes.axhline(roof / 1e9, color="#555555", lw=1.2, ls="--", label=f"{says}, {roof / 1e9:.0f} GB/s")
    axes.set_xscale("log", base=2)
    axes.set_ylim(bottom=0)
    axes.set_xlabel("N (row length), x at constant bytes")
    axes.set_ylabel("GB/s of the least bytes")
    axes.set_title(f"layer_norm, {SHORT[direction]}, {dtype}: {note(header)}", fontsize=10)
    axes.grid(alpha=0.25)
    axes.legend(fontsize=8, ncols=2)
    return f


# Of Okabe and Ito, told apart by the colour-blind, and by their markers where there is no colour.
PASS_STYLES = {
    "no_grad": {"color": "#009E73", "marker": "v"}, "forward": {"color": "#0072B2", "marker": "o"},
    "backward": {"color": "#D55E00", "marker": "s"}, "both": {"color": "#000000", "marker": "^"},
}  # fmt: skip
SWEEPS = {"hidden": ("N", "N (row length), x at constant bytes"), "rows": ("M", "M (rows), N = {}")}


def speedup(header: Record, ratios: Sequence[tuple[Record, float]], other: str) -> Figure:
    """The other's time over tritonln's: a panel for each sweep, over row length and over rows."""
    sweeps = [name for name in SWEEPS if any(r["group"] == name for r, _ in ratios)]
    f = figure(5.2 * len(sweeps) + 0.4, 3.8)
    for axes, name in zip(f.subplots(1, len(sweeps), squeeze=False, sharey=True)[0], sweeps):
        along, label = SWEEPS[name]
        some = [(r, value) for r, value in ratios if r["group"] == name]
        for direction, style in PASS_STYLES.items():
            points = sorted((r[along], value) for r, value in some if r["pass"] == direction)
            if points:
                axes.plot(*zip(*points), lw=1.4, ms=4, label=SHORT[direction], **style)  # type: ignore[arg-type]
        axes.axhline(1, color="#555555", lw=1)
        axes.set(xlabel=label.format(some[0][0]["N"]), yscale="log")
        axes.set_xscale("log", base=2)
        low, high = axes.get_ylim()
        ticks = [t for t in (0.1, 0.2, 0.5, 1, 2, 5, 10, 20, 50, 100) if low <= t <= high]
        axes.set_yticks(ticks, [f"{t:g}" for t in ticks])
        axes.minorticks_off()
        axes.grid(alpha=0.25)
        axes.legend(fontsize=8)
        axes.set_ylabel(f"{other} / tritonln, seconds")
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
