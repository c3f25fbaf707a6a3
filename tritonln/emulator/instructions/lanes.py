"""shfl, vote, elect, activemask, redux: between the lanes of a warp, and all of them."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from tritonln.emulator.faults import Array, Fault
from tritonln.emulator.floats import extreme
from tritonln.emulator.group import Group
from tritonln.emulator.instructions.compiler import Compiler, Get, Run, handles, only, parts_of, slot_of
from tritonln.emulator.ptx import Imm, Instruction
from tritonln.emulator.warps import LANES

ALL = 0xFFFFFFFF


def _members(g: Group, get: Get, what: str) -> None:
    """Those who have not exited must be named; who is not named has exited."""
    members = get(g.R)
    if g.alive is None and members.size == 1 and members[0, 0] == ALL:
        return
    named = ((members >> LANES.astype(np.uint32)) & np.uint32(1)).astype(bool)
    alive = np.broadcast_to(True if g.alive is None else g.alive, (g.size, 32))
    if (alive & ~named).any():
        raise NotImplementedError(f"{what} by some lanes of a warp only")
    if (named & ~alive).any() and (members != np.uint32(ALL)).any():
        raise Fault(f"{what} names lanes that have exited", named & ~alive)


@handles("shfl")
def _shfl(c: Compiler, ins: Instruction) -> Run:
    """Of a lane beyond the clamp one gets one's own value, and false."""
    only(ins, "sync", "up", "down", "bfly", "idx")
    mode = ins.op[2]
    d, a, b, clamp, members = ins.operands
    first, *rest = (slot_of(p) for p in parts_of(d))
    source = c.source(a, 32)
    get_b, get_c, get_m = (c.typed(o, "u", 32) for o in (b, clamp, members))

    def index(by: Array, clamp: Array) -> tuple[Array, Array]:
        by, clamp = by.astype(np.int64) & 31, clamp.astype(np.int64)
        segment, limit = (clamp >> 8) & 31, clamp & 31
        highest = (LANES & segment) | (limit & ~segment)
        if mode == "up":
            j = LANES - by
            ok = j >= highest
        else:
            j = {"down": LANES + by, "bfly": LANES ^ by}.get(mode, (LANES & segment) | (by & ~segment))
            ok = j <= highest
        return np.where(ok, j, LANES), ok

    fixed = None
    if isinstance(b, Imm) and isinstance(clamp, Imm):
        fixed = index(np.array([[b.value]]), np.array([[clamp.value]]))

    def run(g: Group) -> None:
        R = g.R
        _members(g, get_m, "shfl.sync")
        x = R[source]
        j, ok = fixed or index(get_b(R), get_c(R))
        if x.shape[1] == 1:
            R[first] = x
        elif len(j) == 1:
            R[first] = x[:, j[0]]
        else:
            j = np.broadcast_to(j, (max(len(j), len(x)), 32))
            R[first] = np.take_along_axis(np.broadcast_to(x, j.shape), j, 1)
        for predicate in rest:
            R[predicate] = ok

    return run


@handles("vote")
def _vote(c: Compiler, ins: Instruction) -> Run:
    only(ins, "sync", "any", "all", "uni", "ballot")
    mode, get, slot = ins.op[2], c.typed(ins.operands[1], "pred", 1), slot_of(ins.operands[0])
    get_m = c.typed(ins.operands[2], "u", 32)

    def run(g: Group) -> None:
        _members(g, get_m, "vote.sync")
        p = get(g.R)
        alive = True if g.alive is None else g.alive
        yes, no = (p & alive).any(1, keepdims=True), (~p & alive).any(1, keepdims=True)
        if mode == "ballot":
            p = np.broadcast_to(p & alive, (max(len(p), np.shape(alive)[0] if g.alive is not None else 1), 32))
            g.R[slot] = (p.astype(np.uint32) << LANES.astype(np.uint32)).sum(1, keepdims=True, dtype=np.uint32)
        else:
            g.R[slot] = {"any": yes, "all": ~no, "uni": ~(yes & no)}[mode]

    return run


@handles("elect")
def _elect(c: Compiler, ins: Instruction) -> Run:
    """The first lane, as on the GPUs there are."""
    only(ins, "sync")
    value, *rest = parts_of(ins.operands[0])

    def run(g: Group) -> None:
        if g.alive is not None:
            raise NotImplementedError("elect.sync after lanes have exited")
        if value is not None:
            g.R[slot_of(value)] = np.zeros((1, 1), np.uint32)
        for predicate in rest:
            g.R[slot_of(predicate)] = LANES == 0

    return run


@handles("redux")
def _redux(c: Compiler, ins: Instruction) -> Run:
    """One number of those of all lanes: integers, and from sm_100 on the least or the greatest of fp32."""
    either: Callable[[Array, Array], Array]
    name, kind = ins.op[2], {"s32": np.int32, "f32": np.float32}.get(ins.op[-1], np.uint32)
    if kind is np.float32:
        only(ins, "sync", "min", "max", "abs", "NaN")
        either = functools.partial(extreme, low=name == "min", with_nan="NaN" in ins.op)
    else:
        only(ins, "sync", "add", "min", "max", "and", "or", "xor")
        either = {
            "add": np.add, "min": np.minimum, "max": np.maximum,
            "and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor,
        }[name]  # fmt: skip
    get, get_m, slot = c.typed(ins.operands[1], "u", 32), c.typed(ins.operands[2], "u", 32), slot_of(ins.operands[0])

    def run(g: Group) -> None:
        _members(g, get_m, "redux.sync")
        if g.alive is not None:
            raise NotImplementedError("redux.sync after lanes have exited")
        x = get(g.R)
        x = np.ascontiguousarray(np.broadcast_to(x, (len(x), 32))).view(kind)
        if "abs" in ins.op:
            x = np.abs(x)
        g.R[slot] = functools.reduce(either, np.hsplit(x, 32)).view(np.uint32)

    return run
