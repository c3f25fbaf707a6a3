"""PTX text -> a list of instructions.  Syntax only; what they mean stands in instructions/.

Read is what Triton emits: one .entry with its parameters, registers, labels, line numbers and dynamic shared memory.
Functions (.func), .global and .const variables, debug sections and static shared memory are not.
"""

from __future__ import annotations

import dataclasses
import functools
import re
import struct
from collections.abc import Iterator


@dataclasses.dataclass(frozen=True)
class Reg:
    name: str
    width: int  # bits; 1: predicate
    slot: int


@dataclasses.dataclass(frozen=True)
class Imm:
    value: int  # an integer, or the bits of a float
    width: int = 0  # of a float literal; 0: an integer of any width


@dataclasses.dataclass(frozen=True)
class Special:
    name: str  # "tid.x"


@dataclasses.dataclass(frozen=True)
class Symbol:
    name: str  # label, parameter or variable


@dataclasses.dataclass(frozen=True)
class Address:
    base: Operand
    offset: int


@dataclasses.dataclass(frozen=True)
class Vector:
    parts: tuple[Operand, ...]


@dataclasses.dataclass(frozen=True)
class Not:
    """!%p as a source."""

    reg: Reg


Operand = Reg | Imm | Special | Symbol | Address | Vector | Not | None  # None: the sink _


@dataclasses.dataclass
class Instruction:
    pc: int  # its index in the kernel
    text: str
    op: tuple[str, ...]  # "ld.global.v4.b32" -> ("ld", "global", "v4", "b32")
    operands: tuple[Operand, ...]
    guard: Reg | None  # @%p
    negated: bool  # @!%p
    where: str  # the source line, "file.py:91"

    def __str__(self) -> str:
        return f"{self.text}   [pc {self.pc}, {self.where}]"


@dataclasses.dataclass
class Kernel:
    name: str
    params: list[tuple[str, str]]  # (name, type)
    threads: int  # .reqntid, 0 if unsaid
    instructions: list[Instruction]
    labels: dict[str, int]
    registers: list[Reg]
    shared: dict[str, int]  # symbol -> offset
    target: str  # "sm_90a"
    cluster: int = 1  # CTAs of a cluster


_ENTRY = re.compile(r"\.entry\s+([\w$]+)\s*\((.*?)\)(.*?)\{", re.S)
_PARAM = re.compile(r"\.param\s+\.(\w+)[^,]*?([\w$]+)\s*(?:,|$)")
_LABEL = re.compile(r"\s*([\w$]+)\s*:(?!:)")
_LOC = re.compile(r"^\s*\.loc\s+(\d+)\s+(\d+).*$", re.M)
_FILE = re.compile(r'\.file\s+(\d+)\s+"([^"]*)"')
_WIDTH = {"pred": 1, "b8": 8, "b16": 16, "b32": 32, "b64": 64, "b128": 128}


def parse(text: str) -> Kernel:
    """The kernel of a module; ValueError where there is none."""
    files = {int(n): path.rsplit("/", 1)[-1] for n, path in _FILE.findall(text)}
    shared = dict.fromkeys(re.findall(r"\.extern\s+\.shared[^;]*?([\w$]+)\s*\[\s*\]\s*;", text), 0)
    text = re.sub(r"//[^\n]*", "", text)
    text = re.sub(r"/\*.*?\*/", "", text, flags=re.S)
    target, entry = re.search(r"\.target\s+(\w+)", text), _ENTRY.search(text)
    if target is None or entry is None:
        raise ValueError("no kernel: a .target and an .entry are expected")
    header = entry.group(3)
    return _Body(_LOC.sub(r".loc \1 \2;", text[entry.end() :]), files).kernel(
        name=entry.group(1),
        params=[(name, kind) for kind, name in _PARAM.findall(entry.group(2))],
        threads=_number(r"\.reqntid\s+(\d+)", header, 0),
        shared=shared,
        target=target.group(1),
        cluster=_number(r"\.reqnctapercluster\s+(\d+)", header, 1),
    )


def _number(pattern: str, text: str, default: int) -> int:
    found = re.search(pattern, text)
    return int(found.group(1)) if found else default


