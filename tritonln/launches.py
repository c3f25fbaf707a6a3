"""Launches to look at: those of an operator or of one kernel, on tensors that are nowhere or on random ones."""

from __future__ import annotations

import functools
import math
from collections.abc import Callable

import torch
from torch import Tensor

from tritonln.configurations.config import Config
from tritonln.configurations.tunable import Key, Tunable, operators
from tritonln.device import TARGETS, Device
from tritonln.launch import Recorded, recorded
from tritonln.plan import Plan


def training_launches(
    operator: str, target: str, N: int, dtype: torch.dtype, parameter_dtype: torch.dtype, rows: int
) -> list[Recorded]:
    """What a forward and a backward pass of an operator launch."""
    if target not in TARGETS:
        raise ValueError(f"unknown target {target!r}: expected one of {', '.join(TARGETS)}")
    if operator not in operators():
        raise ValueError(f"unknown operator {operator!r}: expected one of {', '.join(operators())}")
    with recorded() as calls:
        nowhere = functools.partial(torch.empty, device="meta")
        operators()[operator].train(nowhere, rows, N, dtype, parameter_dtype, TARGETS[target])
    return calls


def launches_of(tunable: Tunable, key: Key, config: Config, device: Device, rows: int) -> list[Recorded]:
    """What a configuration launches, once, on tensors that are nowhere."""

    def make(_: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        return torch.empty(shape, dtype=dtype, device="meta")

    plan = tunable.plan(key, config, device)
    with recorded() as calls:
        plan.launch(tunable.programs(plan, rows, key.N), *tunable.arguments(key, plan, rows, make))
    return calls


def prepared(
    tunable: Tunable, key: Key, plan: Plan, M: int, seed: int, where: torch.device
) -> tuple[Callable[[], object], dict[str, Tensor]]:
    """A launch on random inputs and poisoned results, and what it writes."""
    generator = torch.Generator(where).manual_seed(seed)
    written: dict[str, Tensor] = {}

    def make(name: str, shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        if name in tunable.results:
            made = torch.full(shape, math.nan, dtype=dtype, device=where)
        elif tunable.per_program(name):  # added to, for as many programs as there are
            made = torch.zeros(shape, dtype=dtype, device=where)
        elif dtype == torch.int64:  # lengths, from no step to all of them
            made = torch.randint(0, tunable.steps + 1, shape, generator=generator, device=where)
        elif dtype == torch.bool:  # where rows start anew
            made = torch.rand(shape, generator=generator, device=where) < 0.5
        else:
            # A matrix of the scale of a layer's, that nothing grows from step to step.
            scale = key.N**-0.5 if name == "matrix_hh" else 1.0
            made = (torch.randn(shape, generator=generator, device=where) * scale).to(dtype)
            if name == "weight":
                made = made + made.sign()  # none near zero, by which x_hat could not be restored from y
        if name in (*tunable.results, *tunable.updated):
            written[name] = made
        return made

    launch = functools.partial(plan.launch, tunable.programs(plan, M, key.N), *tunable.arguments(key, plan, M, make))
    return launch, written
