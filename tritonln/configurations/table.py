"""Tables of configurations as JSON files: one folder for each device, one file for each kernel.

A file holds a header, which says what its entries are valid for, and the entries of a key, one a line.  Each names the
Tritons that it was found with; no other Triton takes it, not even the next.  Where several found the same, the times
are those of the first that is named.  Nothing in a file is trusted: an entry counts only if its configuration is one of
the kernel's candidates.
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
from collections.abc import Iterable, Mapping
from typing import Any

from tritonln.configurations.config import Config
from tritonln.configurations.tunable import Tunable
from tritonln.device import Device
from tritonln.version import __version__

FORMAT = 2
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


def entry_from(value: Any, legal: Iterable[Config]) -> Entry | None:
    """The entry that a table's value stands for; None unless it is one, with a legal configuration.

    `legal` is walked up to that configuration: what comes later may be dearer to find.
    """
    try:
        fields = {name: part for name, part in value.items() if name != "triton"}
        config = Config(**fields.pop("config"))
        if any(type(number) is not int for number in dataclasses.astuple(config)) or config not in legal:
            return None
        entry = Entry(config, **fields)
    except (AttributeError, TypeError, ValueError, KeyError):
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
    facts = ("name", "backend", "arch", "multiprocessors", "shared_memory", "bandwidth", "l2", "clock")
    return {
        "format": FORMAT,
        "kernel": tunable.name,
        "source": tunable.source(),
        "tritonln": __version__,
        "device": {name: getattr(device, name) for name in facts},
    }


def read(path: pathlib.Path, tunable: Tunable, device: Device) -> dict[str, Any]:
    """This Triton's entries in a file, unverified; none of a file that is missing, broken, or of something else."""
    import triton

    try:
        found = _parse(path.read_bytes())
    except OSError:
        return {}
    except ValueError as error:
        warn_once(f"tritonln ignores a broken table of configurations, {path}: {error}")
        return {}
    if not _valid_for(found["header"], header(tunable, device)):
        return {}
    held = ((key, entry) for key, value in found["entries"].items() for entry in _held(value))
    return {key: entry for key, entry in held if triton.__version__ in entry["triton"]}


def _held(value: Any) -> list[dict[str, Any]]:
    """The entries of a key, as far as they name their Tritons."""
    entries = [e for e in value if isinstance(e, dict)] if isinstance(value, list) else []
    tritons = ((e, e.get("triton")) for e in entries)
    return [e for e, t in tritons if t and isinstance(t, list) and all(isinstance(version, str) for version in t)]


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
    import triton
    from filelock import FileLock, Timeout

    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        with FileLock(f"{path}.lock", timeout=LOCK_TIMEOUT):
            kept = _kept(path, tunable, device)
            found = {key: json.loads(json.dumps(entry.as_json())) for key, entry in entries.items()}
            joined = {key: _joined(_held(kept.get(key)), e, triton.__version__) for key, e in found.items()}
            _replace(path, _text(header(tunable, device), kept | joined))
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


def _joined(held: list[dict[str, Any]], found: dict[str, Any], triton: str) -> list[dict[str, Any]]:
    """The entries of a key with what one Triton found, which may be what another did."""
    what = "config", "provenance"
    same = next((e for e in held if all(e.get(w) == found[w] for w in what)), {"triton": [triton]})
    others = [{**e, "triton": [t for t in e["triton"] if t != triton]} for e in held if e is not same]
    if same["triton"][0] == triton:
        mine = {**found, "triton": same["triton"]}
        # A result that comes out as before keeps its date, so that making a table again changes no byte.
        mine = same if {**same, "date": None} == {**mine, "date": None} else mine
    else:
        mine = {**same, "triton": list(dict.fromkeys([*same["triton"], triton]))}
    return sorted((e for e in (mine, *others) if e["triton"]), key=lambda e: e["triton"])


def _text(header: Mapping[str, Any], entries: Mapping[str, Any]) -> str:
    lines = (
        f"{json.dumps(key)}: [{f',{chr(10)}'.join(json.dumps(e, sort_keys=True) for e in entries[key])}]"
        for key in sorted(entries)
    )
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
