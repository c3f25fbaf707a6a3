"""A GPU that compiles and launches but computes nothing: host time without a GPU.

`install()` makes Triton believe in one H100.  Kernels are compiled for real, every launch goes
through Triton's own C launcher into a libcuda that returns at once, and tensors stay on the CPU.
Needs a C compiler.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import pathlib
import subprocess
import tempfile
import types
from typing import Any

SOURCE = pathlib.Path(__file__).with_name("libcuda.c")


def build(folder: pathlib.Path) -> pathlib.Path:
    library = folder / "libcuda.so.1"
    command = ["cc", "-O2", "-shared", "-fPIC", "-Wl,-soname,libcuda.so.1", "-o", str(library), str(SOURCE)]
    subprocess.run(command, check=True)
    (folder / "libcuda.so").symlink_to(library)
    return library


def install() -> Any:
    """Activates the stub for this process, before anything imports Triton.  Returns its launch counter."""
    folder = pathlib.Path(tempfile.mkdtemp(prefix="tritonln-stub-"))
    library = ctypes.CDLL(str(build(folder)), mode=ctypes.RTLD_GLOBAL)
    library.stub_launches.restype = ctypes.c_ulonglong
    os.environ["TRITON_INTERPRET"] = "0"
    os.environ.setdefault("TRITON_CACHE_DIR", str(folder / "cache"))  # nothing of this is for other runs
    os.environ["LD_LIBRARY_PATH"] = f"{folder}:{os.environ.get('LD_LIBRARY_PATH', '')}"

    import torch
    import triton
    from triton import knobs
    from triton.backends.compiler import GPUTarget
    from triton.backends.nvidia import driver as nvidia

    knobs.nvidia.libcuda_path = str(folder)

    class StubDriver(nvidia.CudaDriver):  # type: ignore[misc]
        def __init__(self) -> None:
            self.utils = nvidia.CudaUtils()
            self.launcher_cls = nvidia.CudaLauncher
            self.get_device_capability = lambda device=0: (9, 0)
            self.get_current_stream = lambda device=0: 0
            self.get_current_device = lambda: 0
            self.set_current_device = lambda device: None

        def get_current_target(self) -> Any:
            return GPUTarget("cuda", 90, 32)

        def get_active_torch_device(self) -> torch.device:
            return torch.device("cpu")

        def get_benchmarker(self) -> Any:
            """Autotuners compile and launch each of their configurations, and find them alike."""
            return lambda call, quantiles=None, **_: (call(), [1.0] * len(quantiles or [0.5]))[1]

    driver = StubDriver()
    triton.runtime.driver.set_active(driver)
    triton.runtime.driver._default = driver
    _play_cuda(torch)
    return library.stub_launches


def _play_cuda(torch: Any) -> None:
    """For libraries that ask torch.cuda of a CPU-only torch."""
    properties = types.SimpleNamespace(
        name="stub", major=9, minor=0, multi_processor_count=132, warp_size=32, total_memory=80 << 30,
        max_threads_per_multi_processor=2048, regs_per_multiprocessor=65536, L2_cache_size=50 << 20,
        shared_memory_per_multiprocessor=233472, shared_memory_per_block_optin=232448,
    )  # fmt: skip
    torch.cuda.get_device_properties = lambda device=None: properties
    torch.cuda.get_device_capability = lambda device=None: (9, 0)
    torch.cuda.get_device_name = lambda device=None: "stub"
    torch.cuda.current_device = lambda: 0
    torch.cuda.device = lambda device=None: contextlib.nullcontext()
    torch.cuda.is_current_stream_capturing = lambda: True  # there are no graphs: steps are launched one by one
