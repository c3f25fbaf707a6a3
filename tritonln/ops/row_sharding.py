"""How the custom ops of a row operator run on DTensors: which shardings of their operands need no communication.

Rows are independent of one another, so each dimension of x before those of a row may be sharded: results and gradients
of rows are sharded alike, and the gradient of what all rows share is Partial.  The groups of a row may be sharded, with
their weight.  All else, such as a sharded row, torch redistributes.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any, NamedTuple

import torch
from torch.distributed.tensor import Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from tritonln.ops import row_op
from tritonln.ops.operands import BY_BATCH, GROUPS, NOISE, ROWS
from tritonln.ops.rows import RowOperator

Placements = list[Placement | None]
Sharding = tuple[Placements, Placements]  # of results and of arguments, on one dimension of the mesh


class _Way(NamedTuple):
    """A placement of x, of every operand, and of their gradients."""

    rows: Placement
    operands: list[Placement]
    gradients: list[Placement]


def register(operator: RowOperator) -> None:
    """Makes the shardings of an operator known to torch."""

    def forward(*specs: Any) -> list[Sharding]:
        arguments = seen(specs)
        tensors, s, (save,) = row_op.read(operator, arguments)
        found = []
        for way in _ways(operator, tensors, tensors[0], s.N):
            results: Placements = [way.rows] * (1 + operator.returns_x)
            stats = way.rows if save else Replicate()  # empty where nothing is saved
            found.append(([*results, stats], placed(arguments, present(tensors, way.operands))))
        return found

    def backward(*specs: Any) -> list[Sharding]:
        arguments = seen(specs)
        call = row_op.read_backward(operator, arguments[0], arguments[1:])
        upstream = call.dy, call.dx, call.x
        found = []
        for way in _ways(operator, call.tensors, call.dy, call.s.N):
            of_rows = present(upstream, [way.rows] * 3)
            gradients: Placements = [g if needed else Replicate() for g, needed in zip(way.gradients, call.needs)]
            found.append((gradients, placed(arguments, [*of_rows, *present(call.tensors, way.operands), way.rows])))
        return found

    register_sharding(row_op.op(operator))(forward)
    register_sharding(row_op.backward_op(operator))(backward)


class Seen(NamedTuple):
    """A tensor as the rules see it."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: int  # the size of the mesh


def seen(arguments: Sequence[Any]) -> list[Any]:
    """Arguments of an op, with the specifications that torch gives in the place of tensors made readable."""
    return [
        Seen(a.tensor_meta.shape, a.tensor_meta.dtype, a.mesh.size()) if hasattr(a, "tensor_meta") else a
        for a in arguments
    ]


def placed(arguments: Sequence[Any], placements: Sequence[Placement]) -> Placements:
    """A placement for each argument that is a tensor, in order, None for the others."""
    each = iter(placements)
    return [next(each) if isinstance(a, Seen) else None for a in arguments]


def present(tensors: Sequence[Any], placements: Sequence[Placement]) -> list[Placement]:
    return [placement for t, placement in zip(tensors, placements) if t is not None]


def _ways(operator: RowOperator, tensors: Sequence[Any], x: Any, N: int) -> list[_Way]:
    """x, or a tensor of its shape, says what there is to shard; operands that are not kept are as x."""
    lead, groups = row_op.lead_of(operator, tensors, x.shape, N)
    whole: list[Placement] = [Replicate()] * len(tensors)
    ways = [_Way(Replicate(), whole, whole)]
    # Noise is drawn by the number of a row.
    if tuple(x.shape[: len(lead)]) != lead or any(
        kind == NOISE and t is not None for kind, t in zip(operator.kinds, tensors)
    ):
        return ways
    for dim in range(len(lead)):
        pairs = [_of_operand(kind, t, lead, dim, x.parts) for kind, t in zip(operator.kinds, tensors)]
        if all(pairs):
            ways.append(_Way(Shard(dim), *map(list, zip(*pairs))))  # type: ignore[arg-type]
    if operator.grouped and groups % x.parts == 0 and x.shape[len(lead)] % x.parts == 0:
        of_groups: list[Placement] = [Shard(0) if kind == GROUPS else Shard(len(lead)) for kind in operator.kinds]
        ways.append(_Way(Shard(len(lead)), of_groups, of_groups))
    return ways


def _of_operand(kind: str, t: Any, lead: Sequence[int], dim: int, parts: int) -> tuple[Placement, Placement] | None:
    """Of an operand and of its gradient, where dimension `dim` of x is sharded; None where that cannot be told."""
    if kind == ROWS:
        return Shard(dim), Shard(dim)
    if t is None or kind not in BY_BATCH or kind == GROUPS:
        return Replicate(), Partial()
    outer = next((i for i in range(len(lead) + 1) if math.prod(lead[:i]) == t.shape[0]), None)
    if outer is not None and dim >= outer:
        return Replicate(), Partial()
    if dim == 0 and (outer == 1 or lead[0] % parts == 0):  # else batches and x would be cut in different places
        return Shard(0), Shard(0)
    return None
