"""What each instruction does, as a function of a group of warps.

A group holds registers as arrays of unsigned integers of the register's width (bool for predicates), of a shape that
broadcasts to (warps, 32): what is the same in all lanes or all warps is kept once.  `compile_instruction` turns an
instruction into a function; memory and control take the mask of the guard, all else is computed and merged.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from . import floats
from .memory import LANES, Fault, count_sectors, count_wavefronts
from .ptx import Address, Imm, Instruction, Not, Reg, Special, Symbol, Vector

U = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
S = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
F = {16: np.float16, 32: np.float32, 64: np.float64}
TYPES = {f"{k}{w}": (k, w) for k in "busf" for w in (8, 16, 32, 64)} | {"pred": ("pred", 1), "bf16": ("bf", 16)}
EXIT = -1

HANDLERS: dict[str, Callable] = {}


def handles(*names: str):
    def register(function):
        for name in names:
            HANDLERS[name] = function
        return function

    return register


class Compiler:
    """One kernel's instructions; constants become registers after the declared ones."""

    def __init__(self, kernel, approximate: floats.Approximation):
        self.kernel, self.approximate = kernel, approximate
        self.constants: list[np.ndarray] = []

    def constant(self, value: int, width: int) -> int:
        value = np.array([[value & ((1 << width) - 1)]], U[width]) if width > 1 else np.array([[bool(value)]])
        self.constants.append(value)
        return len(self.kernel.registers) + len(self.constants) - 1

    def source(self, operand, width: int, is_float: bool = False) -> int:
        """The slot that holds an operand."""
        if isinstance(operand, Reg):
            return operand.slot
        if isinstance(operand, Imm):
            bits = operand.value
            if is_float and operand.width == 64 and width == 32:
                bits = int(np.array(bits, np.uint64).view(np.float64).astype(np.float32).view(np.uint32))
            return self.constant(bits, width)
        if isinstance(operand, Symbol) and operand.name in self.kernel.shared:
            return self.constant(self.kernel.shared[operand.name], width)
        raise NotImplementedError(f"operand {operand}")

    def typed(self, operand, kind: str, width: int) -> Callable:
        """A function that reads an operand as values of a type."""
        if isinstance(operand, Not):
            slot = operand.reg.slot
            return lambda R: ~R[slot]
        slot = self.source(operand, width, kind == "f")
        if kind == "pred":
            return lambda R: R[slot]
        if isinstance(operand, Reg) and operand.width > width:  # a narrow value in a wide register
            target = U[width]
            narrow = lambda R: R[slot].astype(target)
        elif isinstance(operand, Reg) and operand.width < width:
            raise NotImplementedError(f"{operand} as {kind}{width}")
        else:
            narrow = None
        view = {"f": F, "s": S}.get(kind)
        if view is None:
            return narrow or (lambda R: R[slot])
        view = view[width]
        if narrow is None:
            return lambda R: R[slot].view(view)
        return lambda R: narrow(R).view(view)

    def compile(self, ins: Instruction):
        """Two functions: for groups all of whose lanes are active, and for those where a branch has parted lanes."""
        handler = HANDLERS.get(ins.op[0])
        if handler is None:
            raise NotImplementedError(str(ins))
        function = handler(self, ins)
        if getattr(function, "masked", False):
            both = _with_mask(function, ins)
            return both, both
        diverged = _together(ins) if ins.op[0] in TOGETHER else _merged(function, ins, _active(ins))
        if ins.guard is None:
            return function, diverged
        return _merged(function, ins, _guard(ins)), diverged


TOGETHER = ("shfl", "vote", "elect", "mma", "ldmatrix", "stmatrix", "bar", "barrier")  # need all lanes of a warp


def masked(function):
    function.masked = True
    return function


def _guard(ins):
    slot, negated = ins.guard.slot, ins.negated
    return (lambda g: ~g.R[slot]) if negated else (lambda g: g.R[slot])


def _active(ins):
    """Lanes that execute an instruction of a group that has parted."""
    if ins.guard is None:
        return lambda g: g.active
    guard = _guard(ins)
    return lambda g: guard(g) & g.active


def _with_mask(function, ins):
    active, guard = _active(ins), None if ins.guard is None else _guard(ins)

    def run(g):
        if g.active is not None:
            mask = active(g)
        elif guard is None:
            return function(g, None)
        else:
            mask = guard(g)
        if mask.all():
            return function(g, None)
        if not mask.any():
            return None
        return function(g, mask)

    return run


def _together(ins):
    def run(g):
        raise Fault(f"{ins.op[0]} by some lanes of a warp", ~g.active)

    return run


def destinations(ins) -> list[Reg]:
    first = ins.operands[0] if ins.operands else None
    return [r for r in (first.parts if isinstance(first, Vector) else (first,)) if isinstance(r, Reg)]


def _merged(function, ins, active):
    """What the other lanes have in the destinations stays."""
    slots = [(r.slot, U[r.width]) for r in destinations(ins)]

    def run(g):
        R = g.R
        mask = active(g)
        if mask.all():
            return function(g)
        if not mask.any():
            return None
        before = [R[slot] for slot, _ in slots]
        function(g)
        for (slot, dtype), old in zip(slots, before):
            R[slot] = np.where(mask, R[slot], poison(dtype) if old is None else old)
        return None

    return run


