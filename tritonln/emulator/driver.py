"""A driver of Triton's whose GPU is the emulator: `kernel[grid](...)` runs compiled code on CPU tensors.

with emulated_gpu("sm_90") as gpu:
    kernel[grid](tensors...)
gpu.runs[-1].counters
"""

from __future__ import annotations

import contextlib
import dataclasses
import itertools
import struct
import time
import types
from typing import Any

import torch
from triton.backends.compiler import GPUTarget
from triton.backends.driver import DriverBase

from .floats import Approximation
from .machine import Counters, Machine
from .memory import GlobalMemory
from .ptx import parse

# multiprocessors and shared memory per program, as tritonln.device.TARGETS has them
PROPERTIES = {
    80: (108, 166_912),
    86: (82, 101_376),
    89: (82, 101_376),
    90: (132, 232_448),
    100: (148, 232_448),
    120: (170, 101_376),
}
SCALARS = {
    "fp64": "<d",
    "fp32": "<f",
    "i64": "<q",
    "u64": "<Q",
    "i32": "<i",
    "u32": "<I",
    "i16": "<h",
    "i8": "<b",
    "i1": "<?",
}


_numbers = itertools.count(1)


@dataclasses.dataclass
class Run:
    name: str
    grid: tuple[int, int, int]
    counters: Counters
    seconds: float
    metadata: Any


class EmulatedDriver(DriverBase):
    def __init__(self, arch: int, perturbed: bool = False, seed: int = 0, **options: Any):
        super().__init__()
        self.target, self.options = GPUTarget("cuda", arch, 32), options
        self.approximate = Approximation(perturbed, seed)
        self.machines: dict[str, Machine] = {}
        self.runs: list[Run] = []
        self.number = next(_numbers)
        multiprocessors, shared = PROPERTIES[arch]
        properties = {"multiprocessor_count": multiprocessors, "max_shared_mem": shared, "warpSize": 32}
        self.utils = types.SimpleNamespace(
            get_device_properties=lambda device: properties,
            load_binary=lambda name, kernel, shared, device: (object(), name, 0, 0, 1024),
        )

    is_active = classmethod(lambda cls: False)
    get_current_target = lambda self: self.target
    get_active_torch_device = lambda self: torch.device("cpu")
    get_current_device = lambda self: self.number  # Triton keeps compiled kernels by it
    get_current_stream = lambda self, device: 0
    set_current_device = lambda self, device: None
    map_python_to_cpp_type = lambda self, ty: ty
    get_device_interface = lambda self: torch.cpu

    def get_benchmarker(self):
        raise NotImplementedError("nothing can be timed in an emulator")

    def launcher_cls(self, src, metadata):
        def launch(x, y, z, stream, function, packed, launch_metadata, enter, leave, *args):
            self.launch((x, y, z), src.signature, metadata, args)

        return launch

    def machine(self, metadata) -> Machine:
        found = self.machines.get(metadata.hash)
        if found is None:
            from triton.runtime.cache import get_cache_manager

            with open(get_cache_manager(metadata.hash).get_file(f"{metadata.name}.ptx")) as file:
                kernel = parse(file.read())
            found = Machine(kernel, metadata.shared, approximate=self.approximate, **self.options)
            self.machines[metadata.hash] = found
        return found

    def launch(self, grid, signature, metadata, args) -> None:
        if metadata.num_ctas != 1 or metadata.global_scratch_size or metadata.profile_scratch_size:
            raise NotImplementedError("clusters, scratch memory")
        machine, memory, params = self.machine(metadata), GlobalMemory(), []
        for name, kind, value in flat(signature.items(), args):
            if kind == "constexpr":
                continue
            if kind.startswith("*"):
                if not isinstance(value, torch.Tensor):
                    raise TypeError(f"{name}: an address without a tensor cannot be checked")
                memory.add(name, value)
                params.append(struct.pack("<Q", value.data_ptr()))
            else:
                params.append(struct.pack(SCALARS[kind], value))
        params += [bytes(8)] * (len(machine.kernel.params) - len(params))  # Triton's scratch pointers
        start = time.perf_counter()
        counters = machine.launch(grid, params, memory)
        self.runs.append(Run(metadata.name, grid, counters, time.perf_counter() - start, metadata))


def flat(signature, args):
    """(name, kind, value) of every argument; those of a tuple one by one."""
    for (name, kind), value in zip(signature, args):
        if isinstance(kind, tuple):
            yield from flat([(f"{name}[{i}]", k) for i, k in enumerate(kind)], value)
        else:
            yield name, kind, value


@contextlib.contextmanager
def emulated_gpu(target: str, **options: Any):
    """Inside, Triton's active GPU is emulated.  TRITON_INTERPRET must not be set when kernels are imported."""
    from triton.runtime import driver

    emulated = EmulatedDriver(int(target.removeprefix("sm_")), **options)
    before = driver._active
    driver.set_active(emulated)
    try:
        yield emulated
    finally:
        driver._active = before


def only_tensors() -> None:
    """Has tritonln hand over tensors at each launch: its shortcut passes addresses, which cannot be checked."""
    import tritonln.launch

    tritonln.launch._direct = lambda compiled: None
