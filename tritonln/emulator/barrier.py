"""Barriers of the warps of a CTA or of a cluster."""

from __future__ import annotations

import numpy as np

from tritonln.emulator.clocks import WarpClocks
from tritonln.emulator.faults import Array, Fault
from tritonln.emulator.warps import Ids


class Barrier:
    """One barrier of each of several scopes, CTAs or clusters.

    It opens for those who have come when `expected` warps have; who comes later waits for the next time.
    """

    def __init__(self, scopes: int, clocks: WarpClocks, expected: Array | int):
        self.clocks, self.expected = clocks, expected
        whos = clocks.clock.shape[1]
        self.arrived = np.zeros(scopes, np.int64)
        self.opened = np.zeros(scopes, np.int64)  # how often
        self.come = np.full((len(clocks.clock), whos), -1, np.int64)  # for which opening each warp has come
        self.told = np.zeros((scopes, whos), np.uint32)  # what those know who have come
        self.heard = np.zeros((scopes, whos), np.uint32)  # and what those did when it opened

    def arrive(self, ids: Ids, scope: Array) -> Array:
        """Tickets, one for each warp."""
        ticket, team, who = self.opened[scope], ids.team, ids.who
        if self.clocks.known is not None:
            if (self.come[team, who] == ticket).any():
                raise Fault("arrives twice at a barrier that others have not come to", self.come[team, who] == ticket)
            self.come[team, who] = ticket
        self.clocks.tell(ids.team[:, 0], ids.who[:, 0], scope[:, 0], self.told)
        self.arrived += np.bincount(scope[:, 0], minlength=len(self.arrived))
        return ticket

    def open(self) -> bool:
        """Lets those go on for whom all have come; whether there are any."""
        full = (self.arrived >= self.expected) & (self.arrived > 0)
        if not full.any():
            return False
        self.opened[full] += 1
        self.arrived[full] = 0
        self.heard[full] = self.told[full]
        self.told[full] = 0
        return True

    def passed(self, scope: Array, ticket: Array) -> Array:
        return (self.opened[scope] > ticket)[:, 0]

    def hear(self, ids: Ids, scope: Array) -> None:
        """Those who go on know what all knew that came."""
        team, who = ids.team[:, 0], ids.who[:, 0]
        self.clocks.hear(team, who, self.heard[scope[:, 0]])
        ids.code, ids.since = self.clocks.code(team, who)[:, None], self.clocks.since(team, who)[:, None]