def poison(dtype):
    """What is in a register that nothing has set: a NaN in any format."""
    return (
        np.array(True)
        if dtype is np.bool_
        else np.array(0xFFFFDEADFFFFDEAD & ((1 << 8 * dtype(0).itemsize) - 1), dtype)
    )


def kind_of(ins, position: int = -1) -> tuple[str, int]:
    return TYPES[ins.op[position]]


def write(slot: int, width: int):
    dtype = U[width]
    return lambda R, value: R.__setitem__(slot, value.view(dtype))


# ---- arithmetic -----------------------------------------------------------------------------------


def _pure(c: Compiler, ins: Instruction, function: Callable, kind: str, width: int, count: int, out: int | None = None):
    d = ins.operands[0]
    dtype = U[out or width]
    if d.width != (out or width):
        raise NotImplementedError(f"destination of another width: {ins}")
    slot = d.slot
    get = [c.typed(o, kind, width) for o in ins.operands[1 : 1 + count]]
    if count == 1:
        (a,) = get

        def run(g):
            R = g.R
            R[slot] = function(a(R)).view(dtype)
    elif count == 2:
        a, b = get

        def run(g):
            R = g.R
            R[slot] = function(a(R), b(R)).view(dtype)
    else:
        a, b, e = get

        def run(g):
            R = g.R
            R[slot] = function(a(R), b(R), e(R)).view(dtype)

    return run


def _plain(ins, *allowed: str) -> None:
    """Faults on a modifier that this emulator would overlook."""
    for word in ins.op[1:-1]:
        if word not in allowed:
            raise NotImplementedError(f".{word} in {ins}")


def _flushed(function, ins):
    """.ftz: subnormal inputs and results are zeros."""
    if "ftz" not in ins.op:
        return function

    def flush(x):
        return np.where(np.abs(x) < np.finfo(np.float32).tiny, np.copysign(np.float32(0), x), x)

    return lambda *a: flush(function(*map(flush, a)))


def _halves(function, width):
    """An operation on bf16 through fp32 where numpy has no such type."""
    return lambda *a: floats.to_bf16(function(*map(floats.from_bf16, a)))


def _packed(c, ins, function, count):
    """f32x2: two values in a register of 64 bits."""
    slot, get = ins.operands[0].slot, [c.typed(o, "u", 64) for o in ins.operands[1 : 1 + count]]

    def halves(x):
        return np.ascontiguousarray(x).view(np.float32).reshape(*x.shape, 2)

    def run(g):
        result = function(*(halves(a(g.R)) for a in get))
        g.R[slot] = np.ascontiguousarray(result).view(np.uint64)[..., 0]

    return run


def _mixed(c, ins, function):
    """add.f32.bf16 and the like: all but the last source are 16-bit, arithmetic and result are fp32."""
    kind = ins.op[-1]
    narrow = [c.typed(o, "u" if kind == "bf16" else "f", 16) for o in ins.operands[1:-1]]
    last, slot = c.typed(ins.operands[-1], "f", 32), ins.operands[0].slot
    widen = floats.from_bf16 if kind == "bf16" else lambda x: x.astype(np.float32)

    def run(g):
        R = g.R
        R[slot] = function(*(widen(a(R)) for a in narrow), last(R)).view(np.uint32)

    return run


def _is_mixed(ins) -> bool:
    return len(ins.op) > 2 and ins.op[-2] == "f32" and ins.op[-1] in ("bf16", "f16")


@handles("add", "sub")
def _add(c, ins):
    if ins.op[-1] == "f32x2":
        return _packed(c, ins, np.add if ins.op[0] == "add" else np.subtract, 2)
    if _is_mixed(ins):
        return _mixed(c, ins, np.add if ins.op[0] == "add" else np.subtract)
    kind, width = kind_of(ins)
    _plain(ins, "rn", "ftz")
    function = np.add if ins.op[0] == "add" else np.subtract
    if kind == "bf":
        return _pure(c, ins, _halves(function, 16), "u", 16, 2)
    return _pure(c, ins, _flushed(function, ins), "u" if kind == "s" else kind, width, 2)


@handles("mul")
def _mul(c, ins):
    if ins.op[-1] == "f32x2":
        return _packed(c, ins, np.multiply, 2)
    kind, width = kind_of(ins)
    if kind in "f":
        _plain(ins, "rn", "ftz")
        return _pure(c, ins, _flushed(np.multiply, ins), kind, width, 2)
    if "lo" in ins.op:
        return _pure(c, ins, np.multiply, "u", width, 2)
    if "wide" in ins.op:
        return _pure(c, ins, _wide(kind, width), kind, width, 2, 2 * width)
    if "hi" in ins.op and width == 32:
        wide = _wide(kind, width)
        dtype = U[32]
        return _pure(c, ins, lambda a, b: (wide(a, b).view(np.uint64) >> np.uint64(32)).astype(dtype), kind, width, 2)
    if "hi" in ins.op and width == 64:
        return _pure(c, ins, _high64(kind), kind, width, 2)
    raise NotImplementedError(str(ins))


