"""ld and st, of parameters, global memory, and shared memory of one's own CTA or another one of the cluster; mapa."""

from __future__ import annotations

from typing import Any

import numpy as np

from tritonln.emulator.clocks import CtaClocks
from tritonln.emulator.counters import Traffic, count_sectors, count_wavefronts
from tritonln.emulator.faults import Array
from tritonln.emulator.group import Group
from tritonln.emulator.instructions.compiler import (
    TYPES,
    Compiler,
    MaskedRun,
    Run,
    S,
    U,
    handles,
    handles_masked,
    only,
    parts_of,
    poison,
    slot_of,
)
from tritonln.emulator.memory import GlobalMemory
from tritonln.emulator.ptx import Address, Instruction, Reg, Symbol
from tritonln.emulator.shared import RANK, Place

# Where it is cached, and for how long, is overlooked.
CACHE: tuple[str, ...] = (
    "L1",
    "L2",
    "evict_first",
    "evict_last",
    "evict_normal",
    "evict_unchanged",
    "no_allocate",
    "cache_hint",
)
CACHE += ("64B", "128B", "256B", "nc", "ca", "cg", "cs", "lu", "cv", "wb", "wt")
ORDER = ("weak", "relaxed", "acquire", "release", "volatile", "cta", "cluster", "gpu", "sys")
VECTOR = ("v2", "v4", "v8")
AMBIGUOUS = "two threads store different values to one place"


def width_of(ins: Instruction) -> tuple[str, int, int]:
    """(kind, bits of an element, elements)"""
    if ins.op[-1] not in TYPES:
        raise NotImplementedError(str(ins))
    kind, width = TYPES[ins.op[-1]]
    return kind, width, next((int(w[1:]) for w in ins.op if w in ("v2", "v4", "v8")), 1)


def order_of(ins: Instruction) -> str | None:
    """What an access does for the order of others; None: nothing.  A volatile one counts as relaxed."""
    order = next((w for w in ins.op if w in ("relaxed", "acquire", "release", "acq_rel", "volatile")), None)
    return "relaxed" if order == "volatile" else order


def spread(a: Array, shape: tuple[int, ...]) -> Array:
    """np.broadcast_to, which is slow where there is nothing to do."""
    return a if a.shape == shape else np.broadcast_to(a, shape)


def strong(
    g: Group, ins: Instruction, address: Array, mask: Array | None, order: str, reads: bool, writes: bool
) -> None:
    """An access that others may wait for, or be waited for by."""
    memory: GlobalMemory = g.batch.memory
    clocks: CtaClocks | None = memory.clocks
    if clocks is not None:
        ctas = np.broadcast_to(g.ids.cta, (g.size, 32))
        at = np.broadcast_to(address, (g.size, 32))
        chosen = np.broadcast_to(True if mask is None else mask, (g.size, 32))
        clocks.strong(ctas[chosen], at[chosen], order, reads, writes)
    g.batch.give_way(g, ins.pc)


@handles_masked("ld")
def _ld(c: Compiler, ins: Instruction) -> MaskedRun:
    kind, width, count = width_of(ins)
    targets = [None if r is None else _target(ins, r, width) for r in parts_of(ins.operands[0])]
    read, wide, order = U[width], (S if kind == "s" else U), order_of(ins)
    each, total = width // 8, width // 8 * count

    def extended(value: Array, dtype: Any) -> Array:
        """As wide as the register; the sign of signed types is kept."""
        if value.dtype == dtype:
            return value
        return value.view(wide[width]).astype(wide[8 * dtype(0).itemsize]).view(dtype)

    def put(g: Group, values: Array, mask: Array | None) -> None:
        R = g.R
        for i, target in enumerate(targets):
            if target is not None:
                slot, dtype = target
                value = extended(values if count == 1 else np.ascontiguousarray(values[..., i]), dtype)
                if mask is not None:
                    value = np.where(mask, value, poison(dtype) if R[slot] is None else R[slot])
                R[slot] = value

    if ins.op[1] == "param":
        number, offset = _parameter(c, ins)

        def parameter(g: Group, mask: Array | None) -> None:
            held = np.frombuffer(g.batch.params[number][offset : offset + total], read)
            put(g, held.reshape(1, 1) if count == 1 else held.reshape(1, 1, count), mask)

        return parameter
    if "shared" in ins.op:
        places = Places(c, ins, ins.operands[1], total)

        def of_shared(g: Group, mask: Array | None) -> None:
            place, shared = places(g, mask), g.batch.shared
            assert shared is not None
            put(g, shared.load(place, each, g.ids), mask)

        return of_shared
    only(ins, "global", *CACHE, *ORDER, *VECTOR)
    address = c.address(ins.operands[1], 64)

    def of_global(g: Group, mask: Array | None) -> None:
        a = address(g.R)
        if mask is not None:
            a, mask = np.broadcast_arrays(a, mask)
        if order is not None:
            strong(g, ins, a, mask, order, reads=True, writes=False)
        values = g.batch.memory.load(a, total, each, mask, g.ids.cta)
        if g.batch.count:
            count_sectors(g.traffic(ins), a, total, mask, g.size)
        put(g, values, mask)

    return of_global


