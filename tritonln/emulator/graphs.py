"""torch.cuda's graphs and streams, played on CPU tensors: what is captured is recorded and not carried out."""

from __future__ import annotations

import contextlib
import itertools
from collections.abc import Callable, Iterator
from typing import Any
from unittest import mock

import torch
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

_handles = itertools.count(1)


class Stream:
    """A queue of work by number.  The work runs when it is launched, so no two streams are ever at odds."""

    def __init__(self, device: Any = None, priority: int = 0, **_: Any):
        self.cuda_stream = next(_handles)

    def synchronize(self) -> None: ...

    def wait_stream(self, stream: Stream) -> None: ...


class Graph:
    """A torch.cuda.CUDAGraph: launches of kernels and operators of torch's, one after the other."""

    def __init__(self, keep_graph: bool = False):
        self.recorded: list[Callable[[], None]] | None = None
        self.memory: list[torch.Tensor] = []  # what was allocated in the capture; none of it is used twice

    def replay(self) -> None:
        if self.recorded is None:
            raise RuntimeError("expected a graph that was captured before it is replayed")
        for again in self.recorded:
            again()

    def reset(self) -> None:
        self.recorded, self.memory = None, []

    def pool(self) -> tuple[int, int]:
        return (0, 0)


class Capture(TorchDispatchMode):
    """Records operators of torch's.  Their results exist, as allocations do in a capture, but hold nothing yet."""

    def __init__(self, stream: int):
        super().__init__()
        self.stream = stream
        self.recorded: list[Callable[[], None]] = []
        self.memory: list[torch.Tensor] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if torch.Tag.data_dependent_output in func.tags or func is torch.ops.aten._local_scalar_dense.default:
            raise RuntimeError(f"{func} reads a value on the host: operation not permitted when stream is capturing")
        if func.namespace not in ("aten", "prims"):  # an operator of somebody's: what it consists of is recorded
            with self:
                return func.redispatch(ON_CPU, *args, **kwargs)
        returned = [r.alias_info for r in func._schema.returns]
        if func._schema.is_mutable:
            self.recorded.append(lambda: func(*args, **kwargs))
            return changed(func._schema, returned, args, kwargs)
        result = func(*args, **kwargs)
        if any(alias is not None for alias in returned):
            return result
        into = [t for t in tree_leaves(result) if isinstance(t, torch.Tensor)]
        self.memory += into
        if func.overloadpacket.__name__.startswith(EMPTY):
            return result

        def again() -> None:
            values = [t for t in tree_leaves(func(*args, **kwargs)) if isinstance(t, torch.Tensor)]
            for target, value in zip(into, values):
                target.copy_(value)

        self.recorded.append(again)
        for tensor in into:
            if tensor.is_floating_point():
                tensor.fill_(float("nan"))
        return result


ON_CPU = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
EMPTY = ("empty", "new_empty")  # these compute nothing


def changed(schema: Any, returned: list[Any], args: tuple[Any, ...], kwargs: dict[str, Any]) -> Any:
    """What an operator that writes its arguments returns: these."""
    given = {a.name: value for a, value in zip(schema.arguments, args)} | kwargs
    by_alias = {
        frozenset(a.alias_info.before_set): given.get(a.name) for a in schema.arguments if a.alias_info is not None
    }
    results = [by_alias[frozenset(alias.before_set)] for alias in returned if alias is not None]
    if len(results) != len(returned):
        raise NotImplementedError(f"capture of {schema.name}, which writes an argument and returns something new")
    return results[0] if len(results) == 1 else tuple(results) if results else None


@contextlib.contextmanager
def played(gpu: Any) -> Iterator[None]:
    """Inside, what torch.cuda says of devices, streams and graphs is said of the emulated GPU."""

    @contextlib.contextmanager
    def graph(cuda_graph: Graph, pool: Any = None, stream: Stream | None = None, **_: Any) -> Iterator[None]:
        if gpu.capture is not None:
            raise RuntimeError("a capture is under way already")
        with use(stream or Stream()) as capturing, Capture(capturing.cuda_stream) as gpu.capture:
            try:
                yield
            finally:
                capture, gpu.capture = gpu.capture, None
        cuda_graph.recorded, cuda_graph.memory = capture.recorded, capture.memory

    @contextlib.contextmanager
    def use(stream: Stream) -> Iterator[Stream]:
        before, gpu.stream = gpu.stream, stream
        try:
            yield stream
        finally:
            gpu.stream = before

    def of(value: Any) -> Callable[..., Any]:
        return lambda device=None: value

    properties = gpu.properties
    cuda = {
        "CUDAGraph": Graph,
        "graph": graph,
        "is_current_stream_capturing": lambda: gpu.capture is not None,
        "Stream": Stream,
        "stream": use,
        "current_stream": lambda device=None: gpu.stream,
        "synchronize": of(None),
        "device": gpu.device,
        "current_device": gpu.get_current_device,
        "get_device_properties": of(properties),
        "get_device_capability": of((properties.major, properties.minor)),
        "get_device_name": of(properties.name),
    }
    with mock.patch.multiple(torch.cuda, **cuda), mock.patch.object(torch.cpu, "device", gpu.device, create=True):
        yield
