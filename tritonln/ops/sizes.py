"""Conditions on sizes, of which compiled code may have some that only the values of tensors tell, such as nonzero's."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch


def holds(condition: Any) -> bool:
    """Whether it does; False where only the values of tensors tell."""
    if condition is True or condition is False:
        return condition
    if isinstance(condition, torch.Tensor):  # of sizes in jit.trace
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import guard_or_false  # which imports sympy

    return guard_or_false(condition)


def agree(sizes: Sequence[Any], expected: Sequence[Any]) -> bool:
    """Whether they are equal, which is asserted at run time where only the values of tensors tell."""
    return len(sizes) == len(expected) and all(equal(a, b) for a, b in zip(sizes, expected))


def equal(a: Any, b: Any) -> bool:
    """The same of two sizes."""
    condition = a == b
    if condition is True or condition is False:
        return condition
    if isinstance(condition, torch.Tensor):
        return bool(condition)
    from torch.fx.experimental.symbolic_shapes import guard_or_true

    if not guard_or_true(condition):
        return False
    torch._check(condition)
    return True
