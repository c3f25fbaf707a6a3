"""Results as JSON Lines: a first line of where and with what, then one line a cell, appended as measured.

A killed run leaves at worst one line cut short, which is dropped.
"""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import pathlib
import platform
import subprocess
import threading
from collections.abc import Iterable
from typing import Any

import torch

ROOT = pathlib.Path(__file__).parents[1]
RESULTS = pathlib.Path(__file__).parent / "results"
PACKAGES = (
    *("torch", "triton", "nvidia-cudnn-frontend", "nvidia-cudnn-cu12", "nvidia-cudnn-cu13", "liger-kernel", "fla-core"),
    *("quack-kernels", "flash-attn", "apex", "transformer_engine", "numpy"),
)
# What two runs must share for one to continue the other.
IDENTITY = ("device", "commit", "versions", "mode", "kind")

Record = dict[str, Any]


def environment(device: torch.device | None, kind: str, **more: Any) -> Record:
    """The first line.  `kind` is "measured", "modelled" or "rehearsed"."""
    found: Record = {
        "record": "environment",
        "kind": kind,
        "device": platform.processor() or platform.machine(),
        "date": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
        "python": platform.python_version(),
        "system": platform.platform(),
        "cpus": os.cpu_count(),
        "versions": versions(),
        "commit": commit(),
    }
    if device is not None and device.type != "cpu":
        properties = torch.get_device_module(device).get_device_properties(device)
        found |= {
            "device": properties.name,
            "memory_bytes": properties.total_memory,
            "multiprocessors": properties.multi_processor_count,
            "cuda": torch.version.cuda or torch.version.hip,
            "cudnn": torch.backends.cudnn.version(),
            **nvidia_smi(),
        }
    return found | more


def versions() -> dict[str, str]:
    from tritonln import __version__

    found = {"tritonln": __version__}
    for package in PACKAGES:
        try:
            found[package] = importlib.metadata.version(package)
        except importlib.metadata.PackageNotFoundError:
            continue
    return found


def commit() -> str:
    """The git commit, with + where tracked files differ from it; empty outside a checkout."""

    def git(*words: str) -> str:
        return subprocess.run(["git", "-C", str(ROOT), *words], capture_output=True, text=True, check=True).stdout

    try:
        clean = not git(
            "status", "--porcelain", "--untracked-files=no", "--", ":!benchmarks/results", ":!autotune_cache"
        )
        return git("rev-parse", "HEAD").strip() + ("" if clean else "+")
    except (OSError, subprocess.CalledProcessError):
        return ""


def nvidia_smi() -> Record:
    """Driver, clocks in MHz, power limit in W and temperature in C, as nvidia-smi says; nothing where it is not."""
    fields = ("driver_version", "clocks.sm", "clocks.mem", "clocks.max.sm", "power.limit", "temperature.gpu")
    command = ["nvidia-smi", f"--query-gpu={','.join(fields)}", "--format=csv,noheader,nounits", "--id=0"]
    try:
        line = subprocess.run(command, capture_output=True, text=True, check=True, timeout=20).stdout
    except (OSError, subprocess.SubprocessError):
        return {}
    return dict(zip(fields, (cell.strip() for cell in line.split(","))))


def read(path: pathlib.Path) -> list[Record]:
    """Every whole line."""
    records = []
    for line in path.read_text().splitlines():
        try:
            records.append(json.loads(line))
        except json.JSONDecodeError:
            continue
    return records


def cells(records: Iterable[Record]) -> list[Record]:
    return [r for r in records if r["record"] == "cell"]


def continues(path: pathlib.Path, header: Record) -> bool:
    """Whether a run of this header would go on with a file that was begun, not finished, with the same."""
    records = read(path) if path.exists() else []
    return bool(records) and records[-1]["record"] != "finished" and not _differences(records[0], header)


def _differences(old: Record, new: Record) -> list[str]:
    return [f"{k} {old.get(k)!r} there, {new.get(k)!r} here" for k in IDENTITY if old.get(k) != new.get(k)]


class Results:
    """A results file that is written to."""

    def __init__(self, path: pathlib.Path, header: Record, fresh: bool = False) -> None:
        """Continues the file that is there.  Raises ValueError where it is of another machine, commit or mode."""
        self.path = path
        path.parent.mkdir(parents=True, exist_ok=True)
        old = read(path) if path.exists() and not fresh else []
        if old and (differ := _differences(old[0], header)):
            was = ", ".join(differ)
            raise ValueError(f"{path} was begun elsewhere: {was}; give another --out, or --fresh to start over")
        self.header = old[0] if old else header
        self.others = [r for r in old if r["record"] not in ("cell", "begun")]
        self.lock = threading.Lock()
        self.done = {r["id"] for r in old if r["record"] == "cell"}
        begun = [r["id"] for r in old if r["record"] == "begun"]
        self.fatal = {i for i in begun if i not in self.done and begun.count(i) > 1}  # ended the run twice
        # Whole lines only, so that the next one does not continue a broken one.
        path.write_text("".join(json.dumps(r) + "\n" for r in (old or [header])))

    def append(self, record: Record) -> None:
        with self.lock, self.path.open("a") as file:
            file.write(json.dumps(record) + "\n")
            file.flush()
            os.fsync(file.fileno())
        if record["record"] == "cell":
            self.done.add(record["id"])
