"""What a launch does to a GPU's memory pipes and schedulers, from its counters: what else only a profiler shows."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import torch
from torch import Tensor

from tritonln.configurations.config import STEPS, Config
from tritonln.configurations.lookup import known
from tritonln.configurations.tunable import Key, Tunable, operators
from tritonln.device import TARGETS, Device, kernels_on
from tritonln.emulator.counters import SECTOR, Traffic
from tritonln.emulator.driver import Run, emulated_gpu
from tritonln.launch import Recorded
from tritonln.launches import prepared, training_launches


@dataclasses.dataclass(frozen=True)
class Executed:
    """What a launch did, on fewer rows than a static report may be of."""

    rows: int
    instructions_per_element: float  # by threads
    sectors_per_load: float  # of 32 bytes, of one warp's request of global memory
    sectors_per_load_least: float  # that its bytes need
    loaded_per_element: float  # bytes of all sectors that were loaded, from memory or any cache
    wavefronts: float  # of shared memory, of a program
    wavefronts_least: float  # without bank conflicts


@dataclasses.dataclass(frozen=True)
class Measured:
    """One launch.

    A request is one instruction of one warp.  `load_*` are of global memory, asynchronous copies included; a sector has
    32 bytes.  A wavefront is one pass through the 32 banks of shared memory.  `*_least`: what the bytes of the requests
    need at the fewest.
    """

    kernel: str
    rows: int
    hidden: int
    programs: int
    instructions: int  # executed, by all warps
    load_requests: int
    load_sectors: int
    load_least: int
    store_requests: int
    store_sectors: int
    store_least: int
    wavefronts: float  # of a program
    wavefronts_least: float

    @property
    def cycles(self) -> float:
        """Of first caches and shared memory, which give 128 bytes in one: four sectors, or a wavefront."""
        return (self.load_sectors + self.store_sectors) / 4 + self.wavefronts * self.programs

    @property
    def executed(self) -> Executed:
        """For the inspector."""
        requests = max(1, self.load_requests)
        return Executed(
            rows=self.rows,
            instructions_per_element=32 * self.instructions / (self.rows * self.hidden),
            sectors_per_load=self.load_sectors / requests,
            sectors_per_load_least=self.load_least / requests,
            loaded_per_element=SECTOR * self.load_sectors / (self.rows * self.hidden),
            wavefronts=self.wavefronts,
            wavefronts_least=self.wavefronts_least,
        )


def measured(run: Run, rows: int, hidden: int) -> Measured:
    """Of a launch on an emulated GPU with `count=True`."""
    x, y, z = run.grid
    programs, memory = x * y * z, run.counters.memory()

    def traffic(*kinds: str) -> Traffic:
        parts = [memory[kind] for kind in kinds if kind in memory]
        return Traffic(*(sum(getattr(part, f.name) for part in parts) for f in dataclasses.fields(Traffic)))

    loads, stores = traffic("global_load", "global_copy"), traffic("global_store")
    shared = traffic("shared_load", "shared_store")
    return Measured(
        kernel=run.name,
        rows=rows,
        hidden=hidden,
        programs=programs,
        instructions=int(run.counters.executed.sum()),
        load_requests=loads.requests,
        load_sectors=loads.units,
        load_least=loads.ideal,
        store_requests=stores.requests,
        store_sectors=stores.units,
        store_least=stores.ideal,
        wavefronts=shared.units / programs,
        wavefronts_least=shared.ideal / programs,
    )


TILES = 2  # that each program of the backward walks: what it does once and what it does for each both show
TILES_EACH = 8, 24  # that `cycles` runs: of eight batches where there are any
MOST = 5 << 20  # values of x, that this takes seconds


def _constants(call: Recorded) -> dict[str, Any]:
    return dict(zip((p.name for p in call.launch.kernel.params if p.is_constexpr), call.launch.constants))


def _chunks(call: Recorded, N: int) -> int:
    """Of a row, each of which has a program of its own."""
    constants = _constants(call)
    width = constants.get("PIECES", 1) * constants["BLOCK_N"] + constants.get("REST", 0)
    return -(-N // width) if {"PIECES", "CHUNKS"} & constants.keys() else 1


def _walked(call: Recorded, N: int, asked: int) -> int:
    """Rows of which each program has TILES tiles, where programs walk those of so many; else two tiles."""
    height, programs = int(_constants(call).get("BLOCK_M", 1)), call.programs // _chunks(call, N)
    tiles = TILES * programs if programs * height < asked else 0
    return height * max(2, min(tiles, MOST // (N * height)))


@functools.cache
def training(
    operator: str,
    target: str,
    N: int,
    dtype: torch.dtype = torch.bfloat16,
    parameter_dtype: torch.dtype = torch.float32,
) -> list[Measured]:
    """The launches of an operator for rows of N values, forward and backward, and the sums of partial sums."""
    asked = 1 << 16
    forward, backward, *_ = training_launches(operator, target, N, dtype, parameter_dtype, asked)
    chunks = _chunks(backward, N)
    rows = max(_walked(call, N, asked) for call in (forward, backward))

    def random(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape).to(dtype)

    with emulated_gpu(target, check=False) as gpu:
        operators()[operator].train(random, rows, N, dtype, parameter_dtype, emulated_device())
        partial = gpu.runs[1].grid[0] // chunks  # rows of what the last kernels add up
        return [measured(run, partial if run.name == "column_sum" else rows, N) for run in gpu.runs]


def kernel(target: str, tunable: Tunable, key: Key, config: Config | None = None) -> Measured | None:
    """One launch of a tunable kernel, in the configuration that is looked up where it is None.

    None where a kernel of whole sequences is not launched for such rows, but those of single steps.
    """
    if config is None:
        config = known(tunable, key, TARGETS[target]).config
    if config == STEPS:
        return None
    with emulated_gpu(target, check=False) as gpu:
        device = emulated_device()
        rows = int(tunable.most_rows(device))
        launch, _ = prepared(tunable, key, tunable.plan(key, config, device), rows, 0, torch.device("cpu"))
        launch()
        return measured(gpu.runs[-1], rows * tunable.steps, key.N)


def cycles(tunable: Tunable, key: Key, config: Config, device: Device, rows: int) -> list[float]:
    """What Measured.cycles is for each launch of a kernel on so many rows of NVIDIA's `device`, from few of them.

    It grows by what each tile takes; what a program takes once is the rest of it.
    """
    least, most = TILES_EACH
    totals = []
    with emulated_gpu(device.target, check=False) as gpu:
        plan = tunable.plan(key, config, emulated_device())
        few = plan._replace(programs=min(1, plan.programs))
        for tiles in (least, most):
            M = tiles * config.block_m
            prepared(tunable, key, few, M, 0, torch.device("cpu"))[0]()
            totals.append([measured(run, M, key.N).cycles for run in gpu.runs])
            gpu.runs.clear()
    plan = tunable.plan(key, config, device)
    programs = tunable.programs(plan, rows, key.N) / tunable.programs(few, least * config.block_m, key.N)
    found = []
    for little, much in zip(*totals, strict=True):
        each = (much - little) / (most - least)
        once = little - each * least
        found.append(each * -(-rows // config.block_m) + once * programs)
    return found


def emulated_device() -> Device:
    device = kernels_on(torch.device("cpu"))
    assert device is not None
    return device
