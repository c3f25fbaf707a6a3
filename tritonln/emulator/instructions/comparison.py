"""setp, set, selp."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tritonln.emulator import floats
from tritonln.emulator.faults import Array
from tritonln.emulator.group import Group
from tritonln.emulator.instructions.compiler import Compiler, Run, U, handles, kind_of, only, parts_of, slot_of
from tritonln.emulator.ptx import Instruction, Reg

COMPARE: dict[str, Callable[[Array, Array], Array]] = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip
JOIN: dict[str, Callable[[Array, Array], Array]] = {
    "and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor,
}  # fmt: skip


def of_floats(name: str) -> Callable[[Array, Array], Array]:
    """eq .. ge are false of a NaN, equ .. geu true; num: none is one; nan: one is."""
    if name == "ne":
        return lambda a, b: (a != b) & (a == a) & (b == b)
    if name in COMPARE:
        return COMPARE[name]
    if name == "num":
        return lambda a, b: (a == a) & (b == b)
    if name == "nan":
        return lambda a, b: (a != a) | (b != b)
    base = COMPARE[name[:-1]]
    return lambda a, b: base(a, b) | (a != a) | (b != b)


@handles("setp")
def _setp(c: Compiler, ins: Instruction) -> Run:
    """p|q = a ? b, joined with a third predicate; q is of the opposite comparison."""
    kind, width = kind_of(ins)
    only(ins, ins.op[1], "and", "or", "xor", "ftz")
    floating = kind in ("f", "bf")
    compare = of_floats(ins.op[1]) if floating else COMPARE[ins.op[1]]
    a, b = (c.typed(o, "u" if kind == "bf" else kind, width) for o in ins.operands[1:3])
    slots = [None if p is None else slot_of(p) for p in parts_of(ins.operands[0])]
    join = JOIN.get(ins.op[2])
    other = c.typed(ins.operands[3], "pred", 1) if join else None

    def prepared(x: Array) -> Array:
        if kind == "bf":
            return floats.from_bf16(x)
        return floats.flush(x) if "ftz" in ins.op else x

    def run(g: Group) -> None:
        R = g.R
        x, y = a(R), b(R)
        if kind == "bf" or "ftz" in ins.op:
            x, y = prepared(x), prepared(y)
        result = compare(x, y)
        for slot, opposite in zip(slots, (False, True)):
            if slot is not None:
                value = ~result if opposite else result
                R[slot] = join(value, other(R)) if join and other else value

    return run


@handles("selp")
def _selp(c: Compiler, ins: Instruction) -> Run:
    only(ins)
    width, is_float = kind_of(ins)[1], ins.op[-1][0] == "f"
    if any(isinstance(o, Reg) and o.width != width for o in ins.operands[1:3]):
        raise NotImplementedError(str(ins))
    a, b = (c.source(o, width, is_float) for o in ins.operands[1:3])
    p, slot = c.typed(ins.operands[3], "pred", 1), slot_of(ins.operands[0])

    def run(g: Group) -> None:
        R = g.R
        R[slot] = np.where(p(R), R[a], R[b])

    return run


@handles("set")
def _set(c: Compiler, ins: Instruction) -> Run:
    """set.lt.u32.f32: all ones, or 1.0, where it holds."""
    only(ins, ins.op[1], ins.op[-2])
    kind, width = kind_of(ins)
    result = {"u32": 0xFFFFFFFF, "s32": 0xFFFFFFFF, "f32": 0x3F800000}[ins.op[-2]]
    compare = of_floats(ins.op[1]) if kind == "f" else COMPARE[ins.op[1]]
    a, b = (c.typed(o, kind, width) for o in ins.operands[1:3])
    slot = slot_of(ins.operands[0])
    yes, no = U[32](result), U[32](0)

    def run(g: Group) -> None:
        g.R[slot] = np.where(compare(a(g.R), b(g.R)), yes, no)

    return run
