"""What a row operator declares.

    y = finish(x_hat, *finishing)      x_hat = normalize(x)      x = enter(*entering)

An operator is this declaration and its parts, device functions that kernels/one_tile.py describes.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tritonln.ops.operands import BATCHES, BY_BATCH, COLUMNS, GROUPS, NOISE, ONE_A_BATCH, ROWS, SUMMED, Dtypes, Operand

# The gradients of the results, and x where it was one, or y where x_hat is restored from that.
UPSTREAM = "dy", "dx_out", "x_out"


class Parts(NamedTuple):
    """The device functions of an operator."""

    finish: Any
    finish_bwd: Any
    enter: Any = None
    enter_bwd: Any = None
    restore: Any = None  # of operators whose backward is given y and not x


@dataclasses.dataclass(frozen=True, eq=False)
class Declaration:
    """
    name:       of the operator; its kernels are NAME_fwd and NAME_bwd in tables and profiles
    parts:      gives the device functions
    finishing:  the operands that make y of x_hat
    entering:   those that x is made of; the first is one of ROWS and must be given
    centred:    whether the mean is taken out of a row; None: it is not normalized at all (elementwise.py)
    returns_x:  whether x is a result beside y.  It is then what backward reads, of the operands only those `reread`
    twins:      entering operands whose gradients are the same where nothing else enters
    passed:     the entering operand whose gradient is that of y itself; where nothing is normalized
    formula:    finish in torch, on tensors (M, N) and (N,) or numbers; enter_formula: enter in torch
    restore:    that part in torch, of operators that have it
    held:       tiles that the parts hold beside their operands
    aten:       forward and backward in torch's own operators, for devices without kernels; None: the formula
    """

    name: str
    parts: Callable[[], Parts]
    finishing: Mapping[str, Operand]
    entering: Mapping[str, Operand] = dataclasses.field(default_factory=lambda: {"x": Operand()})
    centred: bool | None = True
    returns_x: bool = False
    twins: tuple[str, ...] = ()
    passed: str | None = None
    formula: Callable[..., Tensor] | None = None
    enter_formula: Callable[..., Tensor] | None = None
    restore: Callable[..., Tensor] | None = None
    held: int = 0
    aten: Any = None

    @functools.cached_property
    def operands(self) -> dict[str, Operand]:
        return {**self.entering, **self.finishing}

    @functools.cached_property
    def kinds(self) -> tuple[str, ...]:
        return tuple(operand.kind for operand in self.operands.values())

    @functools.cached_property
    def by_batch(self) -> tuple[int, ...]:
        """Which operands say how many batches or groups there are."""
        return tuple(i for i, kind in enumerate(self.kinds) if kind in BY_BATCH)

    @functools.cached_property
    def batched(self) -> bool:
        """Whether gradients are summed over the rows of each batch or group: a program then has rows of one only."""
        return BATCHES in self.kinds or self.grouped

    @functools.cached_property
    def grouped(self) -> bool:
        return GROUPS in self.kinds

    @functools.cached_property
    def kept(self) -> tuple[bool, ...]:
        """Of each operand, whether backward needs it."""
        all_of_x = self.centred is not None and not self.returns_x  # which is made again
        return tuple(
            operand.reread or all_of_x or operand.kind != ROWS or name in self.finishing
            for name, operand in self.operands.items()
        )

    @functools.cached_property
    def unread(self) -> tuple[int, ...]:
        """The operands that the backward kernel does not read."""
        return tuple(i for i, operand in enumerate(self.operands.values()) if not operand.reread)

    @functools.cached_property
    def read_kinds(self) -> tuple[str, ...]:
        """Of what the backward kernel reads: `UPSTREAM` and the operands."""
        return (*(ROWS for _ in UPSTREAM), *self.kinds)

    @functools.cached_property
    def statistics(self) -> int:
        """Of a row."""
        return 0 if self.centred is None else 1 + self.centred

    @functools.cached_property
    def batches_given(self) -> bool:
        return self.batched or ONE_A_BATCH in self.kinds

    def usual_dtypes(self, x: torch.dtype, parameter: torch.dtype) -> Dtypes:
        """Of all operands, as a rule."""
        return tuple(torch.int64 if k == NOISE else parameter if k == COLUMNS else x for k in self.kinds)

    def twin(self, dtypes: Dtypes, needs: Sequence[bool]) -> tuple[int | None, int | None]:
        """The operand whose gradient is another one too, if there is one, and whose: its twin's, or y's (None)."""
        if self.passed is not None:
            i = tuple(self.entering).index(self.passed)
            return (i if needs[i] else None), None
        if not self.twins or sum(dtype is not None for dtype in dtypes[: len(self.entering)]) > len(self.twins):
            return None, 0
        a, b = (i for i, name in enumerate(self.entering) if name in self.twins)
        return (b if needs[a] and needs[b] and dtypes[a] == dtypes[b] else None), a

    def all_gradients(self, dtypes: Dtypes) -> tuple[bool, ...]:
        """Of which operands there is a gradient."""
        return tuple(dtype is not None and kind in (ROWS, *SUMMED) for dtype, kind in zip(dtypes, self.kinds))
