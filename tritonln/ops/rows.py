"""Row operators on tensors: what is allocated and launched."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

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
    contiguous,
    dtypes_of,
    placed,
)
from tritonln.ops.row_plans import SUMS_OF, RowPlans
from tritonln.ops.wide_columns import WideColumns


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


class Forward(NamedTuple):
    """A forward pass on tensors of certain shapes and dtypes: all that does not depend on where they lie."""

    operator: RowOperator
    s: Settings
    save: bool
    dtypes: Dtypes
    adjacent: bool  # whether all operands are contiguous
    alike: tuple[bool, bool]  # whether y, and x where that is a result, are like the first operand
    device: Device | None  # None: no kernel serves them
    M: int
    launch: Any  # None where there are no rows
    programs: int
    scalars: tuple[float, ...]  # that its arguments end in
    backwards: dict[Any, Backward]  # by which gradients are asked for and given
    of_y: Any = None  # the operator of the backward pass that restores x_hat from y, where y is kept (keep_y.py)

    def on(self, tensors: Tensors) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(y, x, stats): y has the shape of the first operand, as has x where that is a result; stats where saved."""
        operator, s, save, _, adjacent, (y_alike, x_alike), _, M, launch, programs, scalars, _, _ = self
        first: Any = tensors[0]
        y = torch.empty_like(first) if y_alike else empty_like(first, s.dtype)
        x = None if s.x_dtype is None else torch.empty_like(first) if x_alike else empty_like(first, s.x_dtype)
        stats = first.new_empty(M, operator.statistics, dtype=arithmetic(s.dtype)) if save else None
        if launch is not None:
            given = tensors if adjacent else placed(tensors, operator.kinds, s.N)
            E, of_rows = len(operator.entering), stats if operator.statistics else None
            launch(programs, given[:E], given[E:], y, x, of_rows, *scalars)
        return y, x, stats


class Sums(NamedTuple):
    """The launch that adds up the partial sums of some operands."""

    launch: Any
    programs: int
    which: tuple[int, ...]  # operands
    rows: int  # of partial sums, for each total

    def arguments(self, partials: Tensors, totals: Sequence[Tensor | None]) -> tuple[Any, ...]:
        """Of those of all operands."""
        return tuple([partials[i] for i in self.which]), tuple([totals[i] for i in self.which]), self.rows


class Backward(NamedTuple):
    """A backward pass on tensors of certain shapes and dtypes, with certain gradients."""

    operator: RowOperator
    dtypes: Dtypes  # of the gradients that kernels write
    twin: int | None  # the operand whose gradient is another one too, if there is one
    source: int | None  # the operand whose gradient that is; None: it is y's
    launch: Any  # None where kernels write no gradient
    P: int
    M: int
    T: int  # rows of a batch
    partial: tuple[bool, ...]  # of which operands the kernel writes partial sums
    within: Sums | None  # that the launch does itself
    sums: tuple[Sums, ...]  # that follow it

    def of(self, call: BackwardCall) -> list[Tensor | None]:
        """The gradients of the operands, each None unless needed."""
        operator, dtypes, twin, source, launch, P, M, T, partial, within, sums = self
        dy, dx, x, tensors, _, stats, s, _ = call
        gradients = [
            None if dtype is None else empty_like(dy if t is None else t, dtype) for t, dtype in zip(tensors, dtypes)
        ]
        if launch is not None:
            E, of_rows, targets = len(operator.entering), stats if operator.statistics else None, tuple(gradients)
            if sums or within is not None:
                targets = tuple(
                    [stats.new_empty(P, s.N) if g is not None and p else g for g, p in zip(gradients, partial)]
                )
            read = list(tensors)
            for i in operator.unread:
                read[i] = None
            given = placed((dy, dx, x, *read), operator.read_kinds, s.N)
            added = () if within is None else (*within.arguments(targets, gradients), within.programs)
            launch(P, given[:3], given[3 : 3 + E], given[3 + E :], of_rows, targets[:E], targets[E:], M, T, s.p, *added)
            for of in sums:
                of.launch(of.programs, *of.arguments(targets, gradients))
        if twin is not None:
            gradients[twin] = dy if source is None else gradients[source]
        return gradients


