"""Reading what Triton compiled: SASS with the disassembler of its wheel, AMD's assembly from its text."""

from __future__ import annotations

import dataclasses
import os
import re
import subprocess
import tempfile
from collections.abc import Iterator
from typing import Any

from tritonln.device import Device


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
    outside: int = 0  # instructions before and behind the row loop
    local: int = 0  # bytes of spilled values that a thread loads and stores, in the row loop


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
        outside=len(code) - len(loop),
        local=sum(n * bits // 8 for bits, n in _widths(loop, ("LDL", "STL")).items()),
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


def read_amdgcn(compiled: Any, device: Device) -> Code:
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
