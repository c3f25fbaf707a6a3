"""mov, cvta, cvt."""

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
    Run,
    S,
    U,
    handles,
    kind_of,
    only,
    poison_unset,
    slot_of,
)
from tritonln.emulator.ptx import Instruction, Reg, Special, Vector

ROUND: dict[str, Callable[[Array], Array]] = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}


@handles("mov")
def _mov(c: Compiler, ins: Instruction) -> Run:
    only(ins)
    d, s = ins.operands
    if isinstance(d, Vector):
        return _unpack(c, ins, d)
    if isinstance(s, Vector):
        return _pack(c, ins, s)
    slot = slot_of(d)
    if isinstance(s, Special):
        name = s.name

        def special(g: Group) -> None:
            g.R[slot] = g.special(name)

        return special
    kind, width = kind_of(ins) if ins.op[-1] != "b128" else ("b", 128)
    source = c.source(s, width, kind == "f")

    def run(g: Group) -> None:
        g.R[slot] = g.R[source]

    return run


def _unpack(c: Compiler, ins: Instruction, d: Vector) -> Run:
    width = kind_of(ins)[1]
    part = width // len(d.parts)
    slots, dtype = [None if p is None else slot_of(p) for p in d.parts], U[part]
    source = c.typed(ins.operands[1], "u", width)

    def run(g: Group) -> None:
        x = source(g.R)
        for i, slot in enumerate(slots):
            if slot is not None:
                g.R[slot] = (x >> x.dtype.type(i * part)).astype(dtype) if i else x.astype(dtype)

    return run


def _pack(c: Compiler, ins: Instruction, s: Vector) -> Run:
    width = kind_of(ins)[1]
    part, dtype, slot = width // len(s.parts), U[width], slot_of(ins.operands[0])
    sources = [c.typed(p, "u", part) for p in s.parts]
    slots = [p.slot for p in s.parts if isinstance(p, Reg)]

    def run(g: Group) -> None:
        R = g.R
        poison_unset(R, slots, U[part])
        x = sources[0](R).astype(dtype)
        for i, get in enumerate(sources[1:], 1):
            x = x | (get(R).astype(dtype) << dtype(i * part))
        R[slot] = x

    return run


@handles("cvta")
def _cvta(c: Compiler, ins: Instruction) -> Run:
    """Of global memory, whose addresses are generic ones."""
    only(ins, "to", "global")
    source, slot = c.source(ins.operands[1], 64), slot_of(ins.operands[0])

    def run(g: Group) -> None:
        g.R[slot] = g.R[source]

    return run


@handles("cvt")
def _cvt(c: Compiler, ins: Instruction) -> Run:
    """Floats to integers saturate, NaN to 0; .sat of a float is within [0, 1]; integers wrap, with .sat they do not."""
    to, source = ins.op[-2], ins.op[-1]
    get, put = _read(c, ins, source), _write(ins, to)
    read = [o.slot for o in ins.operands[1:] if isinstance(o, Reg)]
    if to in ("bf16x2", "f16x2"):
        only(ins, "rn", "relu", to)
        high, low = (c.typed(o, "f", 32) for o in ins.operands[1:3])
        slot, relu = slot_of(ins.operands[0]), "relu" in ins.op

        def halves(a: Array, b: Array) -> Array:
            if relu:
                a, b = (np.where(x <= 0, np.float32(0), x) for x in (a, b))
            if to == "bf16x2":
                return floats.to_bf16x2(a, b)
            a, b = (x.astype(np.float16).view(np.uint16) for x in (a, b))
            return (a.astype(np.uint32) << np.uint32(16)) | b

        def pair(g: Group) -> None:
            poison_unset(g.R, read, np.uint32)
            g.R[slot] = halves(high(g.R), low(g.R))

        return pair
    if to in floats.MANTISSA8:
        only(ins, "rn", "satfinite", to, source)
        if source != "f32":
            raise NotImplementedError(str(ins))
        high, low = (c.typed(o, "f", 32) for o in ins.operands[1:3])
        slot = slot_of(ins.operands[0])

        def bytes8(g: Group) -> None:
            poison_unset(g.R, read, np.uint32)
            a, b = (floats.to_8_bits(x(g.R), to) for x in (high, low))
            g.R[slot] = (a << np.uint16(8)) | b

        return bytes8
    if to == "tf32":
        if "rna" not in ins.op:
            raise NotImplementedError(str(ins))
        only(ins, "rna", to)
        bits, slot = c.typed(ins.operands[1], "u", 32), slot_of(ins.operands[0])

        def tf32(g: Group) -> None:
            g.R[slot] = floats.round_to_tf32(bits(g.R))

        return tf32
    only(ins, "rn", "rz", *ROUND, "ftz", "sat", to, source)
    slot, function = slot_of(ins.operands[0]), _converted(ins, TYPES[to], TYPES[source])

    def run(g: Group) -> None:
        g.R[slot] = put(function(get(g.R)))

    return run


