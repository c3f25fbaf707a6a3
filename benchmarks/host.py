"""Host microseconds of a call, on a driver that does nothing: no GPU needed, none measured.

    python -m benchmarks.host [--rows 2] [--hidden 1024] [--weight-dtype bf16]

Every launch runs Python, Triton's dispatch and its C launcher, and ends in a stub library that
returns at once.  Tensors are CPU-resident and small.  Times are this thread's CPU time, medians over
interleaved rounds; eager's includes its arithmetic on the CPU.  Liger-Kernel and
flash-linear-attention are measured beside where they are installed (`pip install --no-deps
liger-kernel fla-core einops`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable

from benchmarks import stub

launches = stub.install()

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from rich.table import Table  # noqa: E402

from benchmarks.libraries import eager, libraries  # noqa: E402
from benchmarks.providers import Norm  # noqa: E402
from tritonln.device import kernels_on  # noqa: E402
from tritonln.dtypes import DTYPES  # noqa: E402
from tritonln.ops.layer_norm import LAYER_NORM  # noqa: E402


def microseconds(f: Callable[[], object], n: int) -> float:
    start = time.thread_time()
    for _ in range(n):
        f()
    return (time.thread_time() - start) / n * 1e6


def calls(norm: Norm, M: int, N: int, parameters: torch.dtype) -> dict[str, Callable[[], object]]:
    x, dy = torch.zeros(M, N, dtype=torch.bfloat16), torch.zeros(M, N, dtype=torch.bfloat16)
    w, b = torch.zeros(N, dtype=parameters), torch.zeros(N, dtype=parameters)
    leaves = [t.clone().requires_grad_() for t in (x, w, b)]

    def forward() -> None:
        with torch.no_grad():
            norm(x, w, b)

    return {
        "no_grad": forward,
        "forward": lambda: norm(*leaves),
        "both": lambda: torch.autograd.grad(norm(*leaves), leaves, dy),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--weight-dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rounds", type=int, default=11)
    parser.add_argument("--calls", type=int, default=200, help="of each kind in a round")
    parser.add_argument("--json", action="store_true", help="one JSON object a library and pass, with every round")
    a = parser.parse_args()
    torch.set_num_threads(1)
    measured: dict[str, dict[str, list[float]]] = {}
    norms = {"eager": eager, **libraries()}
    everything = {name: calls(norm, a.rows, a.hidden, DTYPES[a.weight_dtype]) for name, norm in norms.items()}
    counts = {}
    for name, kinds in everything.items():
        measured[name] = {kind: [] for kind in kinds}
        for f in kinds.values():
            f()  # compiles
        before = launches()
        kinds["both"]()
        counts[name] = launches() - before
    for warm in track([False] + [True] * a.rounds, "measuring", transient=True, disable=a.json):
        for name, kinds in everything.items():
            for kind, f in kinds.items():
                spent = microseconds(f, a.calls)
                if warm:
                    measured[name][kind].append(spent)
    if a.json:
        for name, found in measured.items():
            for kind, us in found.items():
                print(json.dumps({"provider": name, "pass": kind, "samples": us, "launches": counts[name]}))
        return
    medians = {name: {k: statistics.median(v) for k, v in kinds.items()} for name, kinds in measured.items()}
    table = Table(
        "", *medians["eager"], "launches", title=f"host us a call (x eager), bf16 {a.rows} x {a.hidden}, stub driver"
    )
    for name, medians_of in medians.items():
        cells = [f"{us:.1f} ({us / medians['eager'][k]:.2f})" for k, us in medians_of.items()]
        table.add_row(name, *cells, str(counts[name]))
    Console(width=110).print(table)
    print(
        f"of which the look-up of the configuration and its launch: {lookup(a.hidden, DTYPES[a.weight_dtype]):.2f} us"
    )


def lookup(N: int, parameters: torch.dtype) -> float:
    """Of a key that the process knows: what every call but the first pays for the tuner."""
    device = kernels_on(torch.device("cpu"))
    assert device is not None
    key = (N, (torch.bfloat16,), (parameters, parameters), torch.bfloat16, True, device)
    return statistics.median(microseconds(lambda: LAYER_NORM.forward_plan(*key), 10_000) for _ in range(5))


if __name__ == "__main__":
    main()