class Places:
    """Of the shared memory accesses of one instruction.

    The last one is kept: in a loop addresses rarely change, and what checks and counts need to know of them is dear.
    """

    def __init__(self, c: Compiler, ins: Instruction, operand: Any, total: int, all_lanes: bool = False):
        only(ins, "shared", *CACHE, *ORDER, *VECTOR)
        self.ins, self.total, self.cluster = ins, total, "cluster" in ins.op
        self.all_lanes = all_lanes
        self.source, self.offset = c.source(operand.base, 32), np.uint32(operand.offset % 2**32)
        self.forget()
        c.at_end.append(self.forget)

    def forget(self) -> None:
        self.key: tuple[Any, ...] = ()
        self.place: Place | None = None
        self.wavefronts = Traffic()

    def __call__(self, g: Group, mask: Array | None) -> Place:
        base, shared = g.R[self.source], g.batch.shared
        assert shared is not None
        key = base, mask, g.ids.shared_base, shared
        if self.place is None or any(a is not b for a, b in zip(key, self.key)):
            a = base + self.offset
            a = spread(a, (g.size, 32 if self.all_lanes else a.shape[1]))
            if mask is not None:
                a, mask = np.broadcast_arrays(a, mask)
            self.key, self.place = key, shared.place(a, self.total, mask, g.ids, self.cluster)
            self.wavefronts = Traffic()
            if g.batch.count:
                count_wavefronts(self.wavefronts, a, self.total, mask, g.size)
        if g.batch.count:
            g.count(self.ins, self.wavefronts)
        return self.place


def _target(ins: Instruction, operand: Any, width: int) -> tuple[int, Any]:
    if not isinstance(operand, Reg) or operand.width < width:
        raise NotImplementedError(f"load into a narrower register: {ins}")
    return operand.slot, U[operand.width]


def _parameter(c: Compiler, ins: Instruction) -> tuple[int, int]:
    """(which, from which byte)"""
    where = ins.operands[1]
    if not isinstance(where, Address) or not isinstance(where.base, Symbol):
        raise NotImplementedError(str(ins))
    return [name for name, _ in c.kernel.params].index(where.base.name), where.offset


@handles_masked("st")
def _st(c: Compiler, ins: Instruction) -> MaskedRun:
    _, width, count = width_of(ins)
    sources, order = [c.typed(p, "u", width) for p in parts_of(ins.operands[1])], order_of(ins)
    each, total = width // 8, width // 8 * count

    def data(g: Group, shape: tuple[int, ...]) -> Array:
        values = [spread(get(g.R), shape) for get in sources]
        return values[0] if count == 1 else np.stack(values, -1)

    if "shared" in ins.op:
        places = Places(c, ins, ins.operands[0], total, all_lanes=True)

        def to_shared(g: Group, mask: Array | None) -> None:
            place, shared = places(g, mask), g.batch.shared
            assert shared is not None
            if shared.store(place, data(g, place.index.shape), each, g.ids):
                g.note(ins, AMBIGUOUS)

        return to_shared
    only(ins, "global", *CACHE, *ORDER, *VECTOR)
    address = c.address(ins.operands[0], 64)

    def to_global(g: Group, mask: Array | None) -> None:
        shape = (g.size, 32)
        a = np.broadcast_to(address(g.R), shape)
        mask = None if mask is None else np.broadcast_to(mask, shape)
        if g.batch.memory.store(a, data(g, shape), total, each, mask, g.ids.cta, owned=order is None):
            g.note(ins, AMBIGUOUS)
        if g.batch.count:
            count_sectors(g.traffic(ins), a, total, mask, g.size)
        if order is not None:
            strong(g, ins, a, mask, order, reads=False, writes=True)

    return to_global


@handles("mapa")
def _mapa(c: Compiler, ins: Instruction) -> Run:
    """Where the CTA of a rank has what one's own CTA has at an address."""
    if ins.op[1:] != ("shared", "cluster", "u32"):
        raise NotImplementedError(str(ins))
    source, rank, slot = c.typed(ins.operands[1], "u", 32), c.typed(ins.operands[2], "u", 32), slot_of(ins.operands[0])

    def run(g: Group) -> None:
        there = rank(g.R)
        if (there >= g.batch.cluster).any():
            raise NotImplementedError(f"mapa of CTA {int(there.max())} in a cluster of {g.batch.cluster}")
        offset = source(g.R) & np.uint32((1 << RANK) - 1)
        g.R[slot] = offset | ((there + np.uint32(1)) << np.uint32(RANK))

    return run
