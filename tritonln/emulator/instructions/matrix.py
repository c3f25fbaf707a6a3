"""mma, ldmatrix, stmatrix: matrices that the lanes of a warp hold together."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np

from tritonln.emulator import floats
from tritonln.emulator.counters import count_wavefronts
from tritonln.emulator.faults import Array
from tritonln.emulator.group import Group
from tritonln.emulator.instructions.compiler import Compiler, Run, handles, only, parts_of, slot_of
from tritonln.emulator.ptx import Instruction
from tritonln.emulator.warps import LANES

_G, _T = LANES[0][:, None] // 4, LANES[0][:, None] % 4  # group of four lanes, and place in it


def _registers(R: list[Any], slots: list[int]) -> Array:
    """(warps, 32, registers)"""
    stacked = np.stack(np.broadcast_arrays(*(R[s] for s in slots)), -1)
    return np.broadcast_to(stacked, (stacked.shape[0], 32, stacked.shape[2]))


def _reader(kind: str) -> Callable[[Array], Array]:
    """32-bit registers -> the numbers in them."""
    if kind == "tf32":
        return floats.to_tf32
    if kind == "f16":
        return lambda x: np.ascontiguousarray(x).view(np.float16)
    return lambda x: floats.from_bf16(np.ascontiguousarray(x).view(np.uint16))


@handles("mma")
def _mma(c: Compiler, ins: Instruction) -> Run:
    """D = A B + C of fp16, bf16 or tf32, in fp32.

    The sum is formed in fp64 and rounded once; a GPU keeps fewer bits.
    """
    shape = next((w for w in ins.op if w.startswith("m16n8k")), None)
    types = ins.op[-4:]
    kind = types[1]
    if shape is None or types != ("f32", kind, kind, "f32") or kind not in ("f16", "bf16", "tf32"):
        raise NotImplementedError(str(ins))
    only(ins, "sync", "aligned", "row", "col", shape, "f32", kind)
    k = int(shape[6:])
    d, a, b, acc = ([c.source(p, 32, True) for p in parts_of(o)] for o in ins.operands)
    read = _reader(kind)
    width = 1 if kind == "tf32" else 2  # neighbours in a register
    i = np.arange(len(a) * width)[None, :]
    block = i // width
    rows_a, columns_a = _G + 8 * (block % 2), _T * width + i % width + 4 * width * (block // 2)
    i = np.arange(len(b) * width)[None, :]
    rows_b, columns_b = _T * width + i % width + 4 * width * (i // width), _G + 0 * i
    i = np.arange(4)[None, :]
    rows_c, columns_c = _G + 8 * (i // 2), _T * 2 + i % 2

    def run(g: Group) -> None:
        R, warps = g.R, g.size
        A, B, C = np.zeros((warps, 16, k)), np.zeros((warps, k, 8)), np.zeros((warps, 16, 8))
        A[:, rows_a, columns_a] = read(_registers(R, a))
        B[:, rows_b, columns_b] = read(_registers(R, b))
        C[:, rows_c, columns_c] = np.ascontiguousarray(_registers(R, acc)).view(np.float32)
        D = (A @ B + C).astype(np.float32)[:, rows_c, columns_c].view(np.uint32)
        for j, slot in enumerate(d):
            R[slot] = np.ascontiguousarray(D[:, :, j])

    return run


@handles("ldmatrix")
def _ldmatrix(c: Compiler, ins: Instruction) -> Run:
    """Tiles of 8 x 8 halves; lane i gives the address of row i % 8 of tile i // 8."""
    only(ins, "sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "cta")
    slots = [slot_of(p) for p in parts_of(ins.operands[0])]
    address, n, transposed = c.address(ins.operands[1], 32), len(slots), "trans" in ins.op
    used = 8 * n > LANES

    def run(g: Group) -> None:
        at, shared = np.broadcast_to(address(g.R), (g.size, 32)), g.batch.shared
        assert shared is not None
        place = shared.place(at[:, : 8 * n], 16, None, g.ids)
        tiles = shared.load(place, 2, g.ids).reshape(g.size, n, 8, 8)
        if g.batch.count:
            count_wavefronts(g.traffic(ins), at, 16, used, g.size)
        packed = np.ascontiguousarray(tiles.swapaxes(-1, -2) if transposed else tiles).view(np.uint32)
        for i, slot in enumerate(slots):
            g.R[slot] = packed[:, i].reshape(-1, 32)

    return run


@handles("stmatrix")
def _stmatrix(c: Compiler, ins: Instruction) -> Run:
    """The reverse of ldmatrix."""
    only(ins, "sync", "aligned", "m8n8", "x1", "x2", "x4", "trans", "shared", "cta")
    address, slots = c.address(ins.operands[0], 32), [slot_of(p) for p in parts_of(ins.operands[1])]
    n, transposed = len(slots), "trans" in ins.op
    used = 8 * n > LANES

    def run(g: Group) -> None:
        R, shared = g.R, g.batch.shared
        assert shared is not None
        packed = np.stack([np.broadcast_to(R[s], (g.size, 32)) for s in slots], 1)
        tiles = np.ascontiguousarray(packed).view(np.uint16).reshape(-1, n, 8, 8)
        rows = np.ascontiguousarray(tiles.swapaxes(-1, -2) if transposed else tiles).reshape(-1, 8 * n, 8)
        at = np.broadcast_to(address(R), (g.size, 32))
        if g.batch.count:
            count_wavefronts(g.traffic(ins), at, 16, used, g.size)
        shared.store(shared.place(at[:, : 8 * n], 16, None, g.ids), rows, 2, g.ids)

    return run
