"""rms_norm with cast="llama" against the composition that transformers' Llama runs."""

import pytest
import torch
from torch import Tensor

import tritonln
from tests.helpers.problems import BF16, F16, F32, F64, WIDE, problem
from tests.helpers.tolerance import assert_close


def llama(x: Tensor, weight: Tensor, eps: float) -> Tensor:
    h = x.to(F64 if x.dtype == F64 else F32)
    h = h * torch.rsqrt(h.square().mean(-1, keepdim=True) + eps)
    return (weight * h.to(x.dtype)).to(x.dtype)


def ulps(a: Tensor, b: Tensor) -> int:
    """The most representable numbers that lie between values of the same sign."""
    bits = {2: torch.int16, 4: torch.int32, 8: torch.int64}[a.element_size()]
    return int((a.view(bits).long() - b.view(bits).long()).abs().max())


@pytest.mark.parametrize(
    ("dtype", "N"), [(BF16, 7), (BF16, 1000), (BF16, WIDE), (F16, 1000), (F32, 64), (F64, 64)], ids=str
)
def test_as_llama_in_values_and_gradients(N: int, dtype: torch.dtype, device: torch.device) -> None:
    x, w, _, dy = problem(5, N, dtype, device)
    leaves = [t.detach().requires_grad_() for t in (x, w)]
    y = tritonln.rms_norm(leaves[0], N, leaves[1], 1e-6, cast="llama")
    ref = llama(x, w, 1e-6)
    assert y.dtype == dtype
    # Where two orders of adding differ in the last bit, x_hat may round to the other side: one ulp of it, so two of y.
    assert ulps(y.detach(), ref) <= (2 if dtype in (BF16, F16) else 4)
    assert (y.detach() != ref).float().mean() < (0.001 if dtype in (BF16, F16) else 1.0)
    wide = [t.detach().double().requires_grad_() for t in (x, w)]
    expected = torch.autograd.grad(llama(*wide, 1e-6), wide, dy.double())
    for name, got, want in zip(("dx", "dw"), torch.autograd.grad(y, leaves, dy), expected):
        # x_hat is rounded once more than in the oracle.
        scale = float(dy.abs().max() * max(w.abs().max(), 4.0)) * (8.0 if dtype in (BF16, F16) else 1.0)
        assert_close(name, got, want, 5 if name == "dw" else 1, 8.0, scale)


def test_the_cast_is_seen(device: torch.device) -> None:
    """In bf16 the two casts differ in many values, and in fp32 in none."""
    x, w, _, _ = problem(40, 256, BF16, device)
    native, rounded = (tritonln.rms_norm(x, 256, w, cast=cast) for cast in ("native", "llama"))
    assert 0.01 < (native != rounded).float().mean() < 0.6
    native, rounded = (tritonln.rms_norm(x.float(), 256, w.float(), cast=cast) for cast in ("native", "llama"))
    assert native.equal(rounded)


def test_an_offset_is_added_before(device: torch.device) -> None:
    x, w, _, _ = problem(5, 64, BF16, device, F32)
    y = tritonln.rms_norm(x, 64, w, 1e-6, weight_offset=1.0, cast="llama")
    assert ulps(y, llama(x, 1 + w, 1e-6)) <= 1


@pytest.mark.usefixtures("without_kernels")
def test_without_kernels() -> None:
    x, w, _, _ = problem(5, 64, BF16, torch.device("cpu"))
    assert ulps(tritonln.rms_norm(x, 64, w, 1e-6, cast="llama"), llama(x, w, 1e-6)) <= 1


def test_compiled_is_the_same_op(device: torch.device) -> None:
    x, w, _, dy = problem(5, 64, BF16, device)
    leaves = [t.requires_grad_() for t in (x, w)]
    f = lambda x, w: tritonln.rms_norm(x, 64, w, cast="llama")  # noqa: E731
    compiled = torch.compile(f, fullgraph=True, backend="aot_eager")
    pairs = [(y := g(*leaves), *torch.autograd.grad(y, leaves, dy)) for g in (f, compiled)]
    assert all(a.equal(b) for a, b in zip(*pairs))


def test_an_unknown_cast() -> None:
    with pytest.raises(ValueError, match="expected cast to be one of 'native', 'llama', but got 'gemma'"):
        tritonln.rms_norm(torch.ones(2, 4), 4, cast="gemma")