def _wide(kind, width):
    dtype = (S if kind == "s" else U)[2 * width]
    return lambda a, b: a.astype(dtype) * b.astype(dtype)


def _high64(kind):
    def unsigned(a, b):
        m, s = np.uint64(0xFFFFFFFF), np.uint64(32)
        al, ah, bl, bh = a & m, a >> s, b & m, b >> s
        mid = ah * bl + ((al * bl) >> s)
        low = al * bh + (mid & m)
        return ah * bh + (mid >> s) + (low >> s)

    if kind == "u":
        return unsigned

    def signed(a, b):
        high = unsigned(a.view(np.uint64), b.view(np.uint64))
        high = (
            high - np.where(a < 0, b.view(np.uint64), np.uint64(0)) - np.where(b < 0, a.view(np.uint64), np.uint64(0))
        )
        return high

    return signed


@handles("mad")
def _mad(c, ins):
    kind, width = kind_of(ins)
    if "lo" in ins.op:
        return _pure(c, ins, lambda a, b, e: a * b + e, "u", width, 3)
    if "wide" in ins.op:
        d, (a, b, e) = ins.operands[0], ins.operands[1:]
        wide, a, b, e = (
            _wide(kind, width),
            c.typed(a, kind, width),
            c.typed(b, kind, width),
            c.typed(e, kind, 2 * width),
        )
        slot, dtype = d.slot, U[2 * width]

        def run(g):
            R = g.R
            R[slot] = (wide(a(R), b(R)) + e(R)).view(dtype)

        return run
    raise NotImplementedError(str(ins))


@handles("fma")
def _fma(c, ins):
    if ins.op[-1] == "f32x2":
        return _packed(c, ins, floats.fma32, 3)
    if _is_mixed(ins):
        return _mixed(c, ins, floats.fma32)
    kind, width = kind_of(ins)
    _plain(ins, "rn", "ftz")
    if kind == "bf":
        return _pure(c, ins, lambda *a: floats.to_bf16(floats.fma32(*map(floats.from_bf16, a))), "u", 16, 3)
    function = {
        16: lambda a, b, e: (a.astype(np.float64) * b + e).astype(np.float16),
        32: floats.fma32,
        64: floats.fma64,
    }
    return _pure(c, ins, _flushed(function[width], ins), "f", width, 3)


@handles("neg", "abs")
def _neg(c, ins):
    kind, width = kind_of(ins)
    if kind == "bf":
        sign = np.uint16(0x8000)
        return _pure(c, ins, (lambda a: a ^ sign) if ins.op[0] == "neg" else (lambda a: a & ~sign), "u", 16, 1)
    _plain(ins, "ftz")
    return _pure(c, ins, _flushed(np.negative if ins.op[0] == "neg" else np.abs, ins), kind, width, 1)


@handles("min", "max")
def _min(c, ins):
    kind, width = kind_of(ins)
    low = ins.op[0] == "min"
    if kind != "f":
        return _pure(c, ins, np.minimum if low else np.maximum, kind, width, 2)
    _plain(ins, "ftz", "NaN")
    nan = "NaN" in ins.op
    function = (np.minimum if low else np.maximum) if nan else (np.fmin if low else np.fmax)
    return _pure(c, ins, _flushed(function, ins), kind, width, 2)


@handles("div", "rcp", "sqrt", "rsqrt", "ex2", "lg2", "tanh", "sin", "cos")
def _special_function(c, ins):
    kind, width = kind_of(ins)
    name = ins.op[0]
    if kind in "us":
        return _pure(c, ins, _int_div, kind, width, 2)
    _plain(ins, "rn", "ftz", "approx", "full")
    f64 = np.float64
    exact = {
        "div": lambda a, b: a / b, "rcp": lambda a: 1 / a, "sqrt": np.sqrt, "rsqrt": lambda a: 1 / np.sqrt(a),
        "ex2": np.exp2, "lg2": np.log2, "tanh": np.tanh, "sin": np.sin, "cos": np.cos,
    }[name]  # fmt: skip
    if "rn" in ins.op:
        function = exact
    else:
        approximate, label = c.approximate, name + (str(width) if name in ("div", "rcp", "sqrt", "rsqrt") else "")
        dtype = F[width]
        function = lambda *a: approximate(label, exact(*(x.astype(f64) for x in a)), dtype)
    return _pure(c, ins, _flushed(function, ins), kind, width, 2 if name == "div" else 1)


def _int_div(a, b):
    if (b == 0).any():
        raise Fault("integer division by zero")
    if a.dtype.kind == "u":
        return a // b
    q = np.abs(a) // np.abs(b)
    return np.where((a < 0) != (b < 0), -q, q)


@handles("rem")
def _rem(c, ins):
    kind, width = kind_of(ins)
    return _pure(c, ins, lambda a, b: a - _int_div(a, b) * b, kind, width, 2)


# ---- bits -----------------------------------------------------------------------------------------


@handles("and", "or", "xor", "not")
def _logic(c, ins):
    kind, width = kind_of(ins)
    name = ins.op[0]
    if name == "not":
        return _pure(c, ins, np.invert, kind if kind == "pred" else "u", width, 1)
    function = {"and": np.bitwise_and, "or": np.bitwise_or, "xor": np.bitwise_xor}[name]
    return _pure(c, ins, function, kind if kind == "pred" else "u", width, 2)


