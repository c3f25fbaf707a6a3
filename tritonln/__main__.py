"""python -m tritonln: what runs here, and what would be launched on a GPU that is not here."""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
from collections.abc import Sequence

import torch

from tritonln.device import TARGETS

DTYPES = {"fp32": torch.float32, "fp16": torch.float16, "bf16": torch.bfloat16, "fp64": torch.float64}


def sizes(text: str) -> list[int]:
    return [int(n) for n in text.split(",")]


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
    inspect.add_argument("--kernel", help="only this kernel, such as layer_norm_bwd")
    inspect.add_argument("--json", action="store_true", help="one JSON object a line")
    return top


def info() -> None:
    from tritonln.device import interpreting, runs_triton, triton_device_type
    from tritonln.version import __version__

    try:
        import triton

        version, kind = triton.__version__, triton_device_type()
        mode = "interpreted" if interpreting() else "compiled"
    except ImportError:
        version, kind, mode = "not installed", None, "not available"
    print(f"tritonln {__version__}, torch {torch.__version__}, triton {version} ({mode})")
    print(f"Triton drives: {kind or 'no device'}")
    print(f"CPU tensors:   {'Triton kernels, interpreted' if runs_triton('cpu') else 'ATen'}")


def inspect(arguments: argparse.Namespace) -> None:
    # An interpreted kernel cannot be compiled, and which it is is settled when it is imported.
    os.environ["TRITON_INTERPRET"] = "0"
    from tritonln.inspect import inspect_layer_norm, table

    reports = [
        report
        for hidden in arguments.hidden
        for report in inspect_layer_norm(
            arguments.target, hidden, DTYPES[arguments.dtype], DTYPES[arguments.weight_dtype]
        )
        if arguments.kernel in (None, report.kernel)
    ]
    if arguments.json:
        for report in reports:
            print(json.dumps(dataclasses.asdict(report)))
    else:
        print(table(reports))


def main(argv: Sequence[str] | None = None) -> None:
    arguments = parser().parse_args(argv)
    if arguments.command == "info":
        info()
    else:
        inspect(arguments)


if __name__ == "__main__":
    main()
