"""gated_rms_norm with group_size: each group of a row normalized by itself, with its own part of the weight."""

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.problems import BF16, F32, F64, rand
from tests.helpers.tolerance import assert_close

WIDE = 8192 + 77  # backward in chunks
both = pytest.mark.parametrize("first", [True, False])


def oracle(x: Tensor, gate: Tensor, weight: Tensor | None, size: int, first: bool) -> Tensor:
    def groups(t: Tensor) -> Tensor:
        return t.unflatten(-1, (-1, size))

    silu = F.silu(gate)
    y = F.rms_norm(groups(x if first else x * silu), (size,), None, 1e-5).flatten(-2)
    y = y if weight is None else y * weight
    return y * silu if first else y


@both
@pytest.mark.parametrize(
    ("dtype", "rows", "size", "groups"),
    [
        *((F32, *shape) for shape in ((1, 7, 3), (5, 64, 4), (300, 32, 5), (40, 100, 1), (3, WIDE, 2))),
        (BF16, 300, 32, 5),
        *thorough((BF16, 1, 7, 3), (F64, 1, 7, 3), (F64, 300, 32, 5)),
    ],
    ids=str,
)
def test_values_and_gradients(
    rows: int, size: int, groups: int, dtype: torch.dtype, first: bool, device: torch.device
) -> None:
    N = size * groups
    x, gate, dy = (rand(rows, N, dtype=dtype, device=device, seed=s) for s in (1, 2, 3))
    w = rand(N, dtype=dtype, device=device, seed=4)
    leaves = [t.requires_grad_() for t in (x, gate, w)]
    y = tritonln.gated_rms_norm(*leaves[:2], N, w, 1e-5, norm_before_gate=first, group_size=size)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    ref = oracle(*wide, size, first)
    assert_close("y", y.detach(), ref.detach())
    expected = torch.autograd.grad(ref, wide, dy.double())
    for name, got, want in zip(("dx", "dgate", "dw"), torch.autograd.grad(y, leaves, dy), expected):
        # Gradients are differences of terms as large as the products of their factors.
        scale = float(want.abs().max()) + 1.0
        assert_close(name, got, want, rows if name == "dw" else 1, 4.0, scale)
        assert got.dtype == dtype


@both
def test_several_programs_share_a_group_and_repeat_to_the_bit(first: bool, device: torch.device) -> None:
    x, gate, dy = (rand(2000, 2 * 64, dtype=F32, device=device, seed=s) for s in (1, 2, 3))
    w = rand(2 * 64, dtype=F32, device=device, seed=4)
    leaves = [t.requires_grad_() for t in (x, gate, w)]

    def run() -> tuple[Tensor, ...]:
        y = tritonln.gated_rms_norm(*leaves[:2], 128, w, 1e-5, norm_before_gate=first, group_size=64)
        return y, *torch.autograd.grad(y, leaves, dy)

    once, again = run(), run()
    wide = [t.detach().double().requires_grad_() for t in leaves]
    expected = torch.autograd.grad(oracle(*wide, 64, first), wide, dy.double())
    assert all(a.equal(b) for a, b in zip(once, again))
    assert_close("dw", once[3], expected[2], 2000, 4.0)


@both
def test_without_weight_strides_and_derivatives(first: bool, device: torch.device) -> None:
    x, gate = (rand(4, 3, 40, dtype=F64, device=device, seed=s)[:, 1, :12] for s in (1, 2))
    y = tritonln.gated_rms_norm(x, gate, 12, None, 1e-5, norm_before_gate=first, group_size=4)
    torch.testing.assert_close(y, oracle(x, gate, None, 4, first), rtol=1e-12, atol=1e-12)
    w = rand(12, dtype=F64, device=device, seed=3)
    leaves = [t.detach().requires_grad_() for t in (x, gate, w)]
    f = lambda x, gate, w: tritonln.gated_rms_norm(x, gate, 12, w, 1e-5, norm_before_gate=first, group_size=4)  # noqa: E731
    assert torch.autograd.gradcheck(f, leaves)
    assert torch.autograd.gradgradcheck(f, leaves)


@pytest.mark.parametrize("size", [5, 0, -4, 4.0])
def test_a_size_that_does_not_divide_the_row(size: object) -> None:
    x = torch.zeros(2, 12)
    with pytest.raises(
        ValueError, match="expected group_size to be an integer that divides the row length 12, but got"
    ):
        tritonln.gated_rms_norm(x, x, 12, group_size=size)  # type: ignore[arg-type]
