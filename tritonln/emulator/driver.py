"""A driver of Triton's whose GPU is the emulator: `kernel[grid](...)` runs compiled code on CPU tensors."""

from __future__ import annotations

import contextlib
import dataclasses
import gc
import itertools
import pathlib
import struct
import threading
import time
import types
from collections.abc import Callable, Iterator
from typing import Any

import torch
import triton
from triton import knobs
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase
from triton.runtime import driver as triton_driver
from triton.runtime.cache import get_cache_manager
from triton.runtime.jit import JITFunction

from tritonln.device import CUDA_TARGETS, TARGETS, interpreting
from tritonln.emulator.addresses import Addresses, View
from tritonln.emulator.arguments import flat, scalar
from tritonln.emulator.counters import Counters, Traffic
from tritonln.emulator.faults import EmulationError
from tritonln.emulator.floats import Approximation
from tritonln.emulator.graphs import Capture, Stream, played
from tritonln.emulator.machine import Machine
from tritonln.emulator.memory import GlobalMemory
from tritonln.emulator.ptx import parse
from tritonln.launch import forget_driver

__all__ = ["Counters", "EmulatedGPU", "EmulationError", "Run", "Traffic", "emulated_gpu"]

KEPT = 64  # kernels ready to be launched; each takes megabytes, and is made from its PTX in a fraction of a second

# Triton keeps compiled kernels by the number of a device, so every emulated one has its own in the process.
_numbers = itertools.count()


@dataclasses.dataclass(frozen=True)
class Run:
    """One launch that was carried out."""

    name: str  # of the kernel
    grid: tuple[int, int, int]
    counters: Counters
    seconds: float  # that the emulation took; nothing of a GPU's
    metadata: Any  # Triton's: num_warps, shared, ...
    device: int
    stream: int


@dataclasses.dataclass(frozen=True)
class Function:
    """A kernel as loaded on a device."""

    name: str
    device: int


class EmulatedGPU(DriverBase):  # type: ignore[misc]
    """What `emulated_gpu` gives: `runs`, the launches so far in order, and `device(number)`, which makes one current.

    `numbers` are those of its devices.  `runs` may be cleared at any time.
    """

    def __init__(self, target: str, devices: int, perturbed: bool, seed: int, **options: Any):
        super().__init__()
        known = TARGETS[target]
        self.target, self.options = GPUTarget(known.backend, known.arch, known.warp_size), options
        self.approximate = Approximation(perturbed, seed)
        self.machines: dict[str, Machine] = {}  # the last used at the end
        self.busy = threading.Lock()  # a machine carries out one launch at a time, whichever threads ask for it
        self.runs: list[Run] = []
        self.numbers = tuple(itertools.islice(_numbers, devices))
        self.current, self.stream = self.numbers[0], Stream()
        self.capture: Capture | None = None
        self.addresses = Addresses()
        self.properties = types.SimpleNamespace(
            name=known.name, major=int(known.arch) // 10, minor=int(known.arch) % 10, warp_size=known.warp_size,
            multi_processor_count=known.multiprocessors, shared_memory_per_block_optin=known.shared_memory,
            shared_memory_per_multiprocessor=known.shared_memory_total, L2_cache_size=known.l2,
            max_threads_per_multi_processor=known.threads, regs_per_multiprocessor=65536, total_memory=80 << 30,
            gcnArchName="",  # torch's compiler asks a torch without CUDA for it
        )  # fmt: skip
        limits = {"multiprocessor_count": known.multiprocessors, "max_shared_mem": known.shared_memory, "warpSize": 32}
        self.utils = types.SimpleNamespace(
            get_device_properties=lambda device: limits,
            load_binary=lambda name, kernel, shared, device: (object(), Function(name, device), 0, 0, 1024),
            unload_module=lambda module: None,
        )

    # ---- what Triton and torch ask of a driver

    @classmethod
    def is_active(cls) -> bool:
        return False  # never by itself

    def get_current_target(self) -> GPUTarget:
        return self.target

    def get_active_torch_device(self) -> torch.device:
        return torch.device("cpu")

    def get_device_interface(self) -> Any:
        return torch.cpu

    def get_current_device(self) -> int:
        return self.current

    def set_current_device(self, number: int) -> None:
        if number not in self.numbers:
            raise ValueError(f"expected the number of an emulated device, of {self.numbers}, but got {number}")
        self.current = number

    def get_current_stream(self, number: int) -> int:
        return self.stream.cuda_stream

    @contextlib.contextmanager
    def device(self, number: int | None) -> Iterator[None]:
        before = self.current
        if number is not None:
            self.set_current_device(number)
        try:
            yield
        finally:
            self.current = before

    def map_python_to_cpp_type(self, ty: str) -> str:
        raise NotImplementedError("the emulator has no launcher in C")

    def get_benchmarker(self) -> Any:
        raise RuntimeError("nothing can be timed on an emulated GPU")

    # ---- launches

    def launcher_cls(self, src: Any, metadata: Any) -> Callable[..., None]:
        def launch(
            x: int, y: int, z: int, stream: int, function: Function, packed: Any,
            about: Any, enter: Any, leave: Any, *args: Any,
        ) -> None:  # fmt: skip
            if enter is not None:
                enter(about)
            if x * y * z:
                self.launch((x, y, z), stream, function, src.signature, metadata, args)
            if leave is not None:
                leave(about)

        return launch

    def launch(
        self, grid: tuple[int, int, int], stream: int, function: Function, signature: Any, metadata: Any, args: Any
    ) -> None:
        name = metadata.name
        if function.device != self.current:
            raise EmulationError(
                f"{name} was loaded on device {function.device} and is launched while {self.current} is current"
            )
        if stream != self.stream.cuda_stream:
            raise EmulationError(
                f"{name} is launched on stream {stream} while {self.stream.cuda_stream} is the current one"
            )
        if metadata.global_scratch_size or metadata.profile_scratch_size:
            raise NotImplementedError(f"{name}: scratch memory is not emulated")
        if len(args) != len(signature):
            raise TypeError(f"{name} takes {len(signature)} arguments, but got {len(args)}")
        machine, memory, views, params = self.machine(metadata), GlobalMemory(), [], []
        for argument, kind, value in flat(signature.items(), args):
            if kind.startswith("*"):
                address, found = self.pointed(f"{name}: {argument}", value)
                params.append(struct.pack("<Q", address))
                for view in found:
                    memory.add(argument, view)
                    views.append((argument, view))
            elif kind != "constexpr":
                params.append(scalar(f"{name}: {argument}", kind, value))
        params += [bytes(8)] * (len(machine.kernel.params) - len(params))  # Triton's scratch pointers

        def carry_out() -> None:
            if gone := [argument for argument, view in views if view.held() is None]:
                raise EmulationError(f"{name}: {', '.join(gone)}: the tensor is gone")
            with self.busy:
                start = time.perf_counter()
                counters = machine.launch(grid, params, memory)
                seconds = time.perf_counter() - start
            self.runs.append(Run(name, grid, counters, seconds, metadata, function.device, stream))

        if self.capture is not None:
            self.capture.recorded.append(carry_out)
        else:
            carry_out()

    def pointed(self, argument: str, value: Any) -> tuple[int, list[View]]:
        """An address, and what may be touched there."""
        if value is None or (isinstance(value, int) and value == 0):
            return 0, []
        if isinstance(value, torch.Tensor):
            if value.device.type != "cpu":
                raise EmulationError(f"{argument} is on {value.device}: an emulated GPU takes tensors on the CPU")
            return value.data_ptr(), [View(value, value.data_ptr())]
        address = value if isinstance(value, int) else value.data_ptr()
        try:
            return address, self.addresses.find(address)
        except LookupError as unknown:
            raise EmulationError(f"{argument}: {unknown}") from None

    def machine(self, metadata: Any) -> Machine:
        with self.busy:
            return self._machine(metadata)

    def _machine(self, metadata: Any) -> Machine:
        found = self.machines.pop(metadata.hash, None)
        if found is None:
            # Kept under the name of the kernel's function, which need not be that of the kernel.
            (path,) = pathlib.Path(get_cache_manager(metadata.hash).cache_dir).glob("*.ptx")
            with _no_collection():
                kernel = parse(path.read_text())
                found = Machine(kernel, metadata.shared, approximate=self.approximate, **self.options)
        self.machines[metadata.hash] = found
        if len(self.machines) > KEPT:
            del self.machines[next(iter(self.machines))]
        return found


