"""What a launch did, as a profiler on hardware would count it."""

from __future__ import annotations

import collections
import dataclasses

import numpy as np

from tritonln.emulator.faults import Array
from tritonln.emulator.ptx import Kernel

SECTOR = 32  # bytes
BANKS = 32  # of 4 bytes
NOWHERE = np.uint64(2**64 - 1)


@dataclasses.dataclass
class Traffic:
    """Of one memory instruction, summed over the warps that executed it.

    requests: warps of which at least one lane was active.
    units: 32-byte sectors touched (global memory), or wavefronts, that is cycles of the banks (shared memory).
    ideal: the fewest units that could carry as many bytes.  Lanes that read one address count each for itself, so
        that units fall below it where a value is broadcast.
    bytes: asked for by active lanes.
    """

    requests: int = 0
    units: int = 0
    ideal: int = 0
    bytes: int = 0

    def __add__(self, other: Traffic) -> Traffic:
        return Traffic(*(a + b for a, b in zip(dataclasses.astuple(self), dataclasses.astuple(other))))


@dataclasses.dataclass
class Counters:
    """What a launch did.

    executed: warp instructions by program counter, the index into kernel.instructions.  One whose guard is false for
        every lane counts: it is issued.
    traffic: of the memory instructions, by program counter; empty where nothing was to be counted.  Atomics count as
        one unit for each lane.
    warps: how many the launch had.
    benign: bytes of shared memory, in units of the smallest access, to which two warps wrote one and the same value
        without a barrier between.
    notes: what is odd but not certainly wrong, and how often: two threads that store different values to one place.
    """

    kernel: Kernel
    executed: Array
    traffic: dict[int, Traffic] = dataclasses.field(default_factory=dict)
    warps: int = 0
    benign: int = 0
    notes: dict[str, int] = dataclasses.field(default_factory=dict)

    def by_opcode(self) -> dict[str, int]:
        """Warp instructions of each kind, the most frequent first."""
        total: collections.Counter[str] = collections.Counter()
        for ins, n in zip(self.kernel.instructions, self.executed):
            if n:
                total[".".join(ins.op)] += int(n)
        return dict(total.most_common())

    def per_warp(self) -> float:
        """Instructions that a warp executed on average."""
        return float(self.executed.sum() / max(1, self.warps))

    def memory(self) -> dict[str, Traffic]:
        """Sums over instructions: {global,shared}_{load,store,atomic}, and global_copy, the reads of cp.async."""
        sums: dict[str, Traffic] = {}
        for pc, traffic in self.traffic.items():
            op = self.kernel.instructions[pc].op
            kinds = {"ld": "load", "ldmatrix": "load", "cp": "copy", "atom": "atomic", "red": "atomic"}
            name = f"{'global' if 'global' in op else 'shared'}_{kinds.get(op[0], 'store')}"
            sums[name] = sums.get(name, Traffic()) + traffic
        return sums


def count_sectors(t: Traffic, address: Array, nbytes: int, mask: Array | None, warps: int) -> None:
    """Adds an access of `nbytes` by each active lane; what broadcasts over warps or lanes stands for all of them."""
    sector = address >> np.uint64(5)
    if mask is None:
        lanes = np.full(sector.shape[0], 32)
    else:
        mask = np.broadcast_to(mask, np.broadcast_shapes(mask.shape, (1, 32)))
        sector = np.where(mask, sector, NOWHERE)
        lanes = mask.sum(1)
    n = 1 + (np.diff(np.sort(sector, axis=1), axis=1) != 0).sum(1)
    n = np.broadcast_to(n - (lanes < 32), np.broadcast_shapes(n.shape, lanes.shape))
    each = warps // len(lanes)
    t.requests += int((lanes > 0).sum()) * each
    t.units += int(n.sum()) * (warps // len(n))
    t.bytes += int(lanes.sum()) * nbytes * each
    t.ideal += int((-(-lanes * nbytes // SECTOR)).sum()) * each


def count_wavefronts(t: Traffic, address: Array, nbytes: int, mask: Array | None, warps: int) -> None:
    """As count_sectors.  Wide accesses go in phases of 128 bytes; in each a bank serves one word a cycle."""
    address = np.broadcast_to(address, (address.shape[0], 32)).astype(np.int64)
    if mask is not None:
        address, mask = np.broadcast_arrays(address, np.broadcast_to(mask, np.broadcast_shapes(mask.shape, (1, 32))))
    words = max(1, nbytes // 4)
    lanes = 32 // words  # of a phase
    word = ((address >> 2).reshape(-1, words, lanes)[..., None] + np.arange(words)).reshape(-1, 32)
    if mask is not None:
        word = np.where(np.repeat(mask.reshape(-1, words, lanes), words, axis=-1).reshape(-1, 32), word, -1)
    word = np.sort(word, axis=1)
    new = np.ones(word.shape, bool)
    new[:, 1:] = word[:, 1:] != word[:, :-1]
    new &= word >= 0
    bank = np.arange(len(word))[:, None] * BANKS + (word & (BANKS - 1))
    n = np.bincount(bank[new], minlength=BANKS * len(word)).reshape(-1, BANKS).max(1)
    each = warps // len(address)
    t.requests += int((n > 0).reshape(-1, words).any(1).sum()) * each
    t.units += int(n.sum()) * each
    t.ideal += int((n > 0).sum()) * each
    t.bytes += (32 * len(address) if mask is None else int(mask.sum())) * nbytes * each
