"""Runs a kernel: warps that stand at the same instruction go through it together, whichever CTA they are of.

A Group is such a set of warps.  A branch that not all of them take splits it; a barrier holds warps back until all of
their CTA have come, and what it releases at one instruction is one group again.
"""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from .floats import Approximation
from .memory import LANES, Fault, GlobalMemory, SharedMemory, Traffic
from .ops import EXIT, Compiler
from .ptx import Kernel

PARKED = -2


class EmulationError(Exception):
    pass


@dataclasses.dataclass
class Counters:
    """What a launch did.  `executed` holds warp instructions by program counter."""

    kernel: Kernel
    executed: np.ndarray
    traffic: dict[int, Traffic]
    warps: int = 0
    benign: int = 0
    notes: dict[str, int] = dataclasses.field(default_factory=dict)  # what is odd but not certainly wrong: how often

    def by_opcode(self) -> dict[str, int]:
        total: collections.Counter = collections.Counter()
        for ins, n in zip(self.kernel.instructions, self.executed):
            if n:
                total[".".join(ins.op)] += int(n)
        return dict(total.most_common())

    def per_warp(self) -> float:
        return float(self.executed.sum() / max(1, self.warps))

    def memory(self) -> dict[str, Traffic]:
        """Sums over instructions: global_load, global_store, global_copy, shared_load, shared_store."""
        sums: dict[str, Traffic] = {}
        for pc, t in self.traffic.items():
            op = self.kernel.instructions[pc].op
            space = "global" if "global" in op else "shared"
            name = {"ld": "load", "ldmatrix": "load", "cp": "copy"}.get(op[0], "store")
            s = sums.setdefault(f"{space}_{name}", Traffic())
            for f in dataclasses.fields(Traffic):
                setattr(s, f.name, getattr(s, f.name) + getattr(t, f.name))
        return sums


