"""From an instruction to a function of a group of warps.

A group holds registers as arrays of unsigned integers of the register's width (bool for predicates), of a shape that
broadcasts to (warps, 32): what is the same in all lanes or all warps is kept once.  Memory and control take the mask
of the lanes that execute them; all else is computed for every lane and merged.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tritonln.emulator.faults import Array
from tritonln.emulator.floats import Approximation
from tritonln.emulator.flow import destinations
from tritonln.emulator.group import Group
from tritonln.emulator.ptx import Imm, Instruction, Kernel, Not, Operand, Reg, Symbol, Vector

Run = Callable[[Group], "int | None"]
MaskedRun = Callable[[Group, "Array | None"], "int | None"]  # None: all lanes
Get = Callable[[list[Any]], Array]

U: dict[int, Any] = {1: np.bool_, 8: np.uint8, 16: np.uint16, 32: np.uint32, 64: np.uint64}
S: dict[int, Any] = {8: np.int8, 16: np.int16, 32: np.int32, 64: np.int64}
F: dict[int, Any] = {16: np.float16, 32: np.float32, 64: np.float64}
TYPES = {f"{k}{w}": (k, w) for k in "busf" for w in (8, 16, 32, 64)} | {"pred": ("pred", 1), "bf16": ("bf", 16)}
# These need all lanes of a warp.
TOGETHER = ("shfl", "vote", "elect", "mma", "ldmatrix", "stmatrix", "bar", "barrier")

_HANDLERS: dict[str, Callable[[Compiler, Instruction], Run]] = {}
_MASKED: dict[str, Callable[[Compiler, Instruction], MaskedRun]] = {}


def handles(*names: str) -> Callable[[Any], Any]:
    """The decorated function compiles these instructions to functions of a group."""

    def register(function: Any) -> Any:
        _HANDLERS.update(dict.fromkeys(names, function))
        return function

    return register


def handles_masked(*names: str) -> Callable[[Any], Any]:
    """As handles, to functions of a group and the mask of the lanes that execute it."""

    def register(function: Any) -> Any:
        _MASKED.update(dict.fromkeys(names, function))
        return function

    return register


class Compiler:
    """One kernel's instructions; constants become registers after the declared ones."""

    def __init__(self, kernel: Kernel, approximate: Approximation):
        self.kernel, self.approximate = kernel, approximate
        self.constants: list[Array] = []
        self.at_end: list[Callable[[], None]] = []  # what instructions do after a batch of CTAs

    def constant(self, value: int, width: int) -> int:
        held = np.array([[value & ((1 << width) - 1)]], U[width]) if width > 1 else np.array([[bool(value)]])
        self.constants.append(held)
        return len(self.kernel.registers) + len(self.constants) - 1

    def source(self, operand: Operand, width: int, is_float: bool = False) -> int:
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

    def typed(self, operand: Operand, kind: str, width: int) -> Get:
        """A function that reads an operand as values of a type."""
        if isinstance(operand, Not):
            inverted = operand.reg.slot
            return lambda R: ~R[inverted]
        slot = self.source(operand, width, kind == "f")
        if kind == "pred":
            return lambda R: R[slot]
        view = {"f": F, "s": S}.get(kind, U)[width]
        if isinstance(operand, Reg) and operand.width < width:
            raise NotImplementedError(f"{operand.name} as {kind}{width}")
        if isinstance(operand, Reg) and operand.width > width:  # a narrow value in a wide register
            target = U[width]
            return lambda R: R[slot].astype(target).view(view)
        return (lambda R: R[slot]) if view is U[width] else (lambda R: R[slot].view(view))

    def address(self, operand: Operand, width: int) -> Get:
        """Of [register + offset]."""
        slot, offset = self.source(operand.base, width), operand.offset  # type: ignore[union-attr]
        if offset == 0:
            return lambda R: R[slot]
        step = U[width](offset % (1 << width))
        return lambda R: R[slot] + step

    def compile(self, ins: Instruction) -> tuple[Run, Callable[[], Run]]:
        """For groups all of whose lanes are active; and what makes it for those where a branch has parted lanes."""
        name = ins.op[0]
        if name in _MASKED:
            both = _with_mask(_MASKED[name](self, ins), ins)
            return both, lambda: both
        if name not in _HANDLERS:
            raise NotImplementedError(f"{ins} of {self.kernel.name}")
        function = _HANDLERS[name](self, ins)
        if ins.guard is None:
            return function, lambda: _parted(function, ins)
        if name in TOGETHER:
            raise NotImplementedError(f"{name} under a guard: {ins}")
        return _merged(function, ins, _guard(ins)), lambda: _parted(function, ins)


# ---- masks --------------------------------------------------------------------------------------


