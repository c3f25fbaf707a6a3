"""The one command for the day a GPU is there: `make gpu-acceptance`.

    python -m benchmarks.acceptance [--minutes 8.5] [--rehearse] [--out FOLDER]

In this order, so that a run that is cut off is worth most: the environment; tests on the device, first of
what only a GPU can show; the copy bandwidth; tuning of the shipped hidden sizes; a sweep against eager and cuDNN;
recurrent layers beside cuDNN's and a scripted loop; the report.  Each step is a process with a time of its own, after
which it is interrupted, so that it says where it was; a step that fails stops none of the others, and everything is
written under benchmarks/results/<gpu>/.  Results of another commit are put aside there.  torch, triton, pytest and
pytest-benchmark are enough: no network, no install.
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import os
import pathlib
import signal
import subprocess
import sys
import time
from collections.abc import Sequence

from benchmarks.__main__ import folder_name
from benchmarks.results_file import RESULTS, ROOT, commit, read, versions

TUNED_HIDDEN = "1024,4096,768,2048,8192,256,512,16384,64,128,32768,65536"  # the commonest first
PYTEST = ("-m", "pytest", "-q", "-p", "no:cacheprovider", "--durations", "5")
GRACE = 10.0  # seconds from the interrupt to the end by force


@dataclasses.dataclass(frozen=True)
class Step:
    name: str
    seconds: float  # at most; what earlier steps leave over goes to later ones
    command: tuple[str, ...]  # after the interpreter
    lines: int = 4  # of its output that are shown
    tries: int = 1  # a crash of the device ends a sweep; the next try goes on behind it
    partial: bool = False  # what it had done when its time was over is of use: that is no failure


def steps(out: pathlib.Path, rehearse: bool) -> list[Step]:
    results, small = str(out / "results.jsonl"), ("--most-values", "2048", "--samples", "3")
    run = ("-m", "benchmarks", "run", "--out", str(out), *(("--rehearse", *small) if rehearse else ()))
    # Warnings of a torch or triton that this was not developed on are no failures here.
    tests = (*PYTEST, "-W", "default", "--continue-on-collection-errors")
    whole = (
        () if rehearse else ("tests/test_layer_norm.py", "tests/test_layer_norm_autograd.py", "tests/test_contract.py")
    )
    copies = (*run, "--providers", "copy", "--cases", "hidden", "--dtypes", "bf16", "--passes", "forward")
    sweep = (*run, "--providers", "tritonln,eager,cudnn,copy", "--dtypes", "bf16", "--passes", "no_grad,backward")
    recurrent = (
        *("-m", "benchmarks", "recurrent", "--providers", "tritonln,scripted loop,torch.nn", "--samples", "10"),
        *(("--nets", "vowels") if rehearse else ()),
    )
    tuning = (
        "-m",
        "tritonln",
        "tune",
        "--dtype",
        "bf16",
        "--candidates",
        "4",
        "--hidden",
        "1024" if rehearse else TUNED_HIDDEN,
    )
    return [
        Step("environment", 20, ("-m", "benchmarks.acceptance", "--environment"), 12),
        Step("tests of the device", 90, (*tests, "tests/test_gpu.py", "tests/recurrent/test_gpu.py", "-rs"), 16),
        *([Step("tests on the device", 85, (*tests, *whole), 12)] if whole else []),
        Step("copy bandwidth", 30, copies),
        Step("tuning", 100, (*tuning, *(("--target", "sm_90", "--offline") if rehearse else ())), partial=True),
        Step("sweep", 115, (*sweep, "--seconds", "105"), tries=4),
        Step("recurrent layers", 40, recurrent, 24, partial=True),
        Step("report", 30, ("-m", "benchmarks", "report", results)),
    ]  # fmt: skip


def environment() -> None:
    """As much of nvidia-smi, torch and Triton as a reader of the results may ask for."""
    import torch

    from benchmarks.results_file import environment as found

    device = torch.accelerator.current_accelerator() if torch.accelerator.is_available() else None
    kind = "measured" if device is not None else "rehearsed"
    print(json.dumps(found(device, kind, devices=torch.accelerator.device_count()), indent=1))


def put_aside(results: pathlib.Path) -> None:
    """Results that this run cannot continue keep their commit as a name."""
    records = read(results) if results.exists() else []
    if records and (records[0].get("commit"), records[0].get("versions")) != (commit(), versions()):
        results.replace(results.with_name(f"results-{str(records[0].get('commit'))[:12]}.jsonl"))


def perform(agenda: Sequence[Step], out: pathlib.Path, minutes: float) -> list[dict[str, object]]:
    """Runs the steps within the minutes; writes each one's output and, after each, acceptance.json."""
    end = time.monotonic() + 60 * minutes
    done: list[dict[str, object]] = []
    for i, step in enumerate(agenda):
        later = sum(s.seconds for s in agenda[i + 1 :])
        left = end - time.monotonic()
        allowed = max(step.seconds, left - later) if left > 0 else 0.0
        allowed = min(allowed, max(0.0, left))
        start = time.monotonic()
        (log := out / f"{i + 1}-{step.name.replace(' ', '-')}.log").unlink(missing_ok=True)
        print(f"[{i + 1}/{len(agenda)}] {step.name} ({allowed:.0f} s at most)", flush=True)
        status = "no time left"
        for _ in range(step.tries):
            if (rest := allowed - (time.monotonic() - start)) > 0 and status not in ("ok", "ended by its time"):
                status = _run(step, log, rest)
        spent = time.monotonic() - start
        done.append({"step": step.name, "status": status, "seconds": round(spent, 1), "log": log.name})
        shown = log.read_text().splitlines()[-step.lines :] if log.exists() else []
        print("\n".join(f"    {line}" for line in [*shown, f"{status}, {spent:.0f} s"]), flush=True)
        (out / "acceptance.json").write_text(json.dumps(done, indent=1))
    return done


