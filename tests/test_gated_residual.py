"""gated_residual: what only it has.  Its values, ways and derivatives are in test_family*.py, too."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

import tritonln
from tests.helpers.family import check, operands, results, upstream_of
from tests.helpers.problems import BF16, F32, F64, rand
from tritonln.launch import recorded

# Of x without its rows' length, and of the gate.
SHAPES = [((2, 3), (2, 1)), ((2, 3), (2, 3)), ((2, 3), (1, 3)), ((2, 3), ()), ((6,), (6,)), ((), ()), ((2, 3, 4), (2,))]


@pytest.mark.parametrize(("outer", "given"), SHAPES, ids=str)
def test_shapes(outer: tuple[int, ...], given: tuple[int, ...], device: torch.device) -> None:
    check("gated_residual", operands("gated_residual", (*outer, 40), F32, device, batches=given))


def test_programs_of_several_tiles(device: torch.device) -> None:
    """A program for each chunk of a row; some, and then one, for each batch."""
    for shape in ((2, 21, 1152), (100, 350, 8), (300, 70, 8)):
        check("gated_residual", operands("gated_residual", shape, BF16, device, F32))


def test_chunks_of_a_table_are_read_where_they_lie(device: torch.device) -> None:
    given = operands("gated_residual", (3, 4, 64), F32, device)
    table = rand(3, 6 * 64, dtype=F32, device=device, seed=5)
    check("gated_residual", {**given, "gate": table.chunk(6, 1)[5]})
    with recorded() as calls:
        tritonln.gated_residual(given["x"], given["y"], table.chunk(6, 1)[5])
    ((_, _, (entering, *_)),) = calls
    assert entering[2][0].data_ptr() == table[:, 5 * 64 :].data_ptr()
    assert entering[2][1] == 6 * 64


def test_the_gradient_of_x_is_that_of_the_result(device: torch.device) -> None:
    """Nothing is launched for it."""
    given = operands("gated_residual", (2, 3, 64), F32, device)
    (dy,) = upstream_of("gated_residual", given["x"])
    with recorded() as calls:
        found = results("gated_residual", given, (dy,), ["x"])
    assert found["dx"].data_ptr() == dy.data_ptr()
    assert len(calls) == 1


@pytest.mark.parametrize("autocast", [False, True])
def test_the_result_is_as_x(autocast: bool, device: torch.device) -> None:
    x, y, gate = (rand(2, *rest, 8, dtype=d, device=device) for d, rest in ((F32, (3,)), (BF16, (3,)), (BF16, ())))
    with torch.autocast(device.type, BF16, enabled=autocast):
        assert tritonln.gated_residual(x, y, gate).dtype == F32
        assert tritonln.gated_residual(y, x, gate).dtype == BF16


X, G = torch.zeros(2, 3, 8), torch.zeros(2, 8)
REFUSED: list[tuple[dict[str, Any], str]] = [
    ({"x": 3}, "argument 'x' must be Tensor, not int"),
    ({"x": X.int()}, "expected x of .*float64, but got .* of torch.int32"),
    ({"x": torch.zeros(())}, r"expected x of \(\*, N\) .*but got \[\] of"),
    ({"y": None}, "argument 'y' must be Tensor, not NoneType"),
    ({"y": X[:1]}, r"Expected y size \[2, 3, 8\], got \[1, 3, 8\]"),
    ({"y": X.double()}, "expected y of dtype float32, .*got torch.float64"),
    ({"y": X.to("meta")}, "same device, but got y is on meta"),
    ({"gate": None}, "argument 'gate' must be Tensor, not NoneType"),
    ({"gate": G[:, :7]}, r"Expected gate size \[2, 8\], \[2, 1, 8\] or \[2, 3, 8\] beside x .*got \[2, 7\]"),
    ({"gate": G.double()}, "expected gate of dtype float32"),
]


@pytest.mark.parametrize(("changed", "message"), REFUSED, ids=[message for _, message in REFUSED])
def test_refusals_name_the_argument(changed: dict[str, Any], message: str) -> None:
    plain: dict[str, Tensor] = {"x": X, "y": X, "gate": G}
    with pytest.raises((RuntimeError, TypeError), match=message):
        tritonln.gated_residual(**{**plain, **changed})


def test_fp64(device: torch.device) -> None:
    check("gated_residual", operands("gated_residual", (2, 3, 100), F64, device))
