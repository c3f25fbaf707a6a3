"""A call like an earlier one is not checked again: it is told from all that would be refused or computed otherwise."""

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tritonln
from tritonln.ops.known import KNOWN

pytestmark = pytest.mark.interpreted


@pytest.fixture
def operands(device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """(x, weight, bias), and a call of them that is known, as no other one is."""
    KNOWN.clear()
    x, weight, bias = torch.randn(3, 64, device=device), torch.randn(64, device=device), torch.randn(64, device=device)
    tritonln.layer_norm(x, 64, weight, bias)
    return x, weight, bias


def unchecked(*_: Any, **__: Any) -> None:
    raise AssertionError("checked")


def test_one_like_it_is_not_checked(operands: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    x, weight, bias = operands
    monkeypatch.setattr("tritonln.ops.layer_norm.check", unchecked)
    torch.testing.assert_close(tritonln.layer_norm(x + 1, 64, weight, bias), F.layer_norm(x + 1, (64,), weight, bias))
    others: list[dict[str, Any]] = [
        {"input": x[:2]},
        {"input": x.double()},
        {"input": torch.randn(64, 3, device=x.device).t()},
        {"weight": None},
        {"weight": weight.bfloat16()},
        {"eps": 1e-3},
        {"weight": weight.clone().requires_grad_()},
        {"weight_offset": 1.0},
    ]
    for other in others:
        with pytest.raises(AssertionError, match="checked"):
            tritonln.layer_norm(**{"input": x, "normalized_shape": 64, "weight": weight, "bias": bias, **other})
    with tritonln.tuning.policy("lookup"), pytest.raises(AssertionError, match="checked"):
        tritonln.layer_norm(x, 64, weight, bias)


@pytest.mark.parametrize(
    "wrong", [{"normalized_shape": 64.0}, {"normalized_shape": (64.0,)}, {"eps": [1e-5]}, {"weight_offset": None}]
)
def test_what_equals_a_known_argument_is_refused(operands: Any, wrong: dict[str, Any]) -> None:
    x, weight, bias = operands
    with pytest.raises(TypeError):
        tritonln.layer_norm(**{"input": x, "normalized_shape": 64, "weight": weight, "bias": bias, **wrong})


def test_a_number_that_may_change_is_not_remembered(operands: Any) -> None:
    x, weight, bias = operands
    p = torch.zeros(())
    for _ in range(2):
        tritonln.add_layer_norm(x, x, 64, weight, bias, dropout_p=p)  # type: ignore[arg-type]
    assert not any(isinstance(part, Tensor) for key in KNOWN for part in key)
    p.fill_(2.0)
    with pytest.raises(ValueError, match="probability"):
        tritonln.add_layer_norm(x, x, 64, weight, bias, dropout_p=p)  # type: ignore[arg-type]


def test_gradients_that_are_asked_for_in_turn(operands: Any) -> None:
    """Backward of one known call writes what is asked for this time."""
    x, weight, bias = (t.requires_grad_() for t in operands)
    dy = torch.randn_like(x)
    for leaves in ((x, weight, bias), (x,), (weight,), (x, weight, bias)):
        found = torch.autograd.grad(tritonln.layer_norm(x, 64, weight, bias), leaves, dy)
        for got, ref in zip(found, torch.autograd.grad(F.layer_norm(x, (64,), weight, bias), leaves, dy), strict=True):
            torch.testing.assert_close(got, ref)