@handles("shl", "shr")
def _shift(c, ins):
    kind, width = kind_of(ins)
    kind = kind if ins.op[0] == "shr" and kind == "s" else "u"
    dtype = (S if kind == "s" else U)[width]
    a, b = c.typed(ins.operands[1], kind, width), c.typed(ins.operands[2], "u", 32)
    slot, out = ins.operands[0].slot, U[width]
    function = np.left_shift if ins.op[0] == "shl" else np.right_shift

    def run(g):
        R = g.R
        n = b(R)
        x = a(R)
        if (n >= width).any():
            big = n >= width
            shifted = function(x, np.minimum(n, width - 1).astype(dtype))
            R[slot] = np.where(big, (x >> (width - 1)) if kind == "s" else dtype(0), shifted).astype(dtype).view(out)
        else:
            R[slot] = function(x, n.astype(dtype)).view(out)

    return run


@handles("bfe")
def _bfe(c, ins):
    kind, width = kind_of(ins)
    a = c.typed(ins.operands[1], kind, width)
    pos, length = (c.typed(o, "u", 32) for o in ins.operands[2:])
    slot, out = ins.operands[0].slot, U[width]
    if width != 32:
        raise NotImplementedError(str(ins))

    def run(g):
        R = g.R
        p, n = (pos(R) & 0xFF).astype(np.int64), (length(R) & 0xFF).astype(np.int64)
        x = a(R).astype(np.int64) >> np.minimum(p, 63)
        keep = 64 - np.minimum(n, 32)
        if kind == "s":
            x = np.where(n == 0, 0, (x << np.minimum(keep, 63)) >> np.minimum(keep, 63))
        else:
            x = np.where(
                n == 0, 0, (x << np.minimum(keep, 63)).view(np.uint64) >> np.minimum(keep, 63).astype(np.uint64)
            )
        R[slot] = x.astype(np.int64).astype(np.uint32).view(out)

    return run


@handles("prmt")
def _prmt(c, ins):
    a, b, s = (c.typed(o, "u", 32) for o in ins.operands[1:4])
    slot = ins.operands[0].slot
    if len(ins.op) > 2:
        raise NotImplementedError(str(ins))

    def run(g):
        R = g.R
        both = a(R).astype(np.uint64) | (b(R).astype(np.uint64) << np.uint64(32))
        selector, result = s(R).astype(np.uint64), np.uint32(0)
        for i in range(4):
            nibble = (selector >> np.uint64(4 * i)) & np.uint64(15)
            byte = (both >> ((nibble & np.uint64(7)) << np.uint64(3))) & np.uint64(255)
            byte = np.where(nibble & np.uint64(8), np.where(byte & np.uint64(128), np.uint64(255), np.uint64(0)), byte)
            result = result | (byte << np.uint64(8 * i)).astype(np.uint32)
        R[slot] = result

    return run


@handles("popc", "clz")
def _popc(c, ins):
    _, width = kind_of(ins)
    a, slot = c.typed(ins.operands[1], "u", width), ins.operands[0].slot

    def run(g):
        x = a(g.R)
        if ins.op[0] == "popc":
            g.R[slot] = np.bitwise_count(x).astype(np.uint32)
        else:
            g.R[slot] = (width - np.ceil(np.log2(x.astype(np.longdouble) + 1))).astype(np.uint32)

    return run


# ---- comparison and choice ------------------------------------------------------------------------

COMPARE = {
    "eq": np.equal, "ne": np.not_equal, "lt": np.less, "le": np.less_equal, "gt": np.greater, "ge": np.greater_equal,
    "lo": np.less, "ls": np.less_equal, "hi": np.greater, "hs": np.greater_equal,
}  # fmt: skip


def _ordered(name: str) -> Callable:
    if name in COMPARE and name != "ne":
        return COMPARE[name]
    if name == "ne":
        return lambda a, b: (a != b) & ~np.isnan(a) & ~np.isnan(b)
    if name == "num":
        return lambda a, b: ~np.isnan(a) & ~np.isnan(b)
    if name == "nan":
        return lambda a, b: np.isnan(a) | np.isnan(b)
    base = COMPARE[name[:-1]]
    return lambda a, b: base(a, b) | np.isnan(a) | np.isnan(b)


@handles("setp")
def _setp(c, ins):
    kind, width = kind_of(ins)
    _plain(ins, ins.op[1], "and", "or", "xor", "ftz")
    compare = _ordered(ins.op[1]) if kind == "f" else COMPARE[ins.op[1]]
    a, b = (c.typed(o, kind, width) for o in ins.operands[1:3])
    d = ins.operands[0]
    slots = [None if p is None else p.slot for p in (d.parts if isinstance(d, Vector) else (d,))]
    join = {"and": np.logical_and, "or": np.logical_or, "xor": np.logical_xor}.get(ins.op[2])
    other = c.typed(ins.operands[3], "pred", 1) if join else None

    def run(g):
        R = g.R
        result = compare(a(R), b(R))
        for slot, value in zip(slots, (result, ~result)):
            if slot is not None:
                R[slot] = join(value, other(R)) if join else value

    return run


