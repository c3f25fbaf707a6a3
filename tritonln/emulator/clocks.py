"""Who has synchronized with whom: vector clocks (Lamport 1978; Mattern 1989) of warps and of CTAs.

Everyone has a clock of his own that ticks when he lets others know what he did, and knows of everyone else the last
tick that he has heard of.  What another did at a tick that one has not heard of is not ordered with what one does now.
"""

from __future__ import annotations

import numpy as np

from tritonln.emulator.faults import Array

WHO = 1024  # more than the warps of a cluster; a code is WHO * clock + warp
MANY = WHO - 1  # in the place of a warp: several


class WarpClocks:
    """Of the warps of several teams; a team is a CTA, or a cluster.

    Where all barriers are those of whole CTAs (`exact` False), the number of barriers passed says everything, and a
    code, WHO * clock + warp, is later than the last barrier if it is at least WHO * clock.
    """

    def __init__(self, teams: int, warps: int, exact: bool):
        self.clock = np.ones((teams, warps), np.uint32)
        self.known = np.zeros((teams, warps, warps), np.uint32) if exact else None
        if self.known is not None:
            self.known[:, np.arange(warps), np.arange(warps)] = 1

    def code(self, team: Array, who: Array) -> Array:
        """Of what these warps do now."""
        return self.clock[team, who] * np.uint32(WHO) + who.astype(np.uint32)

    def since(self, team: Array, who: Array) -> Array:
        """No smaller code is unordered with what these warps do now; not every greater one is."""
        if self.known is None:
            return self.clock[team, who] * np.uint32(WHO)
        return (self.known[team, who].min(-1) + np.uint32(1)) * np.uint32(WHO)

    def ordered(self, team: Array, who: Array, code: Array) -> Array:
        """Whether these warps know of what has that code."""
        if self.known is None:
            return code < self.clock[team, who] * np.uint32(WHO)
        other = np.minimum(code % np.uint32(WHO), self.known.shape[1] - 1).astype(np.int64)
        return code // np.uint32(WHO) <= self.known[team, who, other]

    def tell(self, team: Array, who: Array, scope: Array, told: Array) -> None:
        """What these warps know goes into told[scope], and their clocks tick."""
        if self.known is not None:
            np.maximum.at(told, scope, self.known[team, who])
            self.clock[team, who] += np.uint32(1)
            self.known[team, who, who] = self.clock[team, who]

    def hear(self, team: Array, who: Array, told: Array) -> None:
        """These warps know what told (one row each) says."""
        if self.known is None:
            self.clock[team, who] += np.uint32(1)
        else:
            self.known[team, who] = np.maximum(self.known[team, who], told)


class CtaClocks:
    """Of the CTAs of a launch that can wait for each other, through atomics and through loads and stores with an order.

    A CTA is one: that its own warps have come to a barrier before one of them tells of what all did is not checked.
    """

    LIMIT = 4096

    def __init__(self, ctas: int):
        if ctas > self.LIMIT:
            raise NotImplementedError(f"{ctas} CTAs that synchronize with each other; at most {self.LIMIT} are checked")
        self.known = np.zeros((ctas, ctas), np.int32)
        np.fill_diagonal(self.known, 1)
        self.fenced = np.zeros((ctas, ctas), np.int32)  # what each knew at its last fence
        self.pending = np.zeros((ctas, ctas), np.int32)  # what it has read of, to be known after the next fence
        self.told: dict[int, Array] = {}  # at each address

    def now(self, cta: Array) -> Array:
        return self.known[cta, cta]

    def ordered(self, cta: Array, other: Array, clock: Array) -> Array:
        """Whether `cta` knows of what `other` did at its `clock`."""
        return clock <= self.known[cta, other]

    def fence(self, ctas: Array) -> None:
        for c in np.unique(ctas):
            np.maximum(self.known[c], self.pending[c], out=self.known[c])
            self.fenced[c] = self.known[c]
            self.known[c, c] += 1

    def strong(self, ctas: Array, addresses: Array, order: str, reads: bool, writes: bool) -> None:
        """One access after the other, as they took effect.  order: relaxed, acquire, release or acq_rel."""
        acquires, releases = order in ("acquire", "acq_rel"), order in ("release", "acq_rel")
        for c, address in zip(ctas.tolist(), addresses.tolist()):
            told = self.told.get(address)
            if reads and told is not None:
                kept = self.known if acquires else self.pending
                np.maximum(kept[c], told, out=kept[c])
            if writes:
                mine = self.known[c] if releases else self.fenced[c]
                self.told[address] = mine.copy() if told is None else np.maximum(told, mine)
        if releases:
            for c in np.unique(ctas):
                self.known[c, c] += 1
