"""Which devices Triton drives here, and what is known of each.

Nothing is asked of a driver before the first call that needs it, so importing tritonln
touches no GPU.
"""

from __future__ import annotations

import dataclasses
import functools

import torch

# A DRAM round trip under load, in seconds: an assumption.  Unloaded ones are shorter; Luo et al.
# (2024, arXiv 2402.13499) measured those of A100 and H100.
LATENCY = 700e-9


@dataclasses.dataclass(frozen=True, eq=False)  # compared by identity: a key of every launch
class Device:
    """A GPU as configurations and the inspector see it.  Sizes in bytes, bandwidth in bytes a second."""

    name: str
    backend: str  # "cuda", "hip", ...: Triton's word
    arch: int | str  # 90, "gfx942": Triton's word
    multiprocessors: int
    shared_memory: int  # that one program may use
    shared_memory_total: int  # of a multiprocessor
    threads: int  # that a multiprocessor holds
    programs: int  # that a multiprocessor holds
    bandwidth: float
    l2: int
    clock: float  # in Hz, the highest
    warp_size: int = 32
    type: str = "cuda"  # torch's word
    index: int | None = None  # torch's number; None where a type has one device only

    @property
    def played(self) -> bool:
        """Whether the CPU plays it, interpreting or emulating: nothing can be timed."""
        return self.type == "cpu" and self.backend != "cpu"

    @property
    def target(self) -> str:
        """The architecture as compilers spell it: "sm_90", "gfx942"."""
        return f"sm_{self.arch}" if self.backend == "cuda" else str(self.arch)

    @property
    def needed(self) -> int:
        """Bytes that Little's law asks a multiprocessor to have in flight: bandwidth * latency / multiprocessors."""
        return round(self.bandwidth * LATENCY / self.multiprocessors)

    @property
    def most_warps(self) -> int:
        """Of a program: no thread block has more than 1,024 threads."""
        return 1024 // self.warp_size


# Limits: CUDA programming guide, table "technical specifications per compute capability"; CDNA3 and
# CDNA4 instruction set guides.  Bandwidth, multiprocessors, last-level cache and clock: the vendors'
# data sheets.  Names are those that torch gives the devices.
_H100 = Device("NVIDIA H100 80GB HBM3", "cuda", 90, 132, 232_448, 233_472, 2048, 32, 3.35e12, 50 << 20, 1.98e9)
TARGETS = {
    "sm_80": Device("NVIDIA A100-SXM4-80GB", "cuda", 80, 108, 166_912, 167_936, 2048, 32, 2.039e12, 40 << 20, 1.41e9),
    "sm_86": Device("NVIDIA GeForce RTX 3090", "cuda", 86, 82, 101_376, 102_400, 1536, 16, 0.936e12, 6 << 20, 1.70e9),
    "sm_89": Device("NVIDIA GeForce RTX 4090", "cuda", 89, 128, 101_376, 102_400, 1536, 24, 1.008e12, 72 << 20, 2.52e9),
    "sm_90": _H100,
    "H200": dataclasses.replace(_H100, name="NVIDIA H200", bandwidth=4.8e12),
    "sm_100": Device("NVIDIA B200", "cuda", 100, 148, 232_448, 233_472, 2048, 32, 7.7e12, 126 << 20, 1.98e9),
    "sm_120": Device(
        "NVIDIA GeForce RTX 5090", "cuda", 120, 170, 101_376, 102_400, 1536, 24, 1.792e12, 96 << 20, 2.41e9
    ),
    "gfx942": Device(
        "AMD Instinct MI300X", "hip", "gfx942", 304, 65_536, 65_536, 2048, 32, 5.3e12, 256 << 20, 2.1e9, 64
    ),
    "gfx950": Device(
        "AMD Instinct MI355X", "hip", "gfx950", 256, 163_840, 163_840, 2048, 32, 8.0e12, 256 << 20, 2.4e9, 64
    ),
}
# The architectures of NVIDIA's, which PTX is made for.
CUDA_TARGETS = [name for name, device in TARGETS.items() if device.backend == "cuda" and device.target == name]


def of_arch(backend: str, arch: int | str) -> Device:
    """A target of an architecture; where none is known, the newest older one of the vendor's, or else its oldest."""
    ours = [d for d in TARGETS.values() if d.backend == backend] or [TARGETS["sm_80"]]
    exact = [d for d in ours if d.arch == arch]
    older = [d for d in ours if isinstance(arch, int) and isinstance(d.arch, int) and d.arch <= arch]
    known = exact[0] if exact else max(older, key=lambda d: int(d.arch), default=ours[0])
    return dataclasses.replace(known, backend=backend, arch=arch)


@functools.cache
def kernels_on(device: torch.device) -> Device | None:
    """What is known of a device whose tensors take the Triton kernels; None where they take ATen.

    The interpreter plays an H100.  Raises RuntimeError for a device that neither serves.
    """
    if not runs_triton(device.type):
        return None
    if interpreting():
        return dataclasses.replace(TARGETS["sm_90"], type=device.type, index=device.index)
    from triton.runtime import driver

    target = driver.active.get_current_target()
    known = of_arch(target.backend, target.arch)
    name = torch.get_device_module(device).get_device_name(device) if device.type != "cpu" else known.name
    known = next((d for d in TARGETS.values() if d.name == name), known)
    properties = driver.active.utils.get_device_properties(device.index or 0)
    return dataclasses.replace(
        known,
        name=name,
        backend=target.backend,
        arch=target.arch,
        warp_size=target.warp_size,
        multiprocessors=properties.get("multiprocessor_count", known.multiprocessors),
        shared_memory=properties.get("max_shared_mem", known.shared_memory),
        type=device.type,
        index=device.index,
    )


@functools.cache
def interpreting() -> bool:
    """Whether kernels run in Triton's interpreter, that is, TRITON_INTERPRET=1 when they were imported."""
    from triton.runtime.jit import JITFunction

    from tritonln.kernels.row import row_sum

    return not isinstance(row_sum, JITFunction)


@functools.cache
def triton_version() -> tuple[int, int]:
    import triton

    major, minor, *_ = triton.__version__.split(".")
    return int(major), int(minor)


@functools.cache
def active_device() -> tuple[str | None, Exception | None]:
    """The type of the tensors that Triton's active driver takes, or why there is none."""
    try:
        from triton.runtime import driver

        return driver.active.get_active_torch_device().type, None
    except (ImportError, RuntimeError) as error:  # no Triton for this platform; no driver, or no C compiler for it
        return None, error


def triton_device_type() -> str | None:
    """The type of the tensors that Triton's active driver takes; None without Triton or a driver."""
    return active_device()[0]


@functools.cache
def runs_triton(device_type: str) -> bool:
    """Whether tensors of this device type go through the Triton kernels, else through ATen.

    Raises RuntimeError for a device that neither serves.
    """
    if device_type == "meta":
        return False
    if device_type == "cpu":
        return _cpu_runs_triton()
    active, error = active_device()
    if device_type == active:
        return True
    raise RuntimeError(
        f"tritonln has no kernels for device type '{device_type}': expected the device type of Triton's "
        f"active driver ({active}) or 'cpu'"
    ) from error


def _cpu_runs_triton() -> bool:
    try:
        from triton.runtime import driver

        # A driver that was not asked for yet is that of a GPU, if there is one, and would begin to use it.
        asked = driver._active is not None or not torch.accelerator.is_available()
        return interpreting() or (asked and triton_device_type() == "cpu")
    except ImportError:
        return False
