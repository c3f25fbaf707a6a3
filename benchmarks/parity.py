"""The machine code of the row kernels in this tree, and what a call takes of the host, beside another revision's.

    python -m benchmarks.parity --against REVISION [--targets sm_90,gfx942] [--hidden 64,1024] [--dtypes bf16,fp32]

Both trees compile what layer_norm launches, forward and backward, by `python -m tritonln inspect --json`.  A line is a
kernel whose code differs; the last line says how many were compared and how many are worse: more spills, narrower
loads or stores, or over 1 % more instructions an element.  Then `python -m benchmarks.host` runs in both, in turn: the
least CPU time of a call of layer_norm by pass, on a driver that does nothing.  No GPU is needed.
"""

from __future__ import annotations

import argparse
import io
import json
import math
import os
import pathlib
import subprocess
import sys
import tarfile
import tempfile
from collections.abc import Sequence
from typing import Any

from rich.console import Console
from rich.progress import track

ROOT = pathlib.Path(__file__).parents[1]
HIDDEN = "64,100,256,320,768,1024,1536,4096,5120,8192,16384,65536"
SHOWN = ("registers", "spills", "barriers", "loads", "stores", "instructions_per_element")
ALLOWED = 0.01  # more instructions an element
TURNS = 3


def compiled(tree: pathlib.Path, target: str, dtype: str, hidden: str) -> dict[tuple[str, int], dict[str, Any]]:
    """The reports of a tree by kernel and row length."""
    options = "--target", target, "--dtype", dtype, "--hidden", hidden
    reports = json_lines(tree, "tritonln", "inspect", *options)
    return {(r["kernel"].replace("_wide", ""), r["hidden"]): r for r in reports}


def json_lines(tree: pathlib.Path, module: str, *arguments: str) -> list[dict[str, Any]]:
    """What a module of a tree prints with --json."""
    command = [sys.executable, "-m", module, *arguments, "--json"]
    environment = {**os.environ, "PYTHONPATH": str(tree), "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, cwd=tree, env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(command)} failed in {tree}:\n{done.stderr}")
    return [json.loads(line) for line in done.stdout.splitlines()]


def host(trees: Sequence[pathlib.Path]) -> list[dict[str, float]]:
    """Of each tree: the least microseconds of a call of layer_norm, by pass."""
    found: list[dict[str, float]] = [{} for _ in trees]
    for _ in range(TURNS):
        for tree, least in zip(trees, found):
            for line in json_lines(tree, "benchmarks.host"):
                if line["provider"] == "tritonln":
                    least[line["pass"]] = min(*line["samples"], least.get(line["pass"], math.inf))
    return found


def worse(before: dict[str, Any], after: dict[str, Any]) -> bool:
    old, new = (r["instructions_per_element"] for r in (before, after))  # which nobody counts for AMD's GPUs
    return (
        after["spills"] > before["spills"]
        or any(width(after[kind]) < width(before[kind]) for kind in ("loads", "stores"))
        or (old is not None and new > (1 + ALLOWED) * old)
    )


def width(counts: dict[str, int]) -> int:
    """Of the widest access, in bits."""
    return max(map(int, counts), default=0)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--against", required=True, help="a revision of this repository")
    parser.add_argument("--targets", default="sm_90,sm_100,gfx942")
    parser.add_argument("--hidden", default=HIDDEN)
    parser.add_argument("--dtypes", default="bf16,fp32")
    arguments = parser.parse_args()
    archive = subprocess.run(["git", "archive", arguments.against], cwd=ROOT, capture_output=True, check=True).stdout
    compared = differing = regressions = 0
    with tempfile.TemporaryDirectory() as folder:
        with tarfile.open(fileobj=io.BytesIO(archive)) as tar:
            tar.extractall(folder, filter="tar")
        kinds = [(t, d) for t in arguments.targets.split(",") for d in arguments.dtypes.split(",")]
        for target, dtype in track(kinds, "compiling", console=Console(stderr=True), transient=True):
            before, after = (compiled(tree, target, dtype, arguments.hidden) for tree in (pathlib.Path(folder), ROOT))
            for kernel, hidden in before.keys() & after.keys():
                old, new = before[kernel, hidden], after[kernel, hidden]
                compared += 1
                if all(old[name] == new[name] for name in SHOWN):
                    continue
                differing += 1
                regressions += worse(old, new)
                changes = [f"{name} {old[name]} -> {new[name]}" for name in SHOWN if old[name] != new[name]]
                verdict = "WORSE" if worse(old, new) else ""
                print(f"{target} {kernel} N={hidden} {dtype}: {'; '.join(changes)} {verdict}".rstrip())
        before_us, after_us = host((pathlib.Path(folder), ROOT))
    print(f"{compared} kernels compared with {arguments.against}: {differing} differ, {regressions} worse")
    for name, us in before_us.items():
        print(f"host us a call, {name}: {us:.1f} -> {after_us[name]:.1f} ({after_us[name] / us - 1:+.0%})")


if __name__ == "__main__":
    main()
