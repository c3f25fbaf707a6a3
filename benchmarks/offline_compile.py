"""What a provider's kernels compile to for a GPU that is not there, one JSON object a case.

    python -m benchmarks.offline_compile --target sm_90 --provider liger < cases

In a process of its own, as an interpreted kernel cannot be compiled.  tritonln's launches are noted on
meta tensors and compiled by its inspector; other libraries are called on the stub driver and every
kernel that they launch is read from its cubin.
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Iterator
from typing import Any

from benchmarks import stub

KEPT = ("kernel", "num_warps", "num_ctas", "programs", "registers", "spills", "shared", "resident")
READ = ("loads", "stores", "barriers", "in_flight", "needed")


def of_tritonln(target: str, cases: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    from tritonln.__main__ import DTYPES
    from tritonln.inspect import inspect_layer_norm

    for case in cases:
        dtype = DTYPES[case["dtype"]]
        reports = inspect_layer_norm(target, case["N"], dtype, dtype, case["M"])
        values = case["M"] * case["N"]
        found = []
        for r in reports:
            facts = {k: getattr(r, k) for k in (*KEPT, *READ)}
            # The sum over partial sums walks `programs` rows of the kernel before it, not M.
            walked = values if r.kernel != "column_sum" else found[-1]["programs"] * case["N"]
            facts["moved"] = r.bytes_per_element * walked
            facts["instructions"] = r.instructions_per_element and r.instructions_per_element * walked
            found.append(facts | {"backward": r.kernel != reports[0].kernel})
        yield found


def of_library(name: str, target: str, cases: list[dict[str, Any]]) -> Iterator[list[dict[str, Any]]]:
    stub.install()
    import torch
    from triton.runtime.jit import JITFunction

    from benchmarks.libraries import libraries, spread_liger
    from benchmarks.traffic import Kernel, TorchOperators
    from tritonln.__main__ import DTYPES
    from tritonln.device import TARGETS
    from tritonln.inspect import LATENCY
    from tritonln.machine_code import read_cubin

    device = TARGETS[target]
    norm = libraries()[name]
    if name == "liger":
        spread_liger()
    run, needed = JITFunction.run, round(device.bandwidth * LATENCY / device.multiprocessors)
    for case in cases:
        dtype = DTYPES[case["dtype"]]
        launched: dict[str, dict[str, Any]] = {}
        backward = False

        def noting(self: Any, *args: Any, **options: Any) -> Any:
            compiled = run(self, *args, **options)
            code = read_cubin(compiled, device)
            kernel = self.fn.__name__
            # Of configurations that an autotuner tries, the one that spills least: here all take the same time.
            if kernel in launched and launched[kernel]["spills"] <= code.spills:
                return compiled
            grid = options["grid"](options) if callable(options["grid"]) else options["grid"]
            programs, threads = grid[0] * (grid[1] if len(grid) > 1 else 1), compiled.metadata.num_warps * 32
            resident = min(code.resident, -(-programs // device.multiprocessors))
            rows = options.get("BT", options.get("BLOCK_ROW", 1))
            tensors = {a.data_ptr(): a for a in (*args, *options.values()) if isinstance(a, torch.Tensor)}
            launched[kernel] = {
                "kernel": kernel,
                **{"num_warps": compiled.metadata.num_warps, "num_ctas": 1, "programs": programs},
                **{"registers": code.registers, "spills": code.spills, "shared": compiled.metadata.shared},
                **{"resident": resident, "loads": code.loads, "stores": code.stores, "barriers": code.barriers},
                # As the inspector counts: the rows that a program reads at once, x forward, x and dy backward.
                "in_flight": resident * rows * case["N"] * dtype.itemsize * (1 + backward),
                "needed": needed,
                "moved": sum(t.numel() * t.element_size() for t in tensors.values()),
                "instructions": code.instructions * threads * case["M"] / rows,
                "backward": backward,
            }
            return compiled

        x = torch.zeros(case["M"], case["N"], dtype=dtype, requires_grad=True)
        w, b = (torch.zeros(case["N"], dtype=dtype, requires_grad=True) for _ in range(2))
        JITFunction.run = noting
        dy, torchs = torch.zeros_like(x), [list[Kernel](), list[Kernel]()]
        try:
            with TorchOperators(torchs[0]):
                y = norm(x, w, b)
            backward = True
            with TorchOperators(torchs[1]):
                torch.autograd.grad(y, (x, w, b), dy)
        except Exception as error:
            yield [{"refused": f"{type(error).__name__}: {str(error)[:200]}"}]
            continue
        finally:
            JITFunction.run = run
        yield [*launched.values(), *(
            of_torch(k, device, needed, bool(i)) for i, ks in enumerate(torchs) for k in ks
        )]  # fmt: skip


def of_torch(kernel: Any, device: Any, needed: int, backward: bool) -> dict[str, Any]:
    """An operator of torch's that a library calls, such as a sum over partial sums, taken to run at full bandwidth."""
    nothing = dict.fromkeys(("num_ctas", "registers", "spills", "shared", "resident", "barriers"), 0)
    return {
        **nothing,
        **{"kernel": kernel.name, "num_warps": 0, "programs": device.multiprocessors, "loads": {}, "stores": {}},
        **{"in_flight": needed, "needed": needed, "moved": kernel.distinct, "instructions": None, "backward": backward},
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--target", default="sm_90")
    parser.add_argument("--provider", required=True)
    a = parser.parse_args()
    cases = json.load(sys.stdin)
    if a.provider == "tritonln":
        import os

        os.environ["TRITON_INTERPRET"] = "0"
        found = of_tritonln(a.target, cases)
    else:
        found = of_library(a.provider, a.target, cases)
    for kernels in found:
        print(json.dumps(kernels), flush=True)


if __name__ == "__main__":
    main()
