"""What each Triton library's kernels compile to for H100, beside each other: no GPU needed.

    python -m benchmarks.resources [--hidden 1024,4096,16384] [--rows 4096] [--weight-dtype fp32]

Every library is called on the stub driver and each kernel that it launches is read from its
cubin.  Of libraries that autotune, the configuration with the fewest spills is shown: on a driver that
does nothing all take the same time.
"""

from __future__ import annotations

import argparse
from typing import Any

from benchmarks import stub

stub.install()

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.libraries import libraries  # noqa: E402
from benchmarks.operators import Norm  # noqa: E402
from benchmarks.stub.launches import heard  # noqa: E402
from tritonln.__main__ import sizes  # noqa: E402
from tritonln.device import TARGETS  # noqa: E402
from tritonln.dtypes import DTYPES  # noqa: E402
from tritonln.inspect import counted_widths  # noqa: E402
from tritonln.machine_code import read_cubin  # noqa: E402


def spills(compiled: Any) -> int:
    return read_cubin(compiled, TARGETS["sm_90"]).spills


def kernels(norm: Norm, M: int, N: int, parameters: torch.dtype) -> dict[str, Any]:
    """The compiled kernels that a forward and a backward launch, by name: of several, the one that spills least."""
    launched: dict[str, Any] = {}

    def note(kernel: Any, args: tuple[Any, ...], options: dict[str, Any], compiled: Any) -> None:
        name = kernel.fn.__name__
        if name not in launched or spills(compiled) < spills(launched[name]):
            launched[name] = compiled

    x = torch.zeros(M, N, dtype=torch.bfloat16, requires_grad=True)
    w, b = (torch.zeros(N, dtype=parameters, requires_grad=True) for _ in range(2))
    with heard(note):
        y = norm(x, w, b)
        torch.autograd.grad(y, (x, w, b), torch.zeros_like(y))
    return launched


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=sizes, default=[1024, 4096, 16384])
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--weight-dtype", choices=DTYPES, default="fp32")
    a = parser.parse_args()
    columns = (
        "N",
        "library",
        "kernel",
        "warps",
        "regs",
        "spill B",
        "shared B",
        "resident",
        "loads",
        "stores",
        "barriers",
    )
    table = Table(
        *columns, title=f"bf16 x, {a.weight_dtype} parameters, sm_90; barriers of the longest loop, or of all"
    )
    for N in a.hidden:
        for library, norm in libraries().items():
            try:
                found = kernels(norm, a.rows, N, DTYPES[a.weight_dtype])
            except Exception as error:
                table.add_row(str(N), library, f"refuses: {str(error)[:60]}")
                continue
            for name, compiled in found.items():
                code = read_cubin(compiled, TARGETS["sm_90"])
                cells = (
                    compiled.metadata.num_warps,
                    code.registers,
                    code.spills,
                    compiled.metadata.shared,
                    code.resident,
                )
                widths = counted_widths(code.loads), counted_widths(code.stores)
                table.add_row(str(N), library, name, *map(str, cells), *widths, str(code.barriers))
    Console(width=170).print(table)


if __name__ == "__main__":
    main()