def _run(step: Step, log: pathlib.Path, seconds: float) -> str:
    # What the tuner measures, the sweep uses; and the tables lie ready to be copied into autotune_cache/.
    tables = str(log.parent / "autotune_cache")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "TRITONLN_CACHE_DIR": tables}
    with log.open("a") as file:
        # What a shell starts in the background ignores interrupts, and so would its children.
        before = signal.signal(signal.SIGINT, signal.default_int_handler)
        process = subprocess.Popen(
            [sys.executable, *step.command], stdout=file, stderr=subprocess.STDOUT, cwd=ROOT, env=environment
        )
        signal.signal(signal.SIGINT, before)
        try:
            code = process.wait(seconds)
        except subprocess.TimeoutExpired:
            process.send_signal(signal.SIGINT)  # pytest then says which test it was in, and what it had found
            try:
                process.wait(GRACE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
            return "ended by its time" if step.partial else "out of time"
    return "ok" if code == 0 else f"failed with {code}"


def main(argv: Sequence[str] | None = None) -> int:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--minutes", type=float, default=8.5)
    parser.add_argument("--rehearse", action="store_true", help="the same steps, small, with the CPU taken for a GPU")
    parser.add_argument("--out", type=pathlib.Path)
    parser.add_argument("--environment", action="store_true", help="print the environment and end")
    a = parser.parse_args(argv)
    if a.environment:
        environment()
        return 0
    import torch

    if a.rehearse:
        out = a.out or RESULTS / "rehearsal"
    elif torch.accelerator.is_available():
        out = a.out or RESULTS / folder_name(torch.get_device_module().get_device_name(0))
    else:
        print("no GPU here: --rehearse tries the steps on the CPU")
        return 1
    out.mkdir(parents=True, exist_ok=True)
    put_aside(out / "results.jsonl")
    done = perform(steps(out, a.rehearse), out, a.minutes)
    print(f"everything is in {out}")
    return int(any(step["status"] not in ("ok", "ended by its time") for step in done))


if __name__ == "__main__":
    sys.exit(main())
