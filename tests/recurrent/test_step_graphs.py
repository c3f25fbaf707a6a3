"""CUDA graphs of the time steps, with torch.cuda played on the CPU: what they do to tensors, streams and devices."""

from __future__ import annotations

import contextlib
import dataclasses
import threading
import time
from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tritonln.device import TARGETS
from tritonln.ops.recurrent import step_graphs
from tritonln.ops.recurrent.step_graphs import KEPT, StepGraphs


class Stream:
    def __init__(self, device: int) -> None:
        self.device = device


class Gpus:
    """Two GPUs, as torch.cuda is to a thread: work goes to the current stream of the current device.

    Work on a stream that is being captured is kept for the replay, and other work is carried out.
    """

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.current = 0
        self.streams = [Stream(0), Stream(1)]
        self.captures: list[tuple[Stream, list[Callable[[], Any]], str]] = []
        self.replays = 0
        self.fails = False
        for name, played in {
            "device": self.device,
            "stream": self.stream,
            "current_stream": lambda: self.streams[self.current],
            "Stream": lambda: Stream(self.current),
            "CUDAGraph": lambda: Graph(self),
            "graph": self.graph,
            "is_current_stream_capturing": lambda: any(s is self.streams[self.current] for s, *_ in self.captures),
        }.items():
            monkeypatch.setattr(torch.cuda, name, played)
        monkeypatch.setattr(step_graphs, "capturable", lambda device: True)
        monkeypatch.setattr(step_graphs, "GRAPHS", StepGraphs())

    @contextlib.contextmanager
    def device(self, number: int | None) -> Iterator[None]:
        before, self.current = self.current, self.current if number is None else number
        yield
        self.current = before

    @contextlib.contextmanager
    def stream(self, stream: Stream) -> Iterator[None]:
        device, before = self.current, self.streams[stream.device]
        self.current, self.streams[stream.device] = stream.device, stream
        try:
            yield
        finally:
            self.current, self.streams[stream.device] = device, before

    @contextlib.contextmanager
    def graph(self, graph: Graph, stream: Stream | None = None, capture_error_mode: str = "global") -> Iterator[None]:
        """As torch's: a stream of its own is the first device's, and where the capture failed it stays current."""
        stream = stream or Stream(0)
        before = self.current, self.streams[stream.device]
        self.current, self.streams[stream.device] = stream.device, stream
        self.captures.append((stream, graph.work, capture_error_mode))
        try:
            yield
        finally:
            self.captures.pop()
            if self.fails:
                raise RuntimeError("operation failed due to a previous error during capture")
        self.current, self.streams[stream.device] = before

    def launch(self, device: int, work: Callable[[], Any]) -> None:
        for stream, kept, _ in self.captures:
            if stream is self.streams[device]:
                kept.append(work)
                return
        work()


class Graph:
    def __init__(self, gpus: Gpus) -> None:
        self.gpus = gpus
        self.work: list[Callable[[], Any]] = []

    def replay(self) -> None:
        self.gpus.replays += 1
        time.sleep(1e-4)  # other threads have their turn
        for work in self.work:
            work()


@pytest.fixture
def gpus(monkeypatch: pytest.MonkeyPatch) -> Gpus:
    return Gpus(monkeypatch)


def scaled(x: Tensor, state: Tensor, out: Tensor, nothing: None, factor: float, gpus: Gpus, device: int) -> None:
    gpus.launch(device, lambda: state.add_(x))
    gpus.launch(device, lambda: torch.mul(state, factor, out=out))


def expect(gpus: Gpus, call: float, *, size: int = 3, factor: float = 2.0, device: int = 0, x: Any = None) -> None:
    x = torch.full((size,), call) if x is None else x
    state, out = torch.ones(size), torch.empty(size)
    gpu = dataclasses.replace(TARGETS["sm_90"], index=device)
    tensors = {"x": x, "state": state, "out": out, "nothing": None}
    constants = {"factor": factor, "gpus": gpus, "device": device}
    step_graphs.run(scaled, tensors, ("state", "out"), constants, True, gpu)
    assert out.equal(torch.full((size,), factor * (1 + call)))
    assert state.equal(torch.full((size,), 1 + call))
    assert x.equal(torch.full((size,), call))


# ---- tensors -------------------------------------------------------------------------------------


def test_results_are_the_same_as_without(gpus: Gpus) -> None:
    for call in range(4):
        expect(gpus, call)
    assert gpus.replays == 3  # from the second call on


