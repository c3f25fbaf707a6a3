"""A kernel as the tuner sees it.  Declaring one is all that an operator does to be tuned."""

from __future__ import annotations

import dataclasses
import hashlib
import inspect
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

    `operands` are its tensors in the order of its parameters, each with its axes as a word of
    letters: M rows, N columns, P programs, 2 the statistics of a row.
    """

    name: str
    operands: Mapping[str, str]
    results: tuple[str, ...]  # the operands that it writes
    kernels: Callable[[], tuple[Any, ...]]
    plan: Callable[[Key, Config, Device], Plan]
    choice: Callable[[Key, Device], Config]  # what is launched where no table knows the key
    candidates: Callable[[Key, Device], Iterable[Config]]  # all legal configurations
    safe: Callable[[Key], Config]  # small tiles, no prefetching, no clusters: what candidates are verified against
    keys: Callable[[int, torch.dtype], Iterator[Key]]  # the usual ones of a row length and a dtype of x
    strides: int = 0  # how many row strides it takes; None is passed for each
    scalars: tuple[float, ...] = ()  # what follows the number of rows
    programs_over: str = "M"  # the axis that its programs divide

    def key(self, N: int, **dtypes: torch.dtype | None) -> Key:
        present = {name: dtypes[name] for name in self.operands if dtypes.get(name) is not None}
        return Key(self.name, N, present)  # type: ignore[arg-type]

    def programs(self, plan: Plan, M: int, N: int) -> int:
        return plan.count(M if self.programs_over == "M" else N)

    def arguments(
        self, key: Key, plan: Plan, M: int, make: Callable[[str, tuple[int, ...], torch.dtype], Tensor]
    ) -> tuple[list[Tensor | None], tuple[None, ...], tuple[float, ...]]:
        """What a launch on M rows takes: (tensors, strides, scalars), each tensor made by `make`."""
        sizes = {"M": M, "N": key.N, "P": self.programs(plan, M, key.N), "2": 2}
        tensors = [
            make(name, tuple(sizes[axis] for axis in axes), key.operands[name]) if name in key.operands else None
            for name, axes in self.operands.items()
        ]
        return tensors, (None,) * self.strides, (M, *self.scalars)

    def source(self) -> str:
        """A digest of the kernels and of every device function that they call."""
        return hashlib.sha256("\n".join(sorted(set(_sources(self.kernels())))).encode()).hexdigest()[:16]


def _sources(functions: Iterable[Any]) -> Iterator[str]:
    for function in functions:
        python = function.fn  # of a JITFunction, and of what the interpreter has for one
        yield inspect.getsource(python)
        called = (python.__globals__.get(name) for name in python.__code__.co_names)
        yield from _sources(f for f in called if hasattr(f, "fn"))
