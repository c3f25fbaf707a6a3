"""One self-contained HTML page of a results file, and its plots as PNG files beside it."""

from __future__ import annotations

import base64
import html
import json
import pathlib
import string
from collections.abc import Sequence
from typing import Any

from benchmarks.plots import note, plots
from benchmarks.results_file import Record, cells, read
from benchmarks.stats import ratio, summary

PAGE = pathlib.Path(__file__).parent / "page"
WORST = 20
COLUMNS = ("provider", "operator", "pass", "dtype", "M", "N", "status", "us", "IQR %", "GB/s", "% of copy", "note")
OFFLINE_COLUMNS = (
    *("provider", "operator", "pass", "dtype", "M", "N", "status", "us", "GB/s", "bound by", "launches"),
    *("registers", "spill B", "loads", "stores", "KiB in flight", "needed", "moved / least", "note"),
)


def report(path: pathlib.Path, folder: pathlib.Path) -> pathlib.Path:
    """Writes report.html and the plots; returns the page's path.

    Without matplotlib the page has its tables and says that the plots are missing.
    """
    records = read(path)
    header = records[0]
    measured = cells(records)
    timed = [r for r in measured if "seconds" in r]
    host = [r for r in records if r["record"] == "host"]
    folder.mkdir(parents=True, exist_ok=True)
    try:
        pictures = plots(header, timed, host)
        absent = ""
    except ImportError:
        pictures = {}
        absent = "<p>No plots: matplotlib is not installed here. pip install matplotlib, and report again.</p>"
    for name, picture in pictures.items():
        (folder / name).write_bytes(picture)
    offline = header["kind"] == "modelled"
    page = string.Template((PAGE / "page.html").read_text()).substitute(
        title=html.escape(f"tritonln: {note(header)}"),
        style=(PAGE / "style.css").read_text(),
        script=(PAGE / "table.js").read_text(),
        environment=_table(("", ""), [(k, _plain(v)) for k, v in header.items() if k != "record"]),
        plots=absent + "".join(_image(name, picture) for name, picture in pictures.items()),
        worst=_worst(timed),
        host=_host(host),
        traffic=_traffic([r for r in records if r["record"] == "traffic"]),
        missing=_missing(measured),
        cells=_table(
            OFFLINE_COLUMNS if offline else COLUMNS,
            [_row(r, offline) for r in measured if r["status"] != "missing"],
            "cells",
            sortable=True,
        ),
        notice=html.escape(NOTICE[header["kind"]]),
    )
    target = folder / "report.html"
    target.write_text(page)
    return target


NOTICE = {
    "measured": "Times are the device's own; GB/s count the least bytes that must move; % of copy is of a device "
    "copy measured in the same run. A cell whose result is wrong is not timed.",
    "modelled": "No time on this page was measured on a GPU. Times and GB/s marked modelled come from a roofline over "
    "what was compiled and counted, in the committed report of a commit whose model charged nothing for "
    "spills and launches; spills, widths, launches and bytes are facts of the machine code and of the launches.",
    "rehearsed": "A rehearsal: the harness ran on a CPU taken for a GPU. Its times say nothing of any GPU.",
}


def _row(r: Record, offline: bool) -> list[Any]:
    us = r["seconds"] * 1e6 if "seconds" in r else None
    head = [r[k] for k in ("provider", "operator", "pass", "dtype", "M", "N", "status")]
    if offline:
        known = "spills" in r
        return [
            *head,
            us,
            r.get("GB/s"),
            r.get("binds"),
            r.get("launches"),
            r.get("registers"),
            r.get("spills"),
            _widths(r["loads"]) if known else None,
            _widths(r["stores"]) if known else None,
            r["in_flight"] / 1024 if known else None,
            r["needed"] / 1024 if known else None,
            r["moved"] / r["least_bytes"] if known else None,
            r.get("reason", ""),
        ]
    spread = (r["q3"] - r["q1"]) / r["seconds"] * 100 if "q1" in r else None
    said = r.get("reason") or ("L2 may be warm" if r.get("cold") is False else "")
    return [*head, us, spread, r.get("GB/s"), r["of_copy"] * 100 if "of_copy" in r else None, said]


def _missing(measured: Sequence[Record]) -> str:
    """One line for each provider that is not here, with the command that brings it."""
    absent = {r["provider"]: r["reason"] for r in measured if r["status"] == "missing"}
    return "".join(f"<p>{html.escape(name)}: {html.escape(reason)}</p>" for name, reason in absent.items())


def _widths(widths: dict[str, int]) -> str:
    return " ".join(f"{count}x{bits}" for bits, count in widths.items())


def _worst(timed: Sequence[Record]) -> str:
    """tritonln's cells that lose most against the best of the others, the copy aside."""
    ours = [r for r in timed if r["provider"] == "tritonln"]
    rows = []
    for r in ours:
        case = r["id"].rsplit("/", 1)[0]
        rivals = [o for o in timed if o["id"].rsplit("/", 1)[0] == case and o["provider"] not in ("tritonln", "copy")]
        if not rivals:
            continue
        best = min(rivals, key=lambda o: o["seconds"])
        times = [x.get("samples") or [x["seconds"]] for x in (r, best)]
        found = ratio(times[0], times[1])
        rows.append((case, best["provider"], found.value, str(found), r.get("of_copy", 0) * 100, r["status"]))
    rows.sort(key=lambda row: -row[2])
    head = ("case", "best other", "tritonln / best", "with its interval", "% of roof", "status")
    return _table(head, rows[:WORST], "worst", sortable=True)


def _host(host: Sequence[Record]) -> str:
    if not host:
        return "<p>Not measured: the stub driver needs a C compiler.</p>"
    rows = []
    for r in host:
        s = summary(r["samples"])
        rows.append((r["provider"], r["pass"], r["M"], r["N"], s.median, s.iqr, r["launches"]))
    return _table(("provider", "pass", "M", "N", "host us", "IQR us", "launches of both"), rows, "host", sortable=True)


def _traffic(counted: Sequence[Record]) -> str:
    if not counted:
        return "<p>Not counted here: the interpreter counts where there is no GPU.</p>"
    columns = "operator", "provider", "pass", "M", "N", "launches", "moved", "ratio"
    rows = [tuple(r.get(k) for k in columns) for r in counted]
    head = ("operator", "provider", "pass", "M", "N", "launches, torch's too", "distinct bytes", "distinct / least")
    return _table(head, rows, "traffic", sortable=True)


def _plain(value: Any) -> str:
    return value if isinstance(value, str) else json.dumps(value)


def _image(name: str, picture: bytes) -> str:
    data = base64.b64encode(picture).decode()
    return f'<img alt="{html.escape(name)}" src="data:image/png;base64,{data}">'


def _cell(value: Any) -> str:
    if value is None:
        return "<td></td>"
    if isinstance(value, str):
        return f"<td>{html.escape(value)}</td>"
    text = f"{value:,}" if isinstance(value, int) else f"{value:.4g}" if abs(value) < 1000 else f"{value:,.0f}"
    return f'<td class="number" data-value="{value!r}">{text}</td>'


def _table(head: Sequence[str], rows: Sequence[Sequence[Any]], name: str = "", sortable: bool = False) -> str:
    top = "".join(f"<th>{html.escape(h)}</th>" for h in head)
    body = "\n".join("<tr>" + "".join(map(_cell, row)) + "</tr>" for row in rows)
    marks = f' id="{name}" class="sortable"' if sortable else ""
    return f"<table{marks}><thead><tr>{top}</tr></thead><tbody>\n{body}\n</tbody></table>"
