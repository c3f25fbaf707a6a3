"""Shared memory, with a shadow that finds races, reads of what nothing has written, and copies read too early."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Protocol

import numpy as np

from tritonln.emulator.clocks import MANY, WarpClocks
from tritonln.emulator.faults import Array, Fault, some
from tritonln.emulator.memory import rows_of

NEVER, PENDING = 0, 2**32 - 1  # in the place of a code: nothing was written; a copy is under way
RANK = 24  # the bit from which a cluster's address holds 1 + the CTA's rank; 0 there is one's own


class Warps(Protocol):
    """Who accesses: a row of each array for each warp."""

    team: Array
    who: Array
    shared_base: Array  # of its CTA's memory
    team_base: Array  # of the memory of the first CTA of its cluster
    code: Array
    since: Array


LISTED = 1000  # reads, before they go into the shadow anyway


@dataclasses.dataclass(eq=False, slots=True)
class Place:
    """What an access touches, in pieces of `total` bytes of all CTAs' memory.

    index: (warps, lanes), the lanes 1 where all have the same; where: those of the mask; rows: their warps.
    low, high: bytes of a CTA's memory that all of it lies in.
    """

    total: int
    index: Array
    mask: Array | None
    low: int = 0
    high: int = 1 << RANK
    where: Array = dataclasses.field(init=False)
    rows: Array | None = dataclasses.field(init=False)

    def __post_init__(self) -> None:
        self.where = self.index if self.mask is None else self.index[self.mask]
        self.rows = None if self.mask is None else np.nonzero(self.mask)[0]

    def of(self, per_warp: Array) -> Array:
        """A column of one number for each warp, as `where` has them, with a dimension for the granules."""
        return per_warp[..., None] if self.rows is None else per_warp[self.rows]


class SharedMemory:
    """That of several CTAs, one after the other.

    The shadow holds for each granule the code (see clocks) of the last write and of the last reads.  Reads are only
    listed until something is written: most lists are dropped at the next barrier.
    """

    def __init__(self, ctas: int, size: int, granule: int, check: bool, clocks: WarpClocks):
        self.size, self.padded, self.granule = size, (size + 127) & ~127, granule
        self.check, self.clocks = check, clocks
        self.memory = np.full(ctas * self.padded, 0xCD, np.uint8)
        self.views: dict[tuple[int, int], Array] = {}
        self.reads: list[tuple[Place, Array, Array]] = []
        self.known_reads = False  # whether the shadow has any that may be later than the last barrier
        self.benign = 0  # two warps wrote the same value
        if check:
            self.written = np.full(ctas * self.padded // granule, NEVER, np.uint32)
            self.read = np.full(ctas * self.padded // granule, NEVER, np.uint32)

    def view(self, total: int, each: int) -> Array:
        key = total, each
        if key not in self.views:
            self.views[key] = rows_of(self.memory, total, each)
        return self.views[key]

    def place(self, address: Array, total: int, mask: Array | None, by: Warps, cluster: bool = False) -> Place:
        """`mask` is of the shape of `address`.  `cluster`: addresses are those of a cluster's memory."""
        address = address.astype(np.int64)
        base = by.shared_base
        if cluster:
            rank = address >> RANK
            base = np.where(rank == 0, base, by.team_base + (rank - 1) * self.padded)
            address = address & ((1 << RANK) - 1)
        active = address if mask is None else address[mask]
        low, high = int(active.min()), int(active.max()) + total
        if mask is not None:
            address = np.where(mask, address, low)
        if high > self.size or some(address & (total - 1)):
            wrong = (address + total > self.size) | (address & (total - 1) != 0)
            raise Fault(f"shared memory access outside its {self.size} bytes, or misaligned for {total}", wrong)
        return Place(total, (address + base) // total, mask, low, high)

    def load(self, place: Place, each: int, by: Warps) -> Array:
        """(warps, lanes[, total // each])"""
        if self.check:
            written = self._shadow(self.written, place.total)[place.where]
            suspect = written - np.uint32(1) >= place.of(by.since) - np.uint32(1)  # NEVER - 1 is the greatest
            if some(suspect):
                self._judge_read(place, written, suspect, by)
            self.reads.append((place, by.code, by.since))
            if len(self.reads) > LISTED:
                self._note_reads()
        return self.view(place.total, each)[place.index]

    def store(self, place: Place, values: Array, each: int, by: Warps) -> bool:
        """As GlobalMemory.store; `values` are of the shape of `place.index`."""
        where, what = place.where, values if place.mask is None else values[place.mask]
        view = self.view(place.total, each)
        if not self.check:
            view[where] = what
            return False
        self.note_write(place, by, lambda: view[where] == what)
        view[where] = what
        return some(view[where] != what)

    def copy_issued(self, place: Place, by: Warps) -> None:
        """Until copy_done nobody may touch it."""
        if self.check:
            self.note_write(place, by, None)
            self._shadow(self.written, place.total)[place.where] = PENDING

    def copy_done(self, place: Place, values: Array, each: int, by: Warps) -> None:
        self.view(place.total, each)[place.where] = values if place.mask is None else values[place.mask]
        if self.check:
            self._shadow(self.written, place.total)[place.where] = place.of(by.code)

    def all_passed(self) -> None:
        """All warps of all CTAs have passed a barrier."""
        self.reads.clear()
        self.known_reads = False

    # ---- the shadow

    def _shadow(self, array: Array, total: int) -> Array:
        return array.reshape(-1, max(1, total // self.granule))

    def _judge_read(self, place: Place, written: Array, suspect: Array, by: Warps) -> None:
        _fault(written == NEVER, "reads shared memory that nothing has written", place)
        _fault(written == PENDING, "reads shared memory that an asynchronous copy may still write", place)
        suspect &= written != place.of(by.code)
        if some(suspect):
            suspect &= ~self._ordered(place, written, by)
            _fault(suspect, "race: reads what another warp wrote since the last barrier", place)

    def _ordered(self, place: Place, code: Array, by: Warps) -> Array:
        return self.clocks.ordered(place.of(by.team), place.of(by.who), code)

    def note_write(self, place: Place, by: Warps, same: Callable[[], Array] | None) -> None:
        """`same`: tells which threads write what is there already; None: it is not known."""
        if any(read.low < place.high and place.low < read.high for read, _, _ in self.reads):
            self._note_reads()
        code, since = place.of(by.code), place.of(by.since)
        shadow = self._shadow(self.written, place.total)
        written = shadow[place.where]
        late = written >= since
        if some(late):
            late &= written != code
            _fault(written == PENDING, "writes shared memory that an asynchronous copy may still write", place)
        if some(late):
            late &= ~self._ordered(place, written, by)
            if same is not None:
                equal = same()
                equal = equal if equal.ndim == place.where.ndim else np.logical_and.reduce(equal, axis=-1)
                self.benign += int((late & equal[..., None]).sum())
                late &= ~equal[..., None]
            _fault(late, "race: writes what another warp wrote since the last barrier", place)
        if self.known_reads:
            read = self._shadow(self.read, place.total)[place.where]
            late = (read >= since) & (read != code)
            if some(late):
                late &= ~self._ordered(place, read, by)
                _fault(late, "race: writes what another warp read since the last barrier", place)
        shadow[place.where] = code

    def _note_reads(self) -> None:
        """The listed reads go into the shadow."""
        self.known_reads = True
        for place, codes, sinces in self.reads:
            code, since = place.of(codes), place.of(sinces)
            shadow = self._shadow(self.read, place.total)
            if self.clocks.known is not None:  # the clocks of several warps do not fit into one code: the last one's
                shadow[place.where] = code
                continue
            before = shadow[place.where]
            now = np.where((before < since) | (before == code), code, code | np.uint32(MANY))
            shadow[place.where] = now
            lost = shadow[place.where] != now  # several warps at once
            if some(lost):
                n = shadow.shape[1]
                flat = place.where[..., None] * n + np.arange(n)
                self.read[flat[lost]] = np.broadcast_to(code | np.uint32(MANY), lost.shape)[lost]
        self.reads.clear()


def _fault(wrong: Array, what: str, place: Place) -> None:
    if some(wrong):
        wrong = np.logical_or.reduce(wrong, axis=-1)
        if place.mask is not None:
            full = np.zeros(place.mask.shape, bool)
            full[place.mask] = wrong
            wrong = full
        raise Fault(what, wrong)
