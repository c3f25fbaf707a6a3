"""Layer-normalized recurrent layers of real nets beside their alternatives: forward and backward, a time step.

    python -m benchmarks recurrent [--nets vowels,rnnt,dreamer,r2d2] [--providers tritonln,...]
    python -m benchmarks recurrent --host [--stepwise]    host time, on a driver that does nothing

With a GPU its own time, in bf16; without one this thread's CPU time of the CPU paths in fp32, on one thread, medians
over interleaved rounds.  `--host` needs no GPU: eager's includes its arithmetic there, and tritonln's that of the
products, so that it is asked for small nets.
"""

from __future__ import annotations

import argparse
import json
import os
import statistics
import time
from collections.abc import Sequence
from typing import Any

import torch

from benchmarks.progress import progress
from benchmarks.results_file import Record

HOST = ("vowels",)  # of the others arithmetic is most of eager's time on a CPU
SECONDS = 4.0  # of a provider's rounds on a CPU, but at least ROUNDS of them
ROUNDS, MOST_ROUNDS = 5, 25
# What this project asks of itself on a CPU: of the time of torchaudio's module, or of its formula scripted.
ASKED = {("rnnt", "torchaudio"): 1.0, ("rnnt", "scripted loop"): 1.0}


def measure(
    nets: Sequence[str], providers: Sequence[str] | None, host: bool, samples: int, quiet: bool
) -> list[Record]:
    from benchmarks import recurrent_nets as of

    gpu = torch.accelerator.is_available() and not host
    device = torch.device(torch.accelerator.current_accelerator() if gpu else "cpu")  # type: ignore[arg-type]
    chosen = [p for p in of.PROVIDERS if providers is None or p.name in providers]
    if host:  # others launch nothing, or are no Python
        chosen = [p for p in chosen if p.name in ("tritonln", "eager loop")]
    found: list[Record] = []
    for name in nets:
        net = of.NETS[name]
        calls: dict[str, Any] = {}
        for provider in chosen:
            cell = {"record": "recurrent", "net": name, "provider": provider.name, "T": net.T, "B": net.B, "H": net.H}
            reason = provider.unsupported(net, device)
            if reason is None:
                try:
                    problem = of.Problem(net, device, torch.bfloat16 if gpu else torch.float32)
                    calls[provider.name] = provider.call(problem)
                    for _ in range(4):
                        calls[provider.name]()  # compiles, the script for the last time in its fourth call
                except Exception as error:
                    calls.pop(provider.name, None)
                    reason = f"{type(error).__name__}: {str(error)[:200]}"
            found.append(cell | ({} if reason is None else {"reason": reason}))
        spent = on_gpu(calls, device, samples) if gpu else on_cpu(calls, name, quiet)
        for cell in found:
            if cell["net"] == name and cell["provider"] in spent:
                cell["samples"] = [float(f"{s / net.T:.4g}") for s in spent[cell["provider"]]]
    return found


def on_gpu(calls: dict[str, Any], device: torch.device, samples: int) -> dict[str, list[float]]:
    from benchmarks import timing

    clock = timing.Accelerator(device)
    return {name: timing.measure(lambda call=call: [call], clock, "events", samples) for name, call in calls.items()}  # type: ignore[misc]


def on_cpu(calls: dict[str, Any], title: str, quiet: bool) -> dict[str, list[float]]:
    """CPU seconds of interleaved rounds."""
    spent: dict[str, list[float]] = {name: [] for name in calls}
    for i in range(MOST_ROUNDS) if quiet else progress(range(MOST_ROUNDS), title):
        if i >= ROUNDS and max(map(sum, spent.values())) > SECONDS:
            continue
        for name, call in calls.items():
            start = time.thread_time()
            call()
            spent[name].append(time.thread_time() - start)
    return spent


def table(cells: Sequence[Record], title: str) -> None:
    from rich.console import Console
    from rich.table import Table

    from benchmarks.recurrent_nets import NETS, NOT_NORMALIZED

    shown = Table("net", "provider", "us a step", "tritonln / this", "asked", title=title)
    for name in dict.fromkeys(c["net"] for c in cells):
        medians = {c["provider"]: statistics.median(c["samples"]) for c in cells if c["net"] == name and "samples" in c}
        shown.add_section()
        for c in cells:
            if c["net"] != name:
                continue
            provider = c["provider"] + (" (not normalized)" if c["provider"] in NOT_NORMALIZED else "")
            if "samples" not in c:
                shown.add_row(name, provider, c["reason"])
                continue
            seconds = medians[c["provider"]]
            ratio = f"{medians['tritonln'] / seconds:.2f}" if "tritonln" in medians else ""
            asked = ASKED.get((name, c["provider"]))
            shown.add_row(name, provider, f"{seconds * 1e6:.1f}", ratio, "" if asked is None else f"{asked:.2f}")
    console = Console(width=110)
    console.print(shown)
    for name in dict.fromkeys(c["net"] for c in cells):
        console.print(f"{name}: {NETS[name].shape}; {NETS[name].source}", highlight=False)


def options(parser: argparse.ArgumentParser) -> None:
    from benchmarks.cases import chosen

    parser.add_argument("--nets", type=lambda text: chosen(text, ("vowels", "rnnt", "dreamer", "r2d2")))
    parser.add_argument("--providers", type=lambda text: text.split(","), help="default: all")
    parser.add_argument("--host", action="store_true", help="host time, on a driver that does nothing")
    parser.add_argument("--stepwise", action="store_true", help="launch steps where a sequence would be one launch")
    parser.add_argument("--samples", type=int, default=20, help="of each on a GPU (default: %(default)s)")
    parser.add_argument("--json", action="store_true", help="one JSON object a net and provider")


def run(a: argparse.Namespace) -> None:
    os.environ["TRITON_INTERPRET"] = "0"  # a CPU's fast path is ATen
    torch.set_num_threads(1)
    # Once a block of this size was freed, glibc keeps what is freed after it.  Otherwise it hands a part back to the
    # system, and page faults are now one candidate's, now another's.
    torch.empty(31 << 20, dtype=torch.uint8)
    if a.host:
        from benchmarks import stub

        stub.install()
    if a.stepwise:
        from tritonln.configurations import recurrent
        from tritonln.configurations.config import STEPS

        recurrent.persistent = lambda *_: STEPS  # type: ignore[assignment]
    nets = a.nets or (HOST if a.host else ("vowels", "rnnt", "dreamer", "r2d2"))
    cells = measure(nets, a.providers, a.host, a.samples, a.json)
    if a.json:
        for cell in cells:
            print(json.dumps(cell))
        return
    where = "host time, stub driver" if a.host else "GPU, bf16" if torch.accelerator.is_available() else "CPU, fp32"
    table(cells, f"forward + backward, {where}{', one thread' * (not torch.accelerator.is_available())}")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options(parser)
    run(parser.parse_args())


if __name__ == "__main__":
    main()
