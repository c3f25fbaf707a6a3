"""Row operators on tensors: what is allocated and launched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import torch
from torch import Tensor

from tritonln.configurations.tunable import batches_of
from tritonln.device import Device
from tritonln.ops.contract import arithmetic, empty_like
from tritonln.ops.operands import (
    BATCHES,
    COLUMNS,
    GROUPS,
    NOISE,
    ONE_A_BATCH,
    ROWS,
    SUMMED,
    Dtypes,
    Tensors,
    dtypes_of,
    placed,
    written,
)
from tritonln.ops.row_plans import RowPlans


class Settings(NamedTuple):
    """What a call says beside its tensors."""

    N: int
    eps: float
    dtype: torch.dtype  # of y
    x_dtype: torch.dtype | None = None  # of x where it is a result too
    p: float = 0.0  # of the noise


class BackwardCall(NamedTuple):
    """What a backward pass is given."""

    dy: Tensor
    dx: Tensor | None  # the gradient of the result x, where there is one that was used
    x: Tensor | None  # where it was a result; then operands that are not `kept` may be None
    tensors: Tensors
    dtypes: Dtypes  # of all operands, kept or not
    stats: Tensor
    s: Settings
    needs: tuple[bool, ...]  # of each operand, whether its gradient is wanted


class RowOperator(RowPlans):
    """A declaration, carried out.  Tensors come in the order of its operands, None where one is absent."""

    def batches(self, tensors: Sequence[Tensor | None]) -> int:
        for i in self.by_batch:
            t = tensors[i]
            if t is not None:
                return t.shape[0]
        return 1

    def _placed(self, tensors: Sequence[Tensor | None], N: int) -> tuple[tuple[object, ...], tuple[object, ...]]:
        found, E = placed(tensors, self.kinds, N), len(self.entering)
        return found[:E], found[E:]

    def forward(
        self, tensors: Tensors, s: Settings, save: bool, device: Device
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(y, x, stats): y has the shape of the first operand, as has x where that is a result; stats where saved."""
        first = tensors[0]
        assert first is not None
        M = first.numel() // s.N if s.N else 0
        y = empty_like(first, s.dtype)
        x = None if s.x_dtype is None else empty_like(first, s.x_dtype)
        stats = None
        if save:
            stats = torch.empty((M, self.statistics), dtype=arithmetic(s.dtype), device=first.device)
        if M:
            plan = self.forward_plan(s.N, dtypes_of(tensors), s.dtype, s.x_dtype, save, device)
            T = M // self.batches(tensors)
            plan.launch(plan.count(M), *self._placed(tensors, s.N), y, x, stats, M, T, s.eps, s.p)
        return y, x, stats

    def backward(self, call: BackwardCall, device: Device) -> list[Tensor | None]:
        """The gradients of the operands, each None unless needed."""
        dy, _, _, tensors, dtypes, stats, _, needs = call
        M = stats.shape[0]
        twin, source = self.twin(dtypes, needs)
        asked = needs if twin is None else tuple([needed and i != twin for i, needed in enumerate(needs)])
        new = torch.empty_like if M else torch.zeros_like
        gradients: list[Tensor | None] = []
        for t, dtype, kind, needed in zip(tensors, dtypes, self.kinds, asked):
            if not needed or dtype is None:
                gradients.append(None)
            elif kind == ROWS:
                gradients.append(empty_like(dy if t is None else t, dtype))
            else:
                assert t is not None
                gradients.append(new(t, memory_format=torch.contiguous_format))
        if M and any(asked):
            self._launch_backward(call, asked, gradients, device)
        if twin is not None:
            gradients[twin] = dy if source is None else gradients[source]
        return gradients

    def _launch_backward(
        self, call: BackwardCall, needs: tuple[bool, ...], gradients: list[Tensor | None], device: Device
    ) -> None:
        """`needs` is of the gradients that kernels write: not of a twin's."""
        dy, dx, x, tensors, dtypes, stats, s, _ = call
        M, N, S, E = stats.shape[0], s.N, self.batches(tensors), len(self.entering)
        plans = self.backward_plan(N, dtypes_of((dy, dx, x)), stats.dtype, dtypes, needs, device)
        batches = S if self.batched else 1
        P = plans.kernels[0].count(M, batches)
        alone = () if batches < P else SUMMED if P == 1 else (BATCHES, GROUPS)  # whose sums are the gradients
        read = [t if reread else None for t, reread in zip(tensors, self.reread)]
        targets = (
            gradients
            if alone is SUMMED
            else [
                stats.new_empty((P, N)) if g is not None and kind in SUMMED and kind not in alone else g
                for g, kind in zip(gradients, self.kinds)
            ]
        )
        kernel = plans.kernels[0 if not alone else 2 if P == 1 else 1]
        upstream, of_rows = placed((dy, dx, x), (ROWS,) * 3, N), stats if self.statistics else None
        kernel.launch(
            P, upstream, *self._placed(read, N), of_rows, written(targets[:E]), written(targets[E:]), M, M // S, s.p
        )
        if alone is SUMMED:
            return
        for kinds, plan, sums in (((COLUMNS,), plans.columns, 1), ((BATCHES, GROUPS), plans.batches, batches)):
            if plan is not None and kinds[0] not in alone:
                partials, totals = (
                    written([t for t, kind in zip(side, self.kinds) if kind in kinds]) for side in (targets, gradients)
                )
                plan.launch(sums * plan.count(N), partials, totals, P // sums)

    def twin(self, dtypes: Dtypes, needs: Sequence[bool]) -> tuple[int | None, int | None]:
        """The operand whose gradient is another one too, if there is one, and whose: its twin's, or y's (None)."""
        if self.passed is not None:
            i = tuple(self.entering).index(self.passed)
            return (i if needs[i] else None), None
        if not self.twins or sum(dtype is not None for dtype in dtypes[: len(self.entering)]) > len(self.twins):
            return None, 0
        a, b = (i for i, name in enumerate(self.entering) if name in self.twins)
        return (b if needs[a] and needs[b] and dtypes[a] == dtypes[b] else None), a

    def train(
        self, make: Callable[..., Tensor], rows: int, N: int, x: torch.dtype, parameter: torch.dtype, device: Device
    ) -> None:
        """A forward and a backward pass with gradients of everything, on tensors make(*shape, dtype=...)."""
        S = batches_of(rows)
        shapes = {ROWS: (rows, N), BATCHES: (S, N), GROUPS: (S, N), COLUMNS: (N,), ONE_A_BATCH: (S,), NOISE: (1,)}
        if x == torch.float64:
            parameter = x
        dtypes = self.usual_dtypes(x, parameter)
        tensors = tuple(make(*shapes[kind], dtype=dtype) for kind, dtype in zip(self.kinds, dtypes))
        s = Settings(N, 1e-5, x, x if self.returns_x else None, 0.1 if NOISE in self.kinds else 0.0)
        y, out, stats = self.forward(tensors, s, True, device)
        assert stats is not None
        needs = tuple(kind in (ROWS, *SUMMED) for kind in self.kinds)
        d_out = make(rows, N, dtype=x) if self.returns_x else None
        self.backward(BackwardCall(make(rows, N, dtype=x), d_out, out, tensors, dtypes, stats, s, needs), device)
