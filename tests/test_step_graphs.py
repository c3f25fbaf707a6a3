"""What a CUDA graph of the time steps does to the tensors, with a graph that is played on the CPU."""

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

from tritonln.ops import step_graphs
from tritonln.ops.step_graphs import KEPT, StepGraphs


class Played:
    """Replays by running the steps again on the tensors that it was captured with."""

    def __init__(self, steps: Callable[..., None], own: list[Tensor | None], constants: tuple[Any, ...]) -> None:
        self.replay = lambda: steps(*own, *constants)


@pytest.fixture
def captured(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    found: list[int] = []

    def capture(steps: Any, tensors: Any, constants: Any) -> Any:
        found.append(len(tensors))
        own = [None if t is None else torch.full_like(t, -7) for t in tensors]
        return Played(steps, own, constants), own

    monkeypatch.setattr(step_graphs, "capture", capture)
    return found


def scaled(x: Tensor, state: Tensor, out: Tensor, nothing: None, factor: float) -> None:
    state += x
    torch.mul(state, factor, out=out)


def test_results_are_the_same_as_without(captured: list[int]) -> None:
    graphs = StepGraphs()
    for call in range(4):
        x, state, out = torch.full((3,), float(call)), torch.ones(3), torch.empty(3)
        graphs.run(scaled, (x, state, out, None), (1, 2), (2.0,))
        assert out.equal(torch.full((3,), 2 * (1.0 + call)))
        assert state.equal(torch.full((3,), 1.0 + call))
        assert x.equal(torch.full((3,), float(call)))
    assert captured == [4]  # by the second call, and once


def test_every_kind_has_a_graph_of_its_own_and_old_ones_go(captured: list[int]) -> None:
    graphs = StepGraphs()
    for factor in (2.0, 3.0):
        for size in range(1, KEPT + 1):
            for _ in range(2):
                x, state, out = torch.ones(size), torch.zeros(size), torch.empty(size)
                graphs.run(scaled, (x, state, out, None), (1, 2), (factor,))
                assert out.equal(torch.full((size,), factor))
    assert len(captured) == 2 * KEPT
    assert len(graphs.graphs) == KEPT
