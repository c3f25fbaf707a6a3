"""bra, ret, exit, trap, and barriers."""

from __future__ import annotations

from tritonln.emulator.faults import Array, Fault
from tritonln.emulator.group import Group
from tritonln.emulator.instructions.compiler import Compiler, MaskedRun, Run, handles, handles_masked, only, value_of
from tritonln.emulator.ptx import Imm, Instruction, Symbol
from tritonln.emulator.warps import EXIT


@handles_masked("bra")
def _bra(c: Compiler, ins: Instruction) -> MaskedRun:
    only(ins, "uni")
    label = ins.operands[0]
    assert isinstance(label, Symbol)
    target = c.kernel.labels[label.name]

    def run(g: Group, mask: Array | None) -> int | None:
        return target if mask is None else g.branch(mask, target, ins.pc)

    return run


@handles_masked("ret", "exit")
def _ret(c: Compiler, ins: Instruction) -> MaskedRun:
    def run(g: Group, mask: Array | None) -> int | None:
        return EXIT if mask is None else g.branch(mask, EXIT, ins.pc)

    return run


@handles("bar", "barrier")
def _bar(c: Compiler, ins: Instruction) -> Run:
    """Of the CTA, all of it or some warps; of the cluster; of a warp, whose lanes go together anyway."""
    if ins.op[1] == "warp":
        return lambda g: None
    if ins.op[1] == "cluster":
        return _cluster(ins)
    if ins.op[1] == "cta":
        only(ins, "cta", "sync", "arrive", "aligned")
    elif ins.op[1] not in ("sync", "arrive"):
        raise NotImplementedError(str(ins))
    number, waits = value_of(ins.operands[0]), "sync" in ins.op
    threads = value_of(ins.operands[1]) if len(ins.operands) > 1 else None
    if threads == c.kernel.threads:
        threads = None
    if (threads or 0) % 32 or not isinstance(ins.operands[0], Imm):
        raise NotImplementedError(str(ins))

    def run(g: Group) -> int | None:
        return g.batch.barrier(g, number, threads, waits)

    return run


def _cluster(ins: Instruction) -> Run:
    """arrive.relaxed tells the others nothing; Triton's are release and acquire, as the plain ones."""
    if "relaxed" in ins.op or not ("arrive" in ins.op or "wait" in ins.op):
        raise NotImplementedError(str(ins))

    def arrive(g: Group) -> None:
        g.batch.cluster_arrive(g)

    def wait(g: Group) -> int | None:
        return g.batch.cluster_wait(g)

    return arrive if "arrive" in ins.op else wait


@handles_masked("trap")
def _trap(c: Compiler, ins: Instruction) -> MaskedRun:
    def run(g: Group, mask: Array | None) -> None:
        raise Fault("trap", mask)

    return run
