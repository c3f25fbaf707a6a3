"""Warps that stand at the same instruction and go through it together, of whichever CTA they are."""

from __future__ import annotations

import collections
from typing import TYPE_CHECKING, Any

import numpy as np

from tritonln.emulator.counters import Traffic
from tritonln.emulator.faults import Array, Fault
from tritonln.emulator.ptx import Instruction
from tritonln.emulator.shared import Place
from tritonln.emulator.warps import EXIT, LANES, Copy, Ids, Parted, rows_of

if TYPE_CHECKING:
    from tritonln.emulator.barrier import Barrier
    from tritonln.emulator.batch import Batch


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
            live = self.batch.live(pc).union(*(self.batch.live(at) for p in self.parted for at in (p.where, p.start)))
            R = [part(r) if i in live else None for i, r in enumerate(self.R[: self.batch.declared])]
            other = Group(self.batch, R + self.R[self.batch.declared :], self.ids.take(rows), pc)
            other.copies = [c.take(rows) for c in self.copies]
            other.committed = collections.deque([c.take(rows) for c in copies] for copies in self.committed)
        other.turn, other.awaits = self.turn, self.awaits
        other.active, other.alive = part(self.active), part(self.alive)
        other.parted = [Parted(p.where, part(p.before), part(p.rest), p.start) for p in self.parted]
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

    def branch(self, mask: Array, target: int, pc: int) -> int:
        """The lanes of `mask` go to `target`.

        Warps of which all lanes go the same way form groups of their own; where lanes of one warp part, those that
        branch go first, and those that do not follow from pc + 1 when these have come to where the ways meet.
        """
        active = np.broadcast_to(True, (self.size, 32)) if self.active is None else self.active
        mask, self.pc = mask & active, pc
        kinds = rows_of(mask) + 2 * rows_of(active & ~mask)  # 0: no lane is active; 1: all branch; 2: none; 3: both
        first, *others = np.unique(kinds).tolist()
        parts = {kind: self.take(kinds == kind, pc) for kind in others}
        if parts:
            self.become(self.take(kinds == first, pc))
        for kind, part in parts.items():
            goes_on = part._turn(kind, mask[kinds == kind], target)
            if goes_on == EXIT:
                self.batch.finish(part)
            else:
                part.pc = goes_on
                self.batch.ready.append(part)
        return self._turn(first, mask[kinds == first], target)

    def _turn(self, kind: int, mask: Array, target: int) -> int:
        """Where warps of one kind of `branch` go."""
        if kind == 2:
            return self.pc + 1
        if kind == 0:
            return self._next()
        if target == EXIT:
            return self.leave(mask)
        if kind == 3:
            active = np.broadcast_to(True, mask.shape) if self.active is None else self.active
            self.parted.append(Parted(self.batch.meeting(self.pc), active, active & ~mask, self.pc + 1))
            self.active = mask
        return target

    def leave(self, mask: Array) -> int:
        """Lanes exit."""
        self.alive = (np.broadcast_to(True, mask.shape) if self.alive is None else self.alive) & ~mask
        self.active = (self.alive if self.active is None else self.active) & ~mask
        for p in self.parted:
            p.before = p.before & ~mask
            p.rest = None if p.rest is None else p.rest & ~mask
        if not self.alive.any():
            return EXIT
        return self.pc + 1 if self.active.any() else self._next()

    def _next(self) -> int:
        """Those that are still to go the other way, or, after them, all together."""
        p = self.parted.pop()
        if p.rest is not None and p.rest.any():
            self.parted.append(Parted(p.where, p.before, None, p.where))
            self.active = p.rest
            return p.start
        if not p.before.any():
            return self._next() if self.parted else EXIT
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
