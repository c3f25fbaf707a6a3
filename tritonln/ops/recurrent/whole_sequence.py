"""What the kernels of a whole sequence share: their tunables, and whether they are launched at all."""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

import torch

from tritonln.configurations import recurrent
from tritonln.configurations.config import STEPS, Config
from tritonln.configurations.lookup import config_for, current_policy, planned
from tritonln.configurations.recurrent import LENGTH, Demand
from tritonln.configurations.tunable import Key, Tunable
from tritonln.device import Device
from tritonln.launch import Launch
from tritonln.ops.recurrent.shared import direction
from tritonln.plan import Plan


@dataclasses.dataclass(frozen=True, eq=False)
class WholeSequence:
    """A kernel of all time steps, beside the loop that launches them one by one.

    Of `operands` a T stands for the steps that the tuner takes, and S for the slots of their states.
    A variant is what the operator has several of that are much the same work, such as which state is carried; the
    usual one is tuned.
    """

    name: str
    operands: Mapping[str, str]
    results: tuple[str, ...]
    kernel: Callable[[], Any]
    constants: Callable[..., tuple[int, ...]]  # of H and the variant
    usual: tuple[int, ...]
    stepwise: Callable[[Device, Sequence[Any]], None]  # the same on the same arguments
    demand: Callable[[int, bool], Demand]  # of the bytes of a value of x, and whether rows start anew
    keys: Callable[[int, torch.dtype], Iterator[Mapping[str, torch.dtype | None]]]
    updated: tuple[str, ...] = ()
    backward: bool = False
    scalars: tuple[float, ...] = ()  # that follow T, B and the direction

    @functools.cached_property
    def tunable(self) -> Tunable:
        def demand(key: Key) -> Demand:
            return self.demand(key.operands["matrix_hh"].itemsize, "starts" in key.operands)

        def scalars(M: int) -> tuple[float, ...]:
            return LENGTH, M, *direction(LENGTH, False, self.backward), *self.scalars

        axes = {name: a.replace("T", str(LENGTH)).replace("S", str(LENGTH + 1)) for name, a in self.operands.items()}
        return Tunable(
            name=self.name,
            operands=axes,
            results=self.results,
            updated=self.updated,
            kernels=lambda: (self.kernel(),),
            plan=lambda key, c, device: self.launching(key.N, self.usual, c, device),
            choice=lambda key, device: recurrent.persistent(key.N, demand(key), device),
            candidates=lambda key, device: recurrent.persistent_candidates(key.N, demand(key), device),
            safe=lambda key: STEPS,
            keys=lambda H, x: (self.tunable.key(H, **dtypes) for dtypes in self.keys(H, x)),
            scalars=scalars,
            most_rows=lambda device: recurrent.BATCH,
            latency_bound=True,
            steps=LENGTH,
        )

    def launching(self, H: int, variant: tuple[int, ...], c: Config, device: Device) -> Plan:
        if c == STEPS:
            return Plan(lambda _, *arguments: self.stepwise(device, arguments), 1, 1)
        constants = (*self.constants(H, *variant), recurrent.precision(device), c.num_stages, c.block_m, c.block_n)
        return Plan(Launch(self.kernel(), constants, device, c.num_warps, of=self.tunable), c.block_m, 0)


@planned
def plan(
    sequence: WholeSequence, H: int, variant: tuple[int, ...], dtypes: tuple[torch.dtype | None, ...], device: Device
) -> Plan | None:
    """For operands of these dtypes, in the kernel's order.  None where steps are launched one by one, which needs no
    look-up where nothing else is possible.
    """
    tunable = sequence.tunable
    key = tunable.key(H, **dict(zip(tunable.operands, dtypes)))
    if tunable.choice(key, device) == STEPS:
        return None
    config = config_for(tunable, key, device)
    return None if config == STEPS else sequence.launching(H, variant, config, device)


def settle(
    save: bool,
    forward_stepwise: Callable[[], Plan],
    backward_stepwise: Callable[[], Plan],
    backward: Callable[[], Plan | None],
) -> None:
    """Ahead of a forward pass, the plans of its backward pass, which may not search nor should be the one to fail.

    A search takes the plans of single steps first, which the whole sequence is measured against.
    """
    policy = current_policy().name
    if policy == "search":
        forward_stepwise()
        if save:
            backward_stepwise()
            backward()
    elif policy == "frozen" and save and backward() is None:
        backward_stepwise()
