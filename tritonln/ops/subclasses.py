"""Tensors of classes that dispatch by themselves: which of them the custom ops serve."""

from __future__ import annotations

import sys
from collections.abc import Callable

from torch import Tensor
from torch.nn import Parameter

RULES: dict[str, Callable[[], None]] = {}  # of each operator, what tells torch how its custom ops run on DTensors
known: set[str] = set()  # the operators of which torch was told


def foreign(*tensors: Tensor | None) -> list[type]:
    """The classes among them that dispatch by themselves."""
    from torch._subclasses.fake_tensor import FakeTensor
    from torch._subclasses.functional_tensor import FunctionalTensor

    plain = (Tensor, Parameter, FakeTensor, FunctionalTensor)
    kinds = [type(t) for t in tensors if t is not None]
    return [kind for kind in kinds if kind not in plain and kind.__torch_dispatch__ is not Tensor.__torch_dispatch__]


def knows_only_aten(name: str, *tensors: Tensor | None) -> bool:
    """Whether a tensor is of a class that dispatches by itself and that the custom op of this name does not serve."""
    return any(not serves(name, kind) for kind in foreign(*tensors))


def serves(name: str, kind: type) -> bool:
    """DTensor, whose rules are made known at its first tensor: its import takes longer than that of tritonln."""
    if not is_distributed(kind):
        return False
    if name not in known:
        RULES[name]()
        known.add(name)
    return True


def is_distributed(kind: type) -> bool:
    """Whether a class of tensors is DTensor."""
    distributed = sys.modules.get("torch.distributed.tensor")
    return distributed is not None and kind is distributed.DTensor


# As torch.compiler.assume_constant_result has it, whose call would import torch._dynamo.
serves._dynamo_marked_constant = True  # type: ignore[attr-defined]
is_distributed._dynamo_marked_constant = True  # type: ignore[attr-defined]
