"""Other people's kernels call the device functions of tritonln.kernels."""

import ast
import pathlib

import torch
import triton
import triton.language as tl

from tests.helpers.tolerance import assert_close
from tritonln.kernels.row import merge_moments, row_moments, row_standardize, row_sum2


@triton.jit
def residual_gelu_norm(x_ptr, residual_ptr, y_ptr, M, N, eps, BLOCK_M: tl.constexpr, BLOCK_N: tl.constexpr):
    """y = LN(gelu(x) + residual), a kernel this library does not have."""
    rows = tl.program_id(0) * BLOCK_M + tl.arange(0, BLOCK_M)[:, None]
    cols = tl.arange(0, BLOCK_N)[None, :]
    inside = (rows < M) & (cols < N)
    x = tl.load(x_ptr + rows * N + cols, mask=inside, other=0.0)
    residual = tl.load(residual_ptr + rows * N + cols, mask=inside, other=0.0)
    h = 0.5 * x * (1 + tl.erf(x * 0.7071067811865476)) + residual
    y, mean, rstd = row_standardize(h, cols < N, N, eps)
    tl.store(y_ptr + rows * N + cols, y, mask=inside)


@triton.jit
def two_halves(x_ptr, out_ptr, N, BLOCK_N: tl.constexpr):
    """Moments of a row from those of its halves, and two sums at once."""
    cols = tl.arange(0, BLOCK_N)[None, :]
    half = N // 2
    first = tl.load(x_ptr + cols, mask=cols < half, other=0.0)
    second = tl.load(x_ptr + half + cols, mask=cols < N - half, other=0.0)
    mean_a, var_a = row_moments(first, cols < half, half)
    mean_b, var_b = row_moments(second, cols < N - half, N - half)
    mean, var = merge_moments(mean_a, var_a, half, mean_b, var_b, N - half)
    total, squares = row_sum2(first, second * second)
    one = tl.zeros([1, 1], tl.int32)
    tl.store(out_ptr + one, mean)
    tl.store(out_ptr + 1 + one, var)
    tl.store(out_ptr + 2 + one, total)
    tl.store(out_ptr + 3 + one, squares)


def test_a_fused_kernel_of_a_user(device: torch.device) -> None:
    torch.manual_seed(0)
    x, residual = torch.randn(5, 100, device=device), torch.randn(5, 100, device=device)
    y = torch.empty_like(x)
    residual_gelu_norm[(3,)](x, residual, y, 5, 100, 1e-5, BLOCK_M=2, BLOCK_N=128)
    h = torch.nn.functional.gelu(x.double()) + residual.double()
    assert_close("y", y, torch.nn.functional.layer_norm(h, (100,)), terms=4)


def test_moments_merge(device: torch.device) -> None:
    torch.manual_seed(0)
    x = torch.randn(101, device=device) + 5
    out = torch.empty(4, device=device)
    two_halves[(1,)](x, out, 101, BLOCK_N=64)
    wide = x.double()
    expected = [wide.mean(), wide.var(correction=0), wide[:50].sum(), wide[50:].square().sum()]
    for name, value, ref in zip(("mean", "var", "sum", "squares"), out, expected):
        assert_close(name, value, ref, kappa=5)


def test_no_default_is_a_string() -> None:
    """Which Triton 3.6, the oldest that is allowed, does not compile in a function that a kernel calls."""
    files = (pathlib.Path(__file__).parents[1] / "kernels").rglob("*.py")
    functions = [f for file in files for f in ast.walk(ast.parse(file.read_text())) if isinstance(f, ast.FunctionDef)]
    assert len(functions) > 50
    for f in functions:
        strings = [d.value for d in f.args.defaults if isinstance(d, ast.Constant) and isinstance(d.value, str)]
        assert not strings, (f.name, strings)
