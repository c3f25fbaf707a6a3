"""How control flows through a kernel: its blocks, where ways meet again, and which registers are still read."""

from __future__ import annotations

from collections.abc import Iterator

from tritonln.emulator.ptx import Address, Instruction, Kernel, Not, Operand, Reg, Vector

# After these the machine may have something else to do first.
ENDS = ("bra", "ret", "exit", "bar", "barrier", "atom", "red", "fence", "membar", "nanosleep", "trap")
STRONG = ("acquire", "release", "acq_rel", "relaxed", "volatile")  # orders of loads and stores that others may await


def communicates(ins: Instruction) -> bool:
    """Whether another CTA may wait for what it does, or it for another CTA."""
    return ins.op[0] in ("atom", "red") or (ins.op[0] in ("ld", "st") and any(w in STRONG for w in ins.op))


def blocks(kernel: Kernel) -> list[int]:
    """Of each instruction, the first after it that is not of its block: control comes in at no other one."""
    end = len(kernel.instructions)
    starts = {end, *kernel.labels.values()}
    starts |= {ins.pc + 1 for ins in kernel.instructions if ins.op[0] in ENDS or communicates(ins)}
    after, nxt = [0] * end, end
    for pc in range(end - 1, -1, -1):
        after[pc] = nxt
        if pc in starts:
            nxt = pc
    return after


def successors(kernel: Kernel, ins: Instruction) -> list[int]:
    """len(instructions) is the end."""
    end = len(kernel.instructions)
    goes_on = [ins.pc + 1]
    if ins.op[0] == "bra":
        target = ins.operands[0]
        found = [kernel.labels[target.name]]  # type: ignore[union-attr]
    elif ins.op[0] in ("ret", "exit"):
        found = [end]
    else:
        return goes_on
    return found if ins.guard is None else goes_on + found


def post_dominators(kernel: Kernel) -> list[int]:
    """Of each instruction, the nearest that every way to the end passes."""
    end = len(kernel.instructions)
    after = [successors(kernel, ins) for ins in kernel.instructions]
    nearest: list[int | None] = [None] * end + [end]

    def further(pc: int) -> int:
        found = nearest[pc]
        assert found is not None
        return found

    changed = True
    while changed:
        changed = False
        for pc in range(end - 1, -1, -1):
            known = [s for s in after[pc] if nearest[s] is not None]
            if not known:
                continue
            meet = known[0]
            for other in known[1:]:
                path, at = {meet}, meet
                while at != end:
                    at = further(at)
                    path.add(at)
                while other not in path:
                    other = further(other)
                meet = other
            if nearest[pc] != meet:
                nearest[pc], changed = meet, True
    return [end if n is None else n for n in nearest[:end]]


def registers(operand: Operand) -> Iterator[Reg]:
    if isinstance(operand, Reg):
        yield operand
    elif isinstance(operand, Not):
        yield operand.reg
    elif isinstance(operand, Address):
        yield from registers(operand.base)
    elif isinstance(operand, Vector):
        for part in operand.parts:
            yield from registers(part)


# These have no result: their first operand is read.
WITHOUT = ("st", "stmatrix", "red", "bra", "bar", "barrier", "cp", "nanosleep", "prefetch")


def destinations(ins: Instruction) -> list[Reg]:
    """What it writes."""
    first = ins.operands[0] if ins.operands and ins.op[0] not in WITHOUT else None
    return [r for r in (first.parts if isinstance(first, Vector) else (first,)) if isinstance(r, Reg)]


def sources(ins: Instruction) -> list[Reg]:
    """What it reads, its guard as well."""
    operands = ins.operands if ins.op[0] in WITHOUT else ins.operands[1:]
    return [r for o in (ins.guard, *operands) for r in registers(o)]


def live_registers(kernel: Kernel) -> list[int]:
    """Of each instruction, the slots that it or a later one reads, as bits."""
    end = len(kernel.instructions)
    reads, writes = [0] * end, [0] * end
    for ins in kernel.instructions:
        for register in sources(ins):
            reads[ins.pc] |= 1 << register.slot
        for register in destinations(ins):
            writes[ins.pc] |= 1 << register.slot
        if ins.guard is not None:
            reads[ins.pc] |= writes[ins.pc]  # what the lanes had that do not execute it
    live = [0] * (end + 1)
    changed = True
    while changed:
        changed = False
        for ins in reversed(kernel.instructions):
            out = 0
            for s in successors(kernel, ins):
                out |= live[s]
            now = reads[ins.pc] | (out & ~writes[ins.pc])
            if now != live[ins.pc]:
                live[ins.pc], changed = now, True
    return live
