"""The sweep without a GPU: machine code, bytes, launches and host time, and a modelled time from them.

Everything that compiles, launches or interprets runs in processes of its own: which of the three a
kernel does is settled when it is imported.
"""

from __future__ import annotations

import concurrent.futures
import dataclasses
import json
import queue
import shutil
import subprocess
import sys
import threading
from collections.abc import Iterator, Sequence
from typing import Any

from benchmarks.cases import Case
from benchmarks.operators import FUSED
from benchmarks.progress import progress
from benchmarks.providers import PROVIDERS
from benchmarks.results_file import Record, Results
from benchmarks.sweep import describe, refusal
from tritonln.device import TARGETS

STUBBED = "sm_90"  # what the stub driver plays, and so all that other libraries are compiled for
HOST_SHAPE = (2, 1024)
COUNTED_ROWS, COUNTED_HIDDEN, COUNTED_HIDDEN_FUSED = 256, (64, 1024, 4096), (64, 1024)


def child(module: str, *arguments: str, given: str = "") -> Iterator[Any]:
    """The JSON lines that a process prints, as they come.  Raises RuntimeError with its last words where it fails."""
    command = [sys.executable, "-m", f"benchmarks.{module}", *arguments]
    pipe = subprocess.PIPE
    with subprocess.Popen(command, stdin=pipe, stdout=pipe, stderr=pipe, text=True) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        said: list[str] = []
        listener = threading.Thread(target=lambda: said.extend(process.stderr or []))
        listener.start()  # a full pipe would stop it
        process.stdin.write(given)
        process.stdin.close()
        for line in process.stdout:
            yield json.loads(line)
        listener.join()
    if process.returncode:
        raise RuntimeError(f"{' '.join(command[1:])}: {''.join(said)[-500:]}")


def run(cases: Sequence[Case], providers: Sequence[str], target: str, results: Results) -> None:
    """Fills the results file with cells marked modelled, host times and counted bytes."""
    steps: list[Iterator[None]] = []
    total = 0
    for name in providers:
        by_shape: dict[tuple[str, int, int, str], list[Case]] = {}
        for case in cases:
            if f"{case.id}/{name}" in results.done:
                continue
            refused = refusal(case, PROVIDERS[name]) or _refusal(case, name, target)
            if refused is None:
                of = case.shape.operator, case.shape.M, case.shape.N, case.dtype
                by_shape.setdefault(of, []).append(case)
            else:
                results.append(describe(case, PROVIDERS[name]) | refused)
        if by_shape:
            steps.append(_compile(name, by_shape, target, results))
            total += len(by_shape)
    known = {r["record"] for r in results.others}
    if shutil.which("cc") and "host" not in known:
        steps.append(_host(results))
        total += 1
    if "traffic" not in known:
        steps.append(_traffic(results))
        total += 1 + len(FUSED)
    _together(steps, total)


def _together(steps: Sequence[Iterator[None]], total: int) -> None:
    """Two at a time, as each waits for one process; a tick for each thing done."""
    ticks: queue.Queue[Exception | None] = queue.Queue()

    def walk(step: Iterator[None]) -> None:
        try:
            for _ in step:
                ticks.put(None)
        except Exception as error:
            ticks.put(error)

    with concurrent.futures.ThreadPoolExecutor(2) as pool:
        for step in steps:
            pool.submit(walk, step)
        for _ in progress(range(total), "compiling, launching and counting"):
            if (error := ticks.get()) is not None:
                pool.shutdown(cancel_futures=True)
                raise error


def _refusal(case: Case, provider: str, target: str) -> Record | None:
    if not PROVIDERS[provider].compiles:
        return {"status": "unsupported", "reason": "needs a GPU: no Triton kernels to compile"}
    if case.shape.operator in FUSED:
        return {"status": "unsupported", "reason": "of fused operators bytes and launches are counted, not modelled"}
    if case.shape.operator != "layer_norm" and provider != "tritonln":
        return {"status": "unsupported", "reason": "of other libraries only layer_norm is compiled offline"}
    if provider != "tritonln" and target != STUBBED:
        return {"status": "unsupported", "reason": f"other libraries are compiled for {STUBBED} only"}
    if provider != "tritonln" and shutil.which("cc") is None:
        return {"status": "unsupported", "reason": "the stub driver is built with a C compiler, and there is none"}
    return None


def _compile(
    name: str, by_shape: dict[tuple[str, int, int, str], list[Case]], target: str, results: Results
) -> Iterator[None]:
    given = json.dumps([dict(zip(("operator", "M", "N", "dtype"), of)) for of in by_shape])
    found = child("offline_compile", "--target", target, "--provider", name, given=given)
    for cases, kernels in zip(by_shape.values(), found, strict=True):
        for case in cases:
            results.append(describe(case, PROVIDERS[name]) | cell(case, kernels, TARGETS[target].bandwidth))
        yield


def cell(case: Case, kernels: list[Record], bandwidth: float) -> Record:
    """What a report says of the kernels of one case."""
    if "refused" in kernels[0]:
        return {"status": "unsupported", "reason": kernels[0]["refused"]}
    mine = [k for k in kernels if case.direction == "both" or k["backward"] == (case.direction == "backward")]
    seconds = sum(k["seconds"] for k in mine)
    main = max(mine, key=lambda k: k["moved"])
    return {
        "status": "modelled",
        **{"seconds": seconds, "GB/s": case.least_bytes / seconds / 1e9},
        "of_copy": case.least_bytes / seconds / bandwidth,
        "launches": len(mine),
        "binds": main["binds"],
        "spills": max(k["spills"] for k in mine),
        "registers": main["registers"],
        **{"loads": main["loads"], "stores": main["stores"]},
        **{"in_flight": main["in_flight"], "needed": main["needed"]},
        "moved": sum(k["moved"] for k in mine),
        "configuration": {k["kernel"]: {"num_warps": k["num_warps"], "num_ctas": k["num_ctas"]} for k in mine},
    }


def _host(results: Results) -> Iterator[None]:
    M, N = HOST_SHAPE
    for record in list(child("host", "--json", "--rows", str(M), "--hidden", str(N))):
        results.append({"record": "host", "M": M, "N": N, **record})
    yield


def _traffic(results: Results) -> Iterator[None]:
    for operator in ("layer_norm", *FUSED):
        hidden = ",".join(map(str, COUNTED_HIDDEN_FUSED if operator in FUSED else COUNTED_HIDDEN))
        arguments = ("--operator", operator, "--rows", str(COUNTED_ROWS), "--hidden", hidden, "--weight-dtype", "bf16")
        for record in list(child("traffic", "--json", *arguments)):
            results.append({"record": "traffic", "M": COUNTED_ROWS, **record})
        yield


def header(target: str) -> Record:
    device = TARGETS[target]
    return {"target": target, "target_device": device.name, **{
        k: v for k, v in dataclasses.asdict(device).items() if k in ("bandwidth", "multiprocessors", "shared_memory")
    }}  # fmt: skip
