"""The operands of a row operator: how they are declared, and tensors as its kernels take them.

The kinds are those of kernels/operands.py.  As an operator sees them, tensors of ROWS have the shape of x or any other
of as many values, those of COLUMNS N values; those of BATCHES are (B, N) and of ONE_A_BATCH (B,), where the M rows of x
are B batches of as many rows that follow one another; those of GROUPS are (G, N), where row i is of group i % G; NOISE
is a seed, (1,) in int64.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tritonln.ops.contract import contiguous_rows

ROWS, BATCHES, GROUPS, COLUMNS, ONE_A_BATCH, NOISE = "M N", "B N", "G N", "N", "B", "noise"
BY_BATCH = (BATCHES, GROUPS, ONE_A_BATCH)
SUMMED = (COLUMNS, BATCHES, GROUPS)  # whose gradient is a sum over rows

Dtypes = tuple[torch.dtype | None, ...]
Tensors = tuple[Tensor | None, ...]


class Operand(NamedTuple):
    kind: str = ROWS
    absent: float | None = None  # the number that stands for it where it is not given; None: it must be given
    reread: bool = True  # whether the backward kernel reads it

    @property
    def axes(self) -> str:
        return {NOISE: "1", GROUPS: BATCHES}.get(self.kind, self.kind)


def placed(tensors: Tensors, kinds: Sequence[str], N: int) -> tuple[Any, ...]:
    """As a Launch takes them.  Rows whose values are not adjacent are copied."""
    return tensors if contiguous(tensors) else tuple([_placed(t, kind, N) for t, kind in zip(tensors, kinds)])


def contiguous(tensors: Tensors) -> bool:
    """Whether all of them are that are there."""
    return not [t for t in tensors if t is not None and not t.is_contiguous()]


def _placed(t: Tensor | None, kind: str, N: int) -> Any:
    if t is None or t.is_contiguous():
        return t
    if kind not in (ROWS, BATCHES, GROUPS):
        return t.contiguous()
    rows, stride = contiguous_rows(t, N)
    return rows if stride is None else (rows, stride)


def dtypes_of(tensors: Sequence[Tensor | None]) -> Dtypes:
    return tuple([None if t is None else t.dtype for t in tensors])
