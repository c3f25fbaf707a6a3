"""Warps that stand at the same instruction and go through it together, of whichever CTA they are."""

from __future__ import annotations

import collections
import dataclasses
from typing import TYPE_CHECKING, Any

import numpy as np

from tritonln.emulator.counters import Traffic
from tritonln.emulator.faults import Array, Fault
from tritonln.emulator.ptx import Instruction
from tritonln.emulator.shared import Place

if TYPE_CHECKING:
    from tritonln.emulator.barrier import Barrier
    from tritonln.emulator.batch import Batch

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


class Group:
    """R: the registers, in arrays that broadcast to (warps, 32); None: nothing has set it."""

    __slots__ = (
        "R",
        "active",
        "alive",
        "awaits",
        "batch",
        "committed",
        "copies",
        "ids",
        "parted",
        "pc",
        "size",
        "turn",
    )

    def __init__(self, batch: Batch, R: list[Any], ids: Ids, pc: int):
        self.batch, self.R, self.ids, self.pc, self.size = batch, R, ids, pc, len(ids.cta)
        self.turn = 0  # when it last gave way to others
        self.copies: list[Copy] = []  # since the last commit
        self.committed: collections.deque[list[Copy]] = collections.deque()
        self.active: Array | None = None  # (warps, 32); None: all
        self.alive: Array | None = None  # those that have not exited
        self.parted: list[Parted] = []
        self.awaits: Barrier | None = None

    # ---- what instructions ask for

    def traffic(self, ins: Instruction) -> Traffic:
        return self.batch.counters.traffic.setdefault(ins.pc, Traffic())

    def count(self, ins: Instruction, more: Traffic) -> None:
        traffic = self.batch.counters.traffic
        traffic[ins.pc] = traffic.get(ins.pc, Traffic()) + more

    def note(self, ins: Instruction, what: str) -> None:
        notes, key = self.batch.counters.notes, f"{what} at {ins}"
        notes[key] = notes.get(key, 0) + 1

    def special(self, name: str) -> Array:
        """The special register %name."""
        batch, cta = self.batch, self.ids.cta
        kind, _, axis = name.partition(".")
        if name == "laneid":
            return LANES.astype(np.uint32)
        if kind == "tid":
            return (self.ids.warp * 32 + LANES if axis == "x" else np.zeros((1, 1))).astype(np.uint32)
        if name in ("cluster_ctarank", "cluster_nctarank"):
            kind, axis = name.replace("rank", "id"), "x"
        n, (x, y, z) = batch.cluster, batch.grid
        i = "xyz".index(axis) if axis in ("x", "y", "z") else -1
        whole = {
            "ntid": (batch.threads, 1, 1),
            "nctaid": (x, y, z),
            "nclusterid": (x // n, y, z),
            "cluster_nctaid": (n, 1, 1),
        }
        if i >= 0 and kind in whole:
            return np.full((1, 1), whole[kind][i], np.uint32)
        own = {
            "ctaid": (cta % x, cta // x % y, cta // (x * y)),
            "clusterid": (cta % x // n, cta // x % y, cta // (x * y)),
            "cluster_ctaid": (cta % n, 0 * cta, 0 * cta),
        }
        if i >= 0 and kind in own:
            return own[kind][i].astype(np.uint32)
        raise NotImplementedError(f"%{name}")

    # ---- some of the warps

    def take(self, rows: Array, pc: int) -> Group:
        """The warps of these rows, as a group of their own at pc."""

        def part(a: Any) -> Any:
            return a[rows] if a is not None and a.shape[0] > 1 else a

        if self.size == 1:
            other = Group(self.batch, list(self.R), self.ids, pc)
            other.copies, other.committed = list(self.copies), collections.deque(self.committed)
        else:
            live = self.batch.live(pc)
            R = [part(r) if i in live else None for i, r in enumerate(self.R[: self.batch.declared])]
            other = Group(self.batch, R + self.R[self.batch.declared :], self.ids.take(rows), pc)
            other.copies = [c.take(rows) for c in self.copies]
            other.committed = collections.deque([c.take(rows) for c in copies] for copies in self.committed)
        other.turn, other.awaits = self.turn, self.awaits
        other.active, other.alive = part(self.active), part(self.alive)
        return other

    def become(self, other: Group) -> None:
        for name in self.__slots__:
            setattr(self, name, getattr(other, name))

    def like(self, other: Group) -> bool:
        """Whether the two can be one group, where they are at one instruction."""
        mine, its = ([len(c) for c in g.committed] + [len(g.copies)] for g in (self, other))
        whole = all(g.active is None and not g.parted for g in (self, other))
        return whole and mine == its and all(a.total == b.total for a, b in zip(self.all_copies(), other.all_copies()))

    def all_copies(self) -> list[Copy]:
        return [c for copies in self.committed for c in copies] + self.copies

    @staticmethod
    def join(parts: list[Group]) -> Group:
        """One group of several that are alike."""
        first = parts[0]
        live = first.batch.live(first.pc)

        def joined(slot: int) -> Any:
            values = [g.R[slot] for g in parts]
            if slot not in live or any(v is None for v in values):
                return None
            if all(v is values[0] for v in values):
                return values[0]
            lanes = max(v.shape[1] for v in values)
            return np.concatenate([np.broadcast_to(v, (g.size, lanes)) for v, g in zip(values, parts)])

        declared = first.batch.declared
        R = [joined(slot) for slot in range(declared)] + first.R[declared:]
        whole = Group(first.batch, R, Ids.join([g.ids for g in parts]), first.pc)
        whole.turn = max(g.turn for g in parts)
        whole.copies = [Copy.join(c) for c in zip(*(g.copies for g in parts))]
        whole.committed = collections.deque(
            [Copy.join(c) for c in zip(*copies)] for copies in zip(*(g.committed for g in parts))
        )
        return whole

    # ---- control

    def branch(self, mask: Array, target: int, pc: int) -> int | None:
        """The lanes of `mask` go to `target`.  Where that splits the group, what stays goes on after `pc`."""
        active = np.broadcast_to(True, (self.size, 32)) if self.active is None else self.active
        mask = mask & active
        taken, all_taken = rows_of(mask), ~rows_of(mask != active)
        if all_taken.all() and target != EXIT:
            return target
        if self.parted or (taken != all_taken).any():
            if target == EXIT:
                return self.leave(mask, pc)
            self.parted.append(Parted(self.batch.meeting(pc), active, active & ~mask, pc + 1))
            self.active = mask
            return target
        if all_taken.all():
            return EXIT
        other = self.take(taken, target)
        if target == EXIT:
            self.batch.finish(other)
        else:
            self.batch.ready.append(other)
        self.become(self.take(~taken, pc + 1))
        return None

    def leave(self, mask: Array, pc: int) -> int | None:
        """Lanes exit."""
        self.alive = (np.broadcast_to(True, mask.shape) if self.alive is None else self.alive) & ~mask
        self.active = (self.alive if self.active is None else self.active) & ~mask
        for p in self.parted:
            p.before = p.before & ~mask
            p.rest = None if p.rest is None else p.rest & ~mask
        goes_on = pc + 1
        while self.parted and not self.active.any():
            goes_on = self._next()
        if not self.alive.any():
            return EXIT
        gone = ~rows_of(self.alive)
        if gone.any() and not self.parted:
            self.batch.finish(self.take(gone, EXIT))
            self.become(self.take(~gone, goes_on))
        return goes_on

    def _next(self) -> int:
        """Those that are still to go the other way, or, after them, all together."""
        p = self.parted.pop()
        if p.rest is not None and p.rest.any():
            self.parted.append(Parted(p.where, p.before, None, p.where))
            self.active = p.rest
            return p.start
        self.active = None if p.before.all() else p.before
        return p.where

    def meet(self, pc: int) -> int:
        """Where to go on at an instruction where parted lanes may meet."""
        while self.parted and pc == self.parted[-1].where:
            pc = self._next()
        return pc

    def together(self, what: str) -> None:
        """Faults where some of the lanes that have not exited are elsewhere."""
        if self.active is not None:
            alive = True if self.alive is None else self.alive
            if (self.active != alive).any():
                raise Fault(f"{what} by some lanes of a warp", ~self.active & alive)

    # ---- asynchronous copies

    def commit(self) -> None:
        self.committed.append(self.copies)
        self.copies = []

    def wait(self, keep: int) -> None:
        """Until at most `keep` commits are under way."""
        shared = self.batch.shared
        while len(self.committed) > keep:
            for c in self.committed.popleft():
                assert shared is not None
                shared.copy_done(Place(c.total, c.index, c.mask), c.values, c.each, self.ids)
