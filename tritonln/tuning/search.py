"""The search for a configuration: by measuring on the GPU that is here, or by modelling one that is not."""

from __future__ import annotations

import dataclasses
import datetime
import math
from collections.abc import Callable, Iterable, Sequence

import torch
from torch import Tensor

from tritonln.configurations.config import STEPS, Config
from tritonln.configurations.lookup import Clock, current_policy, known, measuring, search_by
from tritonln.configurations.table import Entry, path_of, save, user_folder, warn_once
from tritonln.configurations.tunable import Key, Tunable
from tritonln.device import CUDA_TARGETS, Device
from tritonln.inspect import Report
from tritonln.inspect import reports as reports_of
from tritonln.launch import tensors_in
from tritonln.launches import launches_of, prepared
from tritonln.tolerance import error, tolerance
from tritonln.tuning import ranks
from tritonln.tuning.model import bound, seconds

LIMIT = 8  # candidates
RUNNERS_UP = 2
MODEL_ERROR = 0.02  # by less than this the model does not overrule the analytic choice


@dataclasses.dataclass(frozen=True)
class Trial:
    """One candidate: its seconds, or why it was rejected."""

    config: Config
    seconds: float = math.inf
    error: str | None = None


def nearest(tunable: Tunable, key: Key, device: Device, limit: int) -> list[Config]:
    """The analytic choice and the candidates that differ least from it: in doublings of what it holds and shares."""

    def measures(c: Config) -> tuple[float, ...]:
        values = c.block_m * (c.pieces * c.block_n + c.rest) / (c.num_warps * c.num_ctas)
        doubled = (values, c.block_n, c.pieces, c.num_warps, c.num_ctas, max(1, c.programs))
        return (*map(math.log2, doubled), c.num_stages)

    def distance(c: Config) -> float:
        if STEPS in (c, choice):  # another way altogether, always tried
            return 0.0
        return sum(abs(a - b) for a, b in zip(measures(c), measures(choice)))

    choice = tunable.choice(key, device)
    others = {*tunable.candidates(key, device)} - {choice}
    return [choice, *sorted(others, key=lambda c: (distance(c), dataclasses.astuple(c)))[: limit - 1]]


def modelled(tunable: Tunable, key: Key, device: Device, rows: int, limit: int) -> list[Trial]:
    """Candidates compiled for a device that need not be here, those that spill least first, then the fastest.

    The search ends with a candidate that does not spill at the memory's speed: no other is faster by more than the
    model can tell.
    """
    rows = int(min(rows, tunable.most_rows(device)))

    trials, spills = [], {}
    for config in nearest(tunable, key, device, limit):
        if config == STEPS:  # many kernels, and products that are not ours
            continue
        calls = launches_of(tunable, key, config, device, rows)
        try:
            reports = reports_of(calls, device, key.N, rows * tunable.steps)
            for r in reports:
                if not r.resident:
                    raise MemoryError(f"no multiprocessor has {r.registers} registers a thread and {r.shared} B")
            reports = _with_pipe(reports, tunable, key, config, device, rows)
        except Exception as failure:  # whatever the compiler says of a candidate
            trials.append(Trial(config, error=_line(failure)))
            continue
        named = [pair for call in calls for pair in tunable.named(call.args).items()]
        read_later = _bytes(t for name, t in named if tunable.per_program(name)) / device.bandwidth
        found = sum(seconds(r, device) for r in reports)
        trials.append(Trial(config, found + read_later))
        spills[config] = sum(r.spills for r in reports)
        least = bound(_bytes(t for call in calls for t in tensors_in(call.args) if t is not None), device)
        fastest = tunable.latency_bound or found <= (1 + MODEL_ERROR) * least
        if fastest and not spills[config]:
            break
    choice = tunable.choice(key, device)
    return sorted(
        trials,
        key=lambda t: (spills.get(t.config, math.inf), t.seconds * (1 if t.config != choice else 1 - MODEL_ERROR)),
    )


def _with_pipe(
    reports: list[Report], tunable: Tunable, key: Key, config: Config, device: Device, rows: int
) -> list[Report]:
    """With what launches take of first caches and shared memory, where an emulated GPU can tell."""
    if device.target not in CUDA_TARGETS or tunable.latency_bound:
        return reports
    from tritonln.executed import cycles  # which imports numpy

    try:
        busy = cycles(tunable, key, config, device, rows)
    except NotImplementedError:  # an instruction that it does not know
        return reports
    return [dataclasses.replace(r, pipe=c / (rows * key.N)) for r, c in zip(reports, busy, strict=True)]


