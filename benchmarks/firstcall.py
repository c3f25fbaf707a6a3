"""Kernels compiled and seconds spent by the first call, forward and backward: no GPU needed.

    python -m benchmarks.firstcall [--hidden 4096] [--rows 4096]

In processes of their own on the stub driver, with Triton's disk cache empty and then warm.  CPU
seconds include Triton's compiler.  The first torch.autograd.grad of a process imports sympy, which
is torch's own cost: it is made before the clock starts.
"""

from __future__ import annotations

import argparse
import json
import os
import subprocess
import sys
import tempfile

CHILD = """
import os, time
from benchmarks import stub
stub.install()
import torch, tritonln
from triton import knobs
compiled = [0, 0]
def listener(**event):
    compiled[bool(event["cache_hit"])] += 1
knobs.compilation.listener = listener
one = torch.ones(1, requires_grad=True)
torch.autograd.grad(one * 2, one, torch.ones(1))
M, N = {rows}, {hidden}
x = torch.zeros(M, N, dtype=torch.bfloat16, requires_grad=True)
w, b = (torch.zeros(N, requires_grad=True) for _ in range(2))
dy = torch.zeros(M, N, dtype=torch.bfloat16)
start = os.times()
torch.autograd.grad(tritonln.layer_norm(x, N, w, b), (x, w, b), dy)
print(*compiled, sum(os.times()[:4]) - sum(start[:4]))
"""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--hidden", type=int, default=4096)
    parser.add_argument("--rows", type=int, default=4096)
    parser.add_argument("--json", action="store_true", help="one JSON object a state of the cache")
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as cache:
        for state in ("cold", "warm"):
            command = [sys.executable, "-c", CHILD.format(rows=a.rows, hidden=a.hidden)]
            environment = {**os.environ, "TRITON_CACHE_DIR": cache, "TRITONLN_CACHE_DIR": cache}
            done = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
            compiled, loaded, seconds = done.stdout.split()
            if a.json:
                print(json.dumps({"cache": state, "compiled": int(compiled), "seconds": float(seconds)}))
                continue
            print(
                f"N={a.hidden}, {state} cache: {compiled} kernels compiled, {loaded} loaded, {float(seconds):.2f} CPU s"
            )


if __name__ == "__main__":
    main()
