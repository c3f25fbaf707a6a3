"""Row operators: what one declares, its tunables, and its launches.

    y = finish(x_hat, *columns)      x_hat = normalize(enter(*streams))

An operator is this declaration and its parts, device functions that kernels/one_tile.py describes.  Kernels
are imported where a plan is made: importing tritonln does not load Triton.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tritonln.configurations import rows as rules
from tritonln.configurations.config import Config
from tritonln.configurations.lookup import config_for, current_policy, planned
from tritonln.configurations.tunable import Key, Tunable
from tritonln.device import Device
from tritonln.launch import Launch, Plan
from tritonln.ops.column_sums import SUMS, column_sums_plan
from tritonln.ops.contract import arithmetic, empty_like
from tritonln.ops.operands import Dtypes, column_operands, dtypes_of, operands, stream_operands


class Parts(NamedTuple):
    """The device functions of an operator."""

    finish: Any
    finish_bwd: Any
    enter: Any = None
    enter_bwd: Any = None


class Gradients(NamedTuple):
    """The launches of a backward pass."""

    several: Plan  # the gradient kernel, which leaves a row of partial sums for each program
    alone: Plan  # the same where one program does it all: its sums are the columns' gradients, in their dtypes
    sums: Plan | None  # that adds up the partial sums; None: no column's gradient is wanted


def _forward_kernels() -> tuple[Any, Any]:
    from tritonln.kernels.one_tile import one_tile_fwd
    from tritonln.kernels.wide import wide_fwd

    return one_tile_fwd, wide_fwd


def _backward_kernels() -> tuple[Any, Any]:
    from tritonln.kernels.one_tile import one_tile_bwd
    from tritonln.kernels.wide import wide_bwd

    return one_tile_bwd, wide_bwd


@dataclasses.dataclass(frozen=True, eq=False)
class RowOperator:
    """
    name:     of the operator; its kernels are NAME_fwd and NAME_bwd in tables and profiles
    parts:    gives the device functions
    columns:  the operands with a value for each column, and the number that stands for one that is absent
    streams:  the operands that are read row by row
    centred:  whether the mean is taken out of a row
    reverse:  the columns whose values finish_bwd reads; None: all
    formula:  finish in torch, on tensors (M, N) and (N,) or numbers; enter_formula: enter in torch
    aten:     forward and backward in torch's own operators, for devices without kernels; None: the formula
    """

    name: str
    parts: Callable[[], Parts]
    columns: Mapping[str, float]
    streams: tuple[str, ...] = ("x",)
    centred: bool = True
    reverse: Collection[str] | None = None
    formula: Callable[..., Tensor] | None = None
    enter_formula: Callable[..., Tensor] | None = None
    aten: Any = None

    def split(self, tensors: Sequence[Any]) -> tuple[tuple[Tensor, ...], tuple[Tensor | None, ...]]:
        """(streams, columns)"""
        n = len(self.streams)
        return tuple(tensors[:n]), tuple(tensors[n:])

    # ---- from configurations to launches ---------------------------------------------------------

    @functools.cached_property
    def numbers(self) -> tuple[float, ...]:
        return tuple(self.columns.values())

    @functools.cached_property
    def read(self) -> tuple[bool, ...]:
        """Of each column, whether the backward kernel reads it."""
        return tuple(self.reverse is None or name in self.reverse for name in self.columns)

    @functools.cached_property
    def forward_tunable(self) -> Tunable:
        def keys(N: int, x: torch.dtype) -> Iterator[Key]:
            for parameter in dict.fromkeys((x, arithmetic(x))):
                for save in (True, False):
                    yield self._forward_key(N, (x,) * len(self.streams), (parameter,) * len(self.columns), x, save)

        return Tunable(
            name=f"{self.name}_fwd",
            operands={
                **dict.fromkeys(self.streams, "M N"),
                **dict.fromkeys(self.columns, "N"),
                **{"y": "M N", "stats": "M 2" if self.centred else "M 1"},
            },
            layout=(self.streams, tuple(self.columns), "y", "stats"),
            results=("y", "stats"),
            kernels=lambda: (*_forward_kernels(), *filter(None, self.parts())),
            plan=self._forward,
            choice=lambda key, device: rules.forward(key.N, self._forward_work(key), device),
            candidates=lambda key, device: rules.forward_candidates(key.N, self._forward_work(key), device),
            safe=lambda key: rules.forward_safe(key.N),
            keys=keys,
            scalars=lambda M: (M, 1e-5),
        )

    def _work(self, key: Key, *more: str, tiles: int) -> rules.Work:
        sizes = [key.operands[name].itemsize for name in (*self.streams, *more)]
        return rules.Work(max(sizes[: len(self.streams)]), sum(sizes), tiles)

    def _forward_work(self, key: Key) -> rules.Work:
        return self._work(key, tiles=len(self.streams))

    def _backward_work(self, key: Key) -> rules.Work:
        """Tiles of dy and the streams, of the columns that are read, and of the sums of all of them."""
        return self._work(key, "dy", tiles=1 + len(self.streams) + sum(self.read) + len(self.columns))

    def _forward(self, key: Key, c: Config, device: Device) -> Plan:
        (one_tile, wide), parts = _forward_kernels(), self.parts()
        operator, of = (parts.enter, parts.finish, self.numbers, self.centred), self.forward_tunable
        if c.block_n >= key.N:
            constants, name = (key.N, c.block_m, c.block_n, *operator, of.name), of.name
            return Plan(Launch(one_tile, constants, device, c.num_warps, c.num_ctas, of, name), c.block_m, 0)
        name = f"{self.name}_wide_fwd"
        constants = key.N, c.block_n, c.num_stages, *operator, name
        return Plan(Launch(wide, constants, device, c.num_warps, of=of, name=name), c.block_m, 0)

    def _forward_key(self, N: int, streams: Dtypes, columns: Dtypes, y: torch.dtype, save: bool) -> Key:
        operands = {**dict(zip(self.streams, streams)), **dict(zip(self.columns, columns)), "y": y}
        return self.forward_tunable.key(N, **operands, stats=arithmetic(streams[0]) if save else None)  # type: ignore[arg-type]

    @functools.cached_property
    def backward_tunable(self) -> Tunable:
        def keys(N: int, x: torch.dtype) -> Iterator[Key]:
            for parameter in dict.fromkeys((x, arithmetic(x))):
                streams, columns = (x,) * len(self.streams), (parameter,) * len(self.columns)
                yield self._backward_key(N, x, streams, columns, (True,) * (len(streams) + len(columns)))

        read = tuple(name for name, read in zip(self.columns, self.read) if read)
        gradients = tuple(f"d{name}" for name in self.streams)
        sums = tuple(f"d{name}_partial" for name in self.columns)
        return Tunable(
            name=f"{self.name}_bwd",
            operands={
                **{"dy": "M N", **dict.fromkeys(self.streams, "M N"), **dict.fromkeys(read, "N")},
                **{"stats": "M 2" if self.centred else "M 1"},
                **{**dict.fromkeys(gradients, "M N"), **dict.fromkeys(sums, "P N")},
            },
            layout=(("dy",), self.streams, tuple(self.columns), "stats", gradients, sums),
            results=(*gradients, *sums),
            kernels=lambda: (*_backward_kernels(), *filter(None, self.parts())),
            plan=self._backward,
            choice=lambda key, device: rules.backward(key.N, self._backward_work(key), device),
            candidates=lambda key, device: rules.backward_candidates(key.N, self._backward_work(key), device),
            safe=lambda key: rules.backward_safe(key.N),
            keys=keys,
        )

    def _backward(self, key: Key, c: Config, device: Device) -> Plan:
        (one_tile, wide), parts = _backward_kernels(), self.parts()
        tile, of = (c.block_m, c.block_n, c.num_stages), self.backward_tunable
        operator = parts.enter, parts.enter_bwd, parts.finish_bwd, self.numbers, self.centred
        if c.pieces * c.block_n >= key.N:
            constants = key.N, c.pieces, *tile, *operator, of.name
            launch = Launch(one_tile, constants, device, c.num_warps, c.num_ctas, of, of.name)
        else:
            name = f"{self.name}_wide_bwd"
            launch = Launch(wide, (key.N, *tile, *operator, name), device, c.num_warps, of=of, name=name)
        return Plan(launch, c.block_m, c.programs * device.multiprocessors // c.num_ctas)

    def _backward_key(self, N: int, dy: torch.dtype, streams: Dtypes, columns: Dtypes, needs: tuple[bool, ...]) -> Key:
        assert streams[0] is not None
        sums = arithmetic(streams[0])
        n = len(streams)
        operands: dict[str, torch.dtype | None] = {"dy": dy, **dict(zip(self.streams, streams)), "stats": sums}
        operands |= {name: dtype for name, dtype, read in zip(self.columns, columns, self.read) if read}
        operands |= {f"d{name}": dtype for name, dtype, needed in zip(self.streams, streams, needs) if needed}
        operands |= {f"d{name}_partial": sums for name, needed in zip(self.columns, needs[n:]) if needed}
        return self.backward_tunable.key(N, **operands)

    @planned
    def forward_plan(
        self, N: int, streams: Dtypes, columns: Dtypes, y: torch.dtype, save: bool, device: Device
    ) -> Plan:
        """For tensors of these dtypes; None where there is none."""
        if save and current_policy().name != "lookup":  # a backward pass may not search, nor be the one to fail
            present = tuple(dtype is not None for dtype in columns)
            self.backward_plan(N, y, streams, columns, (*(True,) * len(streams), *present), device)
        key = self._forward_key(N, streams, columns, y, save)
        return self._forward(key, config_for(self.forward_tunable, key, device), device)

    @planned
    def backward_plan(
        self, N: int, dy: torch.dtype, streams: Dtypes, columns: Dtypes, needs: tuple[bool, ...], device: Device
    ) -> Gradients:
        """`needs` says of each stream and column whether its gradient is wanted."""
        key = self._backward_key(N, dy, streams, columns, needs)
        c = config_for(self.backward_tunable, key, device)
        several, alone = (self._backward(key, c, device) for _ in range(2))
        wanted = tuple(dtype if needed else None for dtype, needed in zip(columns, needs[len(streams) :]))
        sums = column_sums_plan(N, key.operands["stats"], wanted, device) if any(wanted) else None
        return Gradients(several, alone, sums)

    @property
    def tunables(self) -> tuple[Tunable, ...]:
        return self.forward_tunable, self.backward_tunable, SUMS

    def train(
        self, make: Callable[..., Tensor], rows: int, N: int, x: torch.dtype, parameter: torch.dtype, device: Device
    ) -> None:
        """A forward and a backward pass with gradients of everything, on tensors make(*shape, dtype=...)."""
        streams = tuple(make(rows, N, dtype=x) for _ in self.streams)
        columns = tuple(make(N, dtype=torch.float64 if x == torch.float64 else parameter) for _ in self.columns)
        _, stats = self.forward(streams, N, columns, 1e-5, x, True, device)
        assert stats is not None
        needs = (True,) * (len(streams) + len(columns))
        self.backward(make(rows, N, dtype=x), streams, N, columns, stats, needs, device)

    # ---- from tensors to launches ----------------------------------------------------------------

    def forward(
        self,
        streams: tuple[Tensor, ...],
        N: int,
        columns: tuple[Tensor | None, ...],
        eps: float,
        dtype: torch.dtype,
        save: bool,
        device: Device,
    ) -> tuple[Tensor, Tensor | None]:
        """(y, stats); y has the shape of the first stream, stats are None unless saved."""
        x = streams[0]
        M = x.numel() // N if N else 0
        y = empty_like(x, dtype)
        stats = torch.empty((M, 1 + self.centred), dtype=arithmetic(x.dtype), device=x.device) if save else None
        if M:
            plan = self.forward_plan(N, *dtypes_of(streams, columns), dtype, save, device)
            plan.launch(plan.count(M), stream_operands(streams, N), column_operands(columns), y, stats, M, eps)
        return y, stats

    def backward(
        self,
        dy: Tensor,
        streams: tuple[Tensor, ...],
        N: int,
        columns: tuple[Tensor | None, ...],
        stats: Tensor,
        needs: tuple[bool, ...],
        device: Device,
    ) -> list[Tensor | None]:
        """The gradients of streams and columns, each None unless needed."""
        M = stats.shape[0]
        new = torch.empty_like if M else torch.zeros_like
        d_streams = [empty_like(t, t.dtype) if needed else None for t, needed in zip(streams, needs)]
        d_columns = [
            new(c, memory_format=torch.contiguous_format) if c is not None and needed else None
            for c, needed in zip(columns, needs[len(streams) :])
        ]
        if M:
            plans = self.backward_plan(N, dy.dtype, *dtypes_of(streams, columns), needs, device)
            P = plans.several.count(M)
            read = tuple(c if read else None for c, read in zip(columns, self.read))
            arguments = stream_operands((dy,), N), stream_operands(streams, N), column_operands(read), stats
            if P == 1:  # the sums of the only program are the gradients
                plans.alone.launch(1, *arguments, operands(d_streams), operands(d_columns), M)
            else:
                partials = operands([None if d is None else stats.new_empty((P, N)) for d in d_columns])
                plans.several.launch(P, *arguments, operands(d_streams), partials, M)
                if plans.sums is not None:
                    plans.sums.launch(plans.sums.count(N), partials, operands(d_columns), P)
        return [*d_streams, *d_columns]
