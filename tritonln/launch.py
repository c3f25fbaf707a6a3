"""From a kernel and its configuration to the driver."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from typing import Any, NamedTuple
from unittest import mock

# Contracted multiply-adds, said aloud because Triton's default is about to change.
FP_FUSION = True


class Launch:
    """A kernel bound to its constants (the trailing constexpr parameters) and compile options."""

    __slots__ = ("constants", "kernel", "options")

    def __init__(self, kernel: Any, constants: tuple[int, ...], num_warps: int):
        self.kernel = kernel
        self.constants = constants
        self.options: dict[str, Any] = {"num_warps": num_warps, "enable_fp_fusion": FP_FUSION}

    def __call__(self, programs: int, *args: Any) -> None:
        self.kernel[(programs,)](*args, *self.constants, **self.options)


class Recorded(NamedTuple):
    """A launch that was asked for: which, with how many programs, on which arguments."""

    launch: Launch
    programs: int
    args: tuple[Any, ...]


@contextlib.contextmanager
def recorded() -> Iterator[list[Recorded]]:
    """Inside, launches are noted instead of carried out."""
    calls: list[Recorded] = []

    def note(launch: Launch, programs: int, *args: Any) -> None:
        calls.append(Recorded(launch, programs, args))

    with mock.patch.object(Launch, "__call__", note):
        yield calls