@handles("selp")
def _selp(c, ins):
    _, width = kind_of(ins)
    kind = "f" if ins.op[-1][0] == "f" else "u"
    a, b, p = (
        c.source(ins.operands[1], width, kind == "f"),
        c.source(ins.operands[2], width, kind == "f"),
        ins.operands[3].slot,
    )
    slot = ins.operands[0].slot

    def run(g):
        R = g.R
        R[slot] = np.where(R[p], R[a], R[b])

    return run


# ---- moves and conversions ------------------------------------------------------------------------


@handles("mov")
def _mov(c, ins):
    kind, width = kind_of(ins)
    d, s = ins.operands
    if isinstance(d, Vector):
        part = width // len(d.parts)
        slots, dtype = [None if p is None else p.slot for p in d.parts], U[part]
        source = c.typed(s, "u", width)

        def unpack(g):
            x = source(g.R)
            for i, slot in enumerate(slots):
                if slot is not None:
                    g.R[slot] = (x >> x.dtype.type(i * part)).astype(dtype)

        return unpack
    slot = d.slot
    if isinstance(s, Vector):
        part, dtype = width // len(s.parts), U[width]
        sources = [c.typed(p, "u", part) for p in s.parts]
        registers = [p.slot for p in s.parts if isinstance(p, Reg)]

        def pack(g):
            R = g.R
            for unset in registers:  # half of a pair may be nothing, and then nobody may read it: a NaN shows who does
                if R[unset] is None:
                    R[unset] = poison(U[part]).reshape(1, 1)
            x = sources[0](R).astype(dtype)
            for i, get in enumerate(sources[1:], 1):
                x = x | (get(R).astype(dtype) << dtype(i * part))
            R[slot] = x

        return pack
    if isinstance(s, Special):
        name = s.name
        return lambda g: g.R.__setitem__(slot, g.special(name))
    source = c.source(s, width, kind == "f")
    return lambda g: g.R.__setitem__(slot, g.R[source])


@handles("cvta")
def _cvta(c, ins):
    source, slot = c.source(ins.operands[1], 64), ins.operands[0].slot
    if "shared" in ins.op:
        raise NotImplementedError(str(ins))
    return lambda g: g.R.__setitem__(slot, g.R[source])


@handles("cvt")
def _cvt(c, ins):
    to, source = ins.op[-2], ins.op[-1]
    if to == "tf32" and "rna" in ins.op:
        bits, target = c.typed(ins.operands[1], "u", 32), ins.operands[0].slot
        return lambda g: g.R.__setitem__(target, floats.round_to_tf32(bits(g.R)))
    _plain(ins, "rn", "rni", "rzi", "rmi", "rpi", "rz", "ftz", "sat", to, source)
    slot, d = ins.operands[0].slot, ins.operands[0]
    if to in ("bf16x2", "f16x2"):
        a, b = (c.typed(o, "f", 32) for o in ins.operands[1:3])
        half = floats.to_bf16 if to == "bf16x2" else lambda x: x.astype(np.float16).view(np.uint16)
        if "rn" not in ins.op or "ftz" in ins.op:
            raise NotImplementedError(str(ins))

        def pair(g):
            R = g.R
            R[slot] = (half(a(R)).astype(np.uint32) << np.uint32(16)) | half(b(R))

        return pair
    (kd, wd), (ks, ws) = TYPES[to], TYPES[source]
    get = c.typed(ins.operands[1], ks if ks != "bf" else "u", ws)
    out = U[d.width]
    if "sat" in ins.op or "rz" in ins.op or "ftz" in ins.op:
        raise NotImplementedError(str(ins))
    if kd in "bf" and kd != "b" and (ks in ("f", "bf")):  # float to float
        read = floats.from_bf16 if ks == "bf" else (lambda x: x)
        if kd == "bf" and ks == "f" and ws == 64:
            raise NotImplementedError(str(ins))
        put = floats.to_bf16 if kd == "bf" else (lambda x: x.astype(F[wd]))
        return lambda g: g.R.__setitem__(slot, put(read(get(g.R))).view(out))
    if kd == "f":  # integer to float
        return lambda g: g.R.__setitem__(slot, get(g.R).astype(F[wd]).view(out))
    if ks in ("f", "bf"):  # float to integer, saturating
        round_ = {"rni": np.rint, "rzi": np.trunc, "rmi": np.floor, "rpi": np.ceil}[
            next(w for w in ins.op if w in ("rni", "rzi", "rmi", "rpi"))
        ]
        info = np.iinfo((S if kd == "s" else U)[wd])

        def to_int(g):
            x = get(g.R) if ks == "f" else floats.from_bf16(get(g.R))
            x = round_(x.astype(np.float64))
            x = np.where(np.isnan(x), 0, np.clip(x, info.min, info.max))
            g.R[slot] = x.astype(info.dtype).astype(S[d.width] if kd == "s" else out).view(out)

        return to_int
    # Integer to integer: to the width of the type, then extended to that of the register.
    first, then = (S if ks == "s" else U)[ws], (S if kd == "s" else U)[wd]
    wide = (S if kd == "s" else U)[d.width]
    return lambda g: g.R.__setitem__(slot, get(g.R).view(first).astype(then).astype(wide).view(out))


# ---- between lanes --------------------------------------------------------------------------------


