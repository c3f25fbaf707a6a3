"""A loop over time steps as one CUDA graph: on a GPU the host could not launch the steps as fast as they run.

Not yet run on a GPU: captured and replayed on an emulated one, where the CPU plays the graph.
"""

from __future__ import annotations

from collections import OrderedDict
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor

from tritonln.device import Device
from tritonln.launch import active_driver

KEPT = 16  # graphs, the ones last used; each holds buffers of the size of a call's


class StepGraphs:
    """Runs `steps(*tensors, *constants)`, which writes the tensors at `written` and reads the others.

    The first call of a kind (the same steps, shapes, dtypes and constants) runs as it is, which also
    compiles its kernels.  The second is captured on tensors of its own, and from then on tensors are copied
    to those, the graph is replayed, and what it wrote is copied back.
    """

    def __init__(self) -> None:
        self.graphs: OrderedDict[Any, tuple[Any, list[Tensor | None]] | None] = OrderedDict()

    def run(
        self,
        steps: Callable[..., None],
        tensors: Sequence[Tensor | None],
        written: Sequence[int],
        constants: tuple[Any, ...],
    ) -> None:
        kinds = tuple(None if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in tensors)
        key = steps, kinds, constants
        if key not in self.graphs:
            self.graphs[key] = None
            if len(self.graphs) > KEPT:
                self.graphs.popitem(last=False)
            steps(*tensors, *constants)
            return
        entry = self.graphs[key]
        if entry is None:
            entry = self.graphs[key] = capture(steps, tensors, constants)
        self.graphs.move_to_end(key)
        graph, own = entry
        for mine, given in zip(own, tensors):
            if mine is not None and given is not None:
                mine.copy_(given)
        graph.replay()
        for index in written:
            mine, given = own[index], tensors[index]
            if mine is not None and given is not None:
                given.copy_(mine)


def capture(
    steps: Callable[..., None], tensors: Sequence[Tensor | None], constants: tuple[Any, ...]
) -> tuple[Any, list[Tensor | None]]:
    own = [None if t is None else t.clone() for t in tensors]
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        steps(*own, *constants)
    return graph, own


GRAPHS = StepGraphs()


def run(
    steps: Callable[..., None],
    tensors: Sequence[Tensor | None],
    written: Sequence[int],
    constants: tuple[Any, ...],
    cuda_graph: bool,
    device: Device,
) -> None:
    """Through a graph where one is wanted and possible: on CUDA, and not inside another capture."""
    if cuda_graph and capturable(device) and not torch.cuda.is_current_stream_capturing():
        GRAPHS.run(steps, tensors, written, constants)
    else:
        steps(*tensors, *constants)


def capturable(device: Device) -> bool:
    """torch.cuda has graphs of NVIDIA's and of AMD's GPUs; the interpreter, which has no driver, has none."""
    return device.backend in ("cuda", "hip") and active_driver() is not None
