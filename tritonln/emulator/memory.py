"""Global memory: tensors of the host, every access to them checked."""

from __future__ import annotations

import bisect
import ctypes
from collections.abc import Callable
from typing import Any

import numpy as np

from tritonln.emulator.clocks import CtaClocks
from tritonln.emulator.faults import Array, Fault, some

UINT: dict[int, Any] = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
NOBODY = -1


def rows_of(memory: Array, total: int, each: int) -> Array:
    """Bytes as pieces of `total` bytes, each of values of `each` bytes."""
    values = memory[: memory.size // total * total].view(UINT[each])
    return values if total == each else values.reshape(-1, total // each)


class Allocation:
    """A stretch of addresses.  `legal`: of each byte, whether it may be touched; None: all."""

    def __init__(self, name: str, start: int, nbytes: int, legal: Array | None):
        self.name, self.start, self.end, self.legal = name, start, start + nbytes, legal
        self.origin = start & ~15
        self.room = (self.end - self.origin + 15) & ~15
        self.memory = np.ctypeslib.as_array((ctypes.c_uint8 * self.room).from_address(self.origin))
        self.views: dict[tuple[int, int], Array] = {}
        self.writer: Array | None = None  # which CTA, of each granule
        self.clock: Array | None = None  # and when, by its own clock

    def view(self, total: int, each: int) -> Array:
        key = total, each
        if key not in self.views:
            self.views[key] = rows_of(self.memory, total, each)
        return self.views[key]

    def index(self, address: Array, total: int) -> Array:
        return ((address - np.uint64(self.origin)) // np.uint64(total)).astype(np.int64)


class GlobalMemory:
    """What was added, and nothing else.

    `owners`: notes which CTA wrote what, and faults where another one writes or reads it in the same launch without
    having synchronized with it.  That a CTA overwrites what another only reads is not seen.
    """

    def __init__(self, owners: bool = True):
        self.allocations: list[Allocation] = []
        self.starts: list[int] = []
        self.owners = owners
        self.granule = 1  # no access of the launch is smaller
        self.clocks: CtaClocks | None = None  # None: no CTA can wait for another
        self.changes = 0  # of memory that others may be waiting for

    def add(self, name: str, tensor: Any) -> None:
        """A torch tensor.  Between the elements of a strided one nothing may be touched."""
        if tensor.numel() == 0:
            return
        size = tensor.element_size()
        span = sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride())) + 1
        legal = None
        if span != tensor.numel():
            legal = np.zeros(span, bool)
            index = np.zeros((), np.int64)
            for n, s in zip(tensor.shape, tensor.stride()):
                index = index[..., None] + np.arange(n) * s
            legal[index.reshape(-1)] = True
            legal = np.repeat(legal, size)
        self.add_bytes(name, tensor.data_ptr(), span * size, legal)

    def add_bytes(self, name: str, start: int, nbytes: int, legal: Array | None = None) -> None:
        """Addresses from start on.  What overlaps is one memory that has several names."""
        end = start + nbytes
        for other in [a for a in self.allocations if a.start < end and start < a.end]:
            low, high = min(start, other.start), max(end, other.end)
            union = np.zeros(high - low, bool)
            for first, last, part in ((start, end, legal), (other.start, other.end, other.legal)):
                union[first - low : last - low] |= True if part is None else part
            start, end, legal = low, high, None if union.all() else union
            name = name if name in other.name.split("|") else f"{other.name}|{name}"
            i = self.allocations.index(other)
            del self.allocations[i], self.starts[i]
        i = bisect.bisect(self.starts, start)
        self.starts.insert(i, start)
        self.allocations.insert(i, Allocation(name, start, end - start, legal))

    def new_launch(self, granule: int, clocks: CtaClocks | None) -> None:
        """`granule`: bytes that no access of the kernel is smaller than."""
        self.granule, self.clocks, self.changes = granule, clocks, 0
        for a in self.allocations:
            a.writer = a.clock = None

    # ---- where an access goes

    def locate(self, address: Array, nbytes: int, mask: Array | None) -> list[tuple[Allocation, Array | None]]:
        """[(allocation, mask)] that the active lanes touch."""
        active = address if mask is None else address[mask]
        if active.size == 0:
            return []
        if some(active & np.uint64(nbytes - 1)):
            wrong = (address & np.uint64(nbytes - 1)) != 0
            raise Fault(f"misaligned {nbytes}-byte access", wrong if mask is None else wrong & mask)
        low, high = int(active.min()), int(active.max())
        i = bisect.bisect(self.starts, low) - 1
        if i >= 0 and high + nbytes <= self.allocations[i].end:
            self.check_legal(self.allocations[i], address, nbytes, mask)
            return [(self.allocations[i], mask)]
        which = np.searchsorted(np.array(self.starts, np.uint64), address, side="right") - 1
        ends = np.array([0, *(a.end for a in self.allocations)], np.uint64)[which + 1]
        outside = (address + np.uint64(nbytes)) > ends
        if mask is not None:
            outside &= mask
        if some(outside):
            where = int(address[outside][0])
            raise Fault(f"access outside every tensor: {nbytes} bytes at {self.describe(where)}", outside)
        found: list[tuple[Allocation, Array | None]] = []
        for j in np.unique(which if mask is None else which[mask]):
            part = which == j if mask is None else (which == j) & mask
            self.check_legal(self.allocations[j], address, nbytes, part)
            found.append((self.allocations[j], part))
        return found

    def describe(self, address: int) -> str:
        """An address beside the nearest tensor."""
        if not self.allocations:
            return f"{address:#x} (there is none)"
        a = min(self.allocations, key=lambda a: max(a.start - address, address - a.end + 1, 0))
        return f"{a.name} + {address - a.start} (it has {a.end - a.start} bytes)"

    def check_legal(self, a: Allocation, address: Array, nbytes: int, mask: Array | None) -> None:
        if a.legal is None:
            return
        offset = (address if mask is None else np.where(mask, address, np.uint64(a.start))).astype(np.int64) - a.start
        wrong = ~(a.legal[offset] & a.legal[offset + nbytes - 1])
        if mask is not None:
            wrong &= mask
        if some(wrong):
            raise Fault(f"access between the rows of {a.name}, at byte {int(offset[wrong][0])}", wrong)

    # ---- loads and stores

    def load(self, address: Array, total: int, each: int, mask: Array | None, cta: Array) -> Array:
        """(warps, lanes[, total // each]); zero where masked off."""
        result = None
        for a, part in self.locate(address, total, mask):
            index = a.index(address, total)
            if part is not None:
                index = np.where(part, index, 0)
            values = a.view(total, each)[index]
            if a.writer is not None:
                self.check_owner(a, index, total, part, cta, "reads what another CTA has written in")
            if part is not None:
                values = np.where(
                    part if values.ndim == 2 else part[..., None], values, 0 if result is None else result
                )
            result = values
        if result is None:
            return np.zeros(address.shape + (() if total == each else (total // each,)), UINT[each])
        return result

    def store(
        self, address: Array, values: Array, total: int, each: int, mask: Array | None, cta: Array, owned: bool = True
    ) -> bool:
        """Whether two threads stored different values to one place: it is not said which of them stays.

        `owned`: the place is the CTA's from now on, until others have synchronized with it.
        """
        ambiguous = False
        for a, part in self.locate(address, total, mask):
            index = a.index(address, total)
            if self.owners and owned:
                self.own(a, index, total, part, cta)
            where, what = (index, values) if part is None else (index[part], values[part])
            view = a.view(total, each)
            view[where] = what
            ambiguous |= some(view[where] != what)
        self.changes += 1
        return ambiguous

    def atomic(
        self,
        address: Array,
        sources: list[Array],
        size: int,
        mask: Array | None,
        cta: Array,
        operation: Callable[..., Array],
    ) -> Array:
        """What was there before each access, in the order of warps and lanes; all are of (warps, 32)."""
        old = np.zeros(address.shape, UINT[size])
        for a, part in self.locate(address, size, mask):
            part = np.broadcast_to(True, address.shape) if part is None else part
            index = a.index(address, size)
            if a.writer is not None:
                self.check_owner(
                    a, np.where(part, index, 0), size, part, cta, "an atomic access to what another CTA has written in"
                )
            view, places, (rows, lanes) = a.view(size, size), index[part], np.nonzero(part)
            given = [s[part] for s in sources]
            left = np.arange(len(places))
            while len(left):  # of each place the first that is left
                first = np.unique(places[left], return_index=True)[1]
                now = left[first]
                before = view[places[now]]
                after = operation(before, *(s[now] for s in given))
                view[places[now]] = after
                old[rows[now], lanes[now]] = before
                self.changes += some(before != after)
                left = np.delete(left, first)
        return old

    # ---- who wrote what

    def shadow(self, array: Array, total: int) -> Array:
        return array.reshape(-1, max(1, total // self.granule))

    def check_owner(self, a: Allocation, index: Array, total: int, mask: Array | None, cta: Array, what: str) -> None:
        """Faults where another CTA wrote that this one has not synchronized with since."""
        assert a.writer is not None
        owner = self.shadow(a.writer, total)[index]
        foreign = (owner != cta[..., None]) & (owner != NOBODY)
        if not some(foreign):
            return
        if self.clocks is not None and a.clock is not None:
            foreign &= ~self.clocks.ordered(cta[..., None], owner, self.shadow(a.clock, total)[index])
        wrong = foreign.any(-1)
        if mask is not None:
            wrong &= mask
        if some(wrong):
            raise Fault(f"{what} {a.name}", wrong)

    def own(self, a: Allocation, index: Array, total: int, mask: Array | None, cta: Array) -> None:
        if a.writer is None:
            a.writer = np.full(a.room // self.granule, NOBODY, np.int32)
            a.clock = None if self.clocks is None else np.zeros(a.room // self.granule, np.int32)
        what = "two CTAs store to one place in"
        self.check_owner(a, index if mask is None else np.where(mask, index, 0), total, mask, cta, what)
        mine = np.broadcast_to(cta, index.shape)
        where, mine = (index, mine) if mask is None else (index[mask], mine[mask])
        writer = self.shadow(a.writer, total)
        writer[where] = mine[..., None]
        if some(writer[where] != mine[..., None]):
            raise Fault(f"{what} {a.name}", mask)
        if self.clocks is not None and a.clock is not None:
            self.shadow(a.clock, total)[where] = self.clocks.now(mine)[..., None]
