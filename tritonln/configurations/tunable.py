"""A kernel as the tuner sees it.  Declaring one is all that an operator does to be tuned."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
import re
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor

from tritonln.configurations.config import Config
from tritonln.device import Device
from tritonln.dtypes import NAMES, bytes_of
from tritonln.plan import Plan

_AXIS = re.compile(r"(\d*)([MNPB]?)(?:/(\d+))?")


@dataclasses.dataclass(frozen=True)
class Key:
    """All that a configuration may depend on beside the device.  The number of rows is not among it."""

    kernel: str
    N: int
    operands: Mapping[str, torch.dtype] = dataclasses.field(hash=False)  # those present, in the kernel's order

    def __str__(self) -> str:
        return " ".join([f"N={self.N}", *(f"{name}={NAMES[dtype]}" for name, dtype in self.operands.items())])


def batches_of(M: int) -> int:
    """How many batches M rows are where nothing says it: as many as a tuned or inspected launch has."""
    return math.gcd(M, 8)


@dataclasses.dataclass(frozen=True, eq=False)
class Tunable:
    """A kernel, or several that compute the same in different regimes.

    `operands` are its tensors in the order of its parameters, each with its axes: M rows, N columns,
    B batches of rows, P programs, a number, a multiple such as 4N, or a part such as N/32.
    """

    name: str
    operands: Mapping[str, str]
    results: tuple[str, ...]  # the operands that it writes without having read them
    kernels: Callable[[], tuple[Any, ...]]
    plan: Callable[[Key, Config, Device], Plan]
    choice: Callable[[Key, Device], Config]  # what is launched where no table knows the key
    candidates: Callable[[Key, Device], Iterable[Config]]  # all legal configurations
    safe: Callable[[Key], Config]  # small tiles, no prefetching, no clusters: what candidates are verified against
    keys: Callable[[int, torch.dtype], Iterator[Key]]  # the usual ones of a row length and a dtype of x
    updated: tuple[str, ...] = ()  # the operands that it reads and writes
    # The kernel's arguments before its scalars: operands, and tuples of them as kernels/operands.py has them.
    layout: tuple[str | tuple[str, ...], ...] | None = None  # None: all operands, one by one
    scalars: Callable[[int], tuple[float, ...]] = lambda M: (M,)  # of a launch on M rows
    programs_over: str = "M"  # the axis that its programs divide; B: the rows of each batch
    steps: int = 1  # of time, in a launch
    latency_bound: bool = False  # then the model, which knows of memory and arithmetic, tells spilling candidates only
    most_rows: Callable[[Device], int | float] = lambda device: math.inf  # that it is given, as a rule

    def key(self, N: int, **dtypes: torch.dtype | None) -> Key:
        present = {name: dtypes[name] for name in self.operands if dtypes.get(name) is not None}
        return Key(self.name, N, present)  # type: ignore[arg-type]

    def programs(self, plan: Plan, M: int, N: int) -> int:
        if self.programs_over == "B":
            return plan.count(M, batches_of(M))
        return plan.count(M if self.programs_over == "M" else N)

    def arguments(
        self, key: Key, plan: Plan, M: int, make: Callable[[str, tuple[int, ...], torch.dtype], Tensor]
    ) -> tuple[Any, ...]:
        """What a Launch on M rows takes, each tensor made by `make`."""
        P = self.programs(plan, M, key.N)
        tensors = {
            name: bytes_of(make(name, self.shape(name, M, key.N, P), dtype)) for name, dtype in key.operands.items()
        }
        placed = (
            tensors.get(part) if isinstance(part, str) else tuple(tensors.get(n) for n in part)
            for part in self.layout or self.operands
        )
        return *placed, *self.scalars(M)

    def named(self, arguments: Sequence[Any]) -> dict[str, Tensor]:
        """The tensors of a recorded launch by the names of their operands."""
        found: dict[str, Tensor] = {}
        for part, argument in zip(self.layout or self.operands, arguments):
            if isinstance(part, str):
                found |= {} if argument is None else {part: argument}
            else:
                found |= {name: operand[0] for name, operand in zip(part, argument) if operand}
        return found

    def streamed(self, arguments: Sequence[Any]) -> int:
        """Bytes that a launch reads for each value of a row, of the operands that it reads row by row.

        A kernel whose programs divide the columns reads its operands one after the other.
        """
        read = {
            name: t.element_size()
            for name, t in self.named(arguments).items()
            if name not in self.results and {"M", "N"} <= {axis[-1] for axis in self.operands[name].split()}
        }
        return next(iter(read.values())) if self.programs_over == "N" else sum(read.values())

    def shape(self, name: str, M: int, N: int, P: int) -> tuple[int, ...]:
        sizes = {"M": M, "N": N, "P": P, "B": batches_of(M)}
        axes = (_AXIS.fullmatch(axis).groups() for axis in self.operands[name].split())  # type: ignore[union-attr]
        return tuple(int(factor or 1) * sizes.get(letter, 1) // int(divisor or 1) for factor, letter, divisor in axes)

    def per_program(self, name: str) -> bool:
        """Whether an operand has a row for each program, which is to be added up."""
        return self.operands[name].startswith("P")

    def source(self) -> str:
        """A digest of the kernels and of every device function that they call."""
        called: dict[Any, str] = {}
        waiting = list(self.kernels())
        while waiting:
            function = waiting.pop()
            python = function.fn  # of a JITFunction, and of what the interpreter has for one
            if python not in called:
                # A JITFunction has its lines, which are found by going through all tokens before them.
                lines = getattr(function, "raw_src", None)
                called[python] = inspect.getsource(python) if lines is None else "".join(lines)
                names = (python.__globals__.get(name) for name in python.__code__.co_names)
                waiting += [value for value in names if hasattr(value, "fn")]
        return hashlib.sha256("\n".join(sorted(called.values())).encode()).hexdigest()[:16]


_registered: dict[str, Tunable] = {}


def register(*tunables: Tunable) -> None:
    """What an operator says of its kernels when it is imported: the tuner and the inspector find them by name."""
    _registered.update((tunable.name, tunable) for tunable in tunables)


def registered() -> dict[str, Tunable]:
    """Every kernel that can be tuned, by name."""
    return dict(_registered)


class Operator(Protocol):
    """What the tuner and the inspector know of an operator on rows."""

    @property
    def name(self) -> str: ...

    @property
    def tunables(self) -> tuple[Tunable, ...]:
        """Of all that it launches."""

    def train(
        self, make: Callable[..., Tensor], rows: int, N: int, x: torch.dtype, parameter: torch.dtype, device: Device
    ) -> None:
        """A forward and a backward pass with gradients of everything, on tensors make(*shape, dtype=...)."""


_operators: dict[str, Operator] = {}


def register_operator(operator: Operator) -> None:
    register(*operator.tunables)
    _operators[operator.name] = operator


def operators() -> dict[str, Operator]:
    """Every operator on rows, by name."""
    return dict(_operators)
