"""The backward of layer_norm from 2,048 columns on: whether it falls off anywhere, and what DRAM serves.

    python -m benchmarks.wide [--targets sm_80,sm_90,H200,sm_100,gfx942] [--hidden 2048,12288,...]
    python -m benchmarks.wide --few                        at 1, 16, 128 and 1,024 rows: programs, residency, spills
    python -m benchmarks.wide --count                      1,024 x 12,288: bytes that reach DRAM, in the interpreter

Modelled: GB/s of the least bytes (x, dy and dx once, bf16, parameters too) at 64 Mi and at 8 Mi values, from what is
compiled and launched; min / max over N.  Counted: every line that the launches of an H100 touch, through a cache of its
size that replaces the least recently used line and takes lines stored with .cs for the oldest, and through none;
programs take turns, as many at a time as reside.  No time is measured, and neither is a cache.
"""

from __future__ import annotations

import argparse
import collections
import os
from collections.abc import Iterator
from typing import Any
from unittest import mock

SIZES = [2048, 3072, 4096, 5120, 6144, 8192, 10_240, 12_288, 16_384, 24_576, 32_768, 65_536, 131_072, 262_144]
VALUES = {"64 Mi": 64 << 20, "8 Mi": 8 << 20}
FEW = [1, 16, 128, 1024]
SHAPE = 1024, 12_288  # of the only LayerNorm that cuDNN has committed results of: 946 GB/s backward, on an H200
LINE = 128

Touches = list[tuple[str, list[int]]]  # of a program: load, store or stream (.cs), and the lines


def modelled(target: str, M: int, N: int) -> tuple[float, int, int, str]:
    """(GB/s, launches, spilled bytes, what binds) of a backward pass."""
    import torch

    from tritonln.device import TARGETS
    from tritonln.inspect import inspect_operator
    from tritonln.tuning.model import terms

    _, *reports = inspect_operator("layer_norm", target, N, torch.bfloat16, torch.bfloat16, M)
    found = [terms(r, TARGETS[target]) for r in reports]
    seconds = sum(t.seconds for t in found)
    binds = ", ".join(t.binds for t in found)
    return 6 * M * N / seconds / 1e9, len(reports), max(r.spills for r in reports), binds


def few(target: str, N: int) -> Iterator[list[str]]:
    """A row for each kernel: what it is launched as at each of FEW numbers of rows, forward and backward."""
    import torch

    from tritonln.inspect import inspect_operator

    found = [inspect_operator("layer_norm", target, N, torch.bfloat16, torch.bfloat16, M) for M in FEW]
    for reports in zip(*(r[: len(found[-1])] for r in found)):
        r = reports[-1]
        programs = "/".join(str(r.programs * r.num_ctas) for r in reports)
        cells = programs, f"{r.num_ctas}x{r.num_warps}", f"{r.occupancy:.0%}", str(r.spills)
        yield [str(N), r.kernel.removeprefix("layer_norm_"), *cells]


def dram(launches: list[list[Touches]], slots: int, capacity: int) -> int:
    """Bytes that a cache of `capacity` bytes reads and writes back; 0: none, but a launch finds again what it had."""
    cache: collections.OrderedDict[int, bool] = collections.OrderedDict()  # line: whether it was written
    moved = 0
    for programs in launches:
        if not capacity:
            kinds = ([kind == "load" for p in programs for kind, lines in p for _ in lines],)
            lines = [line for p in programs for _, touched in p for line in touched]
            moved += len(set(zip(lines, *kinds)))
            continue
        for kind, line in in_turns(programs, slots):
            written = cache.pop(line, None)
            moved += written is None and kind == "load"
            cache[line] = bool(written) or kind != "load"
            if kind == "stream":
                cache.move_to_end(line, last=False)
            if len(cache) > capacity // LINE:
                moved += cache.popitem(last=False)[1]
    return (moved + sum(cache.values())) * LINE


def in_turns(programs: list[Touches], slots: int) -> Iterator[tuple[str, int]]:
    for first in range(0, len(programs), slots):
        resident = programs[first : first + slots]
        for turn in range(max(map(len, resident))):
            for program in resident:
                if turn < len(program):
                    kind, lines = program[turn]
                    yield from ((kind, line) for line in lines)


