"""Operators on torch's ExpandedWeights (call_for_per_sample_grads): gradients of parameters for each sample of a batch.

A sample has a parameter of its own, a copy whose gradient goes to `grad_sample`; the rest is torch.vmap's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils._expanded_weights.expanded_weights_impl import ExpandedWeight
from torch.nn.utils._expanded_weights.expanded_weights_utils import set_grad_sample_if_exists


class _OfSamples(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Any) -> Tensor:
        ctx.parameter = parameter
        weight = parameter.orig_weight.detach()
        return weight.expand(parameter.batch_size, *weight.shape)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> None:
        set_grad_sample_if_exists(ctx.parameter, lambda weight: gradients)


def by_sample(name: str, function: Callable[..., Any], named: Mapping[str, Any], batch: Mapping[str, int]) -> Any:
    """function(**named), some of whose parameters are ExpandedWeights, with the samples in front of the results.

    `batch` says in which dimension an argument has its samples; the first argument has them.  `name` is for errors.
    """
    word, x = next(iter(named.items()))
    if isinstance(x, ExpandedWeight):
        raise RuntimeError(
            "Expanded Weights do not support inputs that are also ExpandedWeights. "
            f"Input must be a Tensor, got {type(x).__name__} in function {name}"
        )
    size = x.shape[batch[word]]
    given: dict[str, Tensor] = {}
    dims: dict[str, int | None] = {}
    for word, t in named.items():
        if isinstance(t, ExpandedWeight):
            if t.batch_size != size:
                raise RuntimeError(
                    "Expected ExpandedWeights to have batch size matching input but got "
                    f"input batch size of {size} with ExpandedWeight of batch size {t.batch_size}"
                )
            given[word], dims[word] = _OfSamples.apply(t), 0  # type: ignore[no-untyped-call]
        elif isinstance(t, Tensor):
            given[word], dims[word] = t, batch.get(word)
    return torch.vmap(lambda tensors: function(**{**named, **tensors}), (dims,))(given)
