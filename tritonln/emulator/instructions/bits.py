"""and, or, xor, not, lop3, shl, shr, shf, bfe, bfi, prmt, popc, clz, brev."""

from __future__ import annotations

import numpy as np

from tritonln.emulator.faults import Array, some
from tritonln.emulator.group import Group
from tritonln.emulator.instructions.compiler import (
    Compiler,
    Run,
    S,
    U,
    elementwise,
    handles,
    kind_of,
    only,
    poison_unset,
    slot_of,
    value_of,
)
from tritonln.emulator.ptx import Instruction, Reg

_u64 = np.uint64


@handles("and", "or", "xor", "not")
def _logic(c: Compiler, ins: Instruction) -> Run:
    only(ins)
    kind, width = kind_of(ins)
    kind = kind if kind == "pred" else "u"
    if ins.op[0] == "not":
        return elementwise(c, ins, np.invert, kind, width, 1)
    function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[ins.op[0]]
    return elementwise(c, ins, function, kind, width, 2)


@handles("lop3")
def _lop3(c: Compiler, ins: Instruction) -> Run:
    """Any function of three bits: bit 4 a + 2 b + c of the table is its value."""
    only(ins)
    table = value_of(ins.operands[4])

    def function(a: Array, b: Array, e: Array) -> Array:
        result = np.zeros(np.broadcast_shapes(a.shape, b.shape, e.shape), np.uint32)
        for i in range(8):
            if table >> i & 1:
                result |= (a if i & 4 else ~a) & (b if i & 2 else ~b) & (e if i & 1 else ~e)
        return result

    return elementwise(c, ins, function, "u", 32, 3)


@handles("shl", "shr")
def _shift(c: Compiler, ins: Instruction) -> Run:
    """By the width or more, everything is shifted out; a signed shr leaves the sign."""
    only(ins)
    kind, width = kind_of(ins)
    kind = kind if ins.op[0] == "shr" and kind == "s" else "u"
    dtype = (S if kind == "s" else U)[width]
    a, b = c.typed(ins.operands[1], kind, width), c.typed(ins.operands[2], "u", 32)
    slot, out = slot_of(ins.operands[0]), U[width]
    function = np.left_shift if ins.op[0] == "shl" else np.right_shift

    def run(g: Group) -> None:
        R = g.R
        x, n = a(R), b(R)
        far = n >= width
        if some(far):
            shifted = function(x, np.minimum(n, width - 1).astype(dtype))
            nothing = x >> dtype(width - 1) if kind == "s" else dtype(0)
            R[slot] = np.where(far, nothing, shifted).astype(dtype).view(out)
        else:
            R[slot] = function(x, n.astype(dtype)).view(out)

    return run


@handles("shf")
def _funnel_shift(c: Compiler, ins: Instruction) -> Run:
    """{b, a} shifted by at most 32, wrapped or clamped: left the upper half of the result, right the lower."""
    only(ins, "l", "r", "wrap", "clamp")
    low, high, by = (c.typed(o, "u", 32) for o in ins.operands[1:4])
    slot, left, wrap = slot_of(ins.operands[0]), "l" in ins.op, "wrap" in ins.op

    def run(g: Group) -> None:
        R = g.R
        both = low(R).astype(_u64) | (high(R).astype(_u64) << _u64(32))
        n = (by(R) & np.uint32(31) if wrap else np.minimum(by(R), 32)).astype(_u64)
        R[slot] = ((both << n) >> _u64(32) if left else both >> n).astype(np.uint32)

    return run


