"""Bytes that layer_norm moves in each Triton library, counted in Triton's interpreter.

    python -m benchmarks.traffic [--hidden 64,256,1024,4096] [--rows 4096] [--dtype bf16]
    python -m benchmarks.traffic --operator gated_rms_norm    beside tritonln's norm and elementwise operators

Per kernel and buffer: the bytes that unmasked lanes ask for, and the distinct bytes among them,
which is what DRAM must serve when every re-read within a kernel hits a cache.  Atomics are not counted.
An operator of torch's, such as a library's sum over partial sums, is a launch that reads its inputs
and writes its outputs once.  The minimum moves what depends on nothing but the mathematics once: for
layer_norm x, y and the parameters forward, and x, dy, dx, the weight and the gradients backward.
Of kernels that autotune, the first configuration runs.
"""

from __future__ import annotations

import argparse
import contextlib
import dataclasses
import itertools
import json
import math
from collections.abc import Iterator
from typing import Any
from unittest import mock

import numpy as np
import torch
from torch import Tensor
from torch._C import DispatchKey, DispatchKeySet
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from benchmarks.cases import Case, Shape
from benchmarks.libraries import libraries
from benchmarks.operators import NORMS, OPERATORS, Norm
from benchmarks.problem import problem
from benchmarks.providers import PROVIDERS
from tritonln.__main__ import sizes
from tritonln.dtypes import DTYPES

UNFUSED = "tritonln's norm and elementwise operators"
BATCHES = 4  # of the rows, where an operator knows any


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
    buffers: list[Buffer]
    programs: int | None = None  # unknown of torch's operators

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


class TorchOperators(TorchDispatchMode):
    """Notes torch's operators, but for those that only allocate or view; of custom operators what is inside."""

    def __init__(self, kernels: list[Kernel]):
        super().__init__()
        self.kernels = kernels

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func.namespace != "aten":
            with self:
                return func.redispatch(DispatchKeySet(DispatchKey.CPU), *args, **(kwargs or {}))
        out = func(*args, **(kwargs or {}))
        inputs = [t for t in tree_leaves((args, kwargs)) if isinstance(t, Tensor)]
        outputs = [t for t in tree_leaves(out) if isinstance(t, Tensor)]
        if not func._schema.is_mutable:
            viewed = {t.untyped_storage().data_ptr() for t in inputs}
            outputs = [t for t in outputs if t.untyped_storage().data_ptr() not in viewed]
        if outputs and "empty" not in func._schema.name:
            buffers = [_buffer("in", t, read=t.nbytes) for t in inputs]
            buffers += [_buffer("out", t, written=t.nbytes) for t in outputs]
            self.kernels.append(Kernel(func._schema.name, buffers))
        return out


