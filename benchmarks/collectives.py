"""Collectives of a norm on many ranks, and the bytes that each rank sends in them for a row, counted on one process.

    python -m benchmarks.collectives [--ranks 2,8,64,1024] [--hidden 8192] [--dtype bf16]

The process believes to be the first of so many ranks; its collectives do nothing (torch's fake process group).  Bytes
are those of rings: (R - 1) / R of the whole for a gather, twice that for a sum.  Gradients of parameters, where every
rank has the whole parameter, are summed too: once, whatever the number of rows.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable
from typing import Any

import torch
import torch.distributed as dist
from rich.console import Console
from rich.table import Table
from torch import Tensor
from torch.distributed.device_mesh import init_device_mesh
from torch.distributed.tensor import DTensor, Replicate, Shard
from torch.testing._internal.distributed.fake_pg import FakeStore
from torch.utils._python_dispatch import TorchDispatchMode

import tritonln
import tritonln.distributed
from tritonln.__main__ import sizes
from tritonln.dtypes import DTYPES

ROWS = 1024  # of each rank where rows are sharded, of all where they are split
# Of the bytes that go in: how many times (R - 1) as many, and / R, a rank sends.
SENT = {"all_gather_into_tensor": lambda R: R - 1, "reduce_scatter_tensor": lambda R: (R - 1) / R}
SENT |= {"shard_dim_alltoall": lambda R: (R - 1) / R, "all_reduce": lambda R: 2 * (R - 1) / R}


class Counting(TorchDispatchMode):
    def __init__(self, ranks: int) -> None:
        super().__init__()
        self.ranks, self.calls, self.sent = ranks, 0, 0.0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if DTensor in types:  # seen again where its parts are sent
            return NotImplemented
        name = func.overloadpacket.__name__
        if func.namespace in ("_c10d_functional", "_dtensor") and name in SENT:
            self.calls += 1
            self.sent += args[0].nbytes * SENT[name](self.ranks)
        return func(*args, **(kwargs or {}))


def sharded_rows(R: int, N: int, dtype: torch.dtype, dim: int) -> tuple[Callable[[], Tensor], list[Tensor]]:
    mesh = init_device_mesh("cpu", (R,))
    part = torch.randn((ROWS, N) if dim == 0 else (ROWS, N // R), dtype=dtype)
    x = DTensor.from_local(part, mesh, [Shard(dim)]).requires_grad_()
    w, b = (DTensor.from_local(torch.ones(N), mesh, [Replicate()]).requires_grad_() for _ in range(2))
    return lambda: tritonln.layer_norm(x, N, w, b), [x, w, b]


def split_rows(R: int, N: int, dtype: torch.dtype) -> tuple[Callable[[], Tensor], list[Tensor]]:
    x, w, b = torch.randn(ROWS, N // R, dtype=dtype), torch.ones(N // R), torch.ones(N // R)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    return lambda: tritonln.distributed.layer_norm(x, N // R, w, b), leaves


WAYS: dict[str, Callable[..., tuple[Callable[[], Tensor], list[Tensor]]]] = {
    "layer_norm, rows sharded": lambda R, N, dtype: sharded_rows(R, N, dtype, 0),
    "layer_norm, columns sharded": lambda R, N, dtype: sharded_rows(R, N, dtype, 1),
    "distributed.layer_norm, rows split": split_rows,
}


def count(way: str, R: int, N: int, dtype: torch.dtype) -> list[tuple[int, float]]:
    """(calls, bytes sent) forward, backward, and for the gradients of the parameters."""
    dist.init_process_group("fake", store=FakeStore(), rank=0, world_size=R)
    try:
        function, leaves = WAYS[way](R, N, dtype)
        with Counting(R) as forward:
            y = function()
        dy = torch.ones_like(y)
        with Counting(R) as backward:
            gradients = torch.autograd.grad(y, leaves, dy)
        with Counting(R) as parameters:
            for g in gradients[1:]:
                if isinstance(g, DTensor):
                    g.redistribute(placements=[Replicate()]).to_local().add(0)
        return [(counted.calls, counted.sent) for counted in (forward, backward, parameters)]
    finally:
        dist.destroy_process_group()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ranks", type=sizes, default=[2, 8, 64, 1024])
    parser.add_argument("--hidden", type=int, default=8192)
    parser.add_argument("--dtype", choices=DTYPES, default="bf16")
    a = parser.parse_args()
    table = Table(title=f"calls, bytes a rank sends for a row; N = {a.hidden}, {a.dtype}, fp32 parameters")
    for column in ("", "ranks", "forward", "backward", "gradients of parameters (in all)"):
        table.add_column(column)
    for way in WAYS:
        for R in a.ranks:
            (f, f_sent), (b, b_sent), (p, p_sent) = count(way, R, a.hidden, DTYPES[a.dtype])
            table.add_row(
                way, str(R), f"{f}, {f_sent / ROWS:,.0f}", f"{b}, {b_sent / ROWS:,.0f}", f"{p}, {p_sent:,.0f}"
            )
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
