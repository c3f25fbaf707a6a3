"""The layer-normalized LSTM beside loops of the same formula: no GPU needed, none measured.

    python -m benchmarks.rnn host [--rows 2] [--hidden 64] [--stepwise]  host time a step, on a driver that does nothing
    python -m benchmarks.rnn cpu [--rows 32] [--hidden 128]              time of the CPU path, forward and backward

Times are this thread's CPU time, medians over interleaved rounds; of `host`, eager's includes its
arithmetic and tritonln's that of the products.  The loops have the input product hoisted
out of them, as tritonln has.
"""

from __future__ import annotations

import argparse
import os
import statistics
import time
from collections.abc import Callable

import torch
import torch.nn.functional as F
from rich.console import Console
from rich.progress import track
from rich.table import Table
from torch import Tensor

from benchmarks import stub
from tritonln.configurations import recurrent
from tritonln.configurations.config import STEPS


def step(
    gates_x: Tensor, h: Tensor, c: Tensor, w_hh: Tensor, g_hh: Tensor, b_hh: Tensor, g_c: Tensor, b_c: Tensor
) -> tuple[Tensor, Tensor]:
    gates = F.layer_norm(torch.mm(h, w_hh.t()), g_hh.shape, g_hh, b_hh) + gates_x
    i, f, g, o = gates.chunk(4, 1)
    c = torch.sigmoid(f) * c + torch.sigmoid(i) * torch.tanh(g)
    return torch.sigmoid(o) * torch.tanh(F.layer_norm(c, g_c.shape, g_c, b_c)), c


def loop(x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor], step: Callable[..., tuple[Tensor, Tensor]]) -> Tensor:
    w_ih, w_hh, b_ih, b_hh, g_ih, g_hh, g_c, b_c = weights
    outputs = []
    for gates_x in F.layer_norm(F.linear(x, w_ih), g_ih.shape, g_ih, b_ih).unbind(0):
        h, c = step(gates_x, h, c, w_hh, g_hh, b_hh, g_c, b_c)
        outputs.append(h)
    return torch.stack(outputs)


def scripted() -> Callable[..., Tensor]:
    script = torch.jit.script(step)

    def whole(x: Tensor, h: Tensor, c: Tensor, weights: list[Tensor]) -> Tensor:
        w_ih, w_hh, b_ih, b_hh, g_ih, g_hh, g_c, b_c = weights
        outputs: list[Tensor] = []
        for gates_x in F.layer_norm(F.linear(x, w_ih), g_ih.shape, g_ih, b_ih).unbind(0):
            h, c = script(gates_x, h, c, w_hh, g_hh, b_hh, g_c, b_c)
            outputs.append(h)
        return torch.stack(outputs)

    return torch.jit.script(whole)


def candidates(kind: str, T: int, B: int, H: int) -> dict[str, Callable[[], object]]:
    from tritonln.nn import LayerNormLSTM

    layer, lstm = LayerNormLSTM(H, H), torch.nn.LSTM(H, H)
    names = ("weight_ih", "weight_hh", "bias_ih", "bias_hh", "ln_ih_weight", "ln_hh_weight", "ln_c_weight", "ln_c_bias")
    weights = [getattr(layer, name + "_l0") for name in names]
    x, dy = torch.randn(T, B, H, requires_grad=True), torch.randn(T, B, H)
    state = torch.zeros(B, H), torch.zeros(B, H)

    def both(f: Callable[[], Tensor], leaves: list[Tensor]) -> Callable[[], object]:
        return lambda: torch.autograd.grad(f(), [x, *leaves], dy)

    calls: dict[str, Callable[[], Tensor]] = {
        "tritonln": lambda: layer(x)[0],
        "eager loop": lambda: loop(x, *state, weights, step),
    }
    if kind == "cpu":
        script, compiled = scripted(), torch.compile(step)
        calls["torch.jit loop"] = lambda: script(x, *state, weights)
        calls["torch.compile loop"] = lambda: loop(x, *state, weights, compiled)
    measured = {name: both(f, weights) for name, f in calls.items()}
    if kind == "cpu":
        measured["torch.nn.LSTM"] = both(lambda: lstm(x)[0], list(lstm.parameters()))
    return measured


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("kind", choices=["host", "cpu"])
    parser.add_argument("--steps", type=int, default=64)
    parser.add_argument("--rows", type=int)
    parser.add_argument("--hidden", type=int)
    parser.add_argument("--rounds", type=int, default=15)
    parser.add_argument(
        "--stepwise", action="store_true", help="launch steps where a whole sequence would be one launch"
    )
    a = parser.parse_args()
    rows, hidden = a.rows or (2 if a.kind == "host" else 32), a.hidden or (64 if a.kind == "host" else 128)
    torch.set_num_threads(1)
    # Once a block of this size was freed, glibc keeps what is freed after it.  Otherwise it hands a part back to the
    # system, and page faults are now one candidate's, now another's.
    torch.empty(31 << 20, dtype=torch.uint8)
    os.environ["TRITON_INTERPRET"] = "0"
    if a.kind == "host":
        stub.install()
    if a.stepwise:
        recurrent.persistent = lambda *_: STEPS  # type: ignore[assignment]
    clock = time.thread_time
    calls = candidates(a.kind, a.steps, rows, hidden)
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for f in calls.values():
        for _ in range(5):
            f()  # compiles, the script for the last time in its fourth call
    for _ in track(range(a.rounds), "measuring", transient=True):
        for name, f in calls.items():
            start = clock()
            f()
            spent[name].append(clock() - start)
    medians = {name: statistics.median(times) for name, times in spent.items()}
    title = f"forward + backward, T = {a.steps}, B = {rows}, H = {hidden}, fp32, one thread"
    table = Table("", "us a step", "tritonln / this", title=f"{a.kind}: {title}")
    for name, seconds in medians.items():
        table.add_row(name, f"{seconds / a.steps * 1e6:.1f}", f"{medians['tritonln'] / seconds:.2f}")
    Console().print(table)


if __name__ == "__main__":
    main()