@handles("shfl")
def _shfl(c, ins):
    mode = ins.op[2]
    d, a, b, clamp, members = ins.operands
    first, predicate = (d.parts[0].slot, d.parts[1].slot) if isinstance(d, Vector) else (d.slot, None)
    source = c.source(a, 32)
    fixed = isinstance(b, Imm) and isinstance(clamp, Imm)
    get_b, get_c, get_m = (c.typed(o, "u", 32) for o in (b, clamp, members))
    lanes = LANES.astype(np.int64)

    def index(bv, cv):
        bv, cv = bv.astype(np.int64), cv.astype(np.int64)
        segment, limit = (cv >> 8) & 31, cv & 31
        highest = (lanes & segment) | (limit & ~segment)
        if mode == "up":
            j = lanes - (bv & 31)
            ok = j >= highest
        elif mode == "down":
            j = lanes + (bv & 31)
            ok = j <= highest
        elif mode == "bfly":
            j = lanes ^ (bv & 31)
            ok = j <= highest
        else:
            j = (lanes & segment) | (bv & 31 & ~segment)
            ok = j <= highest
        return np.where(ok, j, lanes), ok

    if fixed:
        j0, ok0 = index(np.array([[b.value]]), np.array([[clamp.value]]))
        j0 = j0[0]

    def run(g):
        R = g.R
        if (get_m(R) != 0xFFFFFFFF).any():
            raise NotImplementedError("shfl.sync of some lanes only")
        x = R[source]
        if fixed:
            R[first] = x if x.shape[1] == 1 else x[:, j0]
            ok = ok0
        else:
            j, ok = index(get_b(R), get_c(R))
            if x.shape[1] == 1:
                R[first] = x
            else:
                j = np.broadcast_to(j, (max(len(j), len(x)), 32))
                R[first] = np.take_along_axis(np.broadcast_to(x, j.shape), j, 1)
        if predicate is not None:
            R[predicate] = ok

    return run


@handles("vote")
def _vote(c, ins):
    mode, get, slot = ins.op[2], c.typed(ins.operands[1], "pred", 1), ins.operands[0].slot

    def run(g):
        p = get(g.R)
        if mode == "any":
            g.R[slot] = p.any(1, keepdims=True)
        elif mode == "all":
            g.R[slot] = p.all(1, keepdims=True)
        elif mode == "ballot":
            p = np.broadcast_to(p, (len(p), 32))
            g.R[slot] = (p.astype(np.uint32) << LANES.astype(np.uint32)).sum(1, keepdims=True, dtype=np.uint32)
        else:
            raise NotImplementedError(str(ins))

    return run


@handles("elect")
def _elect(c, ins):
    d = ins.operands[0]
    value, predicate = d.parts if isinstance(d, Vector) else (d, None)

    def run(g):
        if value is not None:
            g.R[value.slot] = np.zeros((1, 1), np.uint32)
        if predicate is not None:
            g.R[predicate.slot] = LANES == 0

    return run


# ---- matrices -------------------------------------------------------------------------------------

_G, _T = np.arange(32) // 4, np.arange(32) % 4


def _halves_of(R, slots):
    """(warps, 32, 2 registers) of 16 bits"""
    stacked = np.stack(np.broadcast_arrays(*(R[s] for s in slots)), -1)
    stacked = np.broadcast_to(stacked, (stacked.shape[0], 32, stacked.shape[2]))
    return np.ascontiguousarray(stacked).view(np.uint16)


