"""Bytes that the kernels of tritonln.layer_norm move, counted in Triton's interpreter.

    python -m benchmarks.traffic [--hidden 64,256,1024,4096] [--rows 4096] [--dtype bf16]

Per kernel and buffer: the bytes that unmasked lanes ask for, and the distinct bytes among them,
which is what DRAM must serve when every re-read within a kernel hits a cache.  The minimum moves
x, y and the parameters once forward, and x, dy, dx, the weight and the gradients once backward.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
from collections.abc import Iterator
from typing import Any

import numpy as np
import torch
from torch import Tensor

from tritonln.__main__ import sizes
from tritonln.dtypes import DTYPES
from tritonln.launch import Launch


@dataclasses.dataclass
class Buffer:
    """One argument of one launch.  `read` and `written` have a flag for each byte of its storage."""

    name: str
    start: int
    read: np.ndarray[Any, Any]
    written: np.ndarray[Any, Any]
    asked: int = 0

    @property
    def distinct(self) -> int:
        return int(self.read.sum()) + int(self.written.sum())


@dataclasses.dataclass
class Kernel:
    """One launch."""

    name: str
    programs: int
    buffers: list[Buffer]

    @property
    def distinct(self) -> int:
        return sum(b.distinct for b in self.buffers)

    @property
    def asked(self) -> int:
        return sum(b.asked for b in self.buffers)

    def touch(self, pointers: Any, mask: Any, store: bool) -> None:
        size = max(1, pointers.get_element_ty().primitive_bitwidth // 8)
        addresses = pointers.data.reshape(-1)
        if mask is not None:
            addresses = addresses[np.broadcast_to(mask.data, pointers.data.shape).reshape(-1)]
        if not addresses.size:
            return
        addresses = addresses.astype(np.int64)
        low, high = int(addresses.min()), int(addresses.max()) + size
        buffer = next((b for b in self.buffers if b.start <= low and high <= b.start + b.read.size), None)
        if buffer is None:
            raise RuntimeError(f"{self.name} touches {low:#x}..{high:#x}, outside every argument")
        flags = buffer.written if store else buffer.read
        for byte in range(size):
            flags[addresses - buffer.start + byte] = True
        buffer.asked += addresses.size * size


@contextlib.contextmanager
def counted() -> Iterator[list[Kernel]]:
    """Inside, every launch of the interpreter is counted; an access outside the arguments raises."""
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    kernels: list[Kernel] = []
    load, store, launch = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store, Launch.__call__
    to_host, to_device = GridExecutor._init_args_hst, GridExecutor._restore_args_dev

    def counting_load(self: Any, pointers: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        kernels[-1].touch(pointers, mask, store=False)
        return load(self, pointers, mask, *rest, **options)

    def counting_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        kernels[-1].touch(pointers, mask, store=True)
        return store(self, pointers, value, mask, *rest, **options)

    def counting_launch(self: Launch, programs: int, tensors: Any, strides: Any, scalars: Any) -> None:
        names = [p.removesuffix("_ptr") for p in self.kernel.arg_names]
        buffers = [_buffer(name, t) for name, t in zip(names, tensors) if t is not None]
        kernels.append(Kernel(self.kernel.fn.__name__, programs, buffers))
        launch(self, programs, tensors, strides, scalars)

    # Arguments are on the CPU already; the interpreter would copy them away from their addresses.
    patches = (
        (InterpreterBuilder, "create_masked_load", load, counting_load),
        (InterpreterBuilder, "create_masked_store", store, counting_store),
        (Launch, "__call__", launch, counting_launch),
        (GridExecutor, "_init_args_hst", to_host, lambda self, args, options: (list(args), dict(options))),
        (GridExecutor, "_restore_args_dev", to_device, lambda self, *args: None),
    )
    for owner, name, _, instead in patches:
        setattr(owner, name, instead)
    try:
        yield kernels
    finally:
        for owner, name, before, _ in patches:
            setattr(owner, name, before)


def _buffer(name: str, t: Tensor) -> Buffer:
    size = t.untyped_storage().nbytes()
    return Buffer(name, t.untyped_storage().data_ptr(), np.zeros(size, bool), np.zeros(size, bool))


@dataclasses.dataclass
class Traffic:
    """Of a forward and a backward pass: the launches, and the least bytes there are to move."""

    forward: list[Kernel]
    backward: list[Kernel]
    least_forward: int
    least_backward: int

    @property
    def ratios(self) -> tuple[float, float]:
        """Distinct bytes over the least, forward and backward."""
        forward, backward = (sum(k.distinct for k in kernels) for kernels in (self.forward, self.backward))
        return forward / self.least_forward, backward / self.least_backward


def layer_norm_traffic(M: int, N: int, dtype: torch.dtype, parameters: torch.dtype = torch.float32) -> Traffic:
    import tritonln

    x = torch.randn(M, N).to(dtype).requires_grad_()
    w, b = (torch.randn(N).to(parameters).requires_grad_() for _ in range(2))
    with counted() as forward:
        y = tritonln.layer_norm(x, N, w, b)
    with counted() as backward:
        torch.autograd.grad(y, (x, w, b), torch.randn(M, N).to(dtype))
    rows, row = M * N * x.element_size(), N * w.element_size()
    return Traffic(forward, backward, 2 * rows + 2 * row, 3 * rows + 3 * row)


def main() -> None:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=sizes, default=[64, 256, 1024, 4096])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--weight-dtype", choices=DTYPES, default="fp32")
    a = parser.parse_args()
    table = Table(
        "N",
        "kernel",
        "programs",
        "distinct MB",
        "asked MB",
        "pass: distinct / least",
        title=f"{a.rows} rows, {a.dtype}",
    )
    for N in track(a.hidden, "interpreting", transient=True):
        traffic = layer_norm_traffic(a.rows, N, DTYPES[a.dtype], DTYPES[a.weight_dtype])
        for kernels, ratio in zip((traffic.forward, traffic.backward), traffic.ratios):
            for i, k in enumerate(kernels):
                cells = str(N), k.name, str(k.programs), f"{k.distinct / 1e6:.3f}", f"{k.asked / 1e6:.3f}"
                table.add_row(*cells, f"{ratio:.3f}" if i == 0 else "")
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
