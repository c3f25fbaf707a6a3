"""Which configuration a kernel is launched with: looked up once for a key, then fixed in the process.

The order is: what this process has fixed, the user's cache, the shipped table of the device, the
shipped table of its architecture, the analytic choice.  None of these compiles or measures anything.
"""

from __future__ import annotations

import contextlib
import dataclasses
import functools
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, ParamSpec, TypeVar

import torch

from tritonln.configurations.config import Config
from tritonln.configurations.table import SHIPPED, Entry, entry_from, path_of, read, user_folder, warn_once
from tritonln.configurations.tunable import Key, Tunable
from tritonln.device import TARGETS, Device, interpreting

P = ParamSpec("P")
R = TypeVar("R")

# Seconds of one launch of a configuration, given launches of it on inputs of their own.
Clock = Callable[[Config, Sequence[Callable[[], object]]], float]


@dataclasses.dataclass(frozen=True)
class Policy:
    name: str = "lookup"
    cache_dir: str | os.PathLike[str] | None = None
    rows: int = 8192
    clock: Clock | None = None
    group: Any = None


POLICIES = ("lookup", "search", "frozen")
_policy = Policy()
_fixed: dict[tuple[str, int | str, str, str], Entry] = {}  # by device, architecture, kernel, key
_plans: list[Any] = []


def planned(plan: Callable[P, R]) -> Callable[P, R]:
    """Remembers the plan of each key.  A new policy asks again."""
    remembered = functools.cache(plan)
    _plans.append(remembered)
    return remembered  # type: ignore[return-value]


class Known(dict[Any, R]):
    """What is remembered by key until a new policy asks again; all of it is forgotten where it has become too much."""

    MOST = 4096

    def __init__(self) -> None:
        super().__init__()
        _plans.append(self)

    def remember(self, key: Any, value: R) -> None:
        if len(self) >= self.MOST:
            self.clear()
        self[key] = value

    def cache_clear(self) -> None:
        self.clear()


_searcher: Callable[[Tunable, Key, Device], Entry] | None = None


def search_by(searcher: Callable[[Tunable, Key, Device], Entry]) -> None:
    """What the policy "search" calls: the search stands above this module."""
    global _searcher
    _searcher = searcher


def current_policy() -> Policy:
    return _policy


@contextlib.contextmanager
def policy(
    name: str,
    *,
    cache_dir: str | os.PathLike[str] | None = None,
    rows: int = Policy.rows,
    clock: Clock | None = None,
    group: Any = None,
) -> Iterator[None]:
    """Where configurations come from inside a ``with`` block, in every thread of the process.

    Args:
        name: ``"lookup"``, the default: tables, else the analytic choice; nothing is measured.
            ``"search"``: a key that nobody has measured is tuned on its first use, backward kernels
            on the first forward that will need them.  ``"frozen"``: a key that is in no table raises.
        cache_dir: the user's cache; ``$TRITONLN_CACHE_DIR``, or the platform's cache directory, where
            it is None.
        rows, clock: of ``"search"``, as in :func:`tune`.
        group: under ``torch.distributed``, the process group that tunes together under
            ``"search"``: its first rank measures, the others wait for the result.  All ranks of it
            must come upon new keys in the same order.

    In CUDA-graph capture, in traced code and in backward passes ``"lookup"`` applies whatever the
    name, and what it gives a key there stays for the rest of the block.

    Raises:
        ValueError: another name.
        LookupError: from an operator under ``"frozen"``; names the command that adds the key.
    """
    if name not in POLICIES:
        raise ValueError(f"expected policy to be one of {', '.join(map(repr, POLICIES))}, but got {name!r}")
    global _policy
    before = _policy
    _policy = Policy(name, cache_dir, rows, clock, group)
    look_again()
    try:
        yield
    finally:
        _policy = before
        look_again()


@contextlib.contextmanager
def measuring() -> Iterator[None]:
    """Inside, whatever the policy, nothing else is searched for: a candidate may launch other kernels too."""
    global _policy
    before, _policy = _policy, dataclasses.replace(_policy, name="lookup")
    try:
        yield
    finally:
        _policy = before


def look_again() -> None:
    """Forgets plans, files, and every configuration that was not measured."""
    for plan in _plans:
        plan.cache_clear()
    _entries.cache_clear()
    for identity in [i for i, entry in _fixed.items() if entry.provenance != "measured"]:
        del _fixed[identity]


def config_for(tunable: Tunable, key: Key, device: Device) -> Config:
    """The configuration of a key on a device."""
    name = _policy.name
    if name != "lookup" and (where := _deferred(device)):
        if name == "search":
            warn_once(f"tritonln does not tune in {where}: what is known of a kernel is used there")
        name = "lookup"
    if name == "search":
        assert _searcher is not None, "tritonln.tuning, where policies come from, brings the searcher"
        return fix(tunable, key, device, _searcher(tunable, key, device)).config
    entry = known(tunable, key, device)
    if name == "frozen" and entry.provenance == "default":
        raise LookupError(
            f"no configuration of {tunable.name} for {key} on {device.name} is in any table: expected one under the "
            f"policy 'frozen'; add it with: python -m tritonln tune --key '{tunable.name} {key}'"
        )
    return entry.config


def known(tunable: Tunable, key: Key, device: Device) -> Entry:
    """What the process has fixed for a key; on its first use, what the tables or the analytic choice say."""
    found = _fixed.get(_identity(tunable, key, device))
    return found or fix(tunable, key, device, _looked_up(tunable, key, device))


def fix(tunable: Tunable, key: Key, device: Device, entry: Entry) -> Entry:
    _fixed[_identity(tunable, key, device)] = entry
    return entry


def fixed() -> dict[str, Config]:
    """The configurations that this process has fixed, by device, kernel and key."""
    return {" ".join(map(str, identity)): entry.config for identity, entry in sorted(_fixed.items(), key=str)}


def _identity(tunable: Tunable, key: Key, device: Device) -> tuple[str, int | str, str, str]:
    return device.name, device.arch, tunable.name, str(key)


def _looked_up(tunable: Tunable, key: Key, device: Device) -> Entry:
    name = str(key)
    of_architecture = TARGETS.get(device.target, device)
    for folder, owner in ((user_folder(_policy.cache_dir), device), (SHIPPED, device), (SHIPPED, of_architecture)):
        value = None if folder is None else _entries(path_of(folder, tunable, owner), tunable, owner).get(name)
        if value is not None:
            entry = entry_from(value, tunable.candidates(key, device))
            if entry is not None:
                return entry
    return Entry(tunable.choice(key, device), "default")


_entries = functools.cache(read)


def _deferred(device: Device) -> str | None:
    """Where nothing may be measured: what is being done there, in words."""
    if _policy.name == "search" and _policy.clock is None and device.played:
        return "Triton's interpreter" if interpreting() else "an emulation"
    if torch.compiler.is_compiling():
        return "traced code"
    if torch._C._current_graph_task_id() != -1:
        return "a backward pass"
    if torch.cuda.is_initialized() and torch.cuda.is_current_stream_capturing():
        return "CUDA-graph capture"
    return None