@contextlib.contextmanager
def counted() -> Iterator[list[Kernel]]:
    """Inside, every launch of the interpreter and operator of torch's is counted.

    A kernel's access outside its arguments raises.
    """
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    kernels: list[Kernel] = []
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    set_grid, launch = InterpreterBuilder.set_grid_dim, GridExecutor.__call__

    def counting_load(self: Any, pointers: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        kernels[-1].touch(pointers, mask, store=False)
        return load(self, pointers, mask, *rest, **options)

    def counting_store(self: Any, pointers: Any, value: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        kernels[-1].touch(pointers, mask, store=True)
        return store(self, pointers, value, mask, *rest, **options)

    def counting_grid(self: Any, *grid: int) -> None:
        kernels[-1].programs = math.prod(grid)
        set_grid(self, *grid)

    def counting_launch(self: Any, *args: Any, **options: Any) -> None:
        named = {**dict(zip(self.arg_names, args)), **options}
        tensors = [(name.removesuffix("_ptr"), t) for name, value in named.items() for t in tree_leaves(value)]
        buffers = [_buffer(name, t) for name, t in tensors if isinstance(t, Tensor)]
        kernels.append(Kernel(named.get("NAME", self.fn.__name__), buffers))
        launch(self, *args, **options)

    with (
        mock.patch.multiple(
            InterpreterBuilder,
            create_masked_load=counting_load,
            create_masked_store=counting_store,
            set_grid_dim=counting_grid,
        ),
        # Arguments are on the CPU already; the interpreter would copy them away from their addresses.
        mock.patch.multiple(
            GridExecutor,
            __call__=counting_launch,
            _init_args_hst=lambda self, args, options: (list(args), dict(options)),
            _restore_args_dev=lambda self, *args: None,
        ),
        TorchOperators(kernels),
    ):
        yield kernels


def _buffer(name: str, t: Tensor, read: int = 0, written: int = 0) -> Buffer:
    """A tensor's storage, of which that many bytes are read or written already, whichever they are."""
    storage = t.untyped_storage()
    untouched = np.zeros(storage.nbytes(), bool)
    buffer = Buffer(name, storage.data_ptr(), untouched, untouched.copy(), read + written)
    buffer.read[:read] = buffer.written[:written] = True
    return buffer


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


def traffic(case: Case, parameters: torch.dtype, norm: Norm) -> Traffic:
    """Of a forward pass, and a backward one where there is any, with parameters of that dtype."""
    p, inference = problem(case, parameters, torch.device("cpu")), case.operator.inference
    with counted() as forward, torch.set_grad_enabled(not inference):
        results = norm(*p.arguments)
    with counted() as backward:
        if not inference:
            torch.autograd.grad(results, p.leaves, p.upstream)
    of = case.shape.M, case.shape.batches, case.shape.N, case.torch_dtype.itemsize, parameters.itemsize
    return Traffic(forward, backward, *(case.operator.least_bytes(b, *of) for b in (False, True)))


def beside(operator: str) -> dict[str, Norm]:
    """Of layer_norm the libraries that are installed; of another what its fusion replaces."""
    if operator == "layer_norm":
        return libraries()
    fused, composition = PROVIDERS["tritonln"].norm(operator), OPERATORS[operator]
    found = {"tritonln": fused}
    if operator in NORMS:
        return found
    norm = None if composition.norm is None else PROVIDERS["tritonln"].norm(composition.norm)
    return {**found, UNFUSED: composition.of(norm)}


def main() -> None:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--operator", choices=OPERATORS, default="layer_norm")
    parser.add_argument("--hidden", type=sizes, default=[64, 256, 1024, 4096])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--weight-dtype", choices=DTYPES, default="fp32")
    parser.add_argument("--json", action="store_true", help="one JSON object a library, row length and pass")
    a = parser.parse_args()
    columns = "N", "library", "kernel", "programs", "distinct MB", "asked MB", "launches", "distinct / least"
    table = Table(*columns, title=f"{a.operator}, {a.rows} rows, {a.dtype}, {a.weight_dtype} parameters")
    cases = list(itertools.product(a.hidden, beside(a.operator).items()))
    for N, (library, norm) in track(cases, "interpreting", transient=True, disable=a.json):
        try:
            case = Case(Shape("traffic", a.operator, a.rows, N, "", BATCHES), a.dtype, "both")
            found = traffic(case, DTYPES[a.weight_dtype], norm)
        except RuntimeError as error:
            table.add_row(str(N), library, f"refuses: {str(error)[:60]}")
            continue
        for direction, kernels, ratio in zip(("forward", "backward"), (found.forward, found.backward), found.ratios):
            if not kernels:  # for inference only
                continue
            if a.json:
                facts = {"moved": sum(k.distinct for k in kernels), "launches": len(kernels), "ratio": ratio}
                known = {"operator": a.operator, "provider": library, "N": N, "pass": direction}
                print(json.dumps(known | facts), flush=True)
            for i, k in enumerate(kernels):
                cells = k.name, str(k.programs or ""), f"{k.distinct / 1e6:.3f}", f"{k.asked / 1e6:.3f}"
                table.add_row(str(N), library, *cells, *((str(len(kernels)), f"{ratio:.3f}") if i == 0 else ()))
    if not a.json:
        Console(width=120).print(table)


if __name__ == "__main__":
    main()
