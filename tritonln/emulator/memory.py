"""Global memory (of the host, with every access checked) and shared memory (with a shadow that finds races)."""

from __future__ import annotations

import bisect
import ctypes
import dataclasses

import numpy as np

UINT = {1: np.uint8, 2: np.uint16, 4: np.uint32, 8: np.uint64}
LANES = np.arange(32)[None, :]


class Fault(Exception):
    """What a GPU would not do, or not do reliably.  `mask` (warps, lanes) are the threads at fault."""

    def __init__(self, what: str, mask=None):
        super().__init__(what)
        self.what, self.mask = what, mask


def rows_of(memory: np.ndarray, total: int, each: int) -> np.ndarray:
    """Bytes as pieces of `total` bytes, each of values of `each` bytes."""
    values = memory[: memory.size // total * total].view(UINT[each])
    return values if total == each else values.reshape(-1, total // each)


# ---- global ---------------------------------------------------------------------------------------


class Allocation:
    def __init__(self, name: str, start: int, nbytes: int, element: int, legal: np.ndarray | None):
        self.name, self.start, self.end, self.element = name, start, start + nbytes, element
        self.legal = legal  # a byte each; None: all
        self.origin = start & ~15
        room = (self.end - self.origin + 15) & ~15
        self.memory = np.ctypeslib.as_array((ctypes.c_uint8 * room).from_address(self.origin))
        self.views: dict = {}
        self.writer: np.ndarray | None = None
        self.room = room

    def view(self, total: int, each: int) -> np.ndarray:
        key = total, each
        if key not in self.views:
            self.views[key] = rows_of(self.memory, total, each)
        return self.views[key]


class GlobalMemory:
    """Registered tensors only.  `owners`: notes which CTA wrote each byte, and faults where two do."""

    def __init__(self, owners: bool = True):
        self.allocations: list[Allocation] = []
        self.starts: list[int] = []
        self.owners = owners

    def add(self, name: str, tensor) -> None:
        """A torch tensor.  Between the elements of a strided one nothing may be touched."""
        if tensor.numel() == 0:
            return
        size = tensor.element_size()
        span = (sum((n - 1) * s for n, s in zip(tensor.shape, tensor.stride())) + 1) * size
        legal = None
        if span != tensor.numel() * size:
            legal = np.zeros(span // size, bool)
            index = np.zeros((), np.int64)
            for n, s in zip(tensor.shape, tensor.stride()):
                index = index[..., None] + np.arange(n) * s
            legal[index.reshape(-1)] = True
            legal = np.repeat(legal, size)
        start = tensor.data_ptr()
        end = start + span
        for other in [a for a in self.allocations if a.start < end and start < a.end]:  # one memory, several names
            low, high = min(start, other.start), max(end, other.end)
            union = np.zeros(high - low, bool)
            for first, last, part in ((start, end, legal), (other.start, other.end, other.legal)):
                union[first - low : last - low] |= True if part is None else part
            start, end, legal = low, high, None if union.all() else union
            name = name if name in other.name.split("|") else f"{other.name}|{name}"
            i = self.allocations.index(other)
            del self.allocations[i], self.starts[i]
        span = end - start
        i = bisect.bisect(self.starts, start)
        self.starts.insert(i, start)
        self.allocations.insert(i, Allocation(name, start, span, size, legal))

    def locate(self, address: np.ndarray, nbytes: int, mask: np.ndarray | None):
        """[(allocation, mask)] that the active lanes touch."""
        active = address if mask is None else address[mask]
        if active.size == 0:
            return []
        low, high = int(active.min()), int(active.max())
        misaligned = address & np.uint64(nbytes - 1)
        if (misaligned if mask is None else misaligned[mask]).any():
            wrong = misaligned != 0
            raise Fault(f"misaligned {nbytes}-byte access", wrong if mask is None else wrong & mask)
        i = bisect.bisect(self.starts, low) - 1
        if i >= 0 and high + nbytes <= self.allocations[i].end:
            self.check_legal(self.allocations[i], address, nbytes, mask)
            return [(self.allocations[i], mask)]
        which = np.searchsorted(np.array(self.starts, np.uint64), address, side="right") - 1
        ends = np.array([0, *(a.end for a in self.allocations)], np.uint64)[which + 1]
        outside = (address + np.uint64(nbytes)) > ends
        if mask is not None:
            outside &= mask
        if outside.any():
            where = int(address[outside][0])
            raise Fault(f"access outside every tensor: {nbytes} bytes at {self.describe(where)}", outside)
        found = []
        for i in np.unique(which if mask is None else which[mask]):
            part = which == i if mask is None else (which == i) & mask
            self.check_legal(self.allocations[i], address, nbytes, part)
            found.append((self.allocations[i], part))
        return found

    def describe(self, address: int) -> str:
        def distance(a):
            return max(a.start - address, address - a.end + 1, 0)

        a = min(self.allocations, key=distance)
        return f"{a.name} + {address - a.start} (it has {a.end - a.start} bytes)"

    def check_legal(self, a: Allocation, address, nbytes: int, mask) -> None:
        if a.legal is None:
            return
        offset = (address if mask is None else np.where(mask, address, np.uint64(a.start))).astype(np.int64) - a.start
        wrong = ~a.legal[offset] | ~a.legal[offset + nbytes - 1]
        if mask is not None:
            wrong &= mask
        if wrong.any():
            raise Fault(f"access between the rows of {a.name}, at byte {int(offset[wrong][0])}", wrong)

    def load(self, address, total: int, each: int, mask, cta) -> np.ndarray:
        """(warps, lanes[, total // each]); zero where masked off."""
        result = None
        for a, part in self.locate(address, total, mask):
            index = (address - np.uint64(a.origin)) // np.uint64(total)
            if part is not None:
                index = np.where(part, index, 0)
            values = a.view(total, each)[index.astype(np.int64)]
            if a.writer is not None:
                owner = a.writer.reshape(-1, total)[index.astype(np.int64)]
                wrong = ((owner >= 0) & (owner != cta[:, :, None])).any(-1)
                wrong = wrong if part is None else wrong & part
                if wrong.any():
                    raise Fault(f"reads what another CTA has written in {a.name}", wrong)
            if result is None:
                result = values if part is None else np.where(part if values.ndim == 2 else part[..., None], values, 0)
            else:
                result = np.where(part if values.ndim == 2 else part[..., None], values, result)
        if result is None:
            result = np.zeros(address.shape + (() if total == each else (total // each,)), UINT[each])
        return result

    def store(self, address, values, total: int, each: int, mask, cta) -> bool:
        """Whether two threads stored different values to one place: it is not said which of them stays."""
        ambiguous = False
        for a, part in self.locate(address, total, mask):
            index = ((address - np.uint64(a.origin)) // np.uint64(total)).astype(np.int64)
            part = np.broadcast_to(True, index.shape) if part is None else part
            where, what = index[part], values[part]
            view = a.view(total, each)
            view[where] = what
            ambiguous |= bool((view[where] != what).any())
            if self.owners:
                if a.writer is None:
                    a.writer = np.full(a.room, -1, np.int32)
                writer = a.writer.reshape(-1, total)
                mine = np.broadcast_to(cta, index.shape)[part]
                before = writer[where]
                if ((before >= 0) & (before != mine[:, None])).any():
                    raise Fault(f"two CTAs store to one place in {a.name}", part)
                writer[where] = mine[:, None]
                if (writer[where] != mine[:, None]).any():
                    raise Fault(f"two CTAs store to one place in {a.name}", part)
        return ambiguous

    def new_launch(self) -> None:
        for a in self.allocations:
            a.writer = None


# ---- shared ---------------------------------------------------------------------------------------

NEVER, PENDING, MANY = -1, -2, 63


class SharedMemory:
    """That of several CTAs, one after the other.

    The shadow holds for each granule who last wrote it and who last read it, as 64 * epoch + warp, where an
    epoch is the time between two barriers of the CTA.  A copy under way makes its target PENDING.
    """

    def __init__(self, ctas: int, size: int, granule: int, check: bool):
        self.size, self.padded, self.granule = size, (size + 127) & ~127, granule
        self.memory = np.zeros(ctas * self.padded, np.uint8)
        self.memory[:] = 0xCD
        self.check = check
        self.views: dict = {}
        if check:
            self.written = np.full(ctas * self.padded // granule, NEVER, np.int64)
            self.read = np.full(ctas * self.padded // granule, NEVER, np.int64)
        self.benign = 0  # two warps wrote the same value

    def view(self, total: int, each: int) -> np.ndarray:
        key = total, each
        if key not in self.views:
            self.views[key] = rows_of(self.memory, total, each)
        return self.views[key]

    def index(self, address, base, total: int, mask) -> np.ndarray:
        address = address.astype(np.int64)
        wrong = (address + total > self.size) | (address & (total - 1) != 0)
        if mask is not None:
            wrong &= mask
        if wrong.any():
            raise Fault(f"shared memory access outside its {self.size} bytes, or misaligned for {total}", wrong)
        if mask is not None:
            address = np.where(mask, address, 0)
        return (address + base) // total

    def _shadow(self, array: np.ndarray, total: int) -> np.ndarray:
        return array.reshape(-1, max(1, total // self.granule))

    def load(self, address, base, total: int, each: int, mask, code) -> np.ndarray:
        index = self.index(address, base, total, mask)
        if self.check:
            self.note_read(index, total, mask, code)
        return self.view(total, each)[index]

    def store(self, address, base, values, total: int, each: int, mask, code) -> bool:
        """As GlobalMemory.store."""
        index = self.index(address, base, total, mask)
        active = np.broadcast_to(True, index.shape) if mask is None else np.broadcast_to(mask, index.shape)
        where, what = index[active], np.broadcast_to(values, index.shape + values.shape[2:])[active]
        view = self.view(total, each)
        if self.check:
            same = view[where] == what
            self.note_write(where, total, code, active, same if same.ndim == 1 else same.all(-1))
        view[where] = what
        return self.check and bool((view[where] != what).any())

    def note_read(self, index, total, mask, code) -> None:
        where = index if mask is None else index[mask]
        code = np.broadcast_to(code, index.shape)
        code = (code if mask is None else code[mask])[..., None]
        written, read = self._shadow(self.written, total), self._shadow(self.read, total)
        w = written[where]
        self._fault(w == NEVER, "reads shared memory that nothing has written", mask)
        self._fault(w == PENDING, "reads shared memory that an asynchronous copy may still write", mask)
        self._fault(
            (w >= (code & ~63)) & (w != code), "race: reads what another warp wrote since the last barrier", mask
        )
        r = read[where]
        now = np.where((r < (code & ~63)) | (r == code), code, code | MANY)
        read[where] = now
        lost = read[where] != now
        if lost.any():
            read.reshape(-1)[self._flat(where, total)[lost]] = np.broadcast_to(code | MANY, lost.shape)[lost]

    def _flat(self, where, total):
        n = max(1, total // self.granule)
        return where[..., None] * n + np.arange(n)

    def note_write(self, where, total, code, active, same, copy: bool = False) -> None:
        code = np.broadcast_to(code, active.shape)[active][..., None]
        written, read = self._shadow(self.written, total), self._shadow(self.read, total)
        w, r = written[where], read[where]
        since = code & ~63
        twice = (w >= since) & (w != code)
        if same is not None:
            self.benign += int((twice & same[..., None]).sum())
            twice &= ~same[..., None]
        self._fault(twice, "race: writes what another warp wrote since the last barrier", active)
        self._fault(w == PENDING, "writes shared memory that an asynchronous copy may still write", active)
        self._fault((r >= since) & (r != code), "race: writes what another warp read since the last barrier", active)
        written[where] = PENDING if copy else code

    def copy_issued(self, address, base, total, mask, code) -> np.ndarray:
        index = self.index(address, base, total, mask)
        if self.check:
            active = np.broadcast_to(True, index.shape) if mask is None else np.broadcast_to(mask, index.shape)
            self.note_write(index[active], total, code, active, None, copy=True)
        return index

    def copy_done(self, index, values, total, each, mask, code) -> None:
        active = np.broadcast_to(True, index.shape) if mask is None else np.broadcast_to(mask, index.shape)
        self.view(total, each)[index[active]] = values[active]
        if self.check:
            self._shadow(self.written, total)[index[active]] = np.broadcast_to(code, index.shape)[active][:, None]

    @staticmethod
    def _fault(wrong, what, mask) -> None:
        if wrong.any():
            wrong = wrong.any(-1)
            if mask is not None:
                full = np.zeros(mask.shape, bool)
                full[mask] = wrong
                wrong = full
            raise Fault(what, wrong)


# ---- counters -------------------------------------------------------------------------------------


@dataclasses.dataclass
class Traffic:
    """Of one memory instruction.  units: 32-byte sectors (global) or wavefronts (shared); ideal: the fewest."""

    requests: int = 0
    units: int = 0
    ideal: int = 0
    bytes: int = 0


def count_sectors(t: Traffic, address, nbytes: int, mask, warps: int) -> None:
    sector = address >> np.uint64(5)
    if mask is None:
        lanes = np.full(sector.shape[0], 32)
    else:
        sector = np.where(mask, sector, np.uint64(2**64 - 1))
        mask = np.broadcast_to(mask, np.broadcast_shapes(mask.shape, (1, 32)))
        lanes = mask.sum(1)
    n = 1 + (np.diff(np.sort(sector, axis=1), axis=1) != 0).sum(1)
    n = np.broadcast_to(n - (lanes < 32), np.broadcast_shapes(n.shape, lanes.shape))
    scale = warps // len(n)
    t.requests += int((lanes > 0).sum()) * (warps // len(lanes))
    t.units += int(n.sum()) * scale
    t.bytes += int(lanes.sum()) * nbytes * (warps // len(lanes))
    t.ideal += int((-(-lanes * nbytes // 32)).sum()) * (warps // len(lanes))


def count_wavefronts(t: Traffic, address, nbytes: int, mask, warps: int) -> None:
    address = np.broadcast_to(address, (address.shape[0], 32)).astype(np.int64)
    if mask is not None:
        address, mask = np.broadcast_arrays(address, np.broadcast_to(mask, np.broadcast_shapes(mask.shape, (1, 32))))
    words = max(1, nbytes // 4)
    each = 32 // words  # lanes of a phase
    word = (address >> 2).reshape(-1, words, each)[..., None] + np.arange(words)
    word = word.reshape(-1, 32)
    if mask is not None:
        on = np.repeat(mask.reshape(-1, words, each), words, axis=-1).reshape(-1, 32)
        word = np.where(on, word, -1)
    word = np.sort(word, axis=1)
    new = np.ones(word.shape, bool)
    new[:, 1:] = word[:, 1:] != word[:, :-1]
    new &= word >= 0
    line = np.arange(len(word))[:, None] * 32 + (word & 31)
    n = np.bincount(line[new], minlength=32 * len(word)).reshape(-1, 32).max(1)
    scale = warps // len(address)
    active = (n > 0).reshape(-1, words).any(1)
    t.requests += int(active.sum()) * scale
    t.units += int(n.sum()) * scale
    t.ideal += int((n > 0).sum()) * scale
    t.bytes += (32 * len(address) if mask is None else int(mask.sum())) * nbytes * scale
