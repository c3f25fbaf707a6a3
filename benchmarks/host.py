"""Host microseconds of a call, on a driver that does nothing: no GPU needed, none measured.

    python -m benchmarks.host [--rows 2] [--hidden 1024] [--weight-dtype bf16]
    python -m benchmarks.host --family      every operator of tritonln, beside layer_norm

Every launch runs Python, Triton's dispatch and its C launcher, and ends in a stub library that
returns at once.  Tensors are CPU-resident and small.  Times are this thread's CPU time, the least of
short interleaved rounds, which other processes disturb least; eager's includes its arithmetic on the CPU.
The pass "torch", of --family, is what forward and backward take of an autograd Function with the same operands and
results that allocates and launches nothing: no operator with these can take less.  Liger-Kernel and
flash-linear-attention are measured beside where they are installed (`pip install --no-deps
liger-kernel fla-core einops`).
"""

from __future__ import annotations

import argparse
import json
import statistics
import time
from collections.abc import Callable
from typing import Any

from benchmarks import stub

launches = stub.install()

import torch  # noqa: E402
from rich.console import Console  # noqa: E402
from rich.progress import track  # noqa: E402
from rich.table import Table  # noqa: E402
from torch import Tensor  # noqa: E402

from benchmarks.cases import Case, Shape  # noqa: E402
from benchmarks.libraries import eager, libraries  # noqa: E402
from benchmarks.operators import OPERATORS, Norm  # noqa: E402
from benchmarks.problem import problem  # noqa: E402
from benchmarks.providers import PROVIDERS  # noqa: E402
from tritonln.device import kernels_on  # noqa: E402
from tritonln.dtypes import DTYPES  # noqa: E402
from tritonln.ops.layer_norm import LAYER_NORM  # noqa: E402


class Nothing(torch.autograd.Function):
    """Takes tensors, and returns results that are there."""

    @staticmethod
    def forward(ctx: Any, results: tuple[Tensor, ...], *tensors: Tensor | None) -> tuple[Tensor, ...]:
        ctx.save_for_backward(*tensors)
        return tuple([y.detach() for y in results])

    @staticmethod
    def backward(ctx: Any, *upstream: Tensor) -> tuple[Tensor | None, ...]:
        return None, *ctx.saved_tensors


def microseconds(f: Callable[[], object], n: int) -> float:
    start = time.thread_time()
    for _ in range(n):
        f()
    return (time.thread_time() - start) / n * 1e6


def calls(operator: str, norm: Norm, M: int, N: int, parameters: torch.dtype) -> dict[str, Callable[[], object]]:
    """By pass; of what is for inference the first alone."""
    p = problem(Case(Shape("host", operator, M, N, ""), "bf16", "both"), parameters, torch.device("cpu"))
    arguments, bare = p.arguments, [None if t is None else t.detach() for t in p.arguments]

    def forward() -> None:
        with torch.no_grad():
            norm(*bare)

    if p.case.operator.inference:
        return {"no_grad": forward}
    y = norm(*arguments)
    results = y if isinstance(y, tuple) else (y,)
    return {
        "no_grad": forward,
        "forward": lambda: norm(*arguments),
        "both": lambda: torch.autograd.grad(norm(*arguments), p.leaves, p.upstream),
        "torch": lambda: torch.autograd.grad(Nothing.apply(results, *arguments), p.leaves, p.upstream),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, default=2)
    parser.add_argument("--hidden", type=int, default=1024)
    parser.add_argument("--weight-dtype", choices=DTYPES, default="bf16")
    parser.add_argument("--rounds", type=int, default=60)
    parser.add_argument("--calls", type=int, default=20, help="of each kind in one of three blocks of a round")
    parser.add_argument(
        "--family", action="store_true", help="tritonln's operators instead of other people's layer_norm"
    )
    parser.add_argument("--json", action="store_true", help="one JSON object a library and pass, with every round")
    a = parser.parse_args()
    torch.set_num_threads(1)
    measured: dict[str, dict[str, list[float]]] = {}
    norms = {name: ("layer_norm", norm) for name, norm in {"eager": eager, **libraries()}.items()}
    if a.family:
        norms = {name: (name, PROVIDERS["tritonln"].norm(name)) for name in OPERATORS}
    everything = {name: calls(*norm, a.rows, a.hidden, DTYPES[a.weight_dtype]) for name, norm in norms.items()}
    counts = {}
    for name, kinds in everything.items():
        if not a.family:
            kinds.pop("torch")  # the same for each
        measured[name] = {kind: [] for kind in kinds}
        for f in kinds.values():
            f()  # compiles
        before = launches()
        kinds.get("both", kinds["no_grad"])()
        counts[name] = launches() - before
    for warm in track([False] + [True] * a.rounds, "measuring", transient=True, disable=a.json):
        for name, kinds in everything.items():
            for kind, f in kinds.items():
                spent = min(microseconds(f, a.calls) for _ in range(3))  # the first finds other calls in the caches
                if warm:
                    measured[name][kind].append(spent)
    if a.json:
        for name, found in measured.items():
            for kind, us in found.items():
                print(json.dumps({"provider": name, "pass": kind, "samples": us, "launches": counts[name]}))
        return
    least = {name: {k: min(v) for k, v in kinds.items()} for name, kinds in measured.items()}
    beside = next(iter(least))
    title = f"host us a call (x {beside}), bf16 {a.rows} x {a.hidden}, stub driver"
    table = Table("", *least[beside], "launches", title=title)
    for name, kinds_of in least.items():
        cells = [f"{us:.1f} ({us / least[beside][k]:.2f})" for k, us in kinds_of.items()]
        table.add_row(name, *cells, *[""] * (len(least[beside]) - len(cells)), str(counts[name]))
    Console(width=110).print(table)
    print(
        f"of which the look-up of the configuration and its launch: {lookup(a.hidden, DTYPES[a.weight_dtype]):.2f} us"
    )


def lookup(N: int, parameters: torch.dtype) -> float:
    """Of a key that the process knows: what every call but the first pays for the tuner."""
    device = kernels_on(torch.device("cpu"))
    assert device is not None
    key = (N, (torch.bfloat16, parameters, parameters), torch.bfloat16, None, True, device)
    return statistics.median(microseconds(lambda: LAYER_NORM.forward_plan(*key), 10_000) for _ in range(5))


if __name__ == "__main__":
    main()