def _read(c: Compiler, ins: Instruction, source: str) -> Callable[[list], Array]:  # type: ignore[type-arg]
    if source not in TYPES:
        raise NotImplementedError(str(ins))
    kind, width = TYPES[source]
    get = c.typed(ins.operands[1], "u" if kind in ("bf", "b") else kind, width)
    if kind == "bf":
        return lambda R: floats.from_bf16(get(R))
    return get


def _write(ins: Instruction, to: str) -> Callable[[Array], Array]:
    """To the register, which may be wider than the type: integers are extended with their sign or zeros."""
    d = ins.operands[0]
    if not isinstance(d, Reg):
        raise NotImplementedError(str(ins))
    out, kind = U[d.width], TYPES[to][0] if to in TYPES else "b"
    wide = S[d.width] if kind == "s" else out
    if kind in ("f", "bf"):
        return lambda x: x.view(out)
    return lambda x: x.astype(wide).view(out)


def _converted(ins: Instruction, to: tuple[str, int], source: tuple[str, int]) -> Callable[[Array], Array]:
    (kd, wd), (ks, ws) = to, source
    floating = ks in ("f", "bf")
    if "rz" in ins.op or (kd == "bf" and (ks, ws) not in (("f", 32), ("bf", 16))):
        raise NotImplementedError(str(ins))
    sat, ftz = "sat" in ins.op, "ftz" in ins.op
    rounding = next((ROUND[w] for w in ins.op if w in ROUND), None)
    if kd in ("f", "bf") and floating:
        dtype = np.float32 if kd == "bf" else F[wd]

        def to_float(x: Array) -> Array:
            x = floats.flush(x) if ftz and x.dtype == np.float32 else x
            x = (rounding(x) if rounding else x).astype(dtype)
            x = floats.flush(x) if ftz and dtype == np.float32 else x
            x = np.fmin(np.fmax(x, dtype(0)), dtype(1)) if sat else x
            return floats.to_bf16(x) if kd == "bf" else x

        return to_float
    if kd == "f":
        return lambda x: x.astype(F[wd])
    if not floating and not sat:
        narrow = (S if kd == "s" else U)[wd]
        return lambda x: x.astype(narrow)
    target = (S if kd == "s" else U)[wd]
    info = np.iinfo(target)
    if not floating:  # both clips are within both types
        lowest = max(info.min, np.iinfo((S if ks == "s" else U)[ws]).min)
        highest = min(info.max, np.iinfo((S if ks == "s" else U)[ws]).max)
        return lambda x: np.clip(x, lowest, highest).astype(target)
    if rounding is None:
        raise NotImplementedError(str(ins))
    to_integer = rounding
    low, below = float(info.min), float(2 ** (wd - (kd == "s")))  # the first power of two that is too great

    def saturating(x: Array) -> Array:
        x = floats.flush(x) if ftz else x
        x = to_integer(x.astype(np.float64))
        fits = (x >= low) & (x < below)
        inside = np.where(fits, x, 0.0).astype(target)
        outside = np.where(x < low, target(info.min), np.where(x >= below, target(info.max), target(0)))
        return np.where(fits, inside, outside)

    return saturating
