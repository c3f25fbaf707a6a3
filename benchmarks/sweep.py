"""The sweep on a device: every case with every provider, checked and then timed."""

from __future__ import annotations

import dataclasses
import time
from collections.abc import Callable, Sequence

import torch

from benchmarks import timing
from benchmarks.cases import Case
from benchmarks.problem import call, check, copy_call, problem
from benchmarks.progress import progress
from benchmarks.provider import Provider
from benchmarks.providers import PROVIDERS
from benchmarks.results_file import Record, Results
from benchmarks.stats import summary


@dataclasses.dataclass
class Bench:
    """A device, its clock, and what was found of its memory."""

    device: torch.device
    clock: timing.Clock
    copy_bandwidth: float  # bytes a second
    l2_bytes: int
    mode: str = "events"
    samples: int = timing.SAMPLES

    @property
    def free_bytes(self) -> int:
        if self.device.type == "cpu":
            return 1 << 30
        free: int = torch.get_device_module(self.device).mem_get_info(self.device)[0]
        return free


def open_bench(rehearse: bool = False, mode: str = "events", samples: int = timing.SAMPLES) -> Bench:
    """The GPU here, with its copy bandwidth measured.  A rehearsal takes the CPU for one.

    Raises RuntimeError where there is no GPU.
    """
    if rehearse:
        cpu, host = torch.device("cpu"), timing.Host()
        return Bench(cpu, host, timing.copy_bandwidth(cpu, host, 1 << 20), 0, mode, samples)
    if not torch.accelerator.is_available():
        raise RuntimeError("no GPU here: expected one, or --offline --target sm_90 for what can be known without")
    device = torch.device(torch.accelerator.current_accelerator().type, 0)  # type: ignore[union-attr]
    clock = timing.Accelerator(device)
    properties = torch.get_device_module(device).get_device_properties(device)
    roof = timing.copy_bandwidth(device, clock, min(1 << 30, properties.total_memory // 8))
    return Bench(device, clock, roof, getattr(properties, "L2_cache_size", 64 << 20), mode, samples)


def describe(case: Case, provider: Provider) -> Record:
    s = case.shape
    return {
        "record": "cell",
        "id": f"{case.id}/{provider.name}",
        "provider": provider.name,
        **{"group": s.group, "source": s.source, "operator": s.operator, "M": s.M, "N": s.N},
        **{"dtype": case.dtype, "pass": case.direction, "least_bytes": case.least_bytes},
    }


def refusal(case: Case, provider: Provider) -> Record | None:
    """A status and its reason where there is nothing to measure."""
    if (reason := provider.missing()) is not None:
        return {"status": "missing", "reason": reason}
    if (reason := provider.unsupported(case)) is not None:
        return {"status": "unsupported", "reason": reason}
    return None


def measure(case: Case, provider: Provider, bench: Bench) -> Record:
    """One cell: refused, wrong, failed or timed."""
    refused = refusal(case, provider)
    if refused is not None:
        return refused
    try:
        return _measured(case, provider, bench)
    except torch.OutOfMemoryError:
        return {"status": "failed", "reason": "out of memory"}
    except ImportError as error:
        return {"status": "missing", "reason": f"{error}; {provider.install}"}
    except torch.AcceleratorError:
        raise  # the process can do nothing more on this device
    except Exception as error:
        return {"status": "failed", "reason": f"{type(error).__name__}: {str(error)[:300]}"}


def _measured(case: Case, provider: Provider, bench: Bench) -> Record:
    found: Record = {"status": "ok"}
    moved = case.least_bytes
    copies = timing.copies_for(moved, bench.l2_bytes, bench.free_bytes)
    make: Callable[[], Sequence[timing.Call]]
    if provider.name == "copy":

        def make() -> list[timing.Call]:
            return [copy_call(case, bench.device) for _ in range(copies)]
    else:
        norm = provider.norm(case.shape.operator)
        parameters = provider.parameter_dtype(case)
        first = problem(case, parameters, bench.device)
        verdict = check(first, norm)
        found |= {"result": verdict.result, "error": verdict.error, "allowed": verdict.allowed}
        if not verdict.right:
            return found | {"status": "wrong", "reason": f"{verdict.result}: {verdict.error:.3g} off"}
        rest = [problem(case, parameters, bench.device, seed) for seed in range(1, copies)]

        def make() -> list[timing.Call]:
            return [call(p, norm) for p in [first, *rest]]

    samples = timing.measure(make, bench.clock, bench.mode, bench.samples)
    return found | figures(case, samples, bench) | {
        "cold": copies * moved >= timing.COLD * bench.l2_bytes,
        "configuration": provider.configuration(case),
    }  # fmt: skip


def figures(case: Case, samples: Sequence[float], bench: Bench) -> Record:
    """Seconds, and bytes a second by the least bytes that must move."""
    s = summary(samples)
    rate = case.least_bytes / s.median
    return {
        "samples": [float(f"{x:.4g}") for x in samples],
        **{"seconds": s.median, "q1": s.q1, "q3": s.q3},
        **{"GB/s": rate / 1e9, "of_copy": rate / bench.copy_bandwidth},
    }


def sweep(
    cases: Sequence[Case],
    providers: Sequence[str],
    bench: Bench,
    results: Results,
    seconds: float = float("inf"),
) -> bool:
    """Measures what the file does not have yet.  Returns False where the time ran out first."""
    start = time.monotonic()
    pairs: list[tuple[Case, Provider]] = [(c, PROVIDERS[name]) for c in cases for name in providers]
    left = [(c, p) for c, p in pairs if f"{c.id}/{p.name}" not in results.done]
    for case, provider in progress(left, f"{len(pairs) - len(left)} of {len(pairs)} cells done before, measuring"):
        if time.monotonic() - start > seconds:
            return False
        cell = describe(case, provider)
        if cell["id"] in results.fatal:
            results.append(cell | {"status": "failed", "reason": "ended the process that measured it, twice"})
            continue
        results.append({"record": "begun", "id": cell["id"]})
        results.append(cell | measure(case, provider, bench))
    return True
