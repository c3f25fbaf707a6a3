"""atom and red, fence and membar, nanosleep: what CTAs can wait for each other with.

Atomics of one instruction take effect in the order of warps and lanes.  Which CTA knows of what another did is kept in
memory.clocks: a relaxed or volatile access tells nothing by itself, only together with a fence.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tritonln.emulator import floats
from tritonln.emulator.faults import Array
from tritonln.emulator.group import Group
from tritonln.emulator.instructions.compiler import (
    TYPES,
    Compiler,
    F,
    MaskedRun,
    S,
    U,
    handles_masked,
    only,
    poison,
    slot_of,
)
from tritonln.emulator.instructions.loads import order_of, strong
from tritonln.emulator.ptx import Instruction, Vector

SCOPES = ("cta", "cluster", "gpu", "sys")
ORDERS = ("relaxed", "acquire", "release", "acq_rel")


def _operation(name: str, kind: str, width: int) -> Callable[..., Array]:
    """(what is there, a[, b]) -> what is there afterwards, in unsigned integers of the width."""
    if name == "exch":
        return lambda old, a: a
    if name == "cas":
        return lambda old, a, b: np.choose(old == a, (old, b))
    if name == "inc":
        return lambda old, a: np.where(old >= a, 0, old + 1).astype(old.dtype)
    if name == "dec":
        return lambda old, a: np.where((old == 0) | (old > a), a, old - 1).astype(old.dtype)
    function: Callable[[Array, Array], Array] = {
        "add": np.add, "min": np.minimum, "max": np.maximum,
        "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
    }[name]  # fmt: skip
    if kind == "bf":
        return lambda old, a: floats.to_bf16(function(floats.from_bf16(old), floats.from_bf16(a)))
    view = {"f": F, "s": S}.get(kind, U)[width]
    return lambda old, a: function(old.view(view), a.view(view)).view(U[width])


@handles_masked("atom", "red")
def _atom(c: Compiler, ins: Instruction) -> MaskedRun:
    names = ("add", "min", "max", "and", "or", "xor", "exch", "cas", "inc", "dec")
    name = next((w for w in ins.op if w in names), None)
    if name is None or "shared" in ins.op or isinstance(ins.operands[-1], Vector) or ins.op[-1] not in TYPES:
        raise NotImplementedError(str(ins))
    only(ins, "global", *SCOPES, *ORDERS, name, "noftz")
    kind, width = TYPES[ins.op[-1]]
    returns, operands = ins.op[0] == "atom" and ins.operands[0] is not None, ins.operands
    if ins.op[0] == "atom":
        operands = operands[1:]
    slot = slot_of(ins.operands[0]) if returns else -1
    address, sources = c.address(operands[0], 64), [c.typed(o, "u", width) for o in operands[1:]]
    operation, order, dtype = _operation(name, kind, width), order_of(ins) or "relaxed", U[width]

    def run(g: Group, mask: Array | None) -> None:
        R, shape = g.R, (g.size, 32)
        at = np.broadcast_to(address(R), shape)
        mask = None if mask is None else np.broadcast_to(mask, shape)
        old = g.batch.memory.atomic(
            at, [np.broadcast_to(get(R), shape) for get in sources], width // 8, mask, g.ids.cta, operation
        )
        if g.batch.count:
            t, n = g.traffic(ins), g.size * 32 if mask is None else int(mask.sum())
            t.requests += g.size if mask is None else int(mask.any(1).sum())
            t.units, t.ideal, t.bytes = t.units + n, t.ideal + n, t.bytes + n * width // 8
        if returns:
            R[slot] = old if mask is None else np.where(mask, old, poison(dtype) if R[slot] is None else R[slot])
        strong(g, ins, at, mask, order, reads=True, writes=True)

    return run


@handles_masked("fence", "membar")
def _fence(c: Compiler, ins: Instruction) -> MaskedRun:
    """membar.gl is fence.sc.gpu; that of a CTA tells others nothing."""
    if "proxy" in ins.op:
        raise NotImplementedError(str(ins))
    wide = any(w in ins.op for w in ("gl", "gpu", "sys", "cluster"))

    def run(g: Group, mask: Array | None) -> None:
        clocks = g.batch.memory.clocks
        if wide and clocks is not None:
            rows = np.broadcast_to(True if mask is None else mask.any(1), g.size)
            clocks.fence(g.ids.cta[rows, 0])

    return run


@handles_masked("nanosleep")
def _nanosleep(c: Compiler, ins: Instruction) -> MaskedRun:
    return lambda g, mask: g.batch.give_way(g, ins.pc)
