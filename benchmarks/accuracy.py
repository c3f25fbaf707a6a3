"""Errors of tritonln.layer_norm and of eager, both against fp64 on the same inputs.

    python -m benchmarks.accuracy [--dtype fp32]

Prints, per row length, the largest error of y and dx in units of eps(dtype) max|reference|, for
tritonln and for F.layer_norm, their ratio, and the tolerance that the tests hold tritonln to.
"""

from __future__ import annotations

import argparse

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table

import tritonln
from tritonln import reference
from tritonln.device import triton_device_type
from tritonln.dtypes import DTYPES
from tritonln.tolerance import error, tolerance

CASES = [
    *((n, 0.0) for n in (1, 2, 3, 7, 33, 64, 100, 128, 255, 1000, 1024, 4096, 8191, 8192, 16384, 40499, 65536)),
    *((n, 1000.0) for n in (64, 1000, 4096, 8192, 65536)),
]


def measure(N: int, mean: float, dtype: torch.dtype, device: str) -> list[tuple[str, float, float, float]]:
    """(result, tritonln's error, eager's error, tolerance) for y and dx, in units of eps max|reference|."""
    generator = torch.Generator().manual_seed(N)
    x = (torch.randn(16, N, generator=generator, dtype=torch.float64) + mean).to(device, dtype)
    w, b = (torch.randn(N, generator=generator, dtype=torch.float64).to(device, dtype) for _ in range(2))
    dy = torch.randn(16, N, generator=generator, dtype=torch.float64).to(device, dtype)
    ref = reference.layer_norm_gradients(x, (N,), w, b, 1e-5, dy)
    kappa = reference.condition(x, (N,), 1e-5)
    found = {}
    for name, f in (("ours", tritonln.layer_norm), ("eager", F.layer_norm)):
        leaf = x.clone().requires_grad_()
        y = f(leaf, (N,), w, b)
        found[name] = {"y": y.detach(), "dx": torch.autograd.grad(y, leaf, dy)[0]}
    rows = []
    for result in ("y", "dx"):
        scale = reference.dx_scale(x, (N,), w, 1e-5, dy) if result == "dx" else 0.0
        unit = torch.finfo(dtype).eps * max(float(ref[result].abs().max()), scale)
        ours, eager = (error(found[name][result], ref[result]) for name in ("ours", "eager"))
        allowed = tolerance(found["ours"][result], ref[result], 1, kappa, scale)
        rows.append((result, ours / unit, eager / unit, allowed / unit))
    return rows


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--dtype", choices=DTYPES, default="fp32")
    arguments = parser.parse_args()
    device = triton_device_type() or "cpu"
    table = Table(
        "N",
        "mean",
        "result",
        "tritonln",
        "eager",
        "ratio",
        "tolerance",
        title=f"errors in eps max|ref|, {arguments.dtype}",
    )
    worst = 0.0
    for N, mean in track(CASES, "measuring", transient=True):
        for result, ours, eager, allowed in measure(N, mean, DTYPES[arguments.dtype], device):
            # Half an ulp is the rounding of a right result: below it there is nothing to compare.
            ratio = ours / max(eager, 0.5)
            worst = max(worst, ratio)
            table.add_row(
                str(N), f"{mean:g}", result, f"{ours:.2f}", f"{eager:.2f}", f"{ratio:.2f}", f"{allowed:.2f}",
                style="red" if ours > allowed or ratio > 2 else "",
            )  # fmt: skip
    Console().print(table)
    print(f"worst ratio to eager, or to half an ulp where eager is below that: {worst:.2f}")


if __name__ == "__main__":
    main()
