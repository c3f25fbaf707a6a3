"""python -m tritonln run --emulate sm_90 script.py: somebody's program on an emulated GPU."""

from __future__ import annotations

import pathlib
import runpy
import sys
from collections.abc import Sequence

from tritonln.emulator.driver import emulated_gpu
from tritonln.emulator.measure import table


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