class Group:
    __slots__ = (
        "R",
        "active",
        "code",
        "committed",
        "copies",
        "cta",
        "epoch",
        "local",
        "m",
        "parted",
        "pc",
        "shared_base",
        "warp",
        "warps",
    )

    def __init__(self, machine, R, cta, warp, epoch, pc):
        self.m, self.R, self.cta, self.warp, self.epoch, self.pc = machine, R, cta, warp, epoch, pc
        self.copies: list = []  # cp.async since the last commit
        self.committed: collections.deque = collections.deque()
        self.active: np.ndarray | None = None  # (warps, 32); None: all
        self.parted: list[tuple] = []  # (where lanes meet again, who is active there, who runs next, from where)
        self.refresh()

    def refresh(self):
        self.warps = len(self.cta)
        self.local = self.cta - self.m.first
        self.shared_base = self.local * self.m.shared.padded if self.m.shared else None
        self.code = self.epoch * 64 + self.warp

    memory = property(lambda self: self.m.memory)
    shared = property(lambda self: self.m.shared)
    params = property(lambda self: self.m.params)
    count = property(lambda self: self.m.count)

    def traffic(self, ins) -> Traffic:
        return self.m.counters.traffic.setdefault(ins.pc, Traffic())

    def note(self, ins, what: str) -> None:
        key = f"{what} at {ins}"
        self.m.counters.notes[key] = self.m.counters.notes.get(key, 0) + 1

    # ---- special registers

    def special(self, name: str):
        m = self.m
        if name == "tid.x":
            return (self.warp * 32 + LANES).astype(np.uint32)
        if name in ("tid.y", "tid.z"):
            return np.zeros((1, 1), np.uint32)
        if name == "laneid":
            return LANES.astype(np.uint32)
        if name.startswith(("ctaid.", "nctaid.", "ntid.")):
            kind, axis = name.split(".")
            i, (x, y, _) = "xyz".index(axis), m.grid
            if kind == "nctaid":
                return np.full((1, 1), m.grid[i], np.uint32)
            if kind == "ntid":
                return np.full((1, 1), (m.threads, 1, 1)[i], np.uint32)
            return ((self.cta % x, self.cta // x % y, self.cta // (x * y))[i]).astype(np.uint32)
        raise NotImplementedError(f"%{name}")

    # ---- control

    def take(self, rows: np.ndarray) -> Group:
        """The warps of these rows, as a group of their own."""

        def part(a):
            return a[rows] if a is not None and isinstance(a, np.ndarray) and a.ndim and a.shape[0] > 1 else a

        if self.warps == 1:
            rows = slice(None)
        other = Group(self.m, [part(r) for r in self.R], self.cta[rows], self.warp[rows], self.epoch[rows], self.pc)
        other.copies = [tuple(map(part, c)) for c in self.copies]
        other.committed = collections.deque([tuple(map(part, c)) for c in group] for group in self.committed)
        return other

    def branch(self, mask, target: int, pc: int):
        some, every = mask.any(1), mask.all(1)
        if self.active is not None or (some != every).any():
            return self.part(mask, target, pc)
        some = np.broadcast_to(some, self.warps)
        other = self.take(some)
        other.pc = target
        if target != EXIT:
            self.m.ready.append(other)
        else:
            self.m.finish(other)
        rest = self.take(~some)
        self.R, self.cta, self.warp, self.epoch = rest.R, rest.cta, rest.warp, rest.epoch
        self.copies, self.committed = rest.copies, rest.committed
        self.refresh()
        return None

    def part(self, mask, target: int, pc: int):
        """Lanes of one warp go different ways: one after the other, up to where they meet."""
        if target == EXIT:
            raise NotImplementedError("some lanes of a warp leave")
        active = np.broadcast_to(True, (self.warps, 32)) if self.active is None else self.active
        self.parted.append((self.m.meeting(pc), self.active, active & ~mask, pc + 1))
        self.active = active & mask
        return target

    def meet(self, pc: int) -> int:
        """Where to go on at an instruction that may be a meeting point."""
        while self.parted and pc == self.parted[-1][0]:
            where, before, rest, start = self.parted.pop()
            if rest is not None:
                self.parted.append((where, before, None, None))
                self.active, pc = rest, start
            else:
                self.active = before
        return pc

    def barrier(self, number: int, threads: int | None):
        if threads is not None and threads != self.m.threads:
            raise NotImplementedError("a barrier of some warps")
        if self.warps % self.m.warps_per_cta == 0 and self.complete():
            self.epoch = self.epoch + 1
            self.code = self.epoch * 64 + self.warp
            return None
        self.m.parked.setdefault(number, []).append(self)
        return PARKED

    def complete(self) -> bool:
        """Whether all warps of each CTA are in this group."""
        return bool((np.bincount(self.local[:, 0], minlength=1) % self.m.warps_per_cta == 0).all())

    # ---- asynchronous copies

    def commit(self):
        self.committed.append(self.copies)
        self.copies = []

    def wait(self, keep: int):
        while len(self.committed) > keep:
            for index, values, total, each, mask in self.committed.popleft():
                self.shared.copy_done(index, values, total, each, mask, self.code)


class Machine:
    """check: shadow memory and CTA ownership.  count: sectors and wavefronts.  lanes: threads that run together."""

    def __init__(self, kernel: Kernel, shared_bytes: int, *, check=True, count=True, lanes=16384, approximate=None):
        self.kernel, self.shared_bytes, self.check, self.count = kernel, shared_bytes, check, count
        self.lanes = lanes
        self.threads = kernel.threads
        self.warps_per_cta = kernel.threads // 32
        compiler = Compiler(kernel, approximate or Approximation())
        self.code, self.diverged = zip(*(compiler.compile(ins) for ins in kernel.instructions))
        self.meetings: list[int] | None = None
        self.constants = compiler.constants
        self.granule = self._granule()

    def _granule(self) -> int:
        sizes = [4]
        for ins in self.kernel.instructions:
            if "shared" in ins.op and ins.op[0] in ("ld", "st"):
                sizes.append(int(ins.op[-1][1:]) // 8)
            if ins.op[0] in ("ldmatrix", "stmatrix"):
                sizes.append(2)
        return min(sizes)

    def launch(self, grid: tuple[int, int, int], params: list[bytes], memory: GlobalMemory) -> Counters:
        self.grid, self.params, self.memory = grid, params, memory
        self.memory.owners = self.check
        self.memory.new_launch()
        self.counters = Counters(self.kernel, np.zeros(len(self.code), np.int64), {})
        programs = grid[0] * grid[1] * grid[2]
        together = max(1, self.lanes // self.threads)
        for first in range(0, programs, together):
            self._run(first, min(together, programs - first))
        self.counters.warps = programs * self.warps_per_cta
        return self.counters

    def _run(self, first: int, ctas: int) -> None:
        self.first = first
        self.shared = SharedMemory(ctas, self.shared_bytes, self.granule, self.check) if self.shared_bytes else None
        self.ready, self.parked, self.done = [], {}, 0
        cta = np.repeat(np.arange(first, first + ctas), self.warps_per_cta)[:, None]
        warp = np.tile(np.arange(self.warps_per_cta), ctas)[:, None]
        R = [None] * len(self.kernel.registers) + self.constants
        self.ready.append(Group(self, R, cta, warp, np.zeros_like(cta), 0))
        with np.errstate(all="ignore"):
            while self.ready or self.parked:
                if self.ready:
                    self.step(self.ready.pop())
                else:
                    self.release()
        if self.shared:
            self.counters.benign += self.shared.benign

    def step(self, g: Group) -> None:
        code, executed, pc = self.code, self.counters.executed, g.pc
        try:
            while True:
                executed[pc] += g.warps
                nxt = code[pc](g)
                if nxt is None:
                    pc += 1
                elif nxt >= 0:
                    pc = nxt
                else:
                    break
                while g.parted and (pc := g.meet(pc)) >= 0 and g.parted:
                    executed[pc] += int(g.active.any(1).sum())
                    nxt = self.diverged[pc](g)
                    pc = pc + 1 if nxt is None else nxt
        except Fault as fault:
            raise EmulationError(self.report(g, pc, fault.what, fault.mask)) from fault
        except (TypeError, AttributeError) as error:
            unset = [r.name for r in self.sources(pc) if g.R[r.slot] is None]
            what = f"reads {', '.join(unset)} that nothing has set" if unset else repr(error)
            raise EmulationError(self.report(g, pc, what, None)) from error
        except NotImplementedError as error:
            raise NotImplementedError(self.report(g, pc, str(error), None)) from error
        if nxt == PARKED:
            g.pc = pc + 1
        else:
            self.finish(g)

    def meeting(self, pc: int) -> int:
        """The first instruction that all ways from a branch lead to (its immediate post-dominator)."""
        if self.meetings is None:
            self.meetings = post_dominators(self.kernel)
        return self.meetings[pc]

    def finish(self, g: Group) -> None:
        self.done += g.warps

    def sources(self, pc: int):
        from .ptx import Address, Not, Reg, Vector

        def walk(o):
            if isinstance(o, Reg):
                yield o
            elif isinstance(o, Not):
                yield o.reg
            elif isinstance(o, Address):
                yield from walk(o.base)
            elif isinstance(o, Vector):
                for p in o.parts:
                    yield from walk(p)

        ins = self.kernel.instructions[pc]
        for o in (ins.guard, *ins.operands):
            yield from walk(o)

    def report(self, g: Group, pc: int, what: str, mask) -> str:
        who = ""
        if mask is not None:
            mask = np.broadcast_to(mask, (g.warps, 32))
            row, lane = np.argwhere(mask)[0]
            who = f"; CTA {int(g.cta[row, 0])} thread {int(g.warp[row, 0]) * 32 + int(lane)}, {int(mask.sum())} threads in all"
        return f"{self.kernel.name}: {what}{who}; at {self.kernel.instructions[pc]}"

    def release(self) -> None:
        """Lets those go on whose whole CTA waits at a barrier."""
        released = False
        for number, groups in list(self.parked.items()):
            arrived = np.bincount(np.concatenate([g.local[:, 0] for g in groups]))
            full = arrived == self.warps_per_cta
            kept, free = [], {}
            for g in groups:
                go = full[g.local[:, 0]]
                if go.all():
                    free.setdefault(g.pc, []).append(g)
                elif go.any():
                    free.setdefault(g.pc, []).append(g.take(go))
                    kept.append(g.take(~go))
                else:
                    kept.append(g)
            for pc, parts in free.items():
                merged = self.merge(parts)
                merged.epoch = merged.epoch + 1
                merged.refresh()
                self.ready.append(merged)
                released = True
            if kept:
                self.parked[number] = kept
            else:
                del self.parked[number]
        if not released:
            g = next(iter(self.parked.values()))[0]
            raise EmulationError(
                self.report(g, g.pc - 1, "deadlock: warps wait at a barrier that others never reach", None)
            )

    def merge(self, parts: list[Group]) -> Group:
        if len(parts) == 1 or any(g.copies or g.committed for g in parts):
            if len(parts) > 1:
                for g in parts[1:]:
                    g.epoch = g.epoch + 1
                    g.refresh()
                    self.ready.append(g)
            return parts[0]

        def join(values):
            if any(v is None for v in values):
                return None
            if all(v is values[0] for v in values):
                return values[0]
            lanes = max(v.shape[1] for v in values)
            return np.concatenate([np.broadcast_to(v, (g.warps, lanes)) for v, g in zip(values, parts)])

        R = [join(v) for v in zip(*(g.R for g in parts))]
        cta, warp, epoch = (np.concatenate([getattr(g, n) for g in parts]) for n in ("cta", "warp", "epoch"))
        return Group(self, R, cta, warp, epoch, parts[0].pc)


def post_dominators(kernel: Kernel) -> list[int]:
    """Of each instruction, the nearest that every way to the end passes; len(instructions) is the end."""
    end = len(kernel.instructions)
    after: list[tuple[int, ...]] = []
    for ins in kernel.instructions:
        target = {"bra": lambda: kernel.labels[ins.operands[0].name], "ret": lambda: end, "exit": lambda: end}.get(
            ins.op[0]
        )
        nxt = () if target and ins.guard is None else (ins.pc + 1,)
        after.append((*nxt, target()) if target else nxt)
    nearest: list[int | None] = [None] * end + [end]
    changed = True
    while changed:
        changed = False
        for pc in range(end - 1, -1, -1):
            known = [s for s in after[pc] if nearest[s] is not None]
            if not known:
                continue
            meet = known[0]
            for other in known[1:]:
                a, b = meet, other
                path = {a}
                while a != end:
                    a = nearest[a]
                    path.add(a)
                while b not in path:
                    b = nearest[b]
                meet = b
            if nearest[pc] != meet:
                nearest[pc], changed = meet, True
    return [end if n is None else n for n in nearest[:end]]
