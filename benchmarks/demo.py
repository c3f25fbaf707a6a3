"""The main job on real input, on whatever this machine has: `make demo`.

A small net with tritonln.nn.LayerNorm learns the digits that ship inside scikit-learn; the
activations that reach its norm are then normalized forward and backward in every dtype, beside
F.layer_norm in fp64.
"""

from __future__ import annotations

import subprocess
import sys

import torch
from rich.console import Console
from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn
from rich.table import Table
from sklearn.datasets import load_digits
from torch import Tensor

import tritonln
from tritonln import reference
from tritonln.device import interpreting, kernels_on, runs_triton, triton_device_type
from tritonln.dtypes import DTYPES
from tritonln.tolerance import error

HIDDEN, STEPS, BATCH = 256, 30, 64


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.inner = torch.nn.Linear(64, HIDDEN)
        self.norm = tritonln.nn.LayerNorm(HIDDEN)
        self.outer = torch.nn.Linear(HIDDEN, 10)

    def forward(self, images: Tensor) -> Tensor:
        logits: Tensor = self.outer(torch.relu(self.norm(self.inner(images))))
        return logits


def train(device: torch.device) -> tuple[Net, Tensor, float, float]:
    """The net after STEPS steps, the images, and the loss before and after."""
    torch.manual_seed(0)
    digits = load_digits()
    images = torch.tensor(digits.data, dtype=torch.float32, device=device)
    labels = torch.tensor(digits.target, device=device)
    net = Net().to(device)
    optimizer = torch.optim.Adam(net.parameters(), lr=3e-3)
    losses = []
    for step in range(STEPS):
        batch = torch.arange(step * BATCH, (step + 1) * BATCH, device=device) % len(images)
        loss = torch.nn.functional.cross_entropy(net(images[batch]), labels[batch])
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.item())
    return net, images, losses[0], losses[-1]


def errors(net: Net, images: Tensor, dtype: torch.dtype) -> dict[str, float]:
    """The largest error of y, dx, dw, db against fp64, in units of eps(dtype) max|reference|."""
    with torch.no_grad():
        x = net.inner(images).to(dtype)
    w, b = (p.detach().to(dtype) for p in (net.norm.weight, net.norm.bias))
    dy = torch.randn(x.shape, generator=torch.Generator().manual_seed(1)).to(x)
    leaves = [t.requires_grad_() for t in (x, w, b)]
    y = tritonln.layer_norm(x, HIDDEN, w, b)
    results = {"y": y.detach(), **dict(zip(("dx", "dw", "db"), torch.autograd.grad(y, leaves, dy)))}
    ref = reference.layer_norm_gradients(x, (HIDDEN,), w, b, 1e-5, dy)
    eps = torch.finfo(dtype).eps
    return {name: error(out, ref[name]) / (eps * float(ref[name].abs().max())) for name, out in results.items()}


def speeds(device: torch.device) -> Table:
    """Milliseconds and GB/s of the least bytes, beside eager.  Only ever called on a GPU."""
    from triton.testing import do_bench

    table = Table(
        "rows x N", "pass", "tritonln ms", "eager ms", "tritonln GB/s", "eager GB/s", title="bf16, median of cold runs"
    )
    for M, N in ((65536, 256), (16384, 1024), (8192, 4096)):
        x, dy = (torch.randn(M, N, device=device, dtype=torch.bfloat16) for _ in range(2))
        x.requires_grad_()
        w, b = (torch.randn(N, device=device, dtype=torch.bfloat16, requires_grad=True) for _ in range(2))
        row: dict[str, list[float]] = {"forward": [], "backward": []}
        for f in (tritonln.layer_norm, torch.nn.functional.layer_norm):
            y = f(x, (N,), w, b)
            row["forward"].append(do_bench(lambda: f(x, (N,), w, b), return_mode="median"))  # noqa: B023
            row["backward"].append(
                do_bench(lambda: torch.autograd.grad(y, (x, w, b), dy, retain_graph=True), return_mode="median")  # noqa: B023
            )
        for name, tensors in (("forward", 2), ("backward", 3)):
            rates = [tensors * M * N * 2 / ms / 1e6 for ms in row[name]]
            table.add_row(f"{M} x {N}", name, *(f"{ms:.4f}" for ms in row[name]), *(f"{r:.0f}" for r in rates))
    return table


def main() -> None:
    console = Console(width=max(150, Console().width))
    device = torch.device(triton_device_type() or "cpu")
    triton_runs = runs_triton(device.type)
    path = "ATen" if not triton_runs else "the same kernels interpreted" if interpreting() else "GPU kernels"
    with Progress(
        SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn(), console=console, transient=True
    ) as bar:
        bar.add_task(f"training {STEPS} steps on the digits ({path})")
        net, images, before, after = train(device)
        table = Table(
            "dtype", "y", "dx", "dw", "db", "path", title=f"max error against fp64, in eps: {len(images)} x {HIDDEN}"
        )
        for name, dtype in DTYPES.items():
            bar.add_task(f"forward and backward in {name}")
            table.add_row(name, *(f"{e:.2f}" for e in errors(net, images, dtype).values()), path)
        compiled = ""
        if triton_runs and interpreting():
            bar.add_task("compiling for H100 (sm_90)")
            command = [
                sys.executable,
                "-m",
                "tritonln",
                "inspect",
                "--target",
                "sm_90",
                "--hidden",
                f"{HIDDEN},1024,4096",
            ]
            compiled = subprocess.run(command, capture_output=True, text=True, check=True).stdout
        timed = speeds(device) if triton_runs and not interpreting() else None
    console.print(
        f"loss on the digits: {before:.2f} before, {after:.2f} after {STEPS} steps through tritonln.nn.LayerNorm"
    )
    console.print(table)
    if timed is not None and (known := kernels_on(device)) is not None:
        console.print(timed)
        console.print(f"Ran on {known.name}: Triton's kernels, compiled for it and timed there.")
    elif compiled:
        console.print("compiled for H100 (sm_90), bf16 with fp32 weight and bias:")
        console.print(compiled, soft_wrap=True, highlight=False)
        console.print("No GPU here: the kernels ran in Triton's interpreter, and were compiled, not run, for H100.")
    else:
        console.print("No GPU and no Triton here: layer_norm ran on ATen.")


if __name__ == "__main__":
    main()