def test_every_kind_has_a_graph_of_its_own_and_old_ones_go(gpus: Gpus) -> None:
    for factor in (2.0, 3.0):
        for size in range(1, KEPT + 1):
            for call in range(2):
                expect(gpus, call, size=size, factor=factor)
    assert gpus.replays == 2 * KEPT
    assert len(step_graphs.GRAPHS.graphs) == KEPT


@pytest.mark.parametrize("first", [torch.inference_mode, torch.no_grad, contextlib.nullcontext])
def test_a_graph_serves_every_mode(first: Any, gpus: Gpus) -> None:
    with first():
        for call in range(2):
            expect(gpus, call)
    for later in (torch.no_grad, contextlib.nullcontext, torch.inference_mode):
        with later():
            expect(gpus, 5)
    assert gpus.replays == 4


def test_unaligned_arguments_compile_what_the_graph_launches(gpus: Gpus) -> None:
    """Triton has a kernel for arguments at multiples of 16 bytes and another for all others."""
    seen = []

    def steps(x: Tensor, out: Tensor) -> None:
        seen.append((x.data_ptr() % 16, out.data_ptr() % 16))
        gpus.launch(0, lambda: out.copy_(x))

    for call in range(3):
        x, out = torch.full((5,), float(call))[1:], torch.empty(4)
        step_graphs.run(steps, {"x": x, "out": out}, ("out",), {}, True, TARGETS["sm_90"])
        assert out.equal(x)
    assert seen == [(0, 0), (0, 0)]


# ---- devices, streams and threads ----------------------------------------------------------------


def test_on_a_gpu_that_is_not_current(gpus: Gpus) -> None:
    for call in range(4):
        expect(gpus, call, device=1)
        expect(gpus, call, device=0)
    assert gpus.replays == 6
    assert gpus.current == 0


def test_streams_do_not_share_a_graph(gpus: Gpus) -> None:
    for stream in (Stream(0), Stream(0)):
        with gpus.stream(stream):
            for call in range(2):
                expect(gpus, call)
    assert len(step_graphs.GRAPHS.graphs) == 2
    owned = [replay.own for replay in step_graphs.GRAPHS.graphs.values()]  # type: ignore[union-attr]
    assert owned[0]["x"].data_ptr() != owned[1]["x"].data_ptr()  # type: ignore[union-attr]


def test_work_of_other_threads_does_not_spoil_a_capture(gpus: Gpus) -> None:
    modes = []

    def steps(x: Tensor) -> None:
        modes.extend(mode for *_, mode in gpus.captures)

    for _ in range(2):
        step_graphs.run(steps, {"x": torch.ones(1)}, (), {}, True, TARGETS["sm_90"])
    assert modes == ["thread_local"]


def test_threads_that_share_a_stream(gpus: Gpus) -> None:
    """Nobody writes into a graph's tensors between another's copies and its replay."""
    for call in range(2):
        expect(gpus, call)
    failed = []

    def many(call: float) -> None:
        try:
            for _ in range(20):
                expect(gpus, call)
        except AssertionError as error:
            failed.append(error)

    threads = [threading.Thread(target=many, args=(call,)) for call in (3.0, 4.0)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failed


def test_a_capture_that_fails(gpus: Gpus) -> None:
    """Steps are launched one by one from then on, on the stream that was current, and the user is told."""
    expect(gpus, 0)
    before = gpus.streams[0]
    gpus.fails = True
    with pytest.warns(UserWarning, match="one by one, as capturing them failed: operation failed"):
        expect(gpus, 1)
    assert gpus.streams[0] is before
    for call in range(3):
        expect(gpus, call)
    assert gpus.replays == 0


def test_inside_somebody_else_s_capture(gpus: Gpus) -> None:
    """Steps are part of that capture."""
    outer = Graph(gpus)
    x, state, out = torch.ones(3), torch.ones(3), torch.zeros(3)
    tensors = {"x": x, "state": state, "out": out, "nothing": None}
    constants = {"factor": 2.0, "gpus": gpus, "device": 0}
    with gpus.graph(outer):
        for _ in range(2):
            step_graphs.run(scaled, tensors, ("state", "out"), constants, True, TARGETS["sm_90"])
    assert out.equal(torch.zeros(3))
    outer.replay()
    assert out.equal(torch.full((3,), 6.0))
