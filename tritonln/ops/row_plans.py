"""The tunables of a row operator, and its launches by dtypes.  Kernels are imported where a plan is made: importing
tritonln does not load Triton.
"""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from typing import Any, NamedTuple

import torch

from tritonln.configurations import rows as rules
from tritonln.configurations import rows_backward as backward_rules
from tritonln.configurations.config import Config
from tritonln.configurations.lookup import config_for, current_policy, planned
from tritonln.configurations.tunable import Key, Tunable, batches_of
from tritonln.device import Device
from tritonln.launch import Launch
from tritonln.ops.column_sums import SUMS, column_sums_plan
from tritonln.ops.contract import arithmetic
from tritonln.ops.operands import BATCHES, COLUMNS, GROUPS, ROWS, SUMMED, Dtypes
from tritonln.ops.row_declaration import UPSTREAM, Declaration
from tritonln.ops.wide_columns import WideColumns
from tritonln.plan import Plan

SUMS_OF = (COLUMNS,), (BATCHES, GROUPS)  # the kinds of operands whose partial sums one launch adds up


class Early(NamedTuple):
    """The sums of partial sums that are there before the last launch of a gradient kernel."""

    kinds: Sequence[str]
    plan: Plan


class Gradients(NamedTuple):
    """What a backward pass writes, and its launches."""

    dtypes: Dtypes  # of the gradients that kernels write
    twin: int | None  # the operand whose gradient is another one too, if there is one
    source: int | None  # the operand whose gradient that is; None: it is y's
    writes: bool  # whether kernels write any
    # The gradient kernel where several programs share a batch, where one has it alone, and where one has all rows:
    # sums of one program are the gradients of batches, or of all operands, in their dtypes.
    kernels: tuple[Plan, Plan, Plan]
    columns: Plan | None  # that adds up the partial sums; None: no such gradient is wanted
    batches: Plan | None


def _forward_kernels() -> tuple[Any, ...]:
    from tritonln.kernels.one_tile import one_tile_fwd
    from tritonln.kernels.streamed import streamed_fwd
    from tritonln.kernels.wide import wide_fwd

    return one_tile_fwd, streamed_fwd, wide_fwd


def _backward_kernels() -> tuple[Any, ...]:
    from tritonln.kernels.one_tile import one_tile_bwd
    from tritonln.kernels.wide import wide_bwd
    from tritonln.kernels.wide_columns import wide_dx_bwd, wide_sums_bwd

    return one_tile_bwd, wide_bwd, wide_sums_bwd, wide_dx_bwd


