"""How qk_norm's custom ops run on DTensors: heads, tokens and batches may be sharded, the values of a head not."""

from __future__ import annotations

from typing import Any

from torch.distributed.tensor import Partial, Placement, Replicate, Shard
from torch.distributed.tensor.experimental import register_sharding

from tritonln.ops import library
from tritonln.ops.qk_norm_rows import Tensors
from tritonln.ops.row_sharding import Sharding, placed, present, seen


def register() -> None:
    """Makes the shardings known to torch."""

    def forward(*specs: Any) -> list[Sharding]:
        arguments = seen(specs)
        t = Tensors(*arguments[:8])
        return [([heads, heads], placed(arguments, present(t, given))) for heads, given in _ways(t)]

    def backward(*specs: Any) -> list[Sharding]:
        arguments = seen(specs)
        (dq, dk), t, needs = arguments[:2], Tensors(*arguments[2:10]), arguments[12]
        found: list[Sharding] = []
        for heads, given in _ways(t):
            shared: Placement = Replicate() if heads.is_replicate() else Partial()
            wanted = [needed and dy is not None for needed, dy in zip(needs, (dq, dk) * 3)]
            gradients = [g if w else Replicate() for g, w in zip((heads, heads, *[shared] * 4), wanted)]
            found.append((gradients, placed(arguments, [*present((dq, dk), [heads] * 2), *present(t, given)])))  # type: ignore[arg-type]
        return found

    register_sharding(library.op("qk_norm"))(forward)
    register_sharding(library.op("qk_norm_backward"))(backward)


def _ways(t: Any) -> list[tuple[Placement, list[Placement]]]:
    """Of q and k, and of all tensors."""
    whole: Placement = Replicate()
    found: list[tuple[Placement, list[Placement]]] = [(whole, [whole] * 8)]
    for dim in range(len(t.q.shape) - 1):
        angles = _of_angles(t, dim)
        found.append((Shard(dim), [Shard(dim), Shard(dim), *[whole] * 4, angles, angles]))
    return found


def _of_angles(t: Any, dim: int) -> Placement:
    """Of cos and sin, (*, T, N) beside q of (*, T, heads, N), of which dimension `dim` is sharded."""
    if t.cos is None or dim == len(t.q.shape) - 2:
        return Replicate()
    own = dim - (len(t.q.shape) - 1 - len(t.cos.shape))
    return Shard(own) if own >= 0 and t.cos.shape[own] == t.q.shape[dim] else Replicate()
