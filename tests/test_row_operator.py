"""Operators that are built from outside the package, by the README's way."""

from collections.abc import Callable

import pytest
import torch
import triton
from torch import Tensor

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.outside_operators import add, add_bwd, clamp, clamp_bwd, clamped_norm, gelu_affine, gelu_affine_bwd
from tests.helpers.outside_operators import layer_norm_gelu as gelu
from tests.helpers.problems import BF16, F16, F32, F64, rand
from tests.helpers.tolerance import assert_close

WIDE = 16_384 + 77
OPERATORS = {"layer_norm_gelu": (gelu, 1), "clamped_norm": (clamped_norm, 2)}
REFERENCES: dict[str, Callable[..., Tensor]] = {
    "layer_norm_gelu": lambda x_hat, weight, bias: torch.nn.functional.gelu(x_hat * weight + bias),
    "clamped_norm": lambda x_hat, limit, scale: x_hat.clamp(-limit, limit) * scale,
}


def operands(
    name: str, M: int, N: int, dtype: torch.dtype, device: torch.device, parameters: torch.dtype | None = None
):  # type: ignore[no-untyped-def]
    streams = [rand(M, N, dtype=dtype, device=device, seed=s) for s in range(OPERATORS[name][1])]
    columns = [rand(N, dtype=F64, device=device, seed=s).abs().add(0.5).to(parameters or dtype) for s in (7, 8)]
    return [*streams, *columns], rand(M, N, dtype=dtype, device=device, seed=9)


def oracle(name: str, tensors: list[Tensor], dy: Tensor) -> list[Tensor]:
    """y and the gradients, in fp64."""
    leaves = [t.detach().double().requires_grad_() for t in tensors]
    x = sum(leaves[:-2])
    assert isinstance(x, Tensor)
    x_hat = (x - x.mean(1, keepdim=True)) * (x.var(1, correction=0, keepdim=True) + 1e-5).rsqrt()
    y = REFERENCES[name](x_hat, *leaves[-2:])
    return [y.detach(), *torch.autograd.grad(y, leaves, dy.double())]


@pytest.mark.parametrize("name", OPERATORS)
@pytest.mark.parametrize(
    ("M", "N"), [(5, 1), (70, 64), (9, 100), (3, WIDE), *thorough((3, 7), (40, 1024), (140, 12_288))]
)
@pytest.mark.parametrize(("dtype", "parameters"), [(F32, F32), (BF16, F32), *thorough((F16, F16), (F64, F64))], ids=str)
def test_as_the_formula(
    name: str, M: int, N: int, dtype: torch.dtype, parameters: torch.dtype, device: torch.device
) -> None:
    tensors, dy = operands(name, M, N, dtype, device, parameters)
    leaves = [t.requires_grad_() for t in tensors]
    y = OPERATORS[name][0](*leaves)
    found = [y.detach(), *torch.autograd.grad(y, leaves, dy)]
    expected = oracle(name, tensors, dy)
    for i, (got, want) in enumerate(zip(found, expected)):
        # Gradients are differences of terms as large as their factors, 316 of them the rstd of rows of one value.
        factors = (dy, *tensors)
        scale = float(max(t.detach().double().abs().max() for t in factors)) ** 2 * (316 if N == 1 else 1) if i else 0.0
        assert_close(f"{name} {i}", got, want, M if got.dim() == 1 else 1, 64.0 if dtype == F64 else 8.0, scale)
    assert [t.dtype for t in found] == [dtype, *(t.dtype for t in tensors)]


