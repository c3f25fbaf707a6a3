"""A kernel as the tuner sees it.  Declaring one is all that an operator does to be tuned."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
import math
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor

from tritonln.device import Device
from tritonln.dtypes import NAMES
from tritonln.launch import Plan
from tritonln.tuning.config import Config


@dataclasses.dataclass(frozen=True)
class Key:
    """All that a configuration may depend on beside the device.  The number of rows is not among it."""

    kernel: str
    N: int
    operands: Mapping[str, torch.dtype] = dataclasses.field(hash=False)  # those present, in the kernel's order

    def __str__(self) -> str:
        return " ".join([f"N={self.N}", *(f"{name}={NAMES[dtype]}" for name, dtype in self.operands.items())])


@dataclasses.dataclass(frozen=True, eq=False)
class Tunable:
    """A kernel, or several that compute the same in different regimes.

    `operands` are its tensors in the order of its parameters, each with its axes: M rows, N columns,
    P programs, a number, or a multiple such as 4N.
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
    strides: int = 0  # how many row strides it takes; None is passed for each
    scalars: Callable[[int], tuple[float, ...]] = lambda M: (M,)  # of a launch on M rows
    programs_over: str = "M"  # the axis that its programs divide
    steps: int = 1  # of time, in a launch
    latency_bound: bool = False  # then the model, which knows of memory and arithmetic, tells spilling candidates only
    most_rows: Callable[[Device], int | float] = lambda device: math.inf  # that it is given, as a rule

    def key(self, N: int, **dtypes: torch.dtype | None) -> Key:
        present = {name: dtypes[name] for name in self.operands if dtypes.get(name) is not None}
        return Key(self.name, N, present)  # type: ignore[arg-type]

    def programs(self, plan: Plan, M: int, N: int) -> int:
        return plan.count(M if self.programs_over == "M" else N)

    def arguments(
        self, key: Key, plan: Plan, M: int, make: Callable[[str, tuple[int, ...], torch.dtype], Tensor]
    ) -> tuple[list[Tensor | None], tuple[None, ...], tuple[float, ...]]:
        """What a launch on M rows takes: (tensors, strides, scalars), each tensor made by `make`."""
        P = self.programs(plan, M, key.N)
        tensors = [
            make(name, self.shape(name, M, key.N, P), key.operands[name]) if name in key.operands else None
            for name in self.operands
        ]
        return tensors, (None,) * self.strides, self.scalars(M)

    def shape(self, name: str, M: int, N: int, P: int) -> tuple[int, ...]:
        sizes = {"M": M, "N": N, "P": P}
        axes = [(axis.rstrip("MNP"), axis.lstrip("0123456789")) for axis in self.operands[name].split()]
        return tuple(int(factor or 1) * sizes.get(letter, 1) for factor, letter in axes)

    def per_program(self, name: str) -> bool:
        """Whether an operand has a row for each program, which is to be added up."""
        return self.operands[name].startswith("P")

    def source(self) -> str:
        """A digest of the kernels and of every device function that they call."""
        called: dict[Any, str] = {}
        waiting = [kernel.fn for kernel in self.kernels()]  # of a JITFunction, and of what the interpreter has for one
        while waiting:
            python = waiting.pop()
            if python not in called:
                called[python] = inspect.getsource(python)
                names = (python.__globals__.get(name) for name in python.__code__.co_names)
                waiting += [function.fn for function in names if hasattr(function, "fn")]
        return hashlib.sha256("\n".join(sorted(called.values())).encode()).hexdigest()[:16]
