"""Two results files against each other, regressions first."""

from __future__ import annotations

import dataclasses
import pathlib

from benchmarks.results_file import Record, cells, read
from benchmarks.stats import Ratio, ratio


@dataclasses.dataclass(frozen=True)
class Change:
    id: str
    ratio: Ratio  # new seconds over old

    @property
    def verdict(self) -> str:
        if self.ratio.noise:
            return "inside the noise"
        return "slower" if self.ratio.value > 1 else "faster"


def changes(old: list[Record], new: list[Record]) -> list[Change]:
    """Of the cells that both have: the slower ones first, worst first, then what cannot be told, then the faster."""
    before = {r["id"]: _samples(r) for r in cells(old) if "seconds" in r}
    found = [
        Change(r["id"], ratio(_samples(r), before[r["id"]])) for r in cells(new) if "seconds" in r and r["id"] in before
    ]
    order = {"slower": 0, "inside the noise": 1, "faster": 2}
    return sorted(found, key=lambda c: (order[c.verdict], -c.ratio.value))


def _samples(r: Record) -> list[float]:
    return r.get("samples") or [r["seconds"]]


def compare(old: pathlib.Path, new: pathlib.Path, everything: bool = False) -> str:
    a, b = read(old), read(new)
    found = changes(a, b)
    counts = {v: sum(c.verdict == v for c in found) for v in ("slower", "inside the noise", "faster")}
    lines = [f"{path}: {r[0]['device']}, {r[0]['kind']}, {r[0]['commit'][:12]}" for path, r in ((old, a), (new, b))]
    lines.append("new / old seconds, with the 95 % interval of the ratio")
    for c in found:
        if everything or c.verdict != "inside the noise":
            lines.append(f"{c.verdict:16}  {c.ratio.value:6.3f}  [{c.ratio.low:.3f}, {c.ratio.high:.3f}]  {c.id}")
    lines.append(f"{len(found)} cells in both: " + ", ".join(f"{n} {v}" for v, n in counts.items()))
    one_sided = {r["id"] for r in cells(a)} ^ {r["id"] for r in cells(b)}
    if one_sided:
        lines.append(f"{len(one_sided)} cells in one file only")
    broken = [r for r in cells(b) if r["status"] in ("wrong", "failed")]
    lines += [f"{r['status']:16}  {r['id']}: {r['reason']}" for r in broken]
    return "\n".join(lines)
