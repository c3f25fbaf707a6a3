"""Tables of configurations as JSON files: one folder for each device, one file for each kernel.

A file holds a header, which says what its entries are valid for, and one entry a line.  Nothing in
it is trusted: an entry counts only if its configuration is one of the kernel's candidates.
"""

from __future__ import annotations

import dataclasses
import functools
import json
import os
import pathlib
import re
import tempfile
import warnings
from collections.abc import Collection, Mapping
from typing import Any

from tritonln.configurations.config import Config
from tritonln.configurations.tunable import Tunable
from tritonln.device import Device
from tritonln.version import __version__

FORMAT = 1
# Seconds that a save waits for others.  16 processes that save 100 times each take a few.
LOCK_TIMEOUT = 60.0

SHIPPED = pathlib.Path(__file__).parents[1] / "autotune_cache"


@dataclasses.dataclass(frozen=True)
class Entry:
    """A configuration, where it comes from, and what else was tried."""

    config: Config
    provenance: str  # "measured", "modelled"; "default": the analytic choice, in no table
    microseconds: float | None = None
    date: str | None = None
    rows: int | None = None
    runners_up: tuple[dict[str, Any], ...] = ()
    rejected: tuple[dict[str, Any], ...] = ()

    def as_json(self) -> dict[str, Any]:
        return {k: v for k, v in dataclasses.asdict(self).items() if v is not None and v != ()}


def entry_from(value: Any, legal: Collection[Config]) -> Entry | None:
    """The entry that a table's value stands for; None unless it is one, with a legal configuration."""
    try:
        fields = dict(value)
        config = Config(**fields.pop("config"))
        if any(type(number) is not int for number in dataclasses.astuple(config)) or config not in legal:
            return None
        entry = Entry(config, **fields)
    except (TypeError, ValueError, KeyError):
        return None
    return entry if entry.provenance in ("measured", "modelled") else None


def user_folder(cache_dir: str | os.PathLike[str] | None = None) -> pathlib.Path | None:
    """Where this version's tables of this user are: `cache_dir`, $TRITONLN_CACHE_DIR, or the platform's cache."""
    import triton

    chosen = cache_dir or os.environ.get("TRITONLN_CACHE_DIR")
    if not chosen:
        try:
            import platformdirs
        except ImportError:
            return None
        chosen = platformdirs.user_cache_dir("tritonln")
    # Other versions have a folder of their own: neither reads what the other wrote, nor loses it.
    return pathlib.Path(chosen) / f"tritonln-{__version__}-triton-{triton.__version__}"


def path_of(folder: pathlib.Path, tunable: Tunable, device: Device) -> pathlib.Path:
    return folder / re.sub(r"[^A-Za-z0-9.-]+", "_", device.name) / f"{tunable.name}.json"


@functools.cache
def header(tunable: Tunable, device: Device) -> dict[str, Any]:
    import triton

    facts = ("name", "backend", "arch", "multiprocessors", "shared_memory", "bandwidth", "l2", "clock")
    return {
        "format": FORMAT,
        "kernel": tunable.name,
        "source": tunable.source(),
        "tritonln": __version__,
        "triton": triton.__version__,
        "device": {name: getattr(device, name) for name in facts},
    }


def read(path: pathlib.Path, tunable: Tunable, device: Device) -> dict[str, Any]:
    """The entries of a file, unverified; none of a file that is missing, broken, or made for something else."""
    try:
        found = _parse(path.read_bytes())
    except OSError:
        return {}
    except ValueError as error:
        warn_once(f"tritonln ignores a broken table of configurations, {path}: {error}")
        return {}
    return found["entries"] if _valid_for(found["header"], header(tunable, device)) else {}


def _parse(text: bytes) -> dict[str, Any]:
    try:
        found = json.loads(text)
    except RecursionError as error:
        raise ValueError("nested too deeply") from error
    if not isinstance(found, dict) or not all(isinstance(found.get(part), dict) for part in ("header", "entries")):
        raise ValueError("expected an object with a header and entries")
    return found


def _valid_for(found: Mapping[str, Any], expected: Mapping[str, Any]) -> bool:
    """The device may be another of its architecture: whose table is read is the caller's choice."""
    return all(found.get(name) == value for name, value in expected.items() if name != "device")


def save(path: pathlib.Path, tunable: Tunable, device: Device, entries: Mapping[str, Entry]) -> bool:
    """Merges entries into a file, which is a whole table at every moment.  Warns and returns False if it cannot."""
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT):
            kept = _kept(path, tunable, device)
            merged = kept | {key: _dated(kept.get(key), entry.as_json()) for key, entry in entries.items()}
            _replace(path, _text(header(tunable, device), merged))
        return True
    except (OSError, Timeout, NotImplementedError) as error:  # read-only; busy; a filesystem without locks
        warn_once(f"tritonln cannot save configurations to {path}: {error}")
        return False


def _kept(path: pathlib.Path, tunable: Tunable, device: Device) -> dict[str, Any]:
    """What a file holds that goes on being valid.  A broken or foreign file is put aside, not overwritten."""
    try:
        found = _parse(path.read_bytes())
        if _valid_for(found["header"], header(tunable, device)):
            return found["entries"]
        os.replace(path, path.with_suffix(".old.json"))
    except FileNotFoundError:
        pass
    except ValueError:
        os.replace(path, path.with_suffix(".broken.json"))
    return {}


def _dated(before: Any, after: dict[str, Any]) -> dict[str, Any]:
    """A result that comes out as before keeps its date, so that making a table again changes no byte."""
    if isinstance(before, dict) and {**before, "date": None} == json.loads(json.dumps({**after, "date": None})):
        return before
    return after


def _text(header: Mapping[str, Any], entries: Mapping[str, Any]) -> str:
    lines = [f"{json.dumps(key)}: {json.dumps(entries[key], sort_keys=True)}" for key in sorted(entries)]
    return f'{{"header": {json.dumps(header, sort_keys=True)},\n"entries": {{\n' + ",\n".join(lines) + "\n}}\n"


def _replace(path: pathlib.Path, text: str) -> None:
    with tempfile.NamedTemporaryFile("w", dir=path.parent, prefix=path.name, suffix=".tmp", delete=False) as file:
        try:
            file.write(text)
            file.flush()
            os.fsync(file.fileno())
            os.chmod(file.name, 0o644)
            os.replace(file.name, path)
        except BaseException:
            os.unlink(file.name)
            raise


@functools.cache
def warn_once(message: str) -> None:
    warnings.warn(message, stacklevel=3)
