"""Seconds of a call, by the device's own clock.

`events` brackets each call with two events.  The L2 cache is cold: calls rotate through copies of
their buffers that together exceed it several times, and a result lives until its place comes round
again, so that results rotate too.  The device is kept busy until the host has
enqueued a whole batch, so that no gap between launches is measured.  `graph` replays a captured
graph of such calls, which takes the host out altogether.  `wall` is the host's clock over many calls
between two synchronizations.  triton.testing's helpers are not used: they clear L2 by writing to it,
and the lines that they leave dirty are written back during the call.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import torch

Call = Callable[[], object]

MODES = ("events", "graph", "wall")
SAMPLES = 50
BATCH = 10  # calls that are enqueued at once: far from the 1,024 launches that a driver queues
COLD = 3  # times the L2 cache
MOST_COPIES = 64
WALL_SECONDS = 5e-3  # of a batch: the synchronization at its end, some 10 us, is then below 1 %


class Event(Protocol):
    def record(self) -> None: ...
    def query(self) -> bool: ...
    def elapsed_time(self, end: Any) -> float: ...  # milliseconds


class Clock(Protocol):
    """What is asked of a device."""

    def event(self) -> Event: ...
    def synchronize(self) -> None: ...
    def occupy(self) -> None: ...  # enqueues some 100 us of work
    def now(self) -> float: ...  # the host's clock, in seconds
    def replayable(self, make: Callable[[], Sequence[Call]]) -> Call: ...


class Accelerator:
    """The clock of a GPU under torch."""

    def __init__(self, device: torch.device) -> None:
        self.device, self.module = device, torch.get_device_module(device)
        self.now = time.perf_counter
        self.scratch = torch.empty(1 << 28, dtype=torch.uint8, device=device)

    def event(self) -> Event:
        return self.module.Event(enable_timing=True)

    def synchronize(self) -> None:
        self.module.synchronize(self.device)

    def occupy(self) -> None:
        self.scratch.zero_()

    def replayable(self, make: Callable[[], Sequence[Call]]) -> Call:
        """The calls, captured.  They are made on the capturing stream: a backward runs where its forward did."""
        stream = self.module.Stream(self.device)
        stream.wait_stream(self.module.current_stream(self.device))
        with self.module.stream(stream):
            calls = make()
            for call in calls:
                call()
            graph = self.module.CUDAGraph()
            with self.module.graph(graph, stream=stream):
                kept = [call() for call in calls]
            del kept
        self.synchronize()
        return graph.replay


class Host:
    """A CPU as a device that finishes each call before it returns.  For rehearsals of what runs on a GPU."""

    class Event:
        def record(self) -> None:
            self.at = time.perf_counter()

        def query(self) -> bool:
            return True

        def elapsed_time(self, end: Any) -> float:
            return (end.at - self.at) * 1e3

    def __init__(self) -> None:
        self.now = time.perf_counter

    def event(self) -> Event:
        return self.Event()

    def synchronize(self) -> None:
        pass

    def occupy(self) -> None:
        pass

    def replayable(self, make: Callable[[], Sequence[Call]]) -> Call:
        calls = make()

        def replay() -> None:
            for call in calls:
                call()

        return replay


def copies_for(bytes_moved: int, l2_bytes: int, free_bytes: int) -> int:
    """Sets of buffers to rotate through: the next use of one finds L2 filled with the others."""
    wanted = -(-COLD * l2_bytes // max(1, bytes_moved)) + 1
    return max(1, min(wanted, MOST_COPIES, free_bytes // 2 // max(1, bytes_moved)))


def events(calls: Sequence[Call], clock: Clock, samples: int = SAMPLES) -> list[float]:
    kept = [call() for call in calls]  # compiles, and touches every buffer
    clock.synchronize()
    seconds: list[float] = []
    head, turn = 1, 0
    while len(seconds) < samples:
        pairs = [(clock.event(), clock.event()) for _ in range(min(BATCH, samples - len(seconds)))]
        for _ in range(head):
            clock.occupy()
        for start, end in pairs:
            start.record()
            kept[turn] = calls[turn]()
            end.record()
            turn = (turn + 1) % len(calls)
        late = pairs[0][0].query()  # the device was at work on the batch before all of it was enqueued
        clock.synchronize()
        if late and head < 64:
            head *= 4
            continue
        seconds += [start.elapsed_time(end) / 1e3 for start, end in pairs]
    return seconds


def graph(make: Callable[[], Sequence[Call]], clock: Clock, samples: int = SAMPLES) -> list[float]:
    count = 0

    def counting() -> Sequence[Call]:
        nonlocal count
        calls = make()
        count = len(calls)
        return calls

    replay = clock.replayable(counting)
    return [s / count for s in events([replay], clock, max(5, samples // 5))]


def wall(calls: Sequence[Call], clock: Clock, samples: int = SAMPLES) -> list[float]:
    kept: list[object] = [None] * len(calls)

    def batch(size: int) -> float:
        clock.synchronize()
        start = clock.now()
        for i in range(size):
            kept[i % len(calls)] = calls[i % len(calls)]()
        clock.synchronize()
        return clock.now() - start

    batch(len(calls))
    size = max(1, round(WALL_SECONDS / max(batch(1), 1e-7)))
    size = max(size, round(WALL_SECONDS / max(batch(size) / size, 1e-7)))
    return [batch(size) / size for _ in range(max(5, samples // 5))]


def measure(make: Callable[[], Sequence[Call]], clock: Clock, mode: str, samples: int = SAMPLES) -> list[float]:
    """Seconds of one call, sampled.  `make` gives the calls to rotate through."""
    if mode == "graph":
        return graph(make, clock, samples)
    return (events if mode == "events" else wall)(make(), clock, samples)


def copy_bandwidth(device: torch.device, clock: Clock, size: int) -> float:
    """Bytes a second that a device copy of `size` bytes reads and writes: the roof of every other figure."""
    source = torch.zeros(size, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    seconds = sorted(events([lambda: target.copy_(source)], clock, 20))
    return 2 * size / seconds[len(seconds) // 2]
