"""python -m tritonln run --emulate sm_90 script.py: somebody's program on an emulated GPU."""

from __future__ import annotations

import pathlib
import runpy
import sys
from collections.abc import Iterable, Sequence

from tritonln.emulator.driver import Run, emulated_gpu


def run(target: str, program: Sequence[str], is_module: bool, counters: bool, check: bool) -> None:
    """Runs a script (or a module) with its arguments, as Python would; `counters` prints a line for each launch."""
    with emulated_gpu(target, check=check, count=counters) as gpu:
        before, path = sys.argv, list(sys.path)
        sys.argv = list(program)
        try:
            if is_module:
                sys.path.insert(0, "")
                runpy.run_module(program[0], run_name="__main__", alter_sys=True)
            else:
                sys.path.insert(0, str(pathlib.Path(program[0]).resolve().parent))
                runpy.run_path(program[0], run_name="__main__")
        finally:
            sys.argv, sys.path[:] = before, path
            if counters:
                print(table(gpu.runs), file=sys.stderr)


def table(runs: Iterable[Run]) -> str:
    """Aligned columns, one launch a line: for each memory, units per request or program, and in brackets the fewest."""
    lines = [["kernel", "programs", "instr/program", "sectors/load", "sectors/copy", "sectors/store", "wavefronts"]]
    for run in runs:
        x, y, z = run.grid
        memory, programs = run.counters.memory(), x * y * z
        cells = [run.name, str(programs), f"{run.counters.executed.sum() / programs:.0f}"]
        for kind in ("global_load", "global_copy", "global_store"):
            t = memory.get(kind)
            cells.append("-" if t is None else f"{t.units / t.requests:.1f} ({t.ideal / t.requests:.1f})")
        shared = [memory[kind] for kind in ("shared_load", "shared_store") if kind in memory]
        units, least = (sum(getattr(t, of) for t in shared) / programs for of in ("units", "ideal"))
        lines.append([*cells, f"{units:.0f} ({least:.0f})"])
    widths = [max(map(len, column)) for column in zip(*lines)]
    return "\n".join("  ".join(cell.ljust(w) for cell, w in zip(line, widths)).rstrip() for line in lines)
