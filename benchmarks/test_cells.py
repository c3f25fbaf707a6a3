"""pytest --benchmark: the cells.  On a GPU each is timed by the device; the others are of the host."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from pytest_benchmark.fixture import BenchmarkFixture

import tritonln
from benchmarks import recurrent_nets
from benchmarks.cases import Case
from benchmarks.provider import Provider
from benchmarks.sweep import Bench, measure, refusal

on_stub = pytest.mark.skipif(shutil.which("cc") is None, reason="the stub driver is built with a C compiler")


class Replay:
    """A timer that only recorded durations move, so that pytest-benchmark's rounds are those of another clock."""

    def __init__(self) -> None:
        self.now = 0.0

    def clock(self) -> float:
        return self.now

    def into(self, benchmark: BenchmarkFixture, seconds: Sequence[float]) -> None:
        samples = iter(seconds)

        def round_() -> None:
            self.now += next(samples)

        benchmark.pedantic(round_, rounds=len(seconds))


recorded = Replay()
replayed = pytest.mark.benchmark(timer=recorded.clock)


@replayed
def test_device(benchmark: BenchmarkFixture, case: Case, provider: Provider, request: pytest.FixtureRequest) -> None:
    """Seconds on the device, of a provider whose result agrees with the fp64 oracle."""
    refused = refusal(case, provider)
    if refused is not None:
        skip(benchmark, f"{provider.name}: {refused['reason']}")
    if not torch.accelerator.is_available():
        skip(benchmark, "needs a GPU: python -m benchmarks run --offline tells what can be known without one")
    bench: Bench = request.getfixturevalue("bench")
    found = measure(case, provider, bench)
    if found["status"] == "missing":
        skip(benchmark, found["reason"])
    assert found["status"] == "ok", found["reason"]
    benchmark.group = case.id
    benchmark.extra_info.update(
        {k: found[k] for k in ("GB/s", "of_copy", "configuration", "cold")}
        | {"mode": bench.mode, "provider": provider.name}
    )
    recorded.into(benchmark, found["samples"])


def skip(benchmark: BenchmarkFixture, reason: str) -> None:
    benchmark.skipped = True  # not a forgotten fixture
    pytest.skip(reason)


@replayed
@on_stub
@pytest.mark.parametrize("direction", ["no_grad", "forward", "both"])
@pytest.mark.parametrize("provider_name", ["tritonln", "eager", "liger", "fla"])
def test_host_time(benchmark: BenchmarkFixture, provider_name: str, direction: str, host_times: HostTimes) -> None:
    """CPU seconds of a call on a driver that does nothing."""
    if (provider_name, direction) not in host_times:
        skip(benchmark, f"{provider_name} is not installed")
    benchmark.group = f"host time, 2 x 1024, {direction}"
    recorded.into(benchmark, [us / 1e6 for us in host_times[provider_name, direction]])


HostTimes = dict[tuple[str, str], list[float]]


@pytest.fixture(scope="module")
def host_times() -> HostTimes:
    lines = output("-m", "benchmarks.host", "--json").splitlines()
    return {(r["provider"], r["pass"]): r["samples"] for r in map(json.loads, lines)}


@replayed
@on_stub
@pytest.mark.parametrize("state", ["cold", "warm"])
def test_first_call(benchmark: BenchmarkFixture, state: str, first_calls: dict[str, float]) -> None:
    """CPU seconds of the first call of a process at N = 4,096, with Triton's disk cache empty and filled."""
    benchmark.group = "first call"
    recorded.into(benchmark, [first_calls[state]])


@pytest.fixture(scope="module")
def first_calls() -> dict[str, float]:
    return {
        r["cache"]: r["seconds"] for r in map(json.loads, output("-m", "benchmarks.firstcall", "--json").splitlines())
    }


RECURRENT = [(net, provider.name) for net in recurrent_nets.NETS for provider in recurrent_nets.PROVIDERS]


@replayed
@pytest.mark.parametrize(("net", "provider_name"), RECURRENT, ids=str)
def test_recurrent(
    benchmark: BenchmarkFixture, net: str, provider_name: str, recurrent: dict[tuple[str, str], Any]
) -> None:
    """Seconds a time step of a recurrent layer, forward and backward: the GPU's, or CPU time of the smallest net."""
    cell = recurrent.get((net, provider_name), {"reason": "needs a GPU: on a CPU python -m benchmarks recurrent"})
    if "samples" not in cell:
        skip(benchmark, f"{provider_name}: {cell['reason']}")
    benchmark.group = f"recurrent layer, {net}"
    recorded.into(benchmark, cell["samples"])


@pytest.fixture(scope="module")
def recurrent() -> dict[tuple[str, str], Any]:
    nets = () if torch.accelerator.is_available() else ("--nets", "vowels")
    lines = output("-m", "benchmarks.recurrent", "--json", *nets).splitlines()
    return {(r["net"], r["provider"]): r for r in map(json.loads, lines) if r["record"] == "recurrent"}


DISPATCH = """
import json, time, torch, torch.nn.functional as F, tritonln
torch.set_num_threads(1)
x, w, b = torch.zeros(2, 64), torch.zeros(64), torch.zeros(64)
calls = {"tritonln": lambda: tritonln.layer_norm(x, 64, w, b), "eager": lambda: F.layer_norm(x, (64,), w, b)}
found = {name: [] for name in calls}
for _ in range(12):
    for name, call in calls.items():
        start = time.thread_time()
        for _ in range(500):
            call()
        found[name].append((time.thread_time() - start) / 500)
print(json.dumps({name: seconds[1:] for name, seconds in found.items()}))
"""


@replayed
@pytest.mark.parametrize("name", ["tritonln", "eager"])
def test_cpu_dispatch(benchmark: BenchmarkFixture, name: str, dispatch: dict[str, list[float]]) -> None:
    """A call on CPU tensors outside the interpreter, which both give to ATen."""
    benchmark.group = "dispatch of CPU tensors, 2 x 64"
    recorded.into(benchmark, dispatch[name])


@pytest.fixture(scope="module")
def dispatch() -> dict[str, list[float]]:
    return json.loads(output("-c", DISPATCH, TRITON_INTERPRET="0"))


@pytest.mark.parametrize("direction", ["forward", "both"])
def test_interpreter(benchmark: BenchmarkFixture, direction: str) -> None:
    """Values a second in Triton's interpreter: what the tests of this project run on."""
    from tritonln.device import interpreting

    if not interpreting():
        skip(benchmark, "kernels are compiled in this process, not interpreted")
    x, dy = torch.randn(16, 1024, requires_grad=True), torch.randn(16, 1024)
    w, b = (torch.randn(1024, requires_grad=True) for _ in range(2))
    call: Callable[[], object] = lambda: tritonln.layer_norm(x, 1024, w, b)  # noqa: E731
    if direction == "both":
        call = lambda: torch.autograd.grad(tritonln.layer_norm(x, 1024, w, b), (x, w, b), dy)  # noqa: E731
    benchmark.group = "interpreter, 16 x 1024"
    benchmark.pedantic(call, rounds=3)
    if benchmark.stats is not None:
        benchmark.extra_info["values/s"] = x.numel() / benchmark.stats.stats.median


def output(*arguments: str, **environment: str) -> str:
    done = subprocess.run(
        [sys.executable, *arguments], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode == 0, done.stderr
    return done.stdout
