"""Configurations settled ahead of their use."""

from __future__ import annotations

import functools
import os
import pathlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from tritonln.configurations.config import STEPS
from tritonln.configurations.lookup import Clock, Policy, current_policy, fix, look_again
from tritonln.configurations.table import path_of, save, user_folder
from tritonln.configurations.tunable import Key, Tunable, operators, registered
from tritonln.device import TARGETS, Device, interpreting, kernels_on, triton_device_type
from tritonln.dtypes import BY_NAME
from tritonln.tuning import ranks, search
from tritonln.tuning.search import Trial

Progress = Callable[[Iterable[tuple[Tunable, Key]]], Iterable[tuple[Tunable, Key]]]


def tune(
    hidden: int | Sequence[int] = (),
    dtype: torch.dtype = torch.bfloat16,
    *,
    kernels: Sequence[str] = ("layer_norm",),
    keys: Sequence[str] = (),
    rows: int = Policy.rows,
    limit: int = search.LIMIT,
    target: str | None = None,
    offline: bool = False,
    folder: str | os.PathLike[str] | None = None,
    group: Any = None,
    clock: Clock | None = None,
    progress: Progress = iter,
) -> dict[Key, list[Trial]]:
    """Searches the configurations of the usual keys of some row lengths, or of given keys, and saves the best.

    A candidate is timed only after its results agree, on two random problems with poisoned
    outputs, with those of the safe configuration within the tolerance of :mod:`tritonln.tolerance`.

    Args:
        hidden: row length or lengths.
        dtype: of x; weights of that dtype and, for a 16-bit one, of fp32 are both tuned.
        kernels: names of kernels, or of operators on rows for all that they launch.
        keys: others than the usual ones, as this function's table and the errors of the policy
            ``"frozen"`` spell them: ``"layer_norm_fwd N=1000 x=bf16 y=fp32"``.
        rows: of the problems that are timed.  The configuration is used for any number of rows.
        limit: how many candidates are tried for a key.
        target: with ``offline``, the GPU: a key of ``tritonln.device.TARGETS`` such as ``"sm_90"``.
        offline: compile for ``target`` and rank by the model instead of timing anything.  A few tiles of each candidate
            run on an emulated GPU, so that no other thread may launch kernels meanwhile.
        folder: where the tables go, one folder for each device; this user's cache where it is None.
        group: under ``torch.distributed``, the ranks that make this call together; its first rank
            searches, saves, and tells the others.
        clock: seconds of one launch, given a configuration and launches of it on problems of their
            own; CUDA events around graph replays where it is None.
        progress: wraps the iteration over keys.

    Returns:
        The trials of each key, the best first.  What was best is what this process launches from here on.

    Raises:
        ValueError: unknown kernel, key or target; ``target`` without ``offline``, or the reverse.
        RuntimeError: no GPU to measure on, or kernels that are interpreted and cannot be compiled;
            every candidate of a key rejected.
    """
    if not hidden and not keys:
        raise ValueError("expected row lengths (hidden) or keys to tune, but got neither")
    device, where = _device(target, offline, clock)
    tunables = list(dict.fromkeys(t for name in kernels for t in _all_of(name)))
    lengths = [hidden] if isinstance(hidden, int) else hidden
    wanted = [(t, key) for t in tunables for n in lengths for key in t.keys(n, dtype)] + [_key(text) for text in keys]
    wanted = [(t, key) for t, key in wanted if set(t.candidates(key, device)) != {STEPS}]
    into = user_folder(current_policy().cache_dir) if folder is None else pathlib.Path(folder)

    provenance = "modelled" if offline else "measured"

    def searched(tunable: Tunable, key: Key) -> list[Trial]:
        if offline:
            trials = search.modelled(tunable, key, device, rows, limit)
        else:
            trials = search.measured(tunable, key, device, rows, limit, clock or search.device_seconds, where)
        if into is not None:
            entry = search.entry_of(trials, provenance, rows)
            save(path_of(into, tunable, device), tunable, device, {str(key): entry})
        return trials

    tried, found = {}, []
    for tunable, key in progress(wanted):
        asked = f"{tunable.name} {key}"
        tried[key] = ranks.from_first(functools.partial(searched, tunable, key), asked, group)
        found.append((tunable, key, search.entry_of(tried[key], provenance, rows)))
    look_again()
    for tunable, key, entry in found:
        fix(tunable, key, device, entry)
    return tried


def _all_of(name: str) -> tuple[Tunable, ...]:
    known = operators()
    return known[name].tunables if name in known else (_named(name),)


