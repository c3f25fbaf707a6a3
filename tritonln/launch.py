"""From a kernel and its configuration to the driver."""

from __future__ import annotations

import contextlib
import functools
from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tritonln.device import Device, active_device, interpreting, kernels_on, runs_triton

# Contracted multiply-adds, said aloud because Triton's default is about to change.
FP_FUSION = True


class Launch:
    """A kernel bound to its constants (the trailing constexpr parameters) and compile options.

    One object serves arguments of one kind only: the same dtypes, the same ones None, one device.
    Its first launch on aligned tensors with contiguous rows goes through Triton's own dispatch and
    keeps the compiled kernel; later ones of that kind go straight to the kernel's launcher with
    plain addresses.  Everything else takes the ordinary way each time, and on AMD so do tensors of
    2 GB and more: Triton compiles those that are smaller with 32-bit offsets there.
    """

    __slots__ = ("constants", "device", "direct", "kernel", "options")

    def __init__(self, kernel: Any, constants: tuple[Any, ...], device: Device, num_warps: int, num_ctas: int = 1):
        self.device = device
        self.kernel = kernel
        self.constants = constants
        self.options: dict[str, Any] = {"num_warps": num_warps, "num_ctas": num_ctas, "enable_fp_fusion": FP_FUSION}
        self.direct: tuple[Any, Any, Any] | None = None  # launcher, function, metadata

    def __call__(
        self,
        programs: int,
        tensors: Sequence[Tensor | None],
        strides: tuple[int | None, ...],
        scalars: tuple[int | float, ...],
    ) -> None:
        """Launches on the stream of the tensors' device.  A stride of None stands for contiguous rows."""
        driver = active_driver()
        if driver is None:
            self.ordinary(programs, tensors, strides, scalars)
            return
        current = driver.get_current_device()
        if self.device.index is not None and self.device.index != current:
            with torch.get_device_module(self.device.type).device(self.device.index):
                self(programs, tensors, strides, scalars)
            return
        addresses, bits = [], 0
        for tensor in tensors:
            address = 0 if tensor is None else tensor.data_ptr()
            addresses.append(address)
            bits |= address
        # 0 is a stride: expanded rows.
        regular = not bits & 15 and strides.count(None) == len(strides) and self.reaches(tensors)
        if regular and self.direct is not None and not hooked():
            run, function, metadata = self.direct
            stream = driver.get_current_stream(current)
            run(
                *(programs, 1, 1, stream, function, metadata, None, None, None),
                *addresses, *strides, *scalars, *self.constants,
            )  # fmt: skip
            return
        compiled = self.ordinary(programs, tensors, strides, scalars)
        if regular:
            self.direct = _direct(compiled)

    def repeated(self, programs: int, tensors: Sequence[Tensor | None]) -> Callable[..., None]:
        """This launch for a loop that changes nothing but scalars: they are what the result is called with."""
        driver = active_driver()
        addresses = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
        current = driver.get_current_device() if driver is not None else None
        elsewhere = self.device.index is not None and self.device.index != current
        if driver is None or elsewhere or any(address & 15 for address in addresses) or not self.reaches(tensors):
            return lambda *scalars: self(programs, tensors, (), scalars)
        stream = driver.get_current_stream(current)

        def launch(*scalars: int | float) -> None:
            if self.direct is None or hooked():
                self(programs, tensors, (), scalars)
                return
            run, function, metadata = self.direct
            run(programs, 1, 1, stream, function, metadata, None, None, None, *addresses, *scalars, *self.constants)

        return launch

    def reaches(self, tensors: Sequence[Tensor | None]) -> bool:
        """Whether the kernel that is kept can address all of these."""
        return self.device.backend != "hip" or all(
            tensor is None or tensor.untyped_storage().nbytes() < 2**31 for tensor in tensors
        )

    def ordinary(
        self,
        programs: int,
        tensors: Sequence[Tensor | None],
        strides: tuple[int | None, ...],
        scalars: tuple[int | float, ...],
    ) -> Any:
        return self.kernel[(programs,)](*tensors, *strides, *scalars, *self.constants, **self.options)


@functools.cache
def active_driver() -> Any:
    """Triton's driver, or None in the interpreter, which has none."""
    if interpreting():
        return None
    from triton.runtime import driver

    return driver.active


def forget_driver() -> None:
    """For who changes Triton's active driver in a running process: what was asked of the old one is asked again."""
    for asked in (active_driver, kernels_on, runs_triton, active_device):
        asked.cache_clear()


@functools.cache
def launch_hooks() -> tuple[Any, Any]:
    from triton import knobs

    return knobs.runtime.launch_enter_hook, knobs.runtime.launch_exit_hook


def hooked() -> bool:
    """Whether a profiler wants to hear of launches: then Triton's own dispatch tells it."""
    enter, leave = launch_hooks()
    return bool(enter.calls or leave.calls)


def _direct(compiled: Any) -> tuple[Any, Any, Any] | None:
    """The parts of a CompiledKernel that a launch needs; None on a Triton whose objects are not those known."""
    import triton

    try:
        known = triton.__version__.startswith("3.") and compiled.metadata.target.backend in ("cuda", "hip")
        hooked()
        return (compiled.run, compiled.function, compiled.packed_metadata) if known else None
    except AttributeError:
        return None


class Plan(NamedTuple):
    """The launch of a kernel, and how its programs divide the rows (or columns)."""

    launch: Any  # a Launch, or what takes its place
    rows_per_program: int
    programs: int  # of a persistent kernel, which then walks the rows; 0: one for every tile

    def count(self, M: int) -> int:
        tiles = -(-M // self.rows_per_program)
        return min(tiles, self.programs) if self.programs else tiles


class Recorded(NamedTuple):
    """A launch that was asked for: which, with how many programs, on which arguments."""

    launch: Launch
    programs: int
    args: tuple[Any, ...]


@contextlib.contextmanager
def recorded() -> Iterator[list[Recorded]]:
    """Inside, launches are noted instead of carried out."""
    calls: list[Recorded] = []

    def note(launch: Launch, programs: int, *groups: Sequence[Any]) -> None:
        calls.append(Recorded(launch, programs, tuple(a for group in groups for a in group)))

    def note_each(launch: Launch, programs: int, tensors: Sequence[Tensor | None]) -> Callable[..., None]:
        return lambda *scalars: note(launch, programs, tensors, scalars)

    carry_out = Launch.__call__, Launch.repeated
    Launch.__call__, Launch.repeated = note, note_each  # type: ignore[assignment, method-assign]
    try:
        yield calls
    finally:
        Launch.__call__, Launch.repeated = carry_out  # type: ignore[method-assign]
