"""Row operators without a norm, y = enter(*entering): what their kernels and launches differ in."""

from __future__ import annotations

import dataclasses
import functools
from typing import Any, NamedTuple

import torch

from tritonln.configurations import elementwise as rules
from tritonln.configurations.config import Config
from tritonln.configurations.tunable import Key, Tunable
from tritonln.device import Device
from tritonln.launch import Launch
from tritonln.ops.operands import Dtypes
from tritonln.ops.row_plans import Early
from tritonln.ops.rows import RowOperator
from tritonln.plan import Plan


class Chunked(NamedTuple):
    """Called as a Launch of a row kernel is, with the number of shares of the rows."""

    launch: Launch
    chunks: int  # of a row, each of which has a program of its own

    @property
    def launches(self) -> tuple[Launch]:
        return (self.launch,)

    def __call__(self, shares: int, *arguments: Any) -> None:
        self.launch(shares * self.chunks, *arguments)


def _kernels() -> tuple[Any, Any]:
    from tritonln.kernels.elementwise import elementwise_bwd, elementwise_fwd

    return elementwise_fwd, elementwise_bwd


@dataclasses.dataclass(frozen=True, eq=False)
class Elementwise(RowOperator):
    """Declared with centred=None and nothing finishing, whose formula is the identity.

    No configuration holds a row, and statistics are tensors without columns: they say how many rows there are and the
    dtype of the arithmetic.
    """

    @functools.cached_property
    def forward_tunable(self) -> Tunable:
        of_rows = super().forward_tunable
        return dataclasses.replace(
            of_rows,
            kernels=lambda: (_kernels()[0], self.parts().enter),
            choice=lambda key, device: rules.forward(key.N, self._work(key, (), 0)),
            candidates=lambda key, device: rules.forward_candidates(key.N, self._work(key, (), 0)),
            safe=lambda key: rules.safe(key.N),
            keys=lambda N, x: iter(dict.fromkeys(of_rows.keys(N, x))),
        )

    def _forward(self, key: Key, c: Config, device: Device) -> Plan:
        chunks, of = -(-key.N // c.block_n), self.forward_tunable
        (kinds, _, absent, _), enter = self._declared, self.parts().enter
        constants = key.N, chunks, c.block_m, c.block_n, enter, kinds, absent, self.grouped, of.name
        launch = Launch(_kernels()[0], constants, device, c.num_warps, of=of, name=of.name)
        return Plan(Chunked(launch, chunks), c.block_m, 0)

    @functools.cached_property
    def backward_tunable(self) -> Tunable:
        of_rows = super().backward_tunable
        return dataclasses.replace(
            of_rows,
            kernels=lambda: (_kernels()[1], self.parts().enter_bwd),
            choice=lambda key, device: rules.backward(key.N, self._backward_work(key), device),
            candidates=lambda key, device: rules.backward_candidates(key.N, self._backward_work(key), device),
            safe=lambda key: rules.safe(key.N, 1),
            keys=lambda N, x: iter(dict.fromkeys(of_rows.keys(N, x))),
        )

    def _backward_key(
        self, N: int, upstream: Dtypes, stats: torch.dtype, dtypes: Dtypes, needs: tuple[bool, ...]
    ) -> Key:
        written = tuple(needed and name != self.passed for name, needed in zip(self.operands, needs))
        return super()._backward_key(N, upstream, stats, dtypes, written)

    def _backward(self, key: Key, c: Config, device: Device, early: Early | None = None) -> Plan:
        chunks, of = -(-key.N // c.block_n), self.backward_tunable
        (kinds, _, absent, _), enter_bwd = self._declared, self.parts().enter_bwd
        tile = chunks, c.block_m, c.block_n, c.num_stages
        constants = key.N, *tile, enter_bwd, kinds, absent, self.batched, self.grouped, of.name
        launch = Launch(_kernels()[1], constants, device, c.num_warps, of=of, name=of.name)
        return Plan(Chunked(launch, chunks), c.block_m, max(1, c.programs * device.multiprocessors // chunks))
