"""What tritonln would launch on a GPU that need not be there, compiled and read.

The operators run on meta tensors, their launches are noted instead of carried out, each kernel is
compiled for the named GPU by Triton's own compiler, and the machine code is read with the
disassembler of the triton wheel.  Everything here is static; no time is measured.
"""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

import torch

from tritonln.device import TARGETS, Device
from tritonln.launch import Recorded, recorded

# A DRAM round trip under load, in seconds: an assumption.  Unloaded ones are shorter; Luo et al.
# (2024, arXiv 2402.13499) measured those of A100 and H100.
LATENCY = 700e-9

TRITON_TYPES = {torch.float32: "fp32", torch.float16: "fp16", torch.bfloat16: "bf16", torch.float64: "fp64"}


@dataclasses.dataclass(frozen=True)
class Report:
    """One compiled kernel.  Sizes in bytes; loads and stores map the width in bits to a static count."""

    kernel: str
    target: str
    hidden: int
    constants: dict[str, int]
    num_warps: int  # of each thread block
    num_ctas: int  # thread blocks that share a program: a cluster
    programs: int  # of the launch on `rows` rows
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
    instructions_per_element: float | None  # of the row loop, or of all where there is none
    in_flight: int  # bytes a multiprocessor has outstanding
    needed: int  # bytes that Little's law asks for: bandwidth * latency / multiprocessors


def inspect_layer_norm(
    target: str,
    hidden: int,
    dtype: torch.dtype = torch.bfloat16,
    parameter_dtype: torch.dtype = torch.float32,
    rows: int = 1 << 16,
) -> list[Report]:
    """Compiles what tritonln.layer_norm launches, forward and backward, for rows of `hidden` values."""
    return [_report(call, target, hidden) for call in layer_norm_launches(target, hidden, dtype, parameter_dtype, rows)]


def layer_norm_launches(
    target: str, hidden: int, dtype: torch.dtype, parameter_dtype: torch.dtype, rows: int
) -> list[Recorded]:
    from tritonln.ops.layer_norm import _backward, _forward

    if target not in TARGETS:
        raise ValueError(f"unknown target {target!r}: expected one of {', '.join(TARGETS)}")
    if dtype == torch.float64:
        parameter_dtype = dtype
    x = torch.empty(rows, hidden, dtype=dtype, device="meta")
    weight, bias = (torch.empty(hidden, dtype=parameter_dtype, device="meta") for _ in range(2))
    device = TARGETS[target]
    with recorded() as calls:
        _, stats = _forward(x, hidden, weight, bias, 1e-5, dtype, True, device)
        assert stats is not None
        _backward(torch.empty_like(x), x, hidden, weight, bias, stats, (True, True, True), device)
    return calls


def compile_launch(call: Recorded, device: Device) -> Any:
    """Triton's CompiledKernel of a noted launch, for pointers aligned to 16 bytes."""
    import triton
    from triton.backends.compiler import GPUTarget
    from triton.compiler import ASTSource

    kernel, values = call.launch.kernel, (*call.args, *call.launch.constants)
    signature: dict[str, str] = {}
    constants: dict[str, Any] = {}
    aligned: dict[tuple[int], list[list[Any]]] = {}
    for i, (parameter, value) in enumerate(zip(kernel.params, values, strict=True)):
        if parameter.is_constexpr or value is None:
            signature[parameter.name], constants[parameter.name] = "constexpr", value
        elif isinstance(value, torch.Tensor):
            signature[parameter.name] = "*" + TRITON_TYPES[value.dtype]
            aligned[(i,)] = [["tt.divisibility", 16]]
        else:
            signature[parameter.name] = parameter.annotation_type or "i64"
    return triton.compile(
        ASTSource(kernel, signature, constexprs=constants, attrs=aligned),
        target=GPUTarget(device.backend, device.arch, device.warp_size),
        options=dict(call.launch.options),
    )


