"""Every operator as a function of tensors by name, and what is done with each."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.family import FAMILY, call, operands
from tests.helpers.problems import F32, rand
from tests.helpers.recurrent import flat, gru_problem, lstm_problem

CPU = torch.device("cpu")
N = 8
Tensors = dict[str, Tensor]
Function = Callable[[Tensors], tuple[Tensor, ...]]


def qk(t: Tensors) -> tuple[Tensor, Tensor]:
    return tritonln.qk_norm(t["x"], t["k"], t["q_weight"], t["k_weight"])


FUNCTIONS: dict[str, Function] = {
    "layer_norm": lambda t: (tritonln.layer_norm(t["x"], N, t["weight"], t["bias"]),),
    "rms_norm": lambda t: (tritonln.rms_norm(t["x"], N, t["weight"]),),
    **{name: functools.partial(lambda name, t: call(name, t, N), name) for name in FAMILY},
    "qk_norm": qk,
}
PROBLEMS: dict[str, Any] = {"layer_norm_lstm": lstm_problem, "layer_norm_gru": gru_problem}
RECURRENT: dict[str, Function] = {
    name: functools.partial(lambda name, t: tuple(flat(getattr(tritonln, name)(**t))), name) for name in PROBLEMS
}
NORMS, FUNCTIONS = list(FUNCTIONS), {**FUNCTIONS, **RECURRENT}
each = pytest.mark.parametrize("name", FUNCTIONS)
each_norm = pytest.mark.parametrize("name", NORMS)
# One of each kind of operand and result.
SOME = ["layer_norm", "add_rms_norm", "add_adaptive_layer_norm", "qk_norm"]
some_norms = pytest.mark.parametrize("name", SOME)
each_norm_thoroughly = pytest.mark.parametrize(
    "name", [*SOME, *thorough(*(name for name in NORMS if name not in SOME))]
)
some = pytest.mark.parametrize("name", [*SOME, *RECURRENT])


def tensors_of(name: str, device: torch.device) -> Tensors:
    if name == "qk_norm":
        sizes = {"x": (3, 6, 2, N), "k": (3, 6, 1, N), "q_weight": (N,), "k_weight": (N,)}
        return {word: rand(*size, dtype=F32, device=device, seed=i) for i, (word, size) in enumerate(sizes.items())}
    if name in RECURRENT:
        return PROBLEMS[name](3, 2, 4, 5, F32, device)  # whose kernels other tests compile too
    if name in FAMILY:
        return operands(name, (3, 6, N), F32, device)
    words = ("x", "weight", "bias")[: 3 if name == "layer_norm" else 2]
    given = operands("add_layer_norm", (3, 6, N), F32, device)
    return {word: given[word] for word in words}


def derived(function: Function, tensors: Tensors) -> list[Any]:
    leaves = {word: t.detach().requires_grad_() for word, t in tensors.items()}
    outputs = function(leaves)
    loss = torch.stack([(y * torch.linspace(-1, 1, y.shape[-1], device=y.device)).pow(3).sum() for y in outputs]).sum()
    return [*outputs, *torch.autograd.grad(loss, list(leaves.values()))]


def same(found: Any, expected: Any) -> None:
    """To the bit."""
    for out, ref in zip(found, expected, strict=True):
        assert torch.equal(out, ref)