@pytest.mark.parametrize("name", OPERATORS)
def test_strides_absent_columns_and_no_rows(name: str, device: torch.device) -> None:
    operator, n = OPERATORS[name]
    wide = [rand(9, 2, 60, dtype=F32, device=device, seed=s) for s in range(n)]
    strided, near = [t[:, 1, :50] for t in wide], [t[:, 1, :50].contiguous() for t in wide]
    torch.testing.assert_close(operator(*strided), operator(*near), rtol=0, atol=1e-6)
    ones = torch.ones(50, device=device)
    other = ones if name == "clamped_norm" else torch.zeros(50, device=device)
    torch.testing.assert_close(operator(*near), operator(*near, ones, other), rtol=0, atol=1e-6)
    empty = [t[:0].requires_grad_() for t in near]
    y = operator(*empty, ones.requires_grad_())
    assert y.shape == (0, 50)
    assert torch.autograd.grad(y.sum(), ones)[0].equal(torch.zeros(50, device=device))


@pytest.mark.parametrize("name", OPERATORS)
def test_the_same_bits_on_every_run_and_in_any_batch(name: str, device: torch.device) -> None:
    tensors, dy = operands(name, 300, 96, BF16, device, F32)

    def run(rows: slice) -> list[Tensor]:
        leaves = [
            *(t[rows].detach().requires_grad_() for t in tensors[:-2]),
            *(t.requires_grad_() for t in tensors[-2:]),
        ]
        y = OPERATORS[name][0](*leaves)
        return [y, *torch.autograd.grad(y, leaves, dy[rows])]

    first, second, part = run(slice(None)), run(slice(None)), run(slice(7, 9))
    assert all(a.equal(b) for a, b in zip(first, second))
    assert first[0][7:9].equal(part[0])
    assert first[1][7:9].equal(part[1])


@pytest.mark.filterwarnings("ignore:.*torch.jit.script:DeprecationWarning")  # torch.func's own
@pytest.mark.parametrize("name", OPERATORS)
def test_derivatives_and_compile(name: str, device: torch.device) -> None:
    operator = OPERATORS[name][0]
    tensors, dy = operands(name, 3, 6, F64, device)
    leaves = [t.requires_grad_() for t in tensors]
    assert torch.autograd.gradcheck(operator, leaves)
    assert torch.autograd.gradgradcheck(operator, leaves)
    compiled = torch.compile(operator, fullgraph=True, backend="aot_eager")
    for f in (operator, compiled):
        assert all(
            torch.allclose(a, b)
            for a, b in zip(torch.autograd.grad(f(*leaves), leaves, dy), oracle(name, tensors, dy)[1:])
        )
    y, tangent = torch.func.jvp(lambda x: operator(x, *tensors[1:]), (tensors[0].detach(),), (dy,))
    assert torch.allclose((tangent * dy).sum(), (oracle(name, tensors, dy)[1] * dy).sum())


def test_rows_that_are_not_centred(device: torch.device) -> None:
    norm = tritonln.row_operator(
        "test_rms",
        scale,
        scale_bwd,
        columns={"weight": 1.0},
        centred=False,
        formula=lambda x_hat, weight: x_hat * weight,
    )
    for N in (5, 64, 1000, WIDE):
        x, w, dy = (
            rand(7, N, dtype=F32, device=device),
            rand(N, dtype=F32, device=device, seed=1),
            rand(7, N, dtype=F32, device=device, seed=2),
        )
        leaves = [x.requires_grad_(), w.requires_grad_()]
        found = torch.autograd.grad(y := norm(*leaves), leaves, dy)
        wide = [t.detach().double().requires_grad_() for t in leaves]
        expected = torch.autograd.grad(
            ref := torch.nn.functional.rms_norm(wide[0], (N,), wide[1], 1e-5), wide, dy.double()
        )
        for got, want in zip((y.detach(), *found), (ref.detach(), *expected)):
            assert_close(
                "rms", got, want, 7 if got.dim() == 1 else 1, 4.0, float(dy.abs().max() * w.detach().abs().max())
            )


@triton.jit
def scale(x_hat, weight):
    return x_hat * weight


@triton.jit
def scale_bwd(dy, x_hat, weight):
    return dy * weight, (dy * x_hat,)


@triton.jit
def two_terms(dy, x_hat, weight):
    return dy * weight, (dy * x_hat, dy)


def plain(x_hat: Tensor, weight: Tensor) -> Tensor:
    return x_hat * weight


