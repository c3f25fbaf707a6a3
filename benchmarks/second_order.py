"""What the derivative of a gradient costs, beside torch's norms: operators, passes over rows, and time on a CPU.

    python -m benchmarks.second_order [--rows 1024] [--hidden 1024]

Second derivatives are compositions of ATen's operators, in tritonln as in torch.  Counted is each operator that is no
view: on a GPU a launch, of a kernel of tritonln's as many as it has.  A pass reads or writes M N values once; operators
are taken to read what they are given and to write what they return, as eager code does.  The time is CPU time of one
thread on ATen, the least of several.  In the last column are the passes of one kernel for each step, which there is
not: (x; y), (dy, x; dx) and (dy, x, ddx; ddy, dx).
"""

from __future__ import annotations

import argparse
import os
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

import tritonln

FUSED, REPEATS = (2, 3, 5), 7
WITHOUT_KERNELS = "_unsafe_view", "detach", "empty_like", "new_empty"
LAUNCHES = {"layer_norm": 1, "rms_norm": 1, "layer_norm_backward": 2, "rms_norm_backward": 2}  # of tritonln's ops
NORMS: dict[str, tuple[int, Callable[..., Tensor]]] = {
    "tritonln.layer_norm": (2, lambda x, *p: tritonln.layer_norm(x, x.shape[-1], *p)),
    "F.layer_norm": (2, lambda x, *p: F.layer_norm(x, x.shape[-1:], *p)),
    "tritonln.rms_norm": (1, lambda x, *p: tritonln.rms_norm(x, x.shape[-1], *p)),
    "F.rms_norm": (1, lambda x, *p: F.rms_norm(x, x.shape[-1:], *p)),
}


class Counting(TorchDispatchMode):
    """Of operators that are no views: how many there are, and the values that they read and write."""

    def __init__(self) -> None:
        super().__init__()
        self.launches, self.values = 0, 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        found = func(*args, **(kwargs or {}))
        view = func.is_view or func.overloadpacket.__name__ in WITHOUT_KERNELS
        if not view:
            self.launches += LAUNCHES.get(func.overloadpacket.__name__, 1) if func.namespace == "tritonln" else 1
            self.values += sum(t.numel() for t in tree_leaves((args, kwargs, found)) if isinstance(t, Tensor))
        return found


Steps = tuple[Callable[[Any], Any], ...]  # each of what the one before gave


def steps(norm: Callable[..., Tensor], parameters: int, M: int, N: int) -> Steps:
    """Forward, the gradient with a graph of it, and the gradient of that."""
    torch.manual_seed(0)
    x, *given = (t.requires_grad_() for t in (torch.randn(M, N), *(torch.randn(N) for _ in range(parameters))))
    dy, cotangent = torch.randn(M, N).requires_grad_(), torch.randn(M, N)
    leaves = [x, *given]
    return (
        lambda _: norm(x, *given),
        lambda y: torch.autograd.grad(y, leaves, dy, create_graph=True),
        lambda g: torch.autograd.grad(g[0], [*leaves[: 1 + min(1, parameters)], dy], cotangent),
    )


def counts(found: Steps, M: int, N: int) -> list[tuple[int, float]]:
    """(launches, passes over rows) of each step."""
    given: Any = None
    counted = []
    for step in found:
        with Counting() as counting:
            given = step(given)
        counted.append((counting.launches, counting.values / (M * N)))
    return counted


def seconds(found: Steps) -> list[float]:
    """CPU time of each step, the least of several."""
    least = [float("inf")] * len(found)
    for _ in range(REPEATS):
        given: Any = None
        for i, step in enumerate(found):
            start = time.thread_time()
            given = step(given)
            least[i] = min(least[i], time.thread_time() - start)
    return least


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--hidden", type=int, default=1024)
    a = parser.parse_args()
    os.environ["TRITON_INTERPRET"] = "0"  # a CPU's fast path is ATen
    torch.set_num_threads(1)
    table = Table(title=f"launches, passes, ms of a CPU; M = {a.rows}, N = {a.hidden}, fp32")
    for column in ("", "forward", "backward with a graph", "its gradient", "all", "one kernel a step"):
        table.add_column(column)
    for name, (parameters, norm) in NORMS.items():
        found = steps(norm, parameters, a.rows, a.hidden)
        cells = [(*count, 1e3 * s) for count, s in zip(counts(found, a.rows, a.hidden), seconds(found))]
        total = tuple(sum(column) for column in zip(*cells))
        shown = [f"{launches}, {passes:.1f}, {ms:.1f}" for launches, passes, ms in (*cells, total)]
        table.add_row(name, *shown, f"{sum(FUSED)} passes")
    Console(width=140).print(table)


if __name__ == "__main__":
    main()