@contextlib.contextmanager
def _no_collection() -> Iterator[None]:
    """A kernel is read into thousands of objects that stay: the collector of garbage would walk over them each time."""
    enabled = gc.isenabled()
    gc.disable()
    try:
        yield
    finally:
        if enabled:
            gc.enable()


def _without_machine_code(*stage: Any) -> tuple[str, str] | None:
    """Triton's hook on its stages: an emulated GPU runs PTX, so ptxas is not run.  Asked for nothing, it gives what
    tells these kernels from others in Triton's cache.
    """
    if not stage:
        return "emulated", "emulated"
    stage[1]["cubin"] = lambda ptx, metadata: b""
    return None


@contextlib.contextmanager
def emulated_gpu(
    target: str = "sm_90",
    *,
    devices: int = 1,
    check: bool = True,
    count: bool = True,
    perturbed: bool = False,
    seed: int = 0,
) -> Iterator[EmulatedGPU]:
    """Inside, Triton's active driver is that of an emulated GPU: its kernels run on CPU tensors.

    So do tritonln's operators, and what torch.cuda says of devices, streams and graphs is said of this GPU.
    Not to be entered in one thread while another launches kernels.

    Args:
        target: the architecture: sm_80, sm_86, sm_89, sm_90, sm_100 or sm_120.
        devices: how many; they share the CPU's memory, and launches are checked to name the current one.
        check: looks for races, reads before writes, and programs that store to one place.  Accesses outside of
            tensors are refused always.
        count: sectors and wavefronts; executed instructions are counted always.
        perturbed, seed: approximate instructions give a value anywhere within their documented error.

    Raises:
        ValueError: an unknown target.
        RuntimeError: kernels are interpreted in this process: TRITON_INTERPRET is or was set.
    """
    if target not in CUDA_TARGETS:
        raise ValueError(f"expected target to be one of {', '.join(CUDA_TARGETS)}, but got {target!r}")
    if devices < 1:
        raise ValueError(f"expected devices to be at least 1, but got {devices}")
    if knobs.runtime.interpret or not isinstance(triton.language.sum, JITFunction) or interpreting():
        raise RuntimeError(
            "an emulated GPU runs compiled kernels, but TRITON_INTERPRET was set when Triton or a kernel was imported, "
            "or is still: unset it before the process starts"
        )
    gpu = EmulatedGPU(target, devices, perturbed, seed, check=check, count=count)
    before, hook = triton_driver._active, knobs.runtime.add_stages_inspection_hook
    triton_driver.set_active(gpu)
    if hook is None and not triton.__version__.startswith("3.6."):  # whose cache does not know of hooks
        knobs.runtime.add_stages_inspection_hook = _without_machine_code
    forget_driver()
    try:
        with gpu.addresses.noted(), played(gpu):
            yield gpu
    finally:
        triton_driver._active, knobs.runtime.add_stages_inspection_hook = before, hook
        forget_driver()
