"""Norms of torch's ExpandedWeights (call_for_per_sample_grads): the gradient of a parameter for each sample of a batch.

A sample has a parameter of its own, a copy whose gradient goes to `grad_sample`; the rest is torch.vmap's.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils._expanded_weights.expanded_weights_impl import ExpandedWeight
from torch.nn.utils._expanded_weights.expanded_weights_utils import set_grad_sample_if_exists

OF_ALL = "weight", "bias", "q_weight", "k_weight", "q_bias", "k_bias", "cos", "sin"  # what all samples share


class _OfSamples(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, parameter: Any) -> Tensor:
        ctx.parameter = parameter
        weight = parameter.orig_weight.detach()
        return weight.expand(parameter.batch_size, *weight.shape)

    @staticmethod
    def backward(ctx: Any, gradients: Tensor) -> None:
        set_grad_sample_if_exists(ctx.parameter, lambda weight: gradients)


def by_sample(function: Callable[..., Any], named: Mapping[str, Any]) -> Any:
    """function(**named), some of whose parameters are ExpandedWeights."""
    given: dict[str, Tensor] = {}
    dims: dict[str, int | None] = {}
    for name, t in named.items():
        if isinstance(t, Tensor):
            expanded = isinstance(t, ExpandedWeight)
            given[name] = _OfSamples.apply(t) if expanded else t  # type: ignore[no-untyped-call]
            dims[name] = 0 if expanded or name not in OF_ALL else None
    return torch.vmap(lambda tensors: function(**{**named, **tensors}), (dims,))(given)
