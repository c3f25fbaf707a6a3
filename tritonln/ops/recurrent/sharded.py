"""Recurrent operators on tensors that override functions: on DTensors each rank has a part of the batch."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable, Mapping
from typing import Any, TypeVar, cast

import torch
from torch import Tensor
from torch.overrides import handle_torch_function, has_torch_function
from torch.utils._pytree import tree_map_only

from tritonln.ops.overridden import is_expanded
from tritonln.ops.subclasses import is_distributed

Operator = TypeVar("Operator", bound=Callable[..., Any])
# Which dimension of an argument is the batch; all other tensors are whole on each rank.
BATCH = {"x": 1, "h0": 0, "c0": 0, "lengths": 0, "resets": 1}


def overridable(operator: Operator) -> Operator:
    """The operator with torch's protocol of overrides, and of DTensors."""
    signature = inspect.signature(operator)

    @functools.wraps(operator)
    def called(*arguments: Any, **options: Any) -> Any:
        tensors = [t for t in (*arguments, *options.values()) if isinstance(t, Tensor)]
        if any(map(is_expanded, tensors)):
            return by_sample(operator, signature.bind(*arguments, **options).arguments)
        if has_torch_function(tensors):
            return handle_torch_function(called, tensors, *arguments, **options)
        if any(is_distributed(type(t)) for t in tensors):
            return by_batch(operator, signature.bind(*arguments, **options).arguments)
        return operator(*arguments, **options)

    return cast(Operator, called)


def by_sample(operator: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """operator(**arguments), some of whose parameters are ExpandedWeights: a batch of one for each sample."""
    from tritonln.ops import expanded_weights  # whose module of torch nothing else imports

    def of_one(**sample: Any) -> Any:
        ones = {name: t.unsqueeze(BATCH[name]) for name, t in sample.items() if name in BATCH and t is not None}
        return tree_map_only(Tensor, lambda t: t.squeeze(t.dim() - 2), operator(**{**sample, **ones}))

    found = expanded_weights.by_sample(operator.__name__, of_one, arguments, BATCH)
    return tree_map_only(Tensor, lambda t: t.movedim(0, t.dim() - 2), found)


def by_batch(operator: Callable[..., Any], arguments: Mapping[str, Any]) -> Any:
    """operator(**arguments) on the batch of each rank.

    The batch is sharded as that of x; any other sharding is undone.  Tensors that are none of DTensor count as
    replicated.  Results are sequences (T, B, ...) and states (B, ...).
    """
    from torch.distributed.tensor import DTensor, Partial, Placement, Replicate, Shard  # takes a second to import

    x = arguments["x"]
    if not isinstance(x, DTensor):
        raise TypeError(f"{operator.__name__}: expected x to be a DTensor beside others, but got {type(x).__name__}")
    mesh, cut = x.device_mesh, [placement.is_shard(1) for placement in x.placements]

    def placed(dim: int | None) -> list[Placement]:
        return [Shard(dim) if sharded and dim is not None else Replicate() for sharded in cut]

    def local(t: Any, dim: int | None) -> Any:
        if not isinstance(t, Tensor):
            return t
        if not isinstance(t, DTensor):
            t = DTensor.from_local(t, mesh, [Replicate()] * len(cut), run_check=False)
        if t.placements != tuple(placed(dim)):  # redistributing to the same would sum the gradient at once
            t = t.redistribute(placements=placed(dim))
        # The gradient of what all batches share is a sum over them.
        sums: list[Placement] = [Partial() if sharded else Replicate() for sharded in cut]
        return t.to_local(grad_placements=sums if dim is None else placed(dim))

    def whole(t: Tensor) -> Tensor:
        dim = t.dim() - 2
        shape = torch.Size([*t.shape[:dim], x.shape[1], *t.shape[dim + 1 :]])
        stride = torch.empty(shape, device="meta").stride()
        return DTensor.from_local(t.contiguous(), mesh, placed(dim), run_check=False, shape=shape, stride=stride)

    found = operator(**{name: local(t, BATCH.get(name)) for name, t in arguments.items()})
    return tree_map_only(Tensor, whole, found)
