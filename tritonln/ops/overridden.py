"""Calls with tensors of classes that override functions: jagged nested tensors, and others by torch's own protocol."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.overrides import handle_torch_function

OF_ALL = "weight", "bias", "q_weight", "k_weight", "q_bias", "k_bias", "cos", "sin"  # what all samples share
OF_SEQUENCES = "scale", "shift", "gate", "row_scale"  # may have one row, or value, for each sequence


def is_jagged(t: Any) -> bool:
    """Whether t is a jagged nested tensor."""
    return isinstance(t, Tensor) and t.is_nested and t.layout == torch.jagged  # torch.fx's proxies only stand for one


def is_expanded(t: Any) -> bool:
    """Whether t is a parameter as call_for_per_sample_grads makes them."""
    return type(t).__name__ == "ExpandedWeight"


def jagged_in_graph(t: Any) -> bool:
    """Whether t is one that compiled code takes for a tensor that overrides nothing."""
    return torch.compiler.is_compiling() and is_jagged(t)


def overridden(function: Callable[..., Any], tensors: Sequence[Tensor | None], *arguments: Any, **options: Any) -> Any:
    """function(*arguments, **options), some of whose tensors override it."""
    named = {**dict(zip(_names(function), arguments)), **options}
    if any(is_expanded(t) for t in tensors):
        from tritonln.ops.expanded_weights import by_sample  # whose module of torch nothing else imports

        return by_sample(function.__name__, function, named, {word: 0 for word in named if word not in OF_ALL})
    if not any(is_jagged(t) for t in tensors):
        return handle_torch_function(function, tensors, *arguments, **options)
    word, like = next((word, t) for word, t in named.items() if is_jagged(t))
    if like.lengths() is not None:
        raise RuntimeError(
            f"{function.__name__}: expected {word} to be a jagged tensor without gaps between its sequences, as "
            f"contiguous() makes it, but got one of {list(like.shape)} with lengths"
        )
    given = {name: _values(function, name, t, word, like) for name, t in named.items()}
    found = function(**given)
    if isinstance(found, Tensor):
        return _jagged(found, like)
    return tuple([_jagged(t, like) for t in found])


def _names(function: Callable[..., Any]) -> tuple[str, ...]:
    return tuple(inspect.signature(function).parameters)


# As torch.compiler.assume_constant_result has it, whose call would import torch._dynamo.
_names._dynamo_marked_constant = True  # type: ignore[attr-defined]


def _values(function: Callable[..., Any], name: str, t: Any, word: str, like: Any) -> Any:
    """All sequences one after another; what belongs to a sequence is repeated for each of its rows."""
    if not isinstance(t, Tensor):
        return t
    if t.is_nested:
        if not is_jagged(t) or t.shape[t._ragged_idx] != like.shape[like._ragged_idx]:  # type: ignore[attr-defined]
            raise RuntimeError(
                f"{function.__name__}: expected {name} to have the offsets of {word}, which is {list(like.shape)}, "
                f"but got {list(t.shape)}"
            )
        return t.values()
    if name not in OF_SEQUENCES:
        return t
    B = like.size(0)
    row = [] if name == "row_scale" else list(like.values().shape[like._ragged_idx :])
    if t.numel() != B * torch.Size(row).numel() or t.shape[:1] != (B,):
        raise RuntimeError(
            f"{function.__name__}: Expected {name} size {[B, *row]} beside {word} of {list(like.shape)}, got "
            f"{list(t.shape)}"
        )
    rows = like.values().shape[like._ragged_idx - 1]
    return t.reshape(B, *row).repeat_interleave(like.offsets().diff(), dim=0, output_size=rows)


def _jagged(values: Tensor, like: Any) -> Tensor:
    return torch.nested.nested_tensor_from_jagged(values, like.offsets(), jagged_dim=like._ragged_idx)
