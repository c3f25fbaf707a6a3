"""What a launch does to a GPU's memory pipes and schedulers, from its counters: what else only a profiler shows."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterable

from tritonln.emulator.driver import Run
from tritonln.emulator.memory import Traffic


@dataclasses.dataclass(frozen=True)
class Measured:
    """One launch.  A request is one instruction of one warp; a sector has 32 bytes; a wavefront is one pass through
    the 32 banks of shared memory.  `least` is what the bytes of the requests need at the fewest.
    """

    kernel: str
    programs: int
    instructions: float  # executed by each program's warps together
    load_requests: int
    load_sectors: int  # of global memory, loads and asynchronous copies
    load_least: int
    load_bytes: int
    store_requests: int
    store_sectors: int
    store_least: int
    wavefronts: float  # of each program, loads and stores of shared memory
    wavefronts_least: float

    @property
    def sectors_per_request(self) -> float:
        return self.load_sectors / max(1, self.load_requests)

    @property
    def store_sectors_per_request(self) -> float:
        return self.store_sectors / max(1, self.store_requests)


def measured(run: Run) -> Measured:
    """Of a launch that was counted: an emulated GPU with `count=True`."""
    x, y, z = run.grid
    programs, memory = x * y * z, run.counters.memory()
    loads = added(memory[kind] for kind in ("global_load", "global_copy") if kind in memory)
    stores = added(memory[kind] for kind in ("global_store",) if kind in memory)
    shared = added(memory[kind] for kind in ("shared_load", "shared_store") if kind in memory)
    return Measured(
        kernel=run.name,
        programs=programs,
        instructions=int(run.counters.executed.sum()) / programs,
        load_requests=loads.requests,
        load_sectors=loads.units,
        load_least=loads.ideal,
        load_bytes=loads.bytes,
        store_requests=stores.requests,
        store_sectors=stores.units,
        store_least=stores.ideal,
        wavefronts=shared.units / programs,
        wavefronts_least=shared.ideal / programs,
    )


def added(parts: Iterable[Traffic]) -> Traffic:
    total = Traffic()
    for part in parts:
        for field in dataclasses.fields(Traffic):
            setattr(total, field.name, getattr(total, field.name) + getattr(part, field.name))
    return total


def table(runs: Iterable[Run]) -> str:
    """Aligned columns, one launch a line."""
    head = ["kernel", "programs", "instr/program", "sectors/load", "least", "sectors/store", "least"]
    lines = [[*head, "wavefronts/program", "least"]]
    for m in map(measured, runs):
        lines.append([
            m.kernel, str(m.programs), f"{m.instructions:.0f}",
            f"{m.sectors_per_request:.1f}", f"{m.load_least / max(1, m.load_requests):.1f}",
            f"{m.store_sectors_per_request:.1f}", f"{m.store_least / max(1, m.store_requests):.1f}",
            f"{m.wavefronts:.0f}", f"{m.wavefronts_least:.0f}",
        ])  # fmt: skip
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)
