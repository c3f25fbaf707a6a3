"""add, sub, mul, mad, fma, neg, abs, min, max, rem: integers wrap, floats round to nearest even."""

from __future__ import annotations

import functools
from collections.abc import Callable

import numpy as np

from tritonln.emulator import floats
from tritonln.emulator.faults import Array, Fault
from tritonln.emulator.group import Group
from tritonln.emulator.instructions.compiler import Compiler, Run, S, U, elementwise, handles, kind_of, only, slot_of
from tritonln.emulator.ptx import Instruction

Function = Callable[..., Array]


def flushed(function: Function, ins: Instruction) -> Function:
    """.ftz: subnormal operands and results are zeros."""
    if "ftz" not in ins.op:
        return function
    return lambda *a: floats.flush(function(*map(floats.flush, a)))


def saturated(function: Function, ins: Instruction) -> Function:
    """.sat: within [0, 1], NaN is 0."""
    if "sat" not in ins.op:
        return function
    return lambda *a: np.fmin(np.fmax(function(*a), np.float32(0)), np.float32(1))


def in_fp32(function: Function) -> Function:
    """An operation on bf16 through fp32, numpy having no such type."""
    return lambda *a: floats.to_bf16(function(*map(floats.from_bf16, a)))


def floating(c: Compiler, ins: Instruction, function: Function, count: int, exact: Function | None = None) -> Run:
    """Of any floating-point type.  `exact`: the operation in fp16, if rounding twice is not right there."""
    last = ins.op[-1]
    if last == "f32x2":
        only(ins, "rn", "ftz")
        return _packed(c, ins, flushed(function, ins), count, 32)
    if last in ("f16x2", "bf16x2"):
        only(ins, "rn", "NaN")
        return _packed(c, ins, in_fp32(function) if last == "bf16x2" else exact or function, count, 16)
    if len(ins.op) > 2 and ins.op[-2] == "f32" and last in ("bf16", "f16"):
        return _mixed(c, ins, function)
    kind, width = kind_of(ins)
    only(ins, "rn", "ftz", "sat", "NaN")
    if kind == "bf":
        return elementwise(c, ins, in_fp32(function), "u", 16, count)
    function = exact if exact is not None and width == 16 else function
    return elementwise(c, ins, saturated(flushed(function, ins), ins), "f", width, count)


def _packed(c: Compiler, ins: Instruction, function: Function, count: int, width: int) -> Run:
    """Two values in a register of twice their width."""
    slot, get = slot_of(ins.operands[0]), [c.typed(o, "u", 2 * width) for o in ins.operands[1 : 1 + count]]
    whole = U[2 * width]
    each = {"f32x2": np.float32, "f16x2": np.float16, "bf16x2": np.uint16}[ins.op[-1]]

    def halves(x: Array) -> Array:
        return np.ascontiguousarray(x).view(each).reshape(*x.shape, 2)

    def run(g: Group) -> None:
        result = function(*(halves(a(g.R)) for a in get))
        g.R[slot] = np.ascontiguousarray(result).view(whole)[..., 0]

    return run


def _mixed(c: Compiler, ins: Instruction, function: Function) -> Run:
    """add.f32.bf16 and the like: all but the last source are 16-bit, arithmetic and result are fp32."""
    only(ins, "rn", "f32")
    kind = ins.op[-1]
    narrow = [c.typed(o, "u" if kind == "bf16" else "f", 16) for o in ins.operands[1:-1]]
    last, slot = c.typed(ins.operands[-1], "f", 32), slot_of(ins.operands[0])

    def widen(x: Array) -> Array:
        return floats.from_bf16(x) if kind == "bf16" else x.astype(np.float32)

    def run(g: Group) -> None:
        R = g.R
        R[slot] = function(*(widen(a(R)) for a in narrow), last(R)).view(np.uint32)

    return run


def _floats(ins: Instruction) -> bool:
    return ins.op[-1].startswith(("f", "bf"))


@handles("add", "sub")
def _add(c: Compiler, ins: Instruction) -> Run:
    function: Function = np.add if ins.op[0] == "add" else np.subtract
    if _floats(ins):
        return floating(c, ins, function, 2)
    only(ins)
    if ins.op[-1] in ("s16x2", "u16x2"):
        low, high = np.uint32(0xFFFF), np.uint32(0xFFFF0000)
        halves: Function = lambda a, b: function(a, b) & low | function(a & high, b & high)  # noqa: E731
        return elementwise(c, ins, halves, "u", 32, 2)
    return elementwise(c, ins, function, "u", kind_of(ins)[1], 2)


