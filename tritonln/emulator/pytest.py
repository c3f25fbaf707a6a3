"""A plugin: ``pytest -p tritonln.emulator.pytest --emulate sm_90`` runs a test suite on an emulated GPU.

Tensors of the tests are on the CPU.  Works with pytest-xdist.  At the end it says which kernels were launched, and what
was odd in them though not certainly wrong.
"""

from __future__ import annotations

import collections
import contextlib
import os
from collections.abc import Iterator
from typing import Any

import pytest

LAUNCHES = pytest.StashKey["Launches"]()


class Launches:
    """What was launched: by kernel, how often and for how long; and notes, by kernel and note."""

    def __init__(self) -> None:
        self.times: collections.Counter[str] = collections.Counter()
        self.seconds: collections.Counter[str] = collections.Counter()
        self.notes: collections.Counter[str] = collections.Counter()

    def add(self, runs: list[Any]) -> None:
        for run in runs:
            self.times[run.name] += 1
            self.seconds[run.name] += run.seconds
            for note, times in run.counters.notes.items():
                self.notes[f"{run.name}: {note}"] += times
        runs.clear()

    def join(self, other: dict[str, dict[str, Any]]) -> None:
        for name, counts in other.items():
            getattr(self, name).update(counts)

    def lines(self) -> Iterator[str]:
        """Few enough to be read: kernels by the time they took."""
        yield f"{self.times.total()} emulated launches in {self.seconds.total():.0f} s"
        for name, seconds in self.seconds.most_common():
            yield f"  {name}: {self.times[name]} ({seconds:.1f} s)"
        for note, times in self.notes.items():
            yield f"  note: {note} ({times} times)"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("emulated GPU")
    group.addoption("--emulate", metavar="TARGET", help="run Triton's kernels on an emulated GPU, such as sm_90")
    group.addoption("--emulate-unchecked", action="store_true", help="do not look for races, nor who stored what")
    group.addoption("--emulate-count", action="store_true", help="count sectors and wavefronts of each launch")
    group.addoption(
        "--emulate-perturbed", type=int, metavar="SEED",
        help="approximate instructions give a value anywhere within their documented error, by this seed",
    )  # fmt: skip


def pytest_configure(config: pytest.Config) -> None:
    option = config.option
    if option.emulate is None:
        return
    # Nothing that a test imports is to be interpreted, and its child processes inherit this.
    os.environ.setdefault("TRITON_INTERPRET", "0")
    from tritonln.emulator.driver import emulated_gpu

    config.stash[LAUNCHES] = Launches()
    active = contextlib.ExitStack()
    config.add_cleanup(active.close)
    seed = option.emulate_perturbed
    try:
        gpu = active.enter_context(
            emulated_gpu(
                option.emulate,
                check=not option.emulate_unchecked,
                count=option.emulate_count,
                perturbed=seed is not None,
                seed=seed or 0,
            )
        )
    except (ValueError, RuntimeError) as error:
        raise pytest.UsageError(f"--emulate: {error}") from None
    config.pluginmanager.register(Collecting(config.stash[LAUNCHES], gpu.runs), "tritonln-emulated")


class Collecting:
    """Registered only where a GPU is emulated."""

    def __init__(self, launches: Launches, runs: list[Any]) -> None:
        self.launches, self.runs = launches, runs

    @pytest.hookimpl(trylast=True)
    def pytest_runtest_teardown(self) -> None:
        self.launches.add(self.runs)

    def pytest_sessionfinish(self, session: pytest.Session) -> None:
        output = getattr(session.config, "workeroutput", None)  # of a process of xdist's
        if output is not None:
            output["emulated"] = {name: dict(counts) for name, counts in vars(self.launches).items()}

    @pytest.hookimpl(optionalhook=True)
    def pytest_testnodedown(self, node: Any) -> None:
        self.launches.join(getattr(node, "workeroutput", {}).get("emulated", {}))

    def pytest_terminal_summary(self, terminalreporter: Any) -> None:
        terminalreporter.section("emulated GPU")
        for line in self.launches.lines():
            terminalreporter.write_line(line)