def _named(name: str) -> Tunable:
    known = registered()
    if name not in known:
        raise ValueError(f"expected kernels to be among {', '.join([*operators(), *known])}, but got {name}")
    return known[name]


def _key(text: str) -> tuple[Tunable, Key]:
    try:
        name, length, *operands = text.split()
        tunable = _named(name)
        dtypes = {operand: BY_NAME[dtype] for operand, dtype in (part.split("=") for part in operands)}
        key = tunable.key(int(length.removeprefix("N=")), **dtypes)
    except (KeyError, ValueError) as error:
        raise ValueError(f"expected a key such as 'layer_norm_fwd N=1000 x=bf16 y=bf16', but got {text!r}") from error
    if f"{name} {key}" != text:
        raise ValueError(f"expected the operands {', '.join(tunable.operands)} in this order, but got {text!r}")
    return tunable, key


def _device(target: str | None, offline: bool, clock: Clock | None) -> tuple[Device, torch.device]:
    if offline != (target is not None):
        raise ValueError(f"expected target together with offline=True, but got target={target!r}, offline={offline}")
    if target is not None:
        if target not in TARGETS:
            raise ValueError(f"expected target to be one of {', '.join(TARGETS)}, but got {target!r}")
        if interpreting():
            raise RuntimeError("offline tuning compiles kernels, and TRITON_INTERPRET=1 interprets them: unset it")
        return TARGETS[target], torch.device("meta")
    kind = triton_device_type()
    where = torch.device("cpu" if kind is None else kind)
    if where.type == "cuda":
        where = torch.device("cuda", torch.cuda.current_device())
    device = kernels_on(where)
    if clock is None and (kind is None or device is None or device.played):
        raise RuntimeError("tuning measures on a GPU and none is here: pass offline=True and a target such as 'sm_90'")
    if device is None:
        raise RuntimeError(f"tuning runs kernels, and tensors of device type '{where.type}' take ATen here")
    return device, where


def warmup(model: nn.Module, example_shapes: Iterable[Sequence[int] | Tensor]) -> None:
    """Compiles and fixes every configuration that a module tree needs, with and without gradients.

    The model is called on each example, forward and backward, so that what follows neither
    compiles nor searches; under the policy ``"search"`` this is where keys are tuned.  Gradients,
    buffers and the states of random generators are as before afterwards.  Call it in the mode
    (``train``, ``eval``, autocast) that the model will run in.

    Args:
        model: called with one argument.
        example_shapes: shapes, for which zeros of the parameters' dtype and device are made, or
            tensors, for example of token indices.  The number of rows does not matter.
    """
    first = next(model.parameters(), None)
    like = torch.empty(0) if first is None else first
    buffers = [(b, b.clone()) for b in model.buffers()]
    devices = [like.device] if like.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices):
            for example in example_shapes:
                x = (
                    example
                    if isinstance(example, Tensor)
                    else torch.zeros(tuple(example), dtype=like.dtype, device=like.device)
                )
                with torch.no_grad():
                    model(x)
                with torch.enable_grad():
                    for needs in {False, x.is_floating_point()}:  # as a first layer, and as a later one
                        _backward(model, x.detach().requires_grad_(needs))
    finally:
        with torch.no_grad():
            for buffer, before in buffers:
                buffer.copy_(before)


def _backward(model: nn.Module, x: Tensor) -> None:
    """A backward pass into nothing: no gradient is kept."""
    leaves = [p for p in model.parameters() if p.requires_grad] + ([x] if x.requires_grad else [])
    outputs = [t for t in torch.utils._pytree.tree_leaves(model(x)) if isinstance(t, Tensor) and t.requires_grad]
    if outputs and leaves:
        torch.autograd.grad(outputs, leaves, [torch.zeros_like(t) for t in outputs], allow_unused=True)


def table(tried: dict[Key, list[Trial]]) -> str:
    """What a search tried, for people: one line a candidate, the best of each key first."""
    lines = []
    for key, trials in tried.items():
        lines.append(f"{key.kernel}  {key}")
        for trial in trials:
            c = trial.config
            found = f"{trial.seconds * 1e6:9.2f} us" if trial.error is None else f"rejected: {trial.error}"
            row = f"{c.block_n}{f'x{c.pieces}' if c.pieces > 1 else ''}{f'+{c.rest}' if c.rest else ''}"
            tile = f"tile {c.block_m}x{row}".ljust(17)
            how = f"{tile} warps {c.num_ctas}x{c.num_warps:<3} stages {c.num_stages}  programs {c.programs}"
            lines.append(f"  {'step by step'.ljust(len(how)) if c == STEPS else how}  {found}")
    return "\n".join(lines)