@handles("mma")
def _mma(c, ins):
    """D = A B + C.  The sum is formed in fp64 and rounded once; hardware keeps a few bits fewer."""
    shape = next(w for w in ins.op if w.startswith("m") and w[1:2].isdigit())
    types = ins.op[-4:]
    m, n, k = (int(v) for v in shape[1:].replace("n", " ").replace("k", " ").split())
    kind = types[1]
    if (m, n) != (16, 8) or "row" not in ins.op or "col" not in ins.op or types[0] != "f32" or types[3] != "f32":
        raise NotImplementedError(str(ins))
    d, a, b, acc = ([c.source(p, 32, True) for p in o.parts] for o in ins.operands)
    if kind in ("f16", "bf16"):
        decode = (lambda x: x.view(np.float16)) if kind == "f16" else floats.from_bf16
        i = np.arange(k // 2)
        rows_a = _G[:, None] + 8 * ((i // 2) % 2)
        cols_a = _T[:, None] * 2 + i % 2 + 8 * (i // 4)
        i = np.arange(k // 4)
        rows_b, cols_b = _T[:, None] * 2 + i % 2 + 8 * (i // 2), _G[:, None] + 0 * i
        read = lambda R, slots: decode(_halves_of(R, slots))
    elif kind == "tf32":
        i = np.arange(k // 2)
        rows_a, cols_a = _G[:, None] + 8 * (i % 2), _T[:, None] + 4 * (i // 2)
        i = np.arange(k // 4)
        rows_b, cols_b = _T[:, None] + 4 * i, _G[:, None] + 0 * i

        def read(R, slots):
            stacked = np.stack(np.broadcast_arrays(*(R[s] for s in slots)), -1)
            return floats.to_tf32(np.broadcast_to(stacked, (stacked.shape[0], 32, stacked.shape[2])))
    else:
        raise NotImplementedError(str(ins))
    i = np.arange(4)
    rows_c, cols_c = _G[:, None] + 8 * (i // 2), _T[:, None] * 2 + i % 2

    def run(g):
        R, W = g.R, g.warps
        A, B, C = np.zeros((W, m, k)), np.zeros((W, k, n)), np.zeros((W, m, n))
        A[:, rows_a, cols_a] = read(R, a)
        B[:, rows_b, cols_b] = read(R, b)
        C[:, rows_c, cols_c] = np.stack(np.broadcast_arrays(*(R[s] for s in acc)), -1).view(np.float32)
        D = (A @ B + C).astype(np.float32)[:, rows_c, cols_c].view(np.uint32)
        for j, slot in enumerate(d):
            R[slot] = np.ascontiguousarray(D[:, :, j])

    return run


@handles("ldmatrix")
def _ldmatrix(c, ins):
    slots = [p.slot for p in ins.operands[0].parts]
    address, n = _address(c, ins.operands[1], 32), len(slots)
    if "m8n8" not in ins.op or ins.op[-1] != "b16":
        raise NotImplementedError(str(ins))
    transposed = "trans" in ins.op
    where = address

    @masked
    def run(g, mask):
        if mask is not None:
            raise NotImplementedError("ldmatrix under a guard")
        a = np.broadcast_to(where(g.R), (g.warps, 32))[:, : 8 * n]
        rows = g.shared.load(a, g.shared_base, 16, 2, None, g.code)  # (W, 8n, 8)
        tiles = rows.reshape(len(rows), n, 8, 8)
        if g.count:
            on = np.zeros((1, 32), bool)
            on[:, : 8 * n] = True
            count_wavefronts(g.traffic(ins), np.broadcast_to(where(g.R), (g.warps, 32)), 16, on, g.warps)
        if transposed:
            tiles = tiles.swapaxes(-1, -2)
        packed = np.ascontiguousarray(tiles).view(np.uint32)  # (W, n, 8, 4)
        for i, slot in enumerate(slots):
            g.R[slot] = packed[:, i].reshape(-1, 32)

    return run


@handles("stmatrix")
def _stmatrix(c, ins):
    address, slots = _address(c, ins.operands[0], 32), [p.slot for p in ins.operands[1].parts]
    n, transposed = len(slots), "trans" in ins.op

    @masked
    def run(g, mask):
        if mask is not None:
            raise NotImplementedError("stmatrix under a guard")
        R = g.R
        packed = np.stack([np.broadcast_to(R[s], (g.warps, 32)) for s in slots], 1)  # (W, n, 32)
        tiles = np.ascontiguousarray(packed).view(np.uint16).reshape(-1, n, 8, 8)
        tiles = tiles.swapaxes(-1, -2) if transposed else tiles
        a = np.broadcast_to(address(R), (g.warps, 32))
        if g.count:
            count_wavefronts(g.traffic(ins), a, 16, 8 * n > LANES, g.warps)
        rows = np.ascontiguousarray(tiles).reshape(-1, 8 * n, 8)
        g.shared.store(a[:, : 8 * n], g.shared_base, rows, 16, 2, None, g.code)

    return run


# ---- memory ---------------------------------------------------------------------------------------


def _address(c: Compiler, operand: Address, width: int) -> Callable:
    slot, offset = c.source(operand.base, width), operand.offset
    if offset == 0:
        return lambda R: R[slot]
    step = U[width](offset % (1 << width))
    return lambda R: R[slot] + step


def _access(ins) -> tuple[str, int, int]:
    """(kind, bits of an element, elements)"""
    kind, width = TYPES[ins.op[-1]]
    count = next((int(w[1:]) for w in ins.op if w in ("v2", "v4", "v8")), 1)
    return kind, width, count


@handles("ld")
def _ld(c, ins):
    kind, width, count = _access(ins)
    d = ins.operands[0]
    registers = d.parts if isinstance(d, Vector) else (d,)
    slots = [None if r is None else (r.slot, U[r.width]) for r in registers]
    if any(r is not None and r.width < width for r in registers):
        raise NotImplementedError(f"load into a narrower register: {ins}")
    read, wide = U[width], (S if kind == "s" else U)

    def extended(value, dtype):
        """As wide as the register; the sign of signed types is kept."""
        if value.dtype == dtype:
            return value
        return value.view(wide[width]).astype(wide[8 * dtype(0).itemsize]).view(dtype)

    each, total = width // 8, width // 8 * count
    if ins.op[1] == "param":
        names = [name for name, _ in c.kernel.params]
        number, offset = names.index(ins.operands[1].base.name), ins.operands[1].offset

        def parameter(g):
            raw = g.params[number][offset : offset + total]
            for i, (slot, dtype) in enumerate(slots):
                g.R[slot] = extended(np.frombuffer(raw[i * each : (i + 1) * each], read).reshape(1, 1), dtype)

        return parameter
    if "cluster" in ins.op or not ("global" in ins.op or "shared" in ins.op):
        raise NotImplementedError(str(ins))
    in_global = "global" in ins.op
    address = _address(c, ins.operands[1], 64 if in_global else 32)

    @masked
    def run(g, mask):
        R = g.R
        a = address(R)
        if in_global:
            if mask is not None:
                a, mask = np.broadcast_arrays(a, mask)
            values = g.memory.load(a, total, each, mask, g.cta)
            if g.count:
                count_sectors(g.traffic(ins), a, total, mask, g.warps)
        else:
            a = a if len(a) == g.warps else np.broadcast_to(a, (g.warps, a.shape[1]))
            if mask is not None:
                a, mask = np.broadcast_arrays(a, mask)
            values = g.shared.load(a, g.shared_base, total, each, mask, g.code)
            if g.count:
                count_wavefronts(g.traffic(ins), a, total, mask, g.warps)
        for i, target in enumerate(slots):
            if target is not None:
                slot, dtype = target
                value = extended(values if count == 1 else np.ascontiguousarray(values[..., i]), dtype)
                if mask is not None:
                    value = np.where(mask, value, poison(dtype) if R[slot] is None else R[slot])
                R[slot] = value

    return run


@handles("st")
def _st(c, ins):
    _, width, count = _access(ins)
    s = ins.operands[1]
    sources = [c.typed(p, "u", width) for p in (s.parts if isinstance(s, Vector) else (s,))]
    each, total, dtype = width // 8, width // 8 * count, U[width]
    if "cluster" in ins.op or not ("global" in ins.op or "shared" in ins.op):
        raise NotImplementedError(str(ins))
    in_global = "global" in ins.op
    address = _address(c, ins.operands[0], 64 if in_global else 32)

    @masked
    def run(g, mask):
        R = g.R
        a = np.broadcast_to(address(R), (g.warps, 32))
        values = [np.broadcast_to(get(R), a.shape) for get in sources]
        values = values[0] if count == 1 else np.stack(values, -1)
        mask = None if mask is None else np.broadcast_to(mask, a.shape)
        if in_global:
            if g.memory.store(a, values, total, each, mask, g.cta):
                g.note(ins, "two threads store different values to one place")
            if g.count:
                count_sectors(g.traffic(ins), a, total, mask, g.warps)
        else:
            if g.shared.store(a, g.shared_base, values, total, each, mask, g.code):
                g.note(ins, "two threads store different values to one place")
            if g.count:
                count_wavefronts(g.traffic(ins), a, total, mask, g.warps)

    return run


@handles("createpolicy", "prefetch", "fence", "griddepcontrol", "nanosleep", "membar")
def _nothing(c, ins):
    if ins.op[0] == "createpolicy":
        slot = ins.operands[0].slot
        return lambda g: g.R.__setitem__(slot, np.zeros((1, 1), np.uint64))
    return lambda g: None


@handles("cp")
def _cp(c, ins):
    if ins.op[1] != "async" or "bulk" in ins.op or "mbarrier" in ins.op:
        raise NotImplementedError(str(ins))
    if ins.op[2] == "commit_group":
        return lambda g: g.commit()
    if ins.op[2] == "wait_group":
        keep = ins.operands[0].value
        return lambda g: g.wait(keep)
    if ins.op[2] == "wait_all":
        return lambda g: (g.commit(), g.wait(0))[1]
    target, source = _address(c, ins.operands[0], 32), _address(c, ins.operands[1], 64)
    total = ins.operands[2].value
    given = c.typed(ins.operands[3], "u", 32) if len(ins.operands) > 3 else None
    each = 8 if total == 16 else total

    @masked
    def run(g, mask):
        R = g.R
        shape = (g.warps, 32)
        to, of = np.broadcast_to(target(R), shape), np.broadcast_to(source(R), shape)
        mask = None if mask is None else np.broadcast_to(mask, shape)
        reads = mask
        if given is not None:
            n = np.broadcast_to(given(R), shape)
            if ((n != 0) & (n != total)).any():
                raise NotImplementedError("cp.async that reads part of its bytes")
            reads = n != 0 if mask is None else mask & (n != 0)
            reads = None if reads.all() else reads
        values = g.memory.load(of, total, each, reads, g.cta)
        if g.count:
            count_sectors(g.traffic(ins), of, total, reads, g.warps)
        index = g.shared.copy_issued(to, g.shared_base, total, mask, g.code)
        g.copies.append((index, values, total, each, mask))

    return run


# ---- control --------------------------------------------------------------------------------------


@handles("bra")
def _bra(c, ins):
    target = c.kernel.labels[ins.operands[0].name]

    @masked
    def run(g, mask):
        return target if mask is None else g.branch(mask, target, ins.pc)

    return run


@handles("ret", "exit")
def _ret(c, ins):
    @masked
    def run(g, mask):
        return EXIT if mask is None else g.branch(mask, EXIT, ins.pc)

    return run


@handles("bar", "barrier")
def _bar(c, ins):
    if ins.op[1] == "warp":
        return lambda g: None
    if "sync" not in ins.op or "cluster" in ins.op:
        raise NotImplementedError(str(ins))
    number = ins.operands[0].value
    threads = ins.operands[1].value if len(ins.operands) > 1 else None
    return lambda g: g.barrier(number, threads)


@handles("trap")
def _trap(c, ins):
    @masked
    def run(g, mask):
        raise Fault("trap", mask)

    return run