def count(M: int, N: int) -> dict[str, float]:
    """DRAM bytes of a backward pass over the least, with the H100's last-level cache and without any."""
    import numpy as np
    import torch
    from triton.runtime.interpreter import GridExecutor, InterpreterBuilder

    import tritonln
    from tritonln.device import TARGETS

    launches: list[list[Touches]] = []
    load, store = InterpreterBuilder.create_masked_load, InterpreterBuilder.create_masked_store
    set_index, launch = InterpreterBuilder.set_grid_idx, GridExecutor.__call__

    def note(kind: str, pointers: Any, mask: Any) -> None:
        addresses = pointers.data.reshape(-1)
        if mask is not None:
            addresses = addresses[np.broadcast_to(mask.data, pointers.data.shape).reshape(-1)]
        launches[-1][-1].append((kind, np.unique(addresses.astype(np.int64) // LINE).tolist()))

    def noting_load(self: Any, pointers: Any, mask: Any, *rest: Any, **options: Any) -> Any:
        note("load", pointers, mask)
        return load(self, pointers, mask, *rest, **options)

    def noting_store(self: Any, pointers: Any, value: Any, mask: Any, cache: Any, *rest: Any) -> Any:
        note("stream" if "CS" in str(cache) else "store", pointers, mask)
        return store(self, pointers, value, mask, cache, *rest)

    def noting_index(self: Any, *index: int) -> None:
        launches[-1].append([])
        set_index(self, *index)

    def noting_launch(self: Any, *args: Any, **options: Any) -> None:
        launches.append([])
        launch(self, *args, **options)

    x, dy = (torch.randn(M, N, dtype=torch.bfloat16) for _ in range(2))
    w, b = (torch.randn(N, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
    y = tritonln.layer_norm(x.requires_grad_(), N, w, b)
    with (
        mock.patch.multiple(
            InterpreterBuilder,
            create_masked_load=noting_load,
            create_masked_store=noting_store,
            set_grid_idx=noting_index,
        ),
        mock.patch.multiple(
            GridExecutor,
            __call__=noting_launch,
            _init_args_hst=lambda self, args, options: (list(args), dict(options)),
            _restore_args_dev=lambda self, *args: None,
        ),
    ):
        y.backward(dy)
    h100, least = TARGETS["sm_90"], (3 * M * N + 3 * N) * 2
    slots = 2 * h100.multiprocessors
    return {"launches": len(launches), **{
        name: dram(launches, slots, capacity) / least for name, capacity in (("cache", h100.l2), ("none", 0))
    }}  # fmt: skip


def main() -> None:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    from tritonln.__main__ import sizes

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--targets", default="sm_80,sm_90,H200,sm_100,gfx942")
    parser.add_argument("--hidden", type=sizes, default=SIZES)
    parser.add_argument("--few", action="store_true", help="what few rows launch, instead of modelled time")
    parser.add_argument("--count", action="store_true", help="count bytes instead of modelling time")
    a = parser.parse_args()
    M, N = SHAPE
    if a.count:
        os.environ["TRITON_INTERPRET"] = "1"
        found = count(M, N)
        print(f"{M} x {N}, launches: {found['launches']}, DRAM bytes over the least: {found['cache']:.3f} through the")
        print(f"cache of an H100 (asked: 1.15), {found['none']:.3f} without any (asked: 1.75)")
        return
    os.environ["TRITON_INTERPRET"] = "0"
    for target in a.targets.split(",") if a.few else ():
        table = Table(
            "N", "kernel", f"thread blocks at {'/'.join(map(str, FEW))} rows", "warps", "occupancy", "spill B"
        )
        for n in track([n for n in a.hidden if n >= N], target, transient=True):
            for row in few(target, n):
                table.add_row(*row)
        table.title = f"{target}, compiled"
        Console(width=140).print(table)
    for target in () if a.few else a.targets.split(","):
        table = Table("N", *(f"{v} values: {c}" for v in VALUES for c in ("GB/s", "bound by")), "launches", "spill B")
        reached: dict[str, list[float]] = {v: [] for v in VALUES}
        for n in track(a.hidden, target, transient=True):
            cells, last = [str(n)], (0, 0)
            for name, values in VALUES.items():
                speed, launches, spills, binds = modelled(target, values // n, n)
                reached[name].append(speed)
                cells += [f"{speed:.0f}", binds]
                last = max(last, (launches, spills))
            table.add_row(*cells, *map(str, last))
        ratios = [cell for speeds in reached.values() for cell in (f"{min(speeds) / max(speeds):.2f}", "")]
        table.add_row("min / max", *ratios)
        speed, *_ = modelled(target, M, N)
        table.title = f"{target}, modelled; {M} x {N}: {speed:.0f} GB/s"
        Console(width=140).print(table)


if __name__ == "__main__":
    main()
