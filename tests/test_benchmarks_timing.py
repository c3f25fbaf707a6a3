"""The harness on a device whose clock is made up: what it reports is what the device took."""

import weakref
from collections.abc import Callable, Sequence
from typing import Any

import pytest

from benchmarks import timing
from benchmarks.stats import ratio, summary


class Simulated:
    """A device that works through a queue while the host goes on.  Times in seconds."""

    launch = 6e-6  # of the host, for each thing enqueued
    record = 1e-6

    def __init__(self) -> None:
        self.host = self.device = 0.0

    def work(self, seconds: float) -> None:
        self.host += self.launch
        self.device = max(self.device, self.host) + seconds

    def event(self) -> Any:
        clock = self

        class Event:
            def record(self) -> None:
                clock.host += clock.record
                clock.device = max(clock.device, clock.host)
                self.at = clock.device

            def query(self) -> bool:
                return self.at <= clock.host

            def elapsed_time(self, end: Any) -> float:
                return (end.at - self.at) * 1e3

        return Event()

    def synchronize(self) -> None:
        self.host = max(self.host, self.device) + 8e-6

    def occupy(self) -> None:
        self.work(100e-6)

    def now(self) -> float:
        return self.host

    def replayable(self, make: Callable[[], Sequence[timing.Call]]) -> timing.Call:
        calls = make()

        def replay() -> None:
            before = self.host
            for call in calls:
                call()
            self.host = before + self.launch

        return replay


def bare_loop(clock: Simulated, seconds: float) -> float:
    pairs = [(clock.event(), clock.event()) for _ in range(50)]
    clock.occupy()
    for start, end in pairs:
        start.record()
        clock.work(seconds)
        end.record()
    clock.synchronize()
    return summary([s.elapsed_time(e) / 1e3 for s, e in pairs]).median


@pytest.mark.parametrize("mode", timing.MODES)
def test_overhead_is_below_two_percent(mode: str) -> None:
    """Of a copy of 256 MiB, 90 us: against a bare loop of events."""
    clock = Simulated()
    found = summary(timing.measure(lambda: [lambda: clock.work(90e-6)] * 3, clock, mode)).median
    assert found == pytest.approx(bare_loop(Simulated(), 90e-6), rel=0.02)


def test_short_kernels_are_not_charged_for_the_host() -> None:
    """A kernel of 2 us behind a launch of 6 us: a bare loop sees the launch, the harness does not."""
    clock = Simulated()
    found = summary(timing.measure(lambda: [lambda: clock.work(2e-6)], clock, "events")).median
    assert found == pytest.approx(2e-6, rel=0.02)
    assert bare_loop(Simulated(), 2e-6) > 5e-6


def test_slow_hosts_are_given_a_longer_head_start() -> None:
    clock = Simulated()
    clock.launch = 60e-6
    found = summary(timing.measure(lambda: [lambda: clock.work(20e-6)], clock, "events")).median
    assert found == pytest.approx(20e-6, rel=0.02)


def test_calls_rotate() -> None:
    seen: list[int] = []
    clock = Simulated()
    timing.measure(lambda: [lambda i=i: seen.append(i) for i in range(4)], clock, "events", samples=8)  # type: ignore[misc]
    assert seen[-8:] == [0, 1, 2, 3] * 2


@pytest.mark.parametrize("mode", ["events", "wall"])
def test_results_rotate(mode: str) -> None:
    """The allocator must not give each call the memory of the one before it: that is still in L2."""

    class Result:
        pass

    alive: weakref.WeakSet[Result] = weakref.WeakSet()
    least = []

    def call() -> Result:
        least.append(len(alive))
        made = Result()
        alive.add(made)
        return made

    clock = Simulated()
    clock.launch = 1e-3
    timing.measure(lambda: [lambda: (clock.work(1e-3), call())[1]] * 3, clock, mode)
    assert min(least[3:]) == 3


def test_copies_fill_the_cache_but_not_the_memory() -> None:
    assert timing.copies_for(200 << 20, 50 << 20, 80 << 30) == 2
    assert timing.copies_for(10 << 20, 50 << 20, 80 << 30) == 16
    assert timing.copies_for(1 << 10, 50 << 20, 80 << 30) == timing.MOST_COPIES
    assert timing.copies_for(8 << 30, 50 << 20, 9 << 30) == 1


def test_ratios_inside_the_noise_say_so() -> None:
    a = [1.0 + 0.01 * (i % 7) for i in range(50)]
    same = ratio(a, [x + 0.001 for x in a])
    assert same.noise
    assert "inside the noise" in str(same)
    slower = ratio([1.2 * x for x in a], a)
    assert not slower.noise
    assert 1.17 < slower.low <= slower.value <= slower.high < 1.23