def _guard(ins: Instruction) -> Callable[[Group], Array]:
    assert ins.guard is not None
    slot, negated = ins.guard.slot, ins.negated
    return (lambda g: ~g.R[slot]) if negated else (lambda g: g.R[slot])


def _active(ins: Instruction) -> Callable[[Group], Array]:
    """Lanes that execute an instruction of a group that has parted."""
    if ins.guard is None:
        return lambda g: g.active  # type: ignore[return-value]
    guard = _guard(ins)
    return lambda g: guard(g) & g.active


def _with_mask(function: MaskedRun, ins: Instruction) -> Run:
    active, guard = _active(ins), None if ins.guard is None else _guard(ins)

    def run(g: Group) -> int | None:
        if g.active is not None:
            mask = active(g)
        elif guard is None:
            return function(g, None)
        else:
            mask = guard(g)
        executing = np.count_nonzero(mask)
        if executing == mask.size:
            return function(g, None)
        return function(g, mask) if executing else None

    return run


def _parted(function: Run, ins: Instruction) -> Run:
    return _together(function, ins) if ins.op[0] in TOGETHER else _merged(function, ins, _active(ins))


def _together(function: Run, ins: Instruction) -> Run:
    """Fine where the other lanes have exited."""

    def run(g: Group) -> int | None:
        g.together(ins.op[0])
        return function(g)

    return run


def _merged(function: Run, ins: Instruction, active: Callable[[Group], Array]) -> Run:
    """What the other lanes have in the destinations stays."""
    slots = [(r.slot, U[r.width]) for r in destinations(ins)]

    def run(g: Group) -> int | None:
        R = g.R
        mask = active(g)
        executing = np.count_nonzero(mask)
        if executing == mask.size:
            return function(g)
        if not executing:
            return None
        before = [R[slot] for slot, _ in slots]
        function(g)
        for (slot, dtype), old in zip(slots, before):
            R[slot] = np.where(mask, R[slot], poison(dtype) if old is None else old)
        return None

    return run


def poison(dtype: Any) -> Array:
    """What is in a register that nothing has set: a NaN in any format."""
    if dtype is np.bool_:
        return np.array([[True]])
    return np.array([[0xFFFFDEADFFFFDEAD & ((1 << 8 * dtype(0).itemsize) - 1)]], dtype)


def poison_unset(R: list[Any], slots: Sequence[int], dtype: Any) -> None:
    """Of what is put together a part may be nothing, and then nobody may read it: a NaN shows who does."""
    for slot in slots:
        if R[slot] is None:
            R[slot] = poison(dtype)


# ---- for the handlers -----------------------------------------------------------------------------


def kind_of(ins: Instruction, position: int = -1) -> tuple[str, int]:
    """add.f32 -> ("f", 32)"""
    if ins.op[position] not in TYPES:
        raise NotImplementedError(str(ins))
    return TYPES[ins.op[position]]


def only(ins: Instruction, *allowed: str) -> None:
    """No modifier that would be overlooked."""
    for word in ins.op[1:-1]:
        if word not in allowed:
            raise NotImplementedError(f".{word} in {ins}")


def slot_of(operand: Operand) -> int:
    """Of a destination."""
    if not isinstance(operand, Reg):
        raise NotImplementedError(f"destination {operand}")
    return operand.slot


def parts_of(operand: Operand) -> tuple[Operand, ...]:
    """{a, b} or a|b, or the one operand; None for what is thrown away."""
    return operand.parts if isinstance(operand, Vector) else (operand,)


def value_of(operand: Operand) -> int:
    """Of an immediate."""
    if not isinstance(operand, Imm):
        raise NotImplementedError(f"{operand} where a number is expected")
    return operand.value


def elementwise(
    c: Compiler, ins: Instruction, function: Callable[..., Array], kind: str, width: int, count: int, out: int = 0
) -> Run:
    """d = function(a[, b[, c]]), with a result of `out` bits (0: width)."""
    d, dtype = ins.operands[0], U[out or width]
    if not isinstance(d, Reg) or d.width != (out or width):
        raise NotImplementedError(f"destination of another width: {ins}")
    slot, get = d.slot, [c.typed(o, kind, width) for o in ins.operands[1 : 1 + count]]
    if count == 1:
        (a,) = get

        def run(g: Group) -> None:
            R = g.R
            R[slot] = function(a(R)).view(dtype)
    elif count == 2:
        a, b = get

        def run(g: Group) -> None:
            R = g.R
            R[slot] = function(a(R), b(R)).view(dtype)
    else:
        a, b, e = get

        def run(g: Group) -> None:
            R = g.R
            R[slot] = function(a(R), b(R), e(R)).view(dtype)

    return run