@handles("mul")
def _mul(c: Compiler, ins: Instruction) -> Run:
    if _floats(ins):
        return floating(c, ins, np.multiply, 2)
    only(ins, "lo", "hi", "wide")
    kind, width = kind_of(ins)
    if "lo" in ins.op:
        return elementwise(c, ins, np.multiply, "u", width, 2)
    if "wide" in ins.op:
        return elementwise(c, ins, _wide(kind, width), kind, width, 2, 2 * width)
    return elementwise(c, ins, _high(kind, width), kind, width, 2)


@handles("mad")
def _mad(c: Compiler, ins: Instruction) -> Run:
    if _floats(ins):
        return floating(c, ins, floats.fma32 if ins.op[-1] == "f32" else floats.fma64, 3)
    only(ins, "lo", "hi", "wide")
    kind, width = kind_of(ins)
    if "lo" in ins.op:
        return elementwise(c, ins, lambda a, b, e: a * b + e, "u", width, 3)
    if "hi" in ins.op:
        high = _high(kind, width)
        return elementwise(c, ins, lambda a, b, e: high(a, b).view(a.dtype) + e, kind, width, 3)
    wide, slot, dtype = _wide(kind, width), slot_of(ins.operands[0]), U[2 * width]
    a, b, e = (c.typed(o, kind, w) for o, w in zip(ins.operands[1:], (width, width, 2 * width)))

    def run(g: Group) -> None:
        R = g.R
        R[slot] = (wide(a(R), b(R)) + e(R)).view(dtype)

    return run


def _wide(kind: str, width: int) -> Function:
    dtype = (S if kind == "s" else U)[2 * width]
    return lambda a, b: a.astype(dtype) * b.astype(dtype)


def _high(kind: str, width: int) -> Function:
    """The upper half of a product."""
    if width < 64:
        wide, dtype = _wide(kind, width), U[width]
        return lambda a, b: (wide(a, b).view(U[2 * width]) >> U[2 * width](width)).astype(dtype)

    def unsigned(a: Array, b: Array) -> Array:
        m, s = np.uint64(0xFFFFFFFF), np.uint64(32)
        al, ah, bl, bh = a & m, a >> s, b & m, b >> s
        mid = ah * bl + ((al * bl) >> s)
        low = al * bh + (mid & m)
        return ah * bh + (mid >> s) + (low >> s)

    def signed(a: Array, b: Array) -> Array:
        ua, ub, zero = a.view(np.uint64), b.view(np.uint64), np.uint64(0)
        return unsigned(ua, ub) - np.where(a < 0, ub, zero) - np.where(b < 0, ua, zero)

    return unsigned if kind == "u" else signed


@handles("fma")
def _fma(c: Compiler, ins: Instruction) -> Run:
    return floating(c, ins, floats.fma64 if ins.op[-1] == "f64" else floats.fma32, 3, floats.fma16)


@handles("neg", "abs")
def _neg(c: Compiler, ins: Instruction) -> Run:
    only(ins, "ftz")
    kind, width = kind_of(ins)
    negates = ins.op[0] == "neg"
    if kind == "bf":
        sign = np.uint16(0x8000)
        return elementwise(c, ins, (lambda a: a ^ sign) if negates else (lambda a: a & ~sign), "u", 16, 1)
    return elementwise(c, ins, flushed(np.negative if negates else np.abs, ins), kind, width, 1)


@handles("min", "max")
def _min(c: Compiler, ins: Instruction) -> Run:
    low = ins.op[0] == "min"
    if not _floats(ins):
        only(ins)
        kind, width = kind_of(ins)
        return elementwise(c, ins, np.minimum if low else np.maximum, kind, width, 2)
    # From sm_100 on of three numbers too.
    either = functools.partial(floats.extreme, low=low, with_nan="NaN" in ins.op)
    return floating(c, ins, lambda a, *more: functools.reduce(either, more, a), len(ins.operands) - 1)


def divided(a: Array, b: Array) -> Array:
    """Integers, towards zero."""
    if (b == 0).any():
        raise Fault("integer division by zero", b == 0)
    if a.dtype.kind == "u":
        return a // b
    quotient = a // b
    return quotient + ((quotient < 0) & (quotient * b != a)).astype(a.dtype)


@handles("rem")
def _rem(c: Compiler, ins: Instruction) -> Run:
    only(ins)
    kind, width = kind_of(ins)
    return elementwise(c, ins, lambda a, b: a - divided(a, b) * b, kind, width, 2)
