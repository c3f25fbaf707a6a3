"""cp.async, which reads now and is there once it has been waited for; and what has no effect here."""

from __future__ import annotations

import numpy as np

from tritonln.emulator.counters import count_sectors
from tritonln.emulator.faults import Array
from tritonln.emulator.group import Group
from tritonln.emulator.instructions.compiler import (
    Compiler,
    MaskedRun,
    Run,
    handles,
    handles_masked,
    only,
    slot_of,
    value_of,
)
from tritonln.emulator.instructions.loads import CACHE
from tritonln.emulator.ptx import Instruction
from tritonln.emulator.warps import Copy


@handles_masked("cp")
def _cp(c: Compiler, ins: Instruction) -> MaskedRun:
    """With a size of 0 zeros are written instead.  commit_group and wait_group are of whole warps."""
    if ins.op[1] != "async" or "bulk" in ins.op or "mbarrier" in ins.op:
        raise NotImplementedError(str(ins))
    if ins.op[2] in ("commit_group", "wait_group", "wait_all"):
        return _group(ins)
    only(ins, "async", "shared", "global", "cta", *CACHE)
    target, source = c.address(ins.operands[0], 32), c.address(ins.operands[1], 64)
    total = value_of(ins.operands[2])
    sized = len(ins.operands) - ("cache_hint" in ins.op) > 3  # the last operand is the hint
    given = c.typed(ins.operands[3], "u", 32) if sized else None
    each = 8 if total == 16 else total

    def run(g: Group, mask: Array | None) -> None:
        R, shape, shared = g.R, (g.size, 32), g.batch.shared
        assert shared is not None
        to, of = np.broadcast_to(target(R), shape), np.broadcast_to(source(R), shape)
        mask = None if mask is None else np.broadcast_to(mask, shape)
        reads = mask
        if given is not None:
            n = np.broadcast_to(given(R), shape)
            if ((n != 0) & (n != total)).any():
                raise NotImplementedError("cp.async that reads part of its bytes")
            reads = n != 0 if mask is None else mask & (n != 0)
            reads = None if reads.all() else reads
        values = g.batch.memory.load(of, total, each, reads, g.ids.cta)
        if g.batch.count:
            count_sectors(g.traffic(ins), of, total, reads, g.size)
        place = shared.place(to, total, mask, g.ids)
        shared.copy_issued(place, g.ids)
        g.copies.append(Copy(place.index, values, total, each, mask))

    return run


def _group(ins: Instruction) -> MaskedRun:
    keep = value_of(ins.operands[0]) if ins.op[2] == "wait_group" else 0

    def run(g: Group, mask: Array | None) -> None:
        if mask is not None and g.alive is None:
            raise NotImplementedError(f"{ins.text} by some lanes of a warp")
        if ins.op[2] != "wait_group":
            g.commit()
        if ins.op[2] != "commit_group":
            g.wait(keep)

    return run


@handles("createpolicy")
def _createpolicy(c: Compiler, ins: Instruction) -> Run:
    slot = slot_of(ins.operands[0])

    def run(g: Group) -> None:
        g.R[slot] = np.zeros((1, 1), np.uint64)

    return run


@handles("prefetch", "griddepcontrol")
def _nothing(c: Compiler, ins: Instruction) -> Run:
    return lambda g: None
