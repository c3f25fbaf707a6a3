"""A loop over time steps as one CUDA graph: on a GPU the host could not launch the steps as fast as they run.

Not yet run on a GPU: captured and replayed on an emulated one, where the CPU plays the graph.
"""

from __future__ import annotations

import dataclasses
import threading
import warnings
from collections import OrderedDict
from collections.abc import Callable, Collection, Mapping
from typing import Any

import torch
from torch import Tensor

from tritonln.device import Device
from tritonln.launch import active_driver

KEPT = 16  # graphs, the ones last used; each holds buffers of the size of a call's

Steps = Callable[..., None]
Tensors = Mapping[str, Tensor | None]  # by the names of the parameters of the steps
Written = Collection[str]


class StepGraphs:
    """Runs `steps(**tensors, **constants)`, which writes the tensors named in `written` and reads the others.

    The first call of a kind (the same steps, shapes, dtypes, constants and stream) runs as it is, which also
    compiles its kernels.  The second is captured on tensors of its own, and from then on tensors are copied
    to those, the graph is replayed, and what it wrote is copied back.
    """

    def __init__(self) -> None:
        self.graphs: OrderedDict[Any, Callable[[Tensors, Written], None] | None] = OrderedDict()
        self.lock = threading.Lock()  # threads that share a stream share the tensors of a graph

    def run(self, steps: Steps, tensors: Tensors, written: Written, constants: Mapping[str, Any], stream: Any) -> None:
        kinds = tuple(None if t is None else (t.shape, t.stride(), t.dtype, t.device) for t in tensors.values())
        key = steps, kinds, tuple(constants.values()), stream
        with self.lock:
            known = key in self.graphs
            if known:
                graph = self.graphs[key]
                if graph is None:
                    graph = self.graphs[key] = capture(steps, tensors, constants)
                self.graphs.move_to_end(key)
                graph(tensors, written)
            else:
                self.graphs[key] = None
                if len(self.graphs) > KEPT:
                    self.graphs.popitem(last=False)
        if not known:
            steps(**aligned(tensors, written), **constants)


def aligned(tensors: Tensors, written: Written) -> Tensors:
    """With copies of what is read and not aligned: a graph's own tensors are, and a capture must not compile."""
    read = {name: t for name, t in tensors.items() if t is not None and name not in written}
    return {**tensors, **{name: t.clone() for name, t in read.items() if t.data_ptr() % 16}}


@dataclasses.dataclass(frozen=True)
class Replay:
    """A graph and the tensors that it reads and writes."""

    graph: Any
    own: Tensors

    def __call__(self, tensors: Tensors, written: Written) -> None:
        pairs = {name: (self.own[name], given) for name, given in tensors.items()}
        for mine, given in pairs.values():
            if mine is not None and given is not None:
                mine.copy_(given)
        self.graph.replay()
        for name in written:
            mine, given = pairs[name]
            if mine is not None and given is not None:
                given.copy_(mine)


def capture(steps: Steps, tensors: Tensors, constants: Mapping[str, Any]) -> Callable[[Tensors, Written], None]:
    """What runs the steps from now on: a replay, or the steps themselves where a graph of them cannot be had."""
    with torch.inference_mode(False), torch.no_grad():  # later calls may write them, in whatever mode
        own = {name: None if t is None else t.clone() for name, t in tensors.items()}
    graph = torch.cuda.CUDAGraph()
    try:
        # On its own torch captures on a stream of the first device that it was asked for, and stays there on errors.
        with (
            torch.cuda.stream(torch.cuda.current_stream()),
            torch.cuda.graph(graph, stream=torch.cuda.Stream(), capture_error_mode="thread_local"),
        ):
            steps(**own, **constants)
    except RuntimeError as error:
        warnings.warn(f"time steps are launched one by one, as capturing them failed: {error}", stacklevel=2)
        return lambda tensors, _: steps(**tensors, **constants)
    return Replay(graph, own)


GRAPHS = StepGraphs()


def run(
    steps: Steps,
    tensors: Tensors,
    written: Written,
    constants: Mapping[str, Any],
    cuda_graph: bool,
    device: Device,
) -> None:
    """Through a graph where one is wanted and possible: on CUDA, and not inside another capture."""
    if not (cuda_graph and capturable(device)):
        steps(**tensors, **constants)
        return
    with torch.cuda.device(device.index):  # streams and graphs are those of the current one
        if torch.cuda.is_current_stream_capturing():
            steps(**tensors, **constants)
        else:
            GRAPHS.run(steps, tensors, written, constants, torch.cuda.current_stream())


def capturable(device: Device) -> bool:
    """torch.cuda has graphs of NVIDIA's and of AMD's GPUs; the interpreter, which has no driver, has none."""
    return device.backend in ("cuda", "hip") and active_driver() is not None