WEIGHT = {"columns": {"weight": 1.0}}


@pytest.mark.parametrize(
    ("arguments", "options", "message"),
    [
        ((plain, scale_bwd), WEIGHT, "expected finish to be a @triton.jit function, but got <function plain"),
        ((scale, None), WEIGHT, "expected finish_bwd to be a @triton.jit function, but got None"),
        ((scale, scale_bwd), {}, r"expected finish to take \(x_hat\), but it takes \(x_hat, weight\)"),
        ((scale, scale), WEIGHT, r"expected finish_bwd to take \(dy, x_hat, weight\), but it takes \(x_hat, weight\)"),
        ((scale, two_terms), WEIGHT, r"one term for each column, \(dx_hat, \(dweight, \)\), but it returns"),
        ((scale, scale_bwd), {**WEIGHT, "enter": add}, "expected both or neither of enter and enter_bwd"),
        ((scale, scale_bwd), {**WEIGHT, "streams": ("x", "r")}, "expected enter, which makes x of the streams x, r"),
        (
            (scale, scale_bwd),
            {**WEIGHT, "streams": ("x",), "enter": add, "enter_bwd": add_bwd},
            r"expected enter to take \(x\), but it takes \(x, residual\)",
        ),
    ],
)
def test_parts_that_do_not_fit_are_refused(arguments, options, message: str) -> None:  # type: ignore[no-untyped-def]
    with pytest.raises(TypeError, match=message):
        tritonln.row_operator("refused", *arguments, **options)


def test_names_are_refused() -> None:
    with pytest.raises(ValueError, match="to be identifiers, but got 'my norm'"):
        tritonln.row_operator("my norm", scale, scale_bwd, **WEIGHT)
    with pytest.raises(ValueError, match="different names of all operands"):
        tritonln.row_operator("refused", scale, scale_bwd, columns={"x": 1.0})
    with pytest.raises(ValueError, match="layer_norm is an operator of tritonln's"):
        tritonln.row_operator("layer_norm", scale, scale_bwd, **WEIGHT)


def test_operands_that_do_not_fit_are_refused(device: torch.device) -> None:
    x, w = torch.zeros(4, 8, device=device), torch.zeros(8, device=device)
    with pytest.raises(RuntimeError, match=r"layer_norm_gelu: Expected weight size \[8\], got \[7\]"):
        gelu(x, w[:7])
    with pytest.raises(
        RuntimeError, match="expected weight of dtype torch.float32, or float32 for 16 bits, got torch.f"
    ):
        gelu(x, w.double())
    with pytest.raises(RuntimeError, match=r"clamped_norm: Expected residual size \[4, 8\], got \[3, 8\]"):
        clamped_norm(x, x[:3])
    with pytest.raises(TypeError, match="missing a required argument: 'residual'"):
        clamped_norm(x)
    with pytest.raises(TypeError, match="argument 'x' must be Tensor, not int"):
        gelu(3)


def test_an_operator_can_be_built_anew(device: torch.device) -> None:
    """As in a notebook, with other parts under the same name."""
    x, w = rand(3, 40, dtype=F32, device=device), rand(40, dtype=F32, device=device, seed=1)
    first = tritonln.row_operator("test_anew", scale, scale_bwd, **WEIGHT)(x, w)
    second = tritonln.row_operator("test_anew", clamp, clamp_bwd, columns={"limit": 1.0, "scale": 1.0})(x, w.abs())
    third = tritonln.row_operator("test_anew", gelu_affine, gelu_affine_bwd, columns={"weight": 1.0, "bias": 0.0})(x)
    x_hat = torch.nn.functional.layer_norm(x, (40,))
    assert torch.allclose(first, x_hat * w, atol=1e-5)
    assert torch.allclose(second, x_hat.clamp(-w.abs(), w.abs()), atol=1e-5)
    assert torch.allclose(third, torch.nn.functional.gelu(x_hat), atol=1e-5)
