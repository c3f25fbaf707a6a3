"""Tensors as the operands of row kernels, which kernels/operands.py describes."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonln.ops.contract import contiguous_rows

Dtypes = tuple[torch.dtype | None, ...]


def stream_operands(streams: Sequence[Tensor], N: int) -> tuple[Any, ...]:
    found = []
    for stream in streams:
        rows, stride = contiguous_rows(stream, N)
        found.append((rows,) if stride is None else (rows, stride))
    return tuple(found)


def column_operands(columns: Sequence[Tensor | None]) -> tuple[Any, ...]:
    return tuple([() if c is None else (c.contiguous(),) for c in columns])


def operands(tensors: Sequence[Tensor | None]) -> tuple[Any, ...]:
    return tuple([() if t is None else (t,) for t in tensors])


def dtypes_of(streams: Sequence[Tensor], columns: Sequence[Tensor | None]) -> tuple[Dtypes, Dtypes]:
    return tuple([t.dtype for t in streams]), tuple([None if c is None else c.dtype for c in columns])
