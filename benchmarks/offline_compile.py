"""What a provider's kernels compile to for a GPU that is not there, one JSON object a case.

    python -m benchmarks.offline_compile --target sm_90 --provider liger < cases

In a process of its own, as an interpreted kernel cannot be compiled.  tritonln's launches are noted on
meta tensors and compiled by its inspector; other libraries are called on the stub driver and every
kernel that they launch is read from its cubin.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks import stub
from tritonln.device import LATENCY, TARGETS, Device
from tritonln.inspect import Report

KEPT = (
    *("kernel", "num_warps", "num_ctas", "programs", "registers", "spills", "shared", "resident"),
    *("loads", "stores", "barriers", "in_flight", "needed"),
)

MOST_VALUES = 32  # a thread, of a tile

Facts = dict[str, Any]


def of_tritonln(target: str, cases: list[Facts]) -> Iterator[list[Facts]]:
    os.environ["TRITON_INTERPRET"] = "0"
    from tritonln.dtypes import DTYPES
    from tritonln.inspect import inspect_operator

    for case in cases:
        dtype = DTYPES[case["dtype"]]
        reports = inspect_operator(case["operator"], target, case["N"], dtype, dtype, case["M"])
        yield [facts(r, TARGETS[target], backward=i > 0) for i, r in enumerate(reports)]


def facts(report: Report, device: Device, backward: bool) -> Facts:
    from tritonln.tuning.model import terms

    kept = {k: getattr(report, k) for k in KEPT}
    moved, found = report.bytes_per_element * report.rows * report.hidden, terms(report, device)
    return {**kept, "moved": moved, "seconds": found.seconds, "binds": found.binds, "backward": backward}


@dataclasses.dataclass
class Listener:
    """Notes what each launch was compiled to."""

    device: Device
    needed: int
    case: Facts
    itemsize: int
    backward: bool = False
    launched: dict[str, Facts] = dataclasses.field(default_factory=dict)

    def note(self, kernel: Any, args: tuple[Any, ...], options: Facts, compiled: Any) -> None:
        import torch

        from tritonln.machine_code import read_cubin

        code, name = read_cubin(compiled, self.device), kernel.fn.__name__
        # Of configurations that an autotuner tries, the one that spills least: here all take the same time.
        if name in self.launched and self.launched[name]["spills"] <= code.spills:
            return
        grid = options["grid"](options) if callable(options["grid"]) else options["grid"]
        programs, threads = grid[0] * (grid[1] if len(grid) > 1 else 1), compiled.metadata.num_warps * 32
        resident = min(code.resident, -(-programs // self.device.multiprocessors))
        rows = (
            options["BT"] if "BT" in options else options.get("BLOCK_ROW") or 1
        )  # of a tile, as these libraries call it
        tensors = {a.data_ptr(): a for a in (*args, *options.values()) if isinstance(a, torch.Tensor)}
        values, warps = self.case["M"] * self.case["N"], compiled.metadata.num_warps
        streamed = self.itemsize * (1 + self.backward)  # as the inspector counts: x forward, x and dy backward
        report = Report(
            kernel=name,
            target=self.device.target,
            hidden=self.case["N"],
            constants={"BLOCK_M": rows, "BLOCK_N": self.case["N"]},
            tile=(rows, self.case["N"]),
            num_warps=warps,
            num_ctas=1,
            programs=programs,
            registers=code.registers,
            spills=code.spills,
            shared=compiled.metadata.shared,
            resident=resident,
            occupancy=code.resident * threads / self.device.threads,
            loads=code.loads,
            stores=code.stores,
            barriers=code.barriers,
            async_copies=code.async_copies,
            cluster=code.cluster,
            bytes_per_element=sum(t.numel() * t.element_size() for t in tensors.values()) / values,
            streamed=streamed,
            instructions_per_element=code.instructions * threads / (rows * self.case["N"]),
            in_flight=resident * rows * self.case["N"] * streamed,
            needed=self.needed,
            rows=self.case["M"],
            local=code.local * threads / (rows * self.case["N"]),
        )
        self.launched[name] = facts(report, self.device, self.backward)

    def torchs(self, kernel: Any, backward: bool) -> Facts:
        """An operator of torch's, such as a sum over partial sums, taken to run at full bandwidth."""
        from tritonln.tuning.model import LAUNCH

        return {
            **dict.fromkeys(("num_warps", "num_ctas", "registers", "spills", "shared", "resident", "barriers"), 0),
            **{"kernel": kernel.name, "programs": self.device.multiprocessors, "loads": {}, "stores": {}},
            **{"in_flight": self.needed, "needed": self.needed, "moved": kernel.distinct},
            **{"seconds": kernel.distinct / self.device.bandwidth + LATENCY / 2 + LAUNCH, "binds": "memory"},
            "backward": backward,
        }


def of_library(name: str, target: str, cases: list[Facts]) -> Iterator[list[Facts]]:
    stub.install()
    import torch
    from triton.runtime.autotuner import Autotuner

    from benchmarks.libraries import libraries, spread_liger
    from benchmarks.stub.launches import heard
    from benchmarks.traffic import Kernel, TorchOperators
    from tritonln.dtypes import DTYPES

    device, norm = TARGETS[target], libraries()[name]
    needed = device.needed
    if name == "liger":
        spread_liger()
    if name == "fla":
        prune(Autotuner)
    for case in cases:
        dtype = DTYPES[case["dtype"]]
        listener = Listener(device, needed, case, dtype.itemsize)
        x = torch.zeros(case["M"], case["N"], dtype=dtype, requires_grad=True)
        w, b = (torch.zeros(case["N"], dtype=dtype, requires_grad=True) for _ in range(2))
        dy, forward, backward = torch.zeros_like(x), list[Kernel](), list[Kernel]()
        try:
            with heard(listener.note):
                with TorchOperators(forward):
                    y = norm(x, w, b)
                listener.backward = True
                with TorchOperators(backward):
                    torch.autograd.grad(y, (x, w, b), dy)
        except Exception as error:
            yield [{"refused": f"{type(error).__name__}: {str(error)[:200]}"}]
            continue
        torchs = [listener.torchs(k, False) for k in forward] + [listener.torchs(k, True) for k in backward]
        yield [*listener.launched.values(), *torchs]


def prune(autotuner: Any) -> None:
    """Only configurations of few values a thread are compiled: the others spill, and take minutes each."""
    every = autotuner.prune_configs

    def few(self: Any, arguments: Facts) -> list[Any]:
        found = every(self, arguments)
        values = [c.kwargs.get("BT", 1) * arguments["D"] / (32 * c.num_warps) for c in found]
        return [c for c, n in zip(found, values) if n <= MOST_VALUES] or [found[values.index(min(values))]]

    autotuner.prune_configs = few


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="sm_90")
    parser.add_argument("--provider", required=True)
    a = parser.parse_args()
    cases = json.load(sys.stdin)
    found = of_tritonln(a.target, cases) if a.provider == "tritonln" else of_library(a.provider, a.target, cases)
    for kernels in found:
        print(json.dumps(kernels), flush=True)


if __name__ == "__main__":
    main()