def _report(call: Recorded, target: str, hidden: int) -> Report:
    device = TARGETS[target]
    compiled = compile_launch(call, device)
    names = [p.name for p in call.launch.kernel.params if p.is_constexpr]
    constants = dict(zip(names, call.launch.constants, strict=True))
    read = read_cubin if device.backend == "cuda" else _read_amdgcn
    code = read(compiled, device)
    warps, ctas = call.launch.options["num_warps"], call.launch.options["num_ctas"]
    resident = min(code.resident, -(-call.programs * ctas // device.multiprocessors))
    # Of one thread block.
    rows, columns = constants.get("BLOCK_M", constants.get("BLOCK_P", 1)), min(constants["BLOCK_N"], hidden) / ctas
    tensors = [a for a in call.args if isinstance(a, torch.Tensor)]
    # What is read row by row: x, dy and x, or one set of partial sums at a time; not weight.
    streams = call.args[:1] if "BLOCK_P" in constants else [a for a in call.args[:2] if a.dim() > 1]
    tile = sum(rows * columns * s.element_size() for s in streams)
    prefetched = max(1, constants.get("STAGES", 1) - 1) if code.async_copies else 1
    return Report(
        kernel=call.launch.kernel.__name__,
        target=target,
        hidden=hidden,
        constants=constants,
        num_warps=warps,
        num_ctas=ctas,
        programs=call.programs,
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
        bytes_per_element=round(sum(t.numel() * t.element_size() for t in tensors) / (call_rows(call) * hidden), 3),
        instructions_per_element=code.instructions * warps * device.warp_size / (rows * columns)
        if code.instructions
        else None,
        in_flight=round(resident * prefetched * tile),
        needed=round(device.bandwidth * LATENCY / device.multiprocessors),
    )


def call_rows(call: Recorded) -> int:
    """The rows of x, or of the partial sums, that a launch walks."""
    return next(a.shape[0] for a in call.args if isinstance(a, torch.Tensor) and a.dim() > 1)


# ---- reading machine code -----------------------------------------------------------------------


@dataclasses.dataclass(frozen=True)
class Code:
    registers: int
    spills: int
    resident: int
    loads: dict[int, int]
    stores: dict[int, int]
    barriers: int
    async_copies: int
    cluster: int
    instructions: int


def _tool(name: str, *args: str) -> str:
    import triton

    path = os.path.join(os.path.dirname(triton.__file__), "backends", "nvidia", "bin", name)
    return subprocess.run([path, *args], capture_output=True, text=True, check=True).stdout


def read_cubin(compiled: Any, device: Device) -> Code:
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(compiled.asm["cubin"])
        file.flush()
        usage = _tool("cuobjdump", "-res-usage", file.name)
        sass = _tool("cuobjdump", "-sass", file.name)
    found = re.search(r"REG:(\d+)\s+STACK:(\d+)", usage)
    assert found is not None, usage
    registers, spills = int(found[1]), int(found[2])
    code = list(_instructions(sass))
    loop = _row_loop(code)
    operations = [operation for _, operation, _ in loop]
    warps = compiled.metadata.num_warps
    return Code(
        registers=registers,
        spills=spills,
        resident=_resident_cuda(device, registers, warps, compiled.metadata.shared),
        loads=_widths(code, ("LDG", "LDGSTS")),
        stores=_widths(code, ("STG",)),
        barriers=sum(o.startswith("BAR") for o in operations),
        async_copies=sum(o.startswith("LDGSTS") for _, o, _ in code),
        cluster=sum(o.startswith(("UCGABAR", "MAPA")) for _, o, _ in code),
        instructions=sum(o != "NOP" for o in operations),
    )


def _instructions(sass: str) -> Iterator[tuple[int, str, str]]:
    """(address, operation, operands) of every instruction up to the last exit."""
    parsed = []
    for line in sass.splitlines():
        found = re.match(r"\s*/\*([0-9a-f]{4,})\*/\s+(?:@\S+\s+)?(\S+)\s*(.*?);", line)
        if found:
            parsed.append((int(found[1], 16), found[2], found[3]))
    last = max((i for i, (_, o, _) in enumerate(parsed) if o.startswith("EXIT")), default=len(parsed) - 1)
    yield from parsed[: last + 1]


def _row_loop(code: list[tuple[int, str, str]]) -> list[tuple[int, str, str]]:
    """The longest loop body, or all of the code where nothing loops."""
    index = {address: i for i, (address, _, _) in enumerate(code)}
    longest = code[:0]
    for i, (_, operation, operands) in enumerate(code):
        target = re.search(r"0x([0-9a-f]+)", operands) if operation.startswith("BRA") else None
        start = index.get(int(target[1], 16)) if target else None
        if start is not None and start < i and i + 1 - start > len(longest):
            longest = code[start : i + 1]
    return longest or code


def _widths(code: list[tuple[int, str, str]], heads: tuple[str, ...]) -> dict[int, int]:
    counts: dict[int, int] = {}
    for _, operation, _ in code:
        head, *modifiers = operation.split(".")
        if head in heads:
            wide = [int(m) for m in modifiers if m in ("64", "128", "256")]
            narrow = [int(m[1:]) for m in modifiers if m in ("U8", "S8", "U16", "S16")]
            width = (wide or narrow or [32])[0]
            counts[width] = counts.get(width, 0) + 1
    return dict(sorted(counts.items(), reverse=True))


def _resident_cuda(device: Device, registers: int, warps: int, shared: int) -> int:
    """Programs a multiprocessor holds: registers go to warps in units of 256, 1 KiB of shared memory is reserved."""
    per_warp = -(-registers * 32 // 256) * 256
    return min(
        device.programs,
        65_536 // (per_warp * warps),
        device.threads // (warps * 32),
        device.shared_memory_total // (shared + 1024),
    )


def _read_amdgcn(compiled: Any, device: Device) -> Code:
    text = compiled.asm["amdgcn"]

    def entry(name: str) -> int:
        found = re.search(rf"\.{name}:\s+(\d+)", text)
        assert found is not None, name
        return int(found[1])

    vgprs = entry("vgpr_count")
    waves = min(8, 512 // max(8, -(-vgprs // 8) * 8)) * 4  # of 512 registers on each of 4 SIMDs, in units of 8
    shared = compiled.metadata.shared
    resident = min(waves // compiled.metadata.num_warps, device.shared_memory_total // shared if shared else 32)
    return Code(
        registers=vgprs,
        spills=entry("private_segment_fixed_size") + 4 * entry("vgpr_spill_count"),
        resident=resident,
        loads=_amd_widths(text, "load"),
        stores=_amd_widths(text, "store"),
        barriers=len(re.findall(r"^\s+s_barrier", text, re.M)),
        async_copies=len(re.findall(r"\blds\s*$", text, re.M)),
        cluster=0,
        instructions=0,
    )


def _amd_widths(text: str, verb: str) -> dict[int, int]:
    bits = {"dwordx4": 128, "dwordx3": 96, "dwordx2": 64, "dword": 32, "short": 16, "ushort": 16, "b128": 128}
    counts: dict[int, int] = {}
    for kind in re.findall(rf"^\s+(?:global|buffer|flat)_{verb}_(\w+)", text, re.M):
        width = next((b for k, b in bits.items() if kind.startswith(k)), 16)
        counts[width] = counts.get(width, 0) + 1
    return dict(sorted(counts.items(), reverse=True))


# ---- for people ---------------------------------------------------------------------------------


def table(reports: list[Report]) -> str:
    """Aligned columns, one kernel a line."""
    head = [
        *("kernel", "N", "tile", "warps", "regs", "spill B", "shared B", "resident", "occup."),
        *("loads", "stores", "barriers", "async", "cluster", "B/elem", "instr/elem", "KiB in flight", "needed"),
    ]
    lines = [
        [
            r.kernel,
            str(r.hidden),
            "x".join(str(v) for k, v in r.constants.items() if k.startswith("BLOCK")),
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
        ]
        for r in reports
    ]
    widths = [max(len(row[i]) for row in [head, *lines]) for i in range(len(head))]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(row, widths)).rstrip() for row in [head, *lines])


def counted_widths(widths: dict[int, int]) -> str:
    return " ".join(f"{count}x{bits}" for bits, count in widths.items())
