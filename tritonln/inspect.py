"""What tritonln would launch on a GPU that need not be there, compiled and read.

The operators run on meta tensors, their launches are noted instead of carried out, each kernel is
compiled for the named GPU by Triton's own compiler, and the machine code is read with the
disassembler of the triton wheel.  Everything here is static; no time is measured.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import TYPE_CHECKING

import torch

from tritonln.compile import compile_launch
from tritonln.configurations.config import STEPS
from tritonln.configurations.lookup import known
from tritonln.configurations.tunable import registered
from tritonln.device import TARGETS, Device
from tritonln.launch import Recorded, tensors_in
from tritonln.launches import launches_of, training_launches
from tritonln.machine_code import read_amdgcn, read_cubin

if TYPE_CHECKING:
    from tritonln.executed import Executed


@dataclasses.dataclass(frozen=True)
class Report:
    """One compiled kernel.  Sizes in bytes; loads and stores map the width in bits to a static count."""

    kernel: str
    target: str
    hidden: int
    constants: dict[str, int]
    tile: tuple[int, int]  # rows and columns of a program
    num_warps: int  # of each thread block
    num_ctas: int  # thread blocks that share a program: a cluster
    programs: int  # of the launch on `rows` rows, those that walk these
    registers: int
    spills: int
    shared: int
    resident: int  # thread blocks that a multiprocessor holds
    occupancy: float
    loads: dict[int, int]
    stores: dict[int, int]
    barriers: int  # in the row loop, or in all where there is none
    async_copies: int
    cluster: int  # cluster barriers and mappings into another block's shared memory
    bytes_per_element: float  # that must move: every tensor once, over the values of x
    streamed: int  # of these, those of x and dy, or of a set of partial sums
    instructions_per_element: float | None  # of the row loop, or of all where there is none
    in_flight: int  # bytes a multiprocessor has outstanding
    needed: int  # of these, by Little's law
    rows: int  # of the launch
    outside: int = 0  # instructions of a warp before and behind the row loop
    local: float = 0.0  # bytes of spilled values that are loaded and stored for an element of the row loop
    again: float = 0.0  # of the bytes an element, those of tensors that the launch before had too
    pipe: float = 0.0  # cycles of a first cache and its shared memory for an element; of what ran on an emulated GPU
    executed: Executed | None = None  # counted in a run on an emulated GPU


def inspect_operator(
    operator: str,
    target: str,
    hidden: int,
    dtype: torch.dtype = torch.bfloat16,
    parameter_dtype: torch.dtype = torch.float32,
    rows: int = 1 << 16,
    run: bool = False,
) -> list[Report]:
    """Compiles what a row operator, such as "layer_norm", launches, forward and backward, for rows of `hidden` values.

    `run`: also runs it on an emulated GPU, on as many rows as that takes seconds for.
    """
    forward, *backward = training_launches(operator, target, hidden, dtype, parameter_dtype, rows)
    found = [report(forward, TARGETS[target], hidden), *reports(backward, TARGETS[target], hidden)]
    if run:
        from tritonln import executed  # which imports numpy

        ran = executed.training(operator, target, hidden, dtype, parameter_dtype)
        found = [dataclasses.replace(r, executed=m.executed) for r, m in zip(found, ran, strict=True)]
    return found


def inspect_kernel(
    target: str,
    kernel: str,
    hidden: int,
    dtype: torch.dtype = torch.bfloat16,
    parameter_dtype: torch.dtype = torch.float32,
    run: bool = False,
) -> Report | None:
    """Compiles one of the recurrent kernels as a training step launches it, on as many rows as it is tuned on.

    None where a kernel of whole sequences is not launched for rows of `hidden` values, but those of single steps.
    """
    tunable, device = registered()[kernel], TARGETS[target]
    keys = list(tunable.keys(hidden, dtype))
    key = next((k for k in keys if k.operands["gain_hh"] == parameter_dtype), keys[0])
    config = known(tunable, key, device).config
    if config == STEPS:
        return None
    rows = int(tunable.most_rows(device))
    (call,) = launches_of(tunable, key, config, device, rows)
    found = report(call, device, hidden, rows * tunable.steps)
    if run:
        from tritonln import executed  # which imports numpy

        counted = executed.kernel(target, tunable, key, config)
        found = dataclasses.replace(found, executed=None if counted is None else counted.executed)
    return found


def reports(calls: Sequence[Recorded], device: Device, hidden: int, rows: int | None = None) -> list[Report]:
    """Of launches that follow one another: what one has of the tensors of the last may still be in the cache."""
    found, before = [], set[int]()
    for call in calls:
        tensors = [t for t in tensors_in(call.args) if t is not None]
        again = sum(t.numel() * t.element_size() for t in tensors if id(t) in before)
        r = report(call, device, hidden, rows)
        found.append(dataclasses.replace(r, again=again / (r.rows * hidden)))
        before = {id(t) for t in tensors}
    return found


def report(call: Recorded, device: Device, hidden: int, rows: int | None = None) -> Report:
    """Compiles a launch and reads it.  `rows` are those of its first matrix if nothing is said; of a kernel of whole
    sequences, a row is one of each time step.
    """
    rows = call_rows(call) if rows is None else rows
    compiled = compile_launch(call, device)
    names = [p.name for p in call.launch.kernel.params if p.is_constexpr]
    values_of = zip(names, call.launch.constants, strict=True)
    constants: dict[str, int] = {name: value for name, value in values_of if type(value) is int}
    read = read_cubin if device.backend == "cuda" else read_amdgcn
    code = read(compiled, device)
    warps, ctas = call.launch.options["num_warps"], call.launch.options["num_ctas"]
    # Others, which add up partial sums, are charged for with what is outside the row loop.
    programs = call.programs - dict(zip(call.launch.kernel.arg_names, call.args)).get("adding", 0)
    resident = min(code.resident, -(-programs * ctas // device.multiprocessors))
    height = constants.get("BLOCK_M", constants.get("BLOCK_P", 1))
    width = constants.get("PIECES", 1) * constants.get("BLOCK_N", constants.get("BLOCK_H", 1))
    width = min(width + constants.get("REST", 0), hidden)
    values = height * width / ctas  # of one thread block
    tensors = [t for t in tensors_in(call.args) if t is not None]
    streamed = call.launch.of.streamed(call.args)
    prefetched = max(1, constants.get("AHEAD", 0), constants.get("STAGES", 1) - 1 if code.async_copies else 0)
    return Report(
        kernel=compiled.metadata.name,
        target=device.target,
        hidden=hidden,
        constants=constants,
        tile=(height, width),
        num_warps=warps,
        num_ctas=ctas,
        programs=programs,
        registers=code.registers,
        spills=code.spills,
        shared=compiled.metadata.shared,
        resident=resident,
        occupancy=code.resident * warps * device.warp_size / device.threads,
        loads=code.loads,
        stores=code.stores,
        barriers=code.barriers,
        async_copies=code.async_copies,
        cluster=code.cluster,
        bytes_per_element=round(sum(t.numel() * t.element_size() for t in tensors) / (rows * hidden), 3),
        streamed=streamed,
        instructions_per_element=code.instructions * warps * device.warp_size / values if code.instructions else None,
        in_flight=round(resident * prefetched * values * streamed),
        needed=device.needed,
        rows=rows,
        outside=code.outside,
        local=code.local * warps * device.warp_size / values,
    )


def call_rows(call: Recorded) -> int:
    """The rows of x, or of the partial sums, that a launch walks."""
    return next(t.shape[:-1].numel() for t in tensors_in(call.args) if t is not None and t.dim() > 1)


# ---- for people ---------------------------------------------------------------------------------


def table(reports: list[Report]) -> str:
    """Aligned columns, one kernel a line."""
    head = [
        *("kernel", "N", "tile", "warps", "regs", "spill B", "shared B", "resident", "occup."),
        *("loads", "stores", "barriers", "async", "cluster", "B/elem", "instr/elem", "KiB in flight", "needed"),
        *(
            ("run: rows", "instr/elem", "sectors/load", "loaded B/elem", "wavefronts")
            if any(r.executed for r in reports)
            else ()
        ),
    ]
    lines = [
        [
            r.kernel,
            str(r.hidden),
            "x".join(str(v) for k, v in r.constants.items() if k.startswith(("PIECES", "BLOCK"))),
            f"{r.num_warps}" if r.num_ctas == 1 else f"{r.num_ctas}x{r.num_warps}",
            str(r.registers),
            str(r.spills),
            str(r.shared),
            str(r.resident),
            f"{r.occupancy:.0%}",
            counted_widths(r.loads),
            counted_widths(r.stores),
            str(r.barriers),
            str(r.async_copies),
            str(r.cluster),
            f"{r.bytes_per_element:.2f}",
            "-" if r.instructions_per_element is None else f"{r.instructions_per_element:.1f}",
            f"{r.in_flight / 1024:.0f}",
            f"{r.needed / 1024:.0f}",
            *ran(r.executed),
        ]
        for r in reports
    ]
    widths = [max(len(row[i]) for row in [head, *lines]) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in [head, *lines])


def ran(e: Executed | None) -> list[str]:
    """Cells of what was executed, each with the least that there could be."""
    if e is None:
        return []
    return [
        str(e.rows),
        f"{e.instructions_per_element:.1f}",
        f"{e.sectors_per_load:.1f} ({e.sectors_per_load_least:.1f})",
        f"{e.loaded_per_element:.1f}",
        f"{e.wavefronts:.0f} ({e.wavefronts_least:.0f})",
    ]


def counted_widths(widths: dict[int, int]) -> str:
    return " ".join(f"{count}x{bits}" for bits, count in widths.items())