class RowOperator(RowPlans):
    """A declaration, carried out.  Tensors come in the order of its operands, None where one is absent."""

    def batches(self, tensors: Sequence[Tensor | None]) -> int:
        for i in self.by_batch:
            t = tensors[i]
            if t is not None:
                return t.shape[0]
        return 1

    def forward(
        self, tensors: Tensors, s: Settings, save: bool, device: Device
    ) -> tuple[Tensor, Tensor | None, Tensor | None]:
        """(y, x, stats), as `Forward.on` has them."""
        return self.prepared(tensors, s, save, device).on(tensors)

    def prepared(self, tensors: Tensors, s: Settings, save: bool, device: Device | None) -> Forward:
        """What `forward` does with tensors like these."""
        first, dtypes = tensors[0], dtypes_of(tensors)
        assert first is not None
        adjacent, M = contiguous(tensors), first.numel() // s.N if s.N else 0
        alike = adjacent and first.dtype == s.dtype, adjacent and first.dtype == s.x_dtype
        if device is None or not M:
            return Forward(self, s, save, dtypes, adjacent, alike, device, M, None, 0, (), {})
        plan = self.forward_plan(s.N, dtypes, s.dtype, s.x_dtype, save and self.statistics > 0, device)
        scalars = M, M // self.batches(tensors), s.eps, s.p
        return Forward(self, s, save, dtypes, adjacent, alike, device, M, plan.launch, plan.count(M), scalars, {})

    def backward_call(
        self,
        dy: Tensor | None,
        dx: Tensor | None,
        x: Tensor | None,
        tensors: Tensors,
        dtypes: Dtypes,
        stats: Tensor,
        s: Settings,
        needs: tuple[bool, ...],
    ) -> BackwardCall:
        """From the gradients of the results that were used, at least one.

        Where y was not, what finishes it is absent and has no gradient, and rows of zeros are normalized: a gradient of
        zeros would become NaN in rows that are not finite.
        """
        if dy is not None:
            return BackwardCall(dy, dx, x, tensors, dtypes, stats, s, needs)
        assert x is not None  # dx may be many gradients at once
        E, M, absent = len(self.entering), x.numel() // s.N if s.N else 0, (None,) * len(self.finishing)
        dy, x = (x.new_zeros(s.N, dtype=dtype).expand(M, s.N).view(x.shape) for dtype in (s.dtype, s.x_dtype))
        tensors, dtypes, needs = (*tensors[:E], *absent), (*dtypes[:E], *absent), (*needs[:E], *map(bool, absent))
        return BackwardCall(dy, dx, x, tensors, dtypes, torch.zeros_like(stats), s._replace(eps=1.0), needs)

    def backward(self, call: BackwardCall, device: Device) -> list[Tensor | None]:
        """The gradients of the operands, each None unless needed."""
        if call.stats.shape[0]:
            return self.prepared_backward(call, device).of(call)
        like = [call.dy if t is None else t for t in call.tensors]
        return [
            torch.zeros_like(t, dtype=dtype, memory_format=torch.contiguous_format) if needed else None
            for t, dtype, needed in zip(like, call.dtypes, call.needs)
        ]

    def prepared_backward(self, call: BackwardCall, device: Device) -> Backward:
        """What `backward` does with tensors like these, of which there are rows."""
        dy, dx, x, tensors, dtypes, stats, s, needs = call
        M, S = stats.shape[0], self.batches(tensors)
        plans = self.backward_plan(s.N, dtypes_of((dy, dx, x)), stats.dtype, dtypes, needs, device)
        batches = S if self.batched else 1
        P = plans.kernels[0].count(M, batches)
        alone = () if batches < P else SUMMED if P == 1 else (BATCHES, GROUPS)  # whose sums are the gradients
        partial = tuple([kind in SUMMED and kind not in alone for kind in self.kinds])
        kernel = plans.kernels[0 if not alone else 2 if P == 1 else 1].launch
        within, sums = None, []
        for kinds, plan, of in zip(SUMS_OF, (plans.columns, plans.batches), (1, batches)):
            if plan is not None and kinds[0] not in alone:
                which = tuple([i for i, kind in enumerate(self.kinds) if kind in kinds])
                found = Sums(plan.launch, of * plan.count(s.N), which, P // of)
                if isinstance(kernel, WideColumns) and kernel.adds == kinds:
                    within = found
                else:
                    sums.append(found)
        launch, sizes = kernel if plans.writes else None, (P, M, M // S)
        return Backward(self, plans.dtypes, plans.twin, plans.source, launch, *sizes, partial, within, tuple(sums))

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
