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


def placed(tensors: Sequence[Tensor | None], kinds: Sequence[str], N: int) -> tuple[Any, ...]:
    """As the kernels take them.  Rows whose values are not adjacent are copied."""
    found: list[Any] = []
    for t, kind in zip(tensors, kinds):
        if t is None:
            found.append(())
        elif t.is_contiguous():
            found.append((t,))
        elif kind in (ROWS, BATCHES, GROUPS):
            rows, stride = contiguous_rows(t, N)
            found.append((rows,) if stride is None else (rows, stride))
        else:
            found.append((t.contiguous(),))
    return tuple(found)


def written(tensors: Sequence[Tensor | None]) -> tuple[Any, ...]:
    """Contiguous tensors as the kernels take them."""
    return tuple([() if t is None else (t,) for t in tensors])


def dtypes_of(tensors: Sequence[Tensor | None]) -> Dtypes:
    return tuple([None if t is None else t.dtype for t in tensors])