def measured(
    tunable: Tunable, key: Key, device: Device, rows: int, limit: int, clock: Clock, where: torch.device
) -> list[Trial]:
    """Candidates run, verified against the safe configuration and timed, the fastest first."""
    rows = int(min(rows, tunable.most_rows(device)))
    problems = [(rows, 0), (rows // 2 + 1, 1)]
    copies = _copies(tunable, key, rows, device)
    trials = []
    with measuring():
        expected = [_results(tunable, key, tunable.safe(key), device, M, seed, where) for M, seed in problems]
        for config in nearest(tunable, key, device, limit):
            try:
                for (M, seed), reference in zip(problems, expected):
                    _verify(tunable, key, _results(tunable, key, config, device, M, seed, where), reference, M)
                plan = tunable.plan(key, config, device)
                runs = [prepared(tunable, key, plan, rows, seed, where)[0] for seed in range(copies)]
                trials.append(Trial(config, clock(config, runs)))
            except Exception as failure:  # out of resources, a compiler's error, wrong results
                trials.append(Trial(config, error=_line(failure)))
    return sorted(trials, key=lambda t: t.seconds)


def device_seconds(config: Config, launches: Sequence[Callable[[], object]]) -> float:
    """One launch's share of a CUDA graph of all of them, whose tensors together do not fit the cache; the median."""
    from triton.testing import do_bench, do_bench_cudagraph

    def everything() -> None:
        for launch in launches:
            launch()

    try:
        milliseconds = do_bench_cudagraph(everything, return_mode="median")
    except RuntimeError:  # no graphs on this device
        milliseconds = do_bench(everything, return_mode="median")
    return milliseconds / 1e3 / len(launches)


def entry_of(trials: Sequence[Trial], provenance: str, rows: int) -> Entry:
    """What a table records of a search.  Raises RuntimeError if every candidate was rejected."""
    accepted = [t for t in trials if t.error is None]
    if not accepted:
        raise RuntimeError(f"every candidate was rejected: {'; '.join(f'{t.config}: {t.error}' for t in trials)}")
    best, *others = accepted
    return Entry(
        config=best.config,
        provenance=provenance,
        microseconds=_microseconds(best),
        date=datetime.date.today().isoformat(),
        rows=rows,
        runners_up=tuple(
            {"config": dataclasses.asdict(t.config), "microseconds": _microseconds(t)} for t in others[:RUNNERS_UP]
        ),
        rejected=tuple({"config": dataclasses.asdict(t.config), "error": t.error} for t in trials if t.error),
    )


def searched(tunable: Tunable, key: Key, device: Device) -> Entry:
    """What the policy "search" fixes for a key: measured by somebody before, or now, on the group's first rank."""
    policy = current_policy()

    def search() -> Entry:
        found = known(tunable, key, device)
        if found.provenance == "measured":
            return found
        where = torch.device(device.type, device.index or 0)
        clock = policy.clock or device_seconds
        try:
            entry = entry_of(measured(tunable, key, device, policy.rows, LIMIT, clock, where), "measured", policy.rows)
        except RuntimeError as failure:
            warn_once(f"tritonln could not tune {tunable.name} for {key}: {_line(failure)}")
            return found
        folder = user_folder(policy.cache_dir)
        if folder is not None:
            save(path_of(folder, tunable, device), tunable, device, {str(key): entry})
        return entry

    return ranks.from_first(search, f"{tunable.name} {key}", policy.group)


search_by(searched)


# ---- candidates against the safe configuration ------------------------------------------------------


def _results(
    tunable: Tunable, key: Key, config: Config, device: Device, M: int, seed: int, where: torch.device
) -> dict[str, Tensor]:
    """What a configuration computes.  Partial sums are added up, as configurations differ in how many there are."""
    launch, written = prepared(tunable, key, tunable.plan(key, config, device), M, seed, where)
    launch()
    return {name: t.sum(0, dtype=t.dtype) if tunable.per_program(name) else t for name, t in written.items()}


def _verify(tunable: Tunable, key: Key, found: dict[str, Tensor], reference: dict[str, Tensor], M: int) -> None:
    kappa, steps = 1.0, 1
    if tunable.steps > 1:
        # What a step hands on is rounded to 16 bits where x is: that is the arithmetic then, of 16 terms a step.
        kappa = max(1.0, torch.finfo(key.operands["matrix_hh"]).eps / torch.finfo(torch.float32).eps)
        steps = 16 * tunable.steps
    for name, result in found.items():
        safe = reference[name].double()
        wrong, allowed = error(result, safe), tolerance(result, safe, steps * (M if safe.dim() == 1 else 1), kappa)
        if not wrong <= allowed:
            raise ArithmeticError(f"{name} is off by {wrong:.3e}, {allowed:.3e} is allowed")


def _copies(tunable: Tunable, key: Key, M: int, device: Device) -> int:
    """As many problems as together are twice the last-level cache."""
    size = sum(dtype.itemsize * math.prod(tunable.shape(name, M, key.N, 1)) for name, dtype in key.operands.items())
    return max(1, min(16, 2 * device.l2 // size))


def _bytes(tensors: Iterable[Tensor]) -> int:
    """Of all, each counted once."""
    return sum(t.numel() * t.element_size() for t in {id(t): t for t in tensors}.values())


def _microseconds(trial: Trial) -> float:
    return float(f"{trial.seconds * 1e6:.4g}")


def _line(failure: Exception) -> str:
    return f"{type(failure).__name__}: {str(failure).splitlines()[0] if str(failure) else ''}"[:200]