class _Body:
    def __init__(self, text: str, files: dict[int, str]):
        self.text, self.files = text, files
        self.registers: list[Reg] = []
        self.names: dict[str, Reg] = {}
        self.hidden: list[dict[str, Reg | None]] = [{}]  # of each scope, what its names meant outside of it
        self.instructions: list[Instruction] = []
        self.labels: dict[str, int] = {}
        self.where = "?"

    def kernel(
        self, name: str, params: list[tuple[str, str]], threads: int, shared: dict[str, int], target: str, cluster: int
    ) -> Kernel:
        for statement in self.statements():
            if statement == "{":
                self.hidden.append({})
            elif statement == "}":
                self.leave(self.hidden.pop())
                if not self.hidden:
                    break
            elif statement.endswith(":"):
                self.labels[statement[:-1]] = len(self.instructions)
            elif statement.startswith("."):
                self.directive(statement)
            else:
                self.instruction(statement)
        code = self.instructions, self.labels, self.registers
        return Kernel(name, params, threads, *code, shared, target, cluster)

    def statements(self) -> Iterator[str]:
        i, text = 0, self.text
        while i < len(text):
            if text[i].isspace() or text[i] == ";":
                i += 1
            elif text[i] in "{}":
                yield text[i]
                i += 1
            elif label := _LABEL.match(text, i):
                yield label.group(1) + ":"
                i = label.end()
            else:
                end = text.index(";", i)
                yield " ".join(text[i:end].split())
                i = end + 1

    def directive(self, statement: str) -> None:
        words = statement.split()
        if words[0] == ".loc":
            self.where = f"{self.files.get(int(words[1]), words[1])}:{words[2]}"
        elif words[0] == ".reg":
            width = _WIDTH.get(words[1][1:]) or int(words[1][2:])
            for name in " ".join(words[2:]).split(","):
                if several := re.fullmatch(r"(%?[\w$]+)<(\d+)>", name.strip()):
                    for i in range(int(several.group(2))):
                        self.declare(f"{several.group(1)}{i}", width)
                else:
                    self.declare(name.strip(), width)
        elif words[0] not in (".pragma", ".file"):
            raise NotImplementedError(f"directive {statement}")

    def declare(self, name: str, width: int) -> None:
        reg = Reg(name, width, len(self.registers))
        self.registers.append(reg)
        self.hidden[-1].setdefault(name, self.names.get(name))
        self.names[name] = reg

    def leave(self, hidden: dict[str, Reg | None]) -> None:
        for name, before in hidden.items():
            if before is None:
                del self.names[name]
            else:
                self.names[name] = before

    def instruction(self, text: str) -> None:
        rest, guard, negated = text, None, False
        if text.startswith("@"):
            word, rest = text[1:].split(None, 1)
            negated = word.startswith("!")
            guard = self.names.get(word.lstrip("!"))
        opcode, _, tail = rest.partition(" ")
        op, operands = _words(opcode), tuple([self.operand(o) for o in _split(tail)])
        self.instructions.append(Instruction(len(self.instructions), text, op, operands, guard, negated, self.where))

    def operand(self, text: str) -> Operand:
        text = text.strip()
        if reg := self.names.get(text):
            return reg
        if text == "_":
            return None
        if text.startswith("{"):
            return Vector(tuple([self.operand(o) for o in _split(text[1:-1])]))
        if text.startswith("["):
            inner = text[1:-1].strip()
            base, _, offset = inner.partition("+")
            return Address(self.operand(base), int(offset, 0) if offset else 0)
        if "|" in text:
            return Vector(tuple([self.operand(o) for o in text.split("|")]))
        if text.startswith("!") and (reg := self.names.get(text[1:])):
            return Not(reg)
        if text.startswith("%"):
            return Special(text[1:])
        if text[:2] in ("0f", "0F"):
            return Imm(int(text[2:], 16), 32)
        if text[:2] in ("0d", "0D"):
            return Imm(int(text[2:], 16), 64)
        if re.fullmatch(r"-?(0[xX][0-9a-fA-F]+|\d+)[uU]?", text):
            return Imm(int(text.rstrip("uU"), 0))
        if re.fullmatch(r"-?\d+\.\d*", text):
            return Imm(struct.unpack("<Q", struct.pack("<d", float(text)))[0], 64)
        return Symbol(text)


@functools.cache
def _words(opcode: str) -> tuple[str, ...]:
    return tuple(re.split(r"\.|::", opcode))


def _split(text: str) -> list[str]:
    """By commas outside brackets and braces."""
    if "{" not in text and "(" not in text:  # an address has no comma of its own
        return text.split(",") if text.strip() else []
    parts, depth, start = [], 0, 0
    for i, char in enumerate(text):
        depth += (char in "{[(") - (char in "}])")
        if char == "," and depth == 0:
            parts.append(text[start:i])
            start = i + 1
    last = text[start:].strip()
    return [*parts, last] if last else parts
