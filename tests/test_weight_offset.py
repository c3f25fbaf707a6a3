"""Weights that are stored around zero, in layer_norm and rms_norm."""

from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jvp, vmap

import tritonln
from tests.helpers.problems import BF16, F32, F64, problem
from tests.helpers.tolerance import assert_close
from tritonln import reference


def offset_gradients(norm: Callable[..., Tensor], tensors: list[Tensor], dy: Tensor, **settings: object):  # type: ignore[no-untyped-def]
    """y and the gradients of everything; eps is 1e-5."""
    leaves = [t.detach().requires_grad_() for t in tensors]
    y = norm(leaves[0], dy.shape[-1:], *leaves[1:], eps=1e-5, **settings)
    return [y.detach(), *torch.autograd.grad(y, leaves, dy)]


@pytest.fixture(params=["kernels", "aten", "op"])
def way(request: pytest.FixtureRequest) -> Callable[[Callable[..., Tensor]], Callable[..., Tensor]]:
    """Eager with kernels and without, and compiled."""
    if request.param == "aten":
        request.getfixturevalue("without_kernels")
    if request.param != "op":
        return lambda norm: norm
    return lambda norm: torch.compile(norm, fullgraph=True, backend="aot_eager")


@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
@pytest.mark.parametrize("offset", [1.0, 0.1])
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_weight_offset(name: str, offset: float, way, dtype: torch.dtype, device: torch.device) -> None:  # type: ignore[no-untyped-def]
    """As a weight that the offset is added to; in the arithmetic's precision, so of a tiny weight nothing is lost."""
    x, w, b, dy = problem(5, 64, dtype, device)
    given = [x, w, b] if name == "layer_norm" else [x, w]
    found = offset_gradients(way(getattr(tritonln, name)), given, dy, weight_offset=offset)
    shifted = [t.double() + (offset if t is w else 0.0) for t in given]
    expected = offset_gradients(getattr(reference, name), shifted, dy.double())
    scale = reference.dx_scale(x, (64,), shifted[1], 1e-5, dy, centred=name == "layer_norm")
    for i, (got, want) in enumerate(zip(found, expected)):
        assert_close(f"{name} {i}", got, want, 5, 1.0 if got.dim() == 1 else 2.0, scale if i == 1 else 0.0)


def test_an_absent_weight_is_not_offset(way, device: torch.device) -> None:  # type: ignore[no-untyped-def]
    x, *_ = problem(5, 64, F32, device)
    for norm in (tritonln.rms_norm, tritonln.layer_norm):
        assert way(norm)(x, 64, None, weight_offset=1.5).equal(norm(x, 64))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["rms_norm", "layer_norm"])
def test_derivatives_with_an_offset(name: str, device: torch.device) -> None:
    x, w, _, dy = problem(3, 6, F64, device)
    ours = lambda x, w: getattr(tritonln, name)(x, (6,), w, eps=1e-5, weight_offset=1.5)  # noqa: E731
    theirs = lambda x, w: getattr(F, name)(x, (6,), w + 1.5, eps=1e-5)  # noqa: E731
    torch.testing.assert_close(jvp(ours, (x, w), (dy, w))[1], jvp(theirs, (x, w), (dy, w))[1])
    torch.testing.assert_close(vmap(ours, (0, None))(x, w), theirs(x, w))
    leaves = (x.requires_grad_(), w.requires_grad_())
    assert torch.autograd.gradcheck(ours, leaves)
    assert torch.autograd.gradgradcheck(ours, leaves)