class RowPlans(Declaration):
    """What a declaration makes."""

    @functools.cached_property
    def _declared(self) -> tuple[Any, ...]:
        """What the kernels know of the operands: kinds, and the numbers for those that are absent."""
        sides = self.entering.values(), self.finishing.values()
        return (
            *(tuple(operand.kind for operand in side) for side in sides),
            *(tuple(0.0 if operand.absent is None else operand.absent for operand in side) for side in sides),
        )

    @functools.cached_property
    def _stats(self) -> dict[str, str]:
        return {"stats": f"M {self.statistics}"} if self.statistics else {}

    def _scalars(self, M: int) -> tuple[int, int]:
        return M, M // (batches_of(M) if self.batches_given else 1)

    def _work(self, key: Key, upstream: Sequence[str], columns: int) -> rules.Work:
        rows = [name for name, operand in self.operands.items() if operand.kind == ROWS]
        sizes = [key.operands[name].itemsize for name in (*upstream, *rows) if name in key.operands]
        of_all = not {BATCHES, GROUPS} & set(self.kinds)
        return rules.Work(max(sizes), sum(sizes), len(sizes) + columns, of_all)

    @functools.cached_property
    def forward_tunable(self) -> Tunable:
        def keys(N: int, x: torch.dtype) -> Iterator[Key]:
            for parameter in dict.fromkeys((x, arithmetic(x))):
                for save in (True, False):
                    yield self._forward_key(N, self.usual_dtypes(x, parameter), x, x if self.returns_x else None, save)

        return Tunable(
            name=f"{self.name}_fwd",
            operands={
                **{name: operand.axes for name, operand in self.operands.items()},
                **{"y": "M N", "x_out": "M N", **self._stats},
            },
            layout=(tuple(self.entering), tuple(self.finishing), "y", "x_out", "stats"),
            results=("y", "x_out", "stats"),
            kernels=lambda: (*_forward_kernels(), *filter(None, self.parts())),
            plan=self._forward,
            choice=lambda key, device: rules.forward(key.N, self._work(key, (), 0), device),
            candidates=lambda key, device: rules.forward_candidates(key.N, self._work(key, (), 0), device),
            safe=lambda key: rules.forward_safe(key.N),
            keys=keys,
            scalars=lambda M: (*self._scalars(M), 1e-5, 0.0),
        )

    def _forward(self, key: Key, c: Config, device: Device) -> Plan:
        (one_tile, streamed, wide), parts = _forward_kernels(), self.parts()
        operator = parts.enter, parts.finish, *self._declared, self.grouped, self.centred
        of, columns = self.forward_tunable, [name for name, o in self.operands.items() if o.kind in SUMMED]
        widest = max((key.operands[name].itemsize for name in columns if name in key.operands), default=1)
        at_once = rules.loaded_at_once(key.N, self._work(key, (), 0), widest, c, device)
        if c.programs:
            constants = key.N, c.block_n, c.num_stages, at_once, *operator, of.name
            launch = Launch(streamed, constants, device, c.num_warps, of=of, name=of.name)
            return Plan(launch, c.block_m, c.programs * device.multiprocessors)
        if c.block_n >= key.N:
            rows = rules.rows_at_once(key.N, at_once, c, device)
            constants, name = (key.N, c.block_m, c.block_n, rows, at_once, *operator, of.name), of.name
            return Plan(Launch(one_tile, constants, device, c.num_warps, c.num_ctas, of, name), c.block_m, 0)
        name = f"{self.name}_wide_fwd"
        constants = key.N, c.block_n, *rules.ahead(key.N, self._work(key, (), 0).x_bytes, c), at_once, *operator, name
        return Plan(Launch(wide, constants, device, c.num_warps, of=of, name=name), c.block_m, 0)

    def _forward_key(self, N: int, dtypes: Dtypes, y: torch.dtype, x: torch.dtype | None, save: bool) -> Key:
        stats = arithmetic(y) if save else None
        return self.forward_tunable.key(N, **dict(zip(self.operands, dtypes)), y=y, x_out=x, stats=stats)

    @functools.cached_property
    def backward_tunable(self) -> Tunable:
        def keys(N: int, x: torch.dtype) -> Iterator[Key]:
            out = x if self.returns_x or self.restore is not None else None
            for parameter in dict.fromkeys((x, arithmetic(x))):
                dtypes = self.usual_dtypes(x, parameter)
                yield self._backward_key(N, self._upstream(x, out), arithmetic(x), dtypes, (True,) * len(dtypes))

        names = tuple(f"d{n}_partial" if o.kind in SUMMED else f"d{n}" for n, o in self.operands.items())
        E = len(self.entering)
        axes = {ROWS: "M N", **dict.fromkeys(SUMMED, "P N")}
        gradients = {n: axes[kind] for n, kind in zip(names, self.kinds) if kind in axes}
        return Tunable(
            name=f"{self.name}_bwd",
            operands={
                **dict.fromkeys(UPSTREAM, "M N"),
                **{name: operand.axes for name, operand in self.operands.items() if operand.reread},
                **self._stats,
                **gradients,
            },
            layout=(UPSTREAM, tuple(self.entering), tuple(self.finishing), "stats", names[:E], names[E:]),
            results=tuple(gradients),
            kernels=lambda: (*_backward_kernels(), *filter(None, self.parts())),
            plan=self._backward,
            choice=lambda key, device: backward_rules.backward(key.N, self._backward_work(key), device),
            candidates=lambda key, device: backward_rules.backward_candidates(key.N, self._backward_work(key), device),
            safe=lambda key: backward_rules.backward_safe(key.N),
            keys=keys,
            scalars=lambda M: (*self._scalars(M), 0.0),
            programs_over="B" if self.batched else "M",
        )

    def _backward_work(self, key: Key) -> rules.Work:
        """Tiles of what is read row by row, and of the columns that are read and of the sums, where there are any."""
        columns = [name for name, operand in self.operands.items() if operand.kind in SUMMED]
        held = [name for column in columns for name in (column, f"d{column}_partial") if name in key.operands]
        return self._work(key, UPSTREAM, len(held) + self.held)

    def _backward(self, key: Key, c: Config, device: Device, early: Early | None = None) -> Plan:
        """`early`: the sums that the last of two launches may add up too."""
        (one_tile, wide, wide_sums, wide_dx), parts = _backward_kernels(), self.parts()
        tile, of = (c.block_m, c.block_n, c.num_stages), self.backward_tunable
        shared = *self._declared, self.batched, self.grouped, self.centred
        operator = parts.enter, parts.enter_bwd, parts.finish_bwd, parts.restore, *shared
        slots = c.programs * device.multiprocessors

        def launch_of(kernel: Any, name: str, *constants: Any) -> Launch:
            return Launch(kernel, (key.N, *constants, name), device, c.num_warps, c.num_ctas, of, name)

        chunks = -(-key.N // (c.pieces * c.block_n + c.rest))
        if chunks == 1:
            ahead = rules.ahead(key.N, self._backward_work(key).x_bytes, c)
            return Plan(
                launch_of(one_tile, of.name, c.pieces, c.block_m, c.block_n, c.rest, *ahead, *operator),
                c.block_m,
                slots // c.num_ctas,
                rules.fewest_programs(slots // c.num_ctas, device),
            )
        if not c.programs:
            return Plan(launch_of(wide, f"{self.name}_wide_bwd", *tile, *operator), c.block_m, 0)
        sums_of = launch_of(wide_sums, f"{self.name}_wide_sums_bwd", c.pieces, *tile, parts.enter, *operator[2:])
        adds, of_sums = ((), (None, None)) if early is None else (early.kinds, early.plan.launch.constants[1:])
        dx_of = launch_of(wide_dx, f"{self.name}_wide_dx_bwd", c.pieces, *tile, *of_sums, *operator)
        kinds = tuple(operand.kind for operand in self.finishing.values())
        return Plan(WideColumns(sums_of, dx_of, chunks, kinds, adds), c.block_m, max(1, slots // chunks))

    def _upstream(self, dy: torch.dtype | None, x: torch.dtype | None) -> Dtypes:
        """Of a call whose results all have gradients."""
        return dy, x if self.returns_x else None, x

    def _backward_key(
        self,
        N: int,
        upstream: Dtypes,
        stats: torch.dtype,
        dtypes: Dtypes,
        needs: tuple[bool, ...],
    ) -> Key:
        found: dict[str, torch.dtype | None] = {**dict(zip(UPSTREAM, upstream)), "stats": stats}
        for (name, operand), dtype, needed in zip(self.operands.items(), dtypes, needs):
            if operand.reread:
                found[name] = dtype
            if needed:
                found |= {f"d{name}_partial": stats} if operand.kind in SUMMED else {f"d{name}": dtype}
        return self.backward_tunable.key(N, **found)

    @planned
    def forward_plan(
        self, N: int, dtypes: Dtypes, y: torch.dtype, x: torch.dtype | None, save: bool, device: Device
    ) -> Plan:
        """For tensors of these dtypes; None where there is none."""
        if save and current_policy().name != "lookup":  # a backward pass may not search, nor be the one to fail
            self.backward_plan(N, self._upstream(y, x), arithmetic(y), dtypes, self.all_gradients(dtypes), device)
        key = self._forward_key(N, dtypes, y, x, save)
        return self._forward(key, config_for(self.forward_tunable, key, device), device)

    @planned
    def backward_plan(
        self,
        N: int,
        upstream: Dtypes,
        stats: torch.dtype,
        dtypes: Dtypes,
        needs: tuple[bool, ...],
        device: Device,
    ) -> Gradients:
        """`needs` says of each operand whether its gradient is wanted; `upstream` is of dy, dx and the result x.

        The configuration is the one for all gradients and results: a gradient has the same bits whatever else is
        wanted, which differs between eager and compiled code.
        """
        dy, _, x = upstream
        key = self._backward_key(N, self._upstream(dy, x), stats, dtypes, self.all_gradients(dtypes))
        c = config_for(self.backward_tunable, key, device)
        twin, source = self.twin(dtypes, needs)
        written = tuple(d if needed and i != twin else None for i, (d, needed) in enumerate(zip(dtypes, needs)))
        E = len(self.entering)
        of_rows = any(d for d, kind in zip(written, self.kinds) if kind == ROWS)
        sums: list[Plan | None] = []
        early: list[Early | None] = []
        for kinds in SUMS_OF:
            wanted = tuple(dtype for dtype, kind in zip(written, self.kinds) if kind in kinds)
            plan = column_sums_plan(N, stats, wanted, device) if any(wanted) else None
            # The first of two kernels has all partial sums of what finishes; for gradients of rows there is a second.
            of_entering = any(dtype for dtype, kind in zip(written[:E], self.kinds) if kind in kinds)
            sums.append(plan)
            early.append(Early(kinds, plan) if plan is not None and of_rows and not of_entering else None)
        columns, batches = early
        several, batch, alone = (self._backward(key, c, device, of) for of in (columns or batches, columns, None))
        return Gradients(written, twin, source, any(written), (several, batch, alone), *sums)

    @property
    def tunables(self) -> tuple[Tunable, ...]:
        return self.forward_tunable, self.backward_tunable, SUMS
