"""python -m tritonln: what runs here, what would be launched on a GPU that is not here, and tuning for either."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import sys
from collections.abc import Iterable, Sequence
from typing import Any

import torch

from tritonln.configurations.lookup import Policy
from tritonln.device import CUDA_TARGETS, TARGETS
from tritonln.dtypes import DTYPES
from tritonln.tuning.search import LIMIT


def sizes(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


def words(text: str) -> list[str]:
    return text.split(",")


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(prog="python -m tritonln", description=__doc__)
    commands = top.add_subparsers(dest="command", required=True)
    commands.add_parser("info", help="versions, and the path that tensors of each device take")
    inspect = commands.add_parser("inspect", help="compile for a GPU without having it; read the machine code")
    inspect.add_argument("--target", default="sm_90", choices=TARGETS, help="the GPU (default: %(default)s)")
    inspect.add_argument("--hidden", type=sizes, default=[256, 1024, 4096, 16384], help="row lengths, comma separated")
    inspect.add_argument("--dtype", choices=DTYPES, default="bf16", help="of x (default: %(default)s)")
    inspect.add_argument(
        "--weight-dtype", choices=DTYPES, default="fp32", help="of weight and bias (default: %(default)s)"
    )
    inspect.add_argument(
        "--kernel",
        default="layer_norm",
        help="an operator on rows, or one kernel such as layer_norm_bwd or lstm_step_bwd (default: %(default)s)",
    )
    inspect.add_argument(
        "--run", action="store_true", help="run each on an emulated GPU too, and count (NVIDIA's targets)"
    )
    inspect.add_argument("--json", action="store_true", help="one JSON object a line")
    tune = commands.add_parser("tune", help="search configurations on the GPU that is here, or by a model for another")
    tune.add_argument("--hidden", type=sizes, default=[], help="row lengths, comma separated")
    tune.add_argument("--dtype", choices=DTYPES, default="bf16", help="of x (default: %(default)s)")
    tune.add_argument("--rows", type=int, default=Policy.rows, help="of what is timed (default: %(default)s)")
    tune.add_argument(
        "--kernels",
        type=words,
        default=["layer_norm"],
        help="operators on rows or kernels, comma separated, such as lstm_step_fwd (default: layer_norm)",
    )
    tune.add_argument("--key", action="append", default=[], help="such as 'layer_norm_fwd N=1000 x=bf16 y=bf16'")
    tune.add_argument("--candidates", type=int, default=LIMIT, help="tried for a key, at most (default: %(default)s)")
    tune.add_argument("--offline", action="store_true", help="rank by the model; nothing runs")
    tune.add_argument("--target", choices=TARGETS, help="with --offline, the GPU")
    tune.add_argument("--folder", type=pathlib.Path, help="where the tables go (default: this user's cache)")
    run = commands.add_parser("run", help="run a program of yours with Triton's kernels on an emulated GPU")
    run.add_argument("--emulate", default="sm_90", choices=CUDA_TARGETS, help="the GPU (default: %(default)s)")
    run.add_argument("--counters", action="store_true", help="print a line of counters for each launch")
    run.add_argument("--unchecked", action="store_true", help="do not look for races, nor who stored what")
    rest = argparse.REMAINDER
    run.add_argument("-m", dest="module", nargs=rest, help="a module instead of a script, and its arguments")
    run.add_argument("program", nargs=rest, help="a script, and its arguments")
    return top


def info() -> None:
    from tritonln.configurations.table import user_folder
    from tritonln.device import interpreting, runs_triton, triton_device_type
    from tritonln.version import __version__

    try:
        import triton

        version, kind = triton.__version__, triton_device_type()
        mode, tables = "interpreted" if interpreting() else "compiled", user_folder() or "nowhere"
    except ImportError:
        version, kind, mode, tables = "not installed", None, "not available", "nowhere"
    print(f"tritonln {__version__}, torch {torch.__version__}, triton {version} ({mode})")
    print(f"Triton drives: {kind or 'no device'}")
    print(f"CPU tensors:   {'Triton kernels, interpreted' if runs_triton('cpu') else 'ATen'}")
    print(f"tuned here:    {tables}")


def inspect(arguments: argparse.Namespace) -> None:
    if arguments.run and arguments.target not in CUDA_TARGETS:
        raise SystemExit(f"python -m tritonln inspect: --run executes PTX: expected a target of {CUDA_TARGETS}")
    # An interpreted kernel cannot be compiled, and which it is is settled when it is imported.
    os.environ["TRITON_INTERPRET"] = "0"
    from tritonln.configurations.tunable import operators
    from tritonln.inspect import Report, inspect_kernel, inspect_operator, table

    target, name, dtypes = arguments.target, arguments.kernel, (DTYPES[arguments.dtype], DTYPES[arguments.weight_dtype])
    reports: list[Report] = []
    for hidden in arguments.hidden:
        known = [o.name for o in operators().values() if name in (o.name, *(t.name for t in o.tunables))]
        operator = min(known, key="layer_norm".__ne__, default=None)  # of a kernel that many launch, as column_sum
        if operator is None:
            found = inspect_kernel(target, name, hidden, *dtypes, arguments.run)
            if found is None:
                print(f"{name} is not launched at N = {hidden}: its time steps are, one by one", file=sys.stderr)
            reports += [found] if found is not None else []
        else:
            launched = inspect_operator(operator, target, hidden, *dtypes, run=arguments.run)
            reports += [r for r in launched if name == operator or name == r.kernel.replace("_wide", "")]
    if arguments.json:
        for report in reports:
            print(json.dumps(dataclasses.asdict(report)))
    else:
        print(table(reports))


def tune(arguments: argparse.Namespace) -> None:
    if arguments.offline:
        os.environ["TRITON_INTERPRET"] = "0"
    from tritonln.tuning import ahead

    tried = ahead.tune(
        arguments.hidden,
        DTYPES[arguments.dtype],
        kernels=arguments.kernels,
        keys=arguments.key,
        rows=arguments.rows,
        limit=arguments.candidates,
        target=arguments.target,
        offline=arguments.offline,
        folder=arguments.folder,
        progress=progress,
    )
    print(ahead.table(tried))
    print("modelled, not measured" if arguments.offline else "measured")


def run(arguments: argparse.Namespace) -> None:
    program = arguments.module or arguments.program
    if not program:
        raise SystemExit("python -m tritonln run: expected a script, or -m and a module")
    os.environ["TRITON_INTERPRET"] = "0"
    from tritonln.emulator.run import run

    run(arguments.emulate, program, bool(arguments.module), arguments.counters, not arguments.unchecked)


def progress(keys: Iterable[Any]) -> Iterable[Any]:
    try:
        from rich.console import Console
        from rich.progress import track
    except ImportError:
        return keys
    return track(keys, "tuning", console=Console(stderr=True), transient=True)


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    if arguments.command == "info":
        info()
    elif arguments.command == "inspect":
        inspect(arguments)
    elif arguments.command == "run":
        run(arguments)
    else:
        try:
            tune(arguments)
        except (ValueError, RuntimeError) as error:
            raise SystemExit(f"python -m tritonln tune: {error}") from None


if __name__ == "__main__":
    main()
