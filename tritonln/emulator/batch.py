"""CTAs that run together, and in what order their warps go on.

The group that has given way to others longest ago goes first, among those the one that is furthest behind; groups that
come to stand at one instruction become one.  So warps that a branch has parted meet again where its ways do, and one
that waits for memory to change cannot keep those from running that will change it.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np

from tritonln.emulator.barrier import Barrier
from tritonln.emulator.clocks import WHO, WarpClocks
from tritonln.emulator.counters import Counters
from tritonln.emulator.faults import Array, EmulationError, Fault
from tritonln.emulator.flow import sources
from tritonln.emulator.group import Group
from tritonln.emulator.memory import GlobalMemory
from tritonln.emulator.shared import SharedMemory
from tritonln.emulator.warps import EXIT, NONE, PARKED, Ids

if TYPE_CHECKING:
    from tritonln.emulator.machine import Machine

LOOK = 10_000  # blocks that a group may go through before others get their turn
PATIENCE = 1_000  # times that a group may give way before memory changes, or a warp ends


class Batch:
    """CTAs first .. first + ctas - 1 of a grid."""

    def __init__(
        self,
        machine: Machine,
        grid: tuple[int, int, int],
        params: list[bytes],
        memory: GlobalMemory,
        counters: Counters,
        first: int,
        ctas: int,
    ):
        self.machine, self.grid, self.params, self.memory, self.counters = machine, grid, params, memory, counters
        self.count, self.threads, self.cluster = machine.count, machine.threads, machine.cluster
        self.declared = len(machine.kernel.registers)
        self.ready: list[Group] = []
        self.parked: list[Group] = []
        self.turn, self.stalls, self.changes = 0, 0, 0
        n, cluster = machine.warps_per_cta, machine.cluster
        teams = ctas // cluster
        self.left, self.alive = ctas * n, np.full(ctas, n)  # warps that have not ended, in all and of each CTA
        self.clocks = WarpClocks(teams, cluster * n, machine.exact)
        size = machine.shared_bytes
        self.shared = SharedMemory(ctas, size, machine.shared_granule, machine.check, self.clocks) if size else None
        self.barriers: dict[tuple[int, int | None], Barrier] = {}
        self.team_alive = np.full(teams, cluster * n)
        self.cluster_barrier = Barrier(teams, self.clocks, self.team_alive)
        local, warp = np.repeat(np.arange(ctas), n)[:, None], np.tile(np.arange(n), ctas)[:, None]
        team, who = local // cluster, local % cluster * n + warp
        padded = self.shared.padded if self.shared else 0
        self.first, none = first, np.full_like(local, NONE)
        code, since = self.clocks.code(team, who), self.clocks.since(team, who)
        bases = local * padded, team * cluster * padded
        ids = Ids(local + first, warp, team, who, *bases, code, since, none, none)
        self.ready.append(Group(self, [None] * self.declared + machine.constants, ids, 0))

    def run(self) -> None:
        while self.ready or self.parked:
            if not self.ready:
                self.release()
            if not self.ready:
                self.deadlock()
            self.step(self.pick())

    def live(self, pc: int) -> frozenset[int]:
        return self.machine.live(pc)

    def meeting(self, pc: int) -> int:
        return self.machine.meeting(pc)

    # ---- order

    def pick(self) -> Group:
        ready = self.ready
        if len(ready) == 1:
            return ready.pop()
        g = min(ready, key=lambda g: (g.turn, g.pc))
        alike = [o for o in ready if o.pc == g.pc and o.like(g)] if g.like(g) else [g]
        self.ready = [o for o in ready if o not in alike]
        return Group.join(alike) if len(alike) > 1 else g

    def step(self, g: Group) -> None:
        """Goes on with a group until it ends or waits, or others come first."""
        code, executed = self.machine.blocks, self.counters.executed
        for _ in range(LOOK):
            g.pc = pc = start = g.meet(g.pc) if g.parted else g.pc
            outcome: int | None = None
            try:
                if g.active is None:
                    executed[start] += g.size
                    for pc, function in code[start]:  # noqa: B007 -- a fault is reported with pc
                        outcome = function(g)
                else:
                    executed[start] += np.count_nonzero(g.active.any(1))
                    for pc, function in self.machine.diverged_blocks[start]:  # noqa: B007
                        outcome = function(g)
            except Fault as fault:
                raise EmulationError(self.report(g, pc, fault.what, fault.mask)) from fault
            except NotImplementedError as error:
                raise NotImplementedError(self.report(g, pc, str(error), None)) from error
            except (TypeError, AttributeError) as error:
                ins = self.machine.kernel.instructions[pc]
                read = {r.name for r in sources(ins) if g.R[r.slot] is None}
                if not read:
                    raise
                what = f"reads {', '.join(sorted(read))} that nothing has set"
                raise EmulationError(self.report(g, pc, what, None)) from error
            if outcome == EXIT:
                self.finish(g)
                return
            if outcome == PARKED:
                g.pc = pc + 1
                self.parked.append(g)
                return
            g.pc = pc + 1 if outcome is None else outcome
            if self.ready and min((o.turn, o.pc) for o in self.ready) <= (g.turn, g.pc):
                break
        else:
            self.give_way(g, g.pc)
        self.ready.append(g)

    def give_way(self, g: Group, pc: int) -> None:
        """Lets others go first: what the group waits for may be theirs to do."""
        self.turn += 1
        g.turn = self.turn
        self.stalls = self.stalls + 1 if self.memory.changes == self.changes else 0
        self.changes = self.memory.changes
        if self.stalls > PATIENCE * (1 + len(self.ready)):
            what = "deadlock: waits for memory that nothing changes any more"
            raise EmulationError(self.report(g, pc, what, None))

    def finish(self, g: Group) -> None:
        self.left -= g.size
        np.subtract.at(self.alive, g.ids.cta[:, 0] - self.first, 1)
        np.subtract.at(self.team_alive, g.ids.team[:, 0], 1)
        self.memory.changes += 1
        if self.parked:
            self.release()

    # ---- barriers

    def barrier(self, g: Group, number: int, threads: int | None, waits: bool) -> int | None:
        """bar.sync and, where it does not wait, bar.arrive."""
        g.together("a barrier")
        if threads is None and not self.machine.exact and g.size == self.left:
            self.all_pass(g)
            return None
        key = number, threads
        if key not in self.barriers:
            expected = self.alive if threads is None else threads // 32
            self.barriers[key] = Barrier(len(self.alive), self.clocks, expected)
        barrier, scope = self.barriers[key], g.ids.cta - self.first
        g.ids.ticket = barrier.arrive(g.ids, scope)
        return self.opening(g, barrier, scope, g.ids.ticket, waits)

    def all_pass(self, g: Group) -> None:
        """Every warp there is has come to the barrier."""
        self.clocks.clock += np.uint32(1)
        g.ids.code, g.ids.since = g.ids.code + np.uint32(WHO), g.ids.since + np.uint32(WHO)
        if self.shared:
            self.shared.all_passed()

    def cluster_arrive(self, g: Group) -> None:
        g.together("a barrier")
        if (g.ids.cluster_ticket != NONE).any():
            raise Fault("arrives twice at the cluster's barrier", g.ids.cluster_ticket != NONE)
        g.ids.cluster_ticket = self.cluster_barrier.arrive(g.ids, g.ids.team)
        self.opening(g, self.cluster_barrier, g.ids.team, g.ids.cluster_ticket, False)

    def cluster_wait(self, g: Group) -> int | None:
        g.together("a barrier")
        if (g.ids.cluster_ticket == NONE).any():
            raise Fault("waits at the cluster's barrier without having arrived")
        g.ids.ticket, g.ids.cluster_ticket = g.ids.cluster_ticket, np.full_like(g.ids.cluster_ticket, NONE)
        return self.opening(g, self.cluster_barrier, g.ids.team, g.ids.ticket, True)

    def opening(self, g: Group, barrier: Barrier, scope: Array, ticket: Array, waits: bool) -> int | None:
        if barrier.open() and self.parked:
            self.release()
        if not waits:
            team, who = g.ids.team[:, 0], g.ids.who[:, 0]
            g.ids.code, g.ids.since = self.clocks.code(team, who)[:, None], self.clocks.since(team, who)[:, None]
            return None
        if barrier.passed(scope, ticket).all():
            self.pass_(g, barrier, scope)
            return None
        g.awaits = barrier
        return PARKED

    def pass_(self, g: Group, barrier: Barrier, scope: Array) -> None:
        barrier.hear(g.ids, scope)
        g.awaits = None
        whole = not self.machine.exact or barrier is self.cluster_barrier
        if self.shared and whole and g.size == self.left:
            self.shared.all_passed()

    def release(self) -> None:
        """Those go on whose barrier has opened."""
        for barrier in (*self.barriers.values(), self.cluster_barrier):
            barrier.open()
        waiting, self.parked = self.parked, []
        for g in waiting:
            assert g.awaits is not None
            scope = g.ids.team if g.awaits is self.cluster_barrier else g.ids.cta - self.first
            go = g.awaits.passed(scope, g.ids.ticket)
            if not go.any():
                self.parked.append(g)
                continue
            if not go.all():
                self.parked.append(g.take(~go, g.pc))
                g, scope = g.take(go, g.pc), scope[go]
            assert g.awaits is not None
            self.pass_(g, g.awaits, scope)
            self.ready.append(g)

    # ---- errors

    def deadlock(self) -> None:
        g = self.parked[0]
        waiting, alive = sum(p.size for p in self.parked), self.left
        what = f"deadlock: {waiting} warps of {alive} that have not ended wait at barriers that others never reach"
        raise EmulationError(self.report(g, g.pc - 1, what, np.ones((g.size, 32), bool)))

    def report(self, g: Group, pc: int, what: str, mask: Array | None) -> str:
        mask = np.zeros((1, 1), bool) if mask is None else mask
        if mask.shape[1] != 1:  # only the lanes that give addresses
            mask = np.pad(mask, ((0, 0), (0, 32 - mask.shape[1])))
        mask = np.broadcast_to(mask, (g.size, 32))
        row, lane = np.argwhere(mask)[0] if mask.any() else (0, 0)
        who = f"CTA {int(g.ids.cta[row, 0])} thread {int(g.ids.warp[row, 0]) * 32 + int(lane)}"
        others = f", {int(mask.sum())} threads in all" if mask.any() else ""
        return f"{self.machine.kernel.name}: {what}; {who}{others}; at {self.machine.kernel.instructions[pc]}"
