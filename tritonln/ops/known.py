"""Calls like an earlier one, which are neither checked nor planned again.

A call is known by what it says beside its tensors (a key), and by a guard of these: torch's own, which compiled code is
guarded with.  It compares, of each tensor, the class, the dispatch keys (device type, layout, lazily negated or zero,
and what transforms, modes, autocast and inference mode make of them), dtype, device, requires_grad, sizes and strides.
"""

from __future__ import annotations

from collections.abc import Hashable, Sequence
from typing import Any

import torch
from torch import Tensor
from torch._C import _len_torch_dispatch_stack
from torch._C._dynamo.guards import TensorGuards
from torch.overrides import has_torch_function_variadic

from tritonln.configurations.lookup import Known
from tritonln.device import kernels_on
from tritonln.ops.contract import transformed

MOST = 8  # calls of one key

Description = tuple[tuple[Any, ...], list[Any]]  # a key, and the tensors that are there

KNOWN: Known[tuple[tuple[Any, Any], ...]] = Known()  # by key: guards, and what a call was prepared to


def described(function: Any, tensors: Sequence[Any], shape: Sequence[int], *numbers: Any) -> Description | None:
    """All that the results of a call depend on beside what is stored: two calls of one description are checked and
    computed alike.  The tensors are in the order of the operands, and `shape` is normalized_shape.

    None where a call may depend on more: torch looks on, or no kernel serves the first tensor.
    """
    if (
        torch.compiler.is_compiling()
        or has_torch_function_variadic(*tensors)
        or _len_torch_dispatch_stack()
        or transformed()
    ):
        return None
    given = [t for t in tensors if t is not None]
    absent = None if len(given) == len(tensors) else tuple([t is None for t in tensors])
    try:
        first = tensors[0]
        device, size = kernels_on(first.device), first.shape
        row = torch.Size(shape)  # which takes no float, though one may equal a size
    except (AttributeError, RuntimeError, TypeError):  # no tensor, a nested one, another device, or no shape
        return None
    if device is None:
        return None
    autocast = device.type != "cpu" and torch.is_autocast_enabled(device.type)
    return (function, device, autocast, torch.is_grad_enabled(), absent, size, row, *numbers), given


def known(description: Description | None) -> Any:
    """What an earlier call of this description was prepared to."""
    if description is None:
        return None
    key, given = description
    try:
        found = KNOWN.get(key, ())
    except TypeError:  # a number is not hashable, such as an array of numpy's
        return None
    for guards, prepared in found:
        if guards.check(*given):
            return prepared
    return None


def remember(description: Description | None, prepared: Any) -> None:
    """The next call of that description is `known`.  Of plain tensors, given as the operator has them."""
    if description is None:
        return
    key, given = description
    if all(isinstance(part, Hashable) and not isinstance(part, Tensor) for part in key):
        guards = _guards(given) if len({*map(id, given)}) == len(given) else Repeated(given)
        KNOWN.remember(key, ((guards, prepared), *KNOWN.get(key, ()))[:MOST])


def _guards(given: Sequence[Tensor]) -> TensorGuards:
    sizes, strides = [list(t.shape) for t in given], [list(t.stride()) for t in given]
    return TensorGuards(*given, dynamic_dims_sizes=sizes, dynamic_dims_strides=strides)  # type: ignore[arg-type]


class Repeated:
    """Guards of tensors some of which are given twice: torch's own want each once."""

    def __init__(self, given: Sequence[Tensor]):
        first: dict[int, int] = {}
        self.places = [first.setdefault(id(t), i) for i, t in enumerate(given)]  # where each is given first
        self.once = list(first.values())
        self.guards = _guards([given[i] for i in self.once])

    def check(self, *given: Any) -> bool:
        for i, t in zip(self.places, given):
            if given[i] is not t:
                return False
        return self.guards.check(*[given[i] for i in self.once])