@handles("bfe")
def _bfe(c: Compiler, ins: Instruction) -> Run:
    """A field of `length` bits from bit `position`; past the top of a signed value are copies of its sign."""
    only(ins)
    kind, width = kind_of(ins)
    a = c.typed(ins.operands[1], kind, width)
    get_position, get_length = (c.typed(o, "u", 32) for o in ins.operands[2:])
    slot, out = slot_of(ins.operands[0]), U[width]
    wide = np.int64 if kind == "s" else np.uint64

    def run(g: Group) -> None:
        R = g.R
        position, length = (get(R) & np.uint32(0xFF) for get in (get_position, get_length))
        x = a(R).astype(wide)
        past = position >= 64
        x = np.where(past, x >> wide(63) if kind == "s" else wide(0), x >> np.minimum(position, 63).astype(wide))
        spare = (64 - np.clip(length, 1, 64)).astype(wide)
        R[slot] = np.where(length == 0, wide(0), (x << spare) >> spare).astype(out)

    return run


@handles("bfi")
def _bfi(c: Compiler, ins: Instruction) -> Run:
    """The lowest `length` bits of a in the place of those of b from bit `position`."""
    only(ins)
    width = kind_of(ins)[1]
    a, b = (c.typed(o, "u", width) for o in ins.operands[1:3])
    get_position, get_length = (c.typed(o, "u", 32) for o in ins.operands[3:])
    slot, out = slot_of(ins.operands[0]), U[width]

    def run(g: Group) -> None:
        R = g.R
        position, length = (np.minimum(get(R) & np.uint32(0xFF), 64).astype(_u64) for get in (get_position, get_length))
        ones = np.where(length >= 64, _u64(2**64 - 1), (_u64(1) << np.minimum(length, _u64(63))) - _u64(1))
        at = np.minimum(position, _u64(63))
        field = np.where(position >= 64, _u64(0), ones << at)
        R[slot] = ((b(R).astype(_u64) & ~field) | ((a(R).astype(_u64) << at) & field)).astype(out)

    return run


@handles("prmt")
def _prmt(c: Compiler, ins: Instruction) -> Run:
    """Four of the eight bytes of {b, a}; bit 3 of a choice asks for eight copies of the byte's sign."""
    only(ins)
    a, b, s = (c.typed(o, "u", 32) for o in ins.operands[1:4])
    slot, read = slot_of(ins.operands[0]), [o.slot for o in ins.operands[1:3] if isinstance(o, Reg)]

    def run(g: Group) -> None:
        R = g.R
        poison_unset(R, read, np.uint32)
        both = a(R).astype(_u64) | (b(R).astype(_u64) << _u64(32))
        selector, result = s(R).astype(_u64), np.zeros((1, 1), np.uint32)
        for i in range(4):
            choice = (selector >> _u64(4 * i)) & _u64(15)
            byte = (both >> ((choice & _u64(7)) << _u64(3))) & _u64(255)
            byte = np.where(choice & _u64(8), np.where(byte & _u64(128), _u64(255), _u64(0)), byte)
            result = result | (byte << _u64(8 * i)).astype(np.uint32)
        R[slot] = result

    return run


@handles("popc", "clz")
def _count(c: Compiler, ins: Instruction) -> Run:
    only(ins)
    width = kind_of(ins)[1]
    a, slot = c.typed(ins.operands[1], "u", width), slot_of(ins.operands[0])
    leading = ins.op[0] == "clz"

    def run(g: Group) -> None:
        x = a(g.R)
        if leading:
            for shift in (1, 2, 4, 8, 16, 32)[: width.bit_length() - 1]:
                x = x | (x >> x.dtype.type(shift))
            x = ~x
        g.R[slot] = np.bitwise_count(x).astype(np.uint32)

    return run


@handles("brev")
def _brev(c: Compiler, ins: Instruction) -> Run:
    only(ins)
    width = kind_of(ins)[1]

    def function(x: Array) -> Array:
        octets = np.ascontiguousarray(x).view(np.uint8).reshape(*x.shape, width // 8)
        highest_first = np.unpackbits(octets[..., ::-1], axis=-1)
        return np.packbits(highest_first, axis=-1, bitorder="little").view(U[width])[..., 0]

    return elementwise(c, ins, function, "u", width, 1)
