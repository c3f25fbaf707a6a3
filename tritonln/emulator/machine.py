"""Runs the PTX of a kernel, with every access checked.

Not modelled: ptxas (it contracts more multiply-adds and turns a division by a constant into a product), time, caches,
and order between programs: those of a batch go on together, one batch after the other.  What a kernel may do at all
stands in instructions/; wgmma, tcgen05, mbarrier, TMA and textures are not among it and raise NotImplementedError.
"""

from __future__ import annotations

import functools

import numpy as np

from tritonln.emulator.batch import Batch
from tritonln.emulator.clocks import CtaClocks
from tritonln.emulator.counters import Counters
from tritonln.emulator.faults import EmulationError
from tritonln.emulator.floats import Approximation
from tritonln.emulator.flow import blocks, communicates, live_registers, post_dominators
from tritonln.emulator.instructions import TYPES, Compiler, Run
from tritonln.emulator.memory import GlobalMemory
from tritonln.emulator.ptx import Instruction, Kernel


class Machine:
    """A kernel, ready to be launched.

    check: shared memory has a shadow, and it is noted which CTA wrote what.
    count: sectors and wavefronts are counted.
    lanes: threads that run together; more are faster and need more memory.
    approximate: what the .approx instructions give; None: the correctly rounded value.
    resident: CTAs that are on the chip at once where CTAs wait for each other; None: the whole grid.
    """

    def __init__(
        self,
        kernel: Kernel,
        shared_bytes: int,
        *,
        check: bool = True,
        count: bool = True,
        lanes: int = 16384,
        approximate: Approximation | None = None,
        resident: int | None = None,
    ):
        self.kernel, self.shared_bytes, self.check, self.count = kernel, shared_bytes, check, count
        self.threads, self.cluster, self.warps_per_cta = kernel.threads, kernel.cluster, kernel.threads // 32
        compiler = Compiler(kernel, approximate or Approximation())
        compiled = [compiler.compile(ins) for ins in kernel.instructions]
        self.constants, self.at_end = compiler.constants, compiler.at_end
        after = blocks(kernel)
        starts = {0, *after} - {len(after)}
        self.blocks = {pc: [(i, compiled[i][0]) for i in range(pc, after[pc])] for pc in starts}
        self._diverged = [diverged for _, diverged in compiled]
        self.after = after
        self.shared_granule = min([4, *(_bytes(i) for i in kernel.instructions if _accesses(i, "shared"))])
        self.global_granule = min([16, *(_bytes(i) for i in kernel.instructions if _accesses(i, "global"))])
        self.communicates = any(map(communicates, kernel.instructions))
        self.exact = kernel.cluster > 1 or any(map(_of_some_warps, kernel.instructions))
        self.together = max(1, lanes // self.threads)
        self.resident = resident
        self._live_at: dict[int, frozenset[int]] = {}

    def launch(self, grid: tuple[int, int, int], params: list[bytes], memory: GlobalMemory) -> Counters:
        """grid: programs, each of them a CTA or a cluster of CTAs along x.  params: what each parameter holds."""
        grid = grid[0] * self.cluster, grid[1], grid[2]
        ctas = grid[0] * grid[1] * grid[2]
        memory.owners = self.check
        memory.new_launch(self.global_granule, CtaClocks(ctas) if self.check and self.communicates else None)
        counters = Counters(self.kernel, np.zeros(len(self.kernel.instructions), np.int64))
        counters.warps = ctas * self.warps_per_cta
        together = (self.resident or ctas) if self.communicates else self.together
        together = max(1, together // self.cluster) * self.cluster
        with np.errstate(all="ignore"):
            for first in range(0, ctas, together):
                batch = Batch(self, grid, params, memory, counters, first, min(together, ctas - first))
                batch.run()
                for forget in self.at_end:
                    forget()
                counters.benign += batch.shared.benign if batch.shared else 0
        for start in self.blocks:  # a batch counts blocks
            counters.executed[start : self.after[start]] = counters.executed[start]
        return counters

    @functools.cached_property
    def diverged_blocks(self) -> dict[int, list[tuple[int, Run]]]:
        """Of many kernels none is ever needed."""
        return {pc: [(i, self._diverged[i]()) for i, _ in block] for pc, block in self.blocks.items()}

    def meeting(self, pc: int) -> int:
        """Where all ways from a branch lead."""
        return self._meetings[pc]

    @functools.cached_property
    def _meetings(self) -> list[int]:
        return post_dominators(self.kernel)

    def live(self, pc: int) -> frozenset[int]:
        """Registers that are read at or after pc."""
        if pc not in self._live_at:
            bits = self._live[pc] if 0 <= pc < len(self._live) else 0
            self._live_at[pc] = frozenset(i for i in range(len(self.kernel.registers)) if bits >> i & 1)
        return self._live_at[pc]

    @functools.cached_property
    def _live(self) -> list[int]:
        return live_registers(self.kernel)


def _accesses(ins: Instruction, space: str) -> bool:
    return space in ins.op and ins.op[0] in ("ld", "st", "ldmatrix", "stmatrix", "cp", "atom", "red")


def _bytes(ins: Instruction) -> int:
    """Of one lane's access."""
    if ins.op[0] in ("ldmatrix", "stmatrix"):
        return 16
    if ins.op[0] == "cp":
        return ins.operands[2].value if len(ins.operands) > 2 else 16  # type: ignore[union-attr]
    count = next((int(w[1:]) for w in ins.op if w in ("v2", "v4", "v8")), 1)
    return TYPES[ins.op[-1]][1] // 8 * count if ins.op[-1] in TYPES else 4


def _of_some_warps(ins: Instruction) -> bool:
    return ins.op[0] in ("bar", "barrier") and ("arrive" in ins.op or "cluster" in ins.op or len(ins.operands) > 1)


__all__ = ["Counters", "EmulationError", "Machine"]
