"""What a group knows of its warps: which they are, where lanes have parted, and copies under way."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np

from tritonln.emulator.faults import Array

EXIT, PARKED = -1, -2  # in the place of the next instruction
NONE = -1
LANES = np.arange(32)[None, :]


@dataclasses.dataclass(eq=False, slots=True)
class Ids:
    """Which warps: a row of each array for each.  See shared.Warps."""

    cta: Array
    warp: Array
    team: Array  # its CTA, or its cluster, in the batch
    who: Array  # of the team's warps
    shared_base: Array
    team_base: Array
    code: Array
    since: Array
    ticket: Array  # for the barrier it waits at
    cluster_ticket: Array  # for that of its cluster; NONE: it has not arrived

    def take(self, rows: Any) -> Ids:
        return Ids(*(getattr(self, f.name)[rows] for f in dataclasses.fields(self)))

    @staticmethod
    def join(parts: list[Ids]) -> Ids:
        return Ids(*(np.concatenate([getattr(p, f.name) for p in parts]) for f in dataclasses.fields(Ids)))


@dataclasses.dataclass(slots=True)
class Parted:
    """Lanes of one warp went different ways: one after the other, up to where they meet."""

    where: int
    before: Array  # who is active again there
    rest: Array | None  # who goes next, None once they have gone
    start: int  # from where


@dataclasses.dataclass(slots=True)
class Copy:
    """A cp.async under way, a row for each warp; `mask` None: all lanes take part."""

    index: Array
    values: Array
    total: int
    each: int
    mask: Array | None

    def take(self, rows: Any) -> Copy:
        mask = None if self.mask is None else self.mask[rows]
        return Copy(self.index[rows], self.values[rows], self.total, self.each, mask)

    @staticmethod
    def join(parts: tuple[Copy, ...]) -> Copy:
        mask = None
        if any(p.mask is not None for p in parts):
            mask = np.concatenate([np.full(p.index.shape, True) if p.mask is None else p.mask for p in parts])
        index, values = (np.concatenate([getattr(p, name) for p in parts]) for name in ("index", "values"))
        return Copy(index, values, parts[0].total, parts[0].each, mask)


def rows_of(mask: Array) -> Array:
    """Warps of which any lane is in the mask."""
    return np.logical_or.reduce(mask, axis=1)
