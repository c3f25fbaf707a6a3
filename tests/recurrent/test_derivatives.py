"""Whatever torch derives from a recurrent operator, layer or cell: forward mode, transforms, batches, derivatives of
derivatives.  All are the oracle's.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from contextlib import ExitStack, contextmanager
from typing import Any
from unittest import mock

import pytest
import torch
import torch.autograd.forward_ad as forward_ad
from torch import Tensor
from torch.autograd import functional, grad

import tritonln
from tests.helpers.problems import BF16, F16, F32, F64
from tests.helpers.recurrent import expect, flat, gru_problem, lstm_problem
from tritonln import reference_recurrent

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from its forward mode

Function = Callable[[Tensor, Tensor], Tensor]
CPU = torch.device("cpu")
PROBLEMS: dict[str, Any] = {"layer_norm_lstm": lstm_problem, "layer_norm_gru": gru_problem}
MODULES = ["LayerNormLSTM", "LayerNormGRU", "LayerNormLSTMCell", "LayerNormGRUCell"]


def of_operator(name: str, device: torch.device = CPU) -> tuple[Function, Tensor, Tensor]:
    """A number that the operator makes of x and its recurrent weight, and both."""
    args = PROBLEMS[name](3, 2, 2, 3, F64, device)

    def f(x: Tensor, w: Tensor) -> Tensor:
        return number(getattr(tritonln, name)(**{**args, "x": x, "weight_hh": w}))

    return f, args["x"], args["weight_hh"]


def of_module(name: str) -> tuple[Function, Tensor, Tensor]:
    torch.manual_seed(0)
    cell = name.endswith("Cell")
    module = getattr(tritonln.nn, name)(2, 3, dtype=F64)
    weight = "weight_hh" if cell else "weight_hh_l0"

    def f(x: Tensor, w: Tensor) -> Tensor:
        return number(torch.func.functional_call(module, {weight: w}, (x,)))

    return f, torch.randn(2, 2, dtype=F64) if cell else torch.randn(3, 2, 2, dtype=F64), getattr(module, weight).data


def number(results: Any) -> Tensor:
    return torch.stack([(r + 0.1 * r.square()).sum() for r in flat(results)]).sum()


@contextmanager
def oracle() -> Iterator[None]:
    """Inside, operators, layers and cells are the oracle."""

    def plainly(name: str) -> Callable[..., Any]:
        return lambda *args, cuda_graph=True, **options: getattr(reference_recurrent, name)(*args, **options)

    with ExitStack() as stack:
        for module, name in itertools.product(("tritonln", "tritonln.nn.rnn", "tritonln.nn.rnn_cells"), PROBLEMS):
            stack.enter_context(mock.patch(f"{module}.{name}", plainly(name)))
        yield


def direction(t: Tensor) -> Tensor:
    return (9 * t).cos()


def gradient_penalty(f: Function, x: Tensor, w: Tensor) -> Any:
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    y = f(x, w)
    (dx,) = grad(y, x, create_graph=True)
    return grad(y + dx.pow(2).sum(), (x, w))


def third_derivative(f: Function, x: Tensor, w: Tensor) -> Any:
    x, w = x.detach().requires_grad_(), w.detach().requires_grad_()
    (dx,) = grad(f(x, w), x, create_graph=True)
    (dxdx,) = grad(dx.pow(2).sum(), x, create_graph=True)
    return grad(dxdx.pow(2).sum(), (x, w))


def batch_of_gradients(f: Function, x: Tensor, w: Tensor) -> Any:
    x = x.detach().requires_grad_()
    y = torch.stack([f(x, w), 2 * f(x, w)])
    return grad(y, x, torch.eye(2, dtype=F64, device=x.device), is_grads_batched=True)


def dual_numbers(f: Function, x: Tensor, w: Tensor, trained: bool = False) -> Any:
    with forward_ad.dual_level():
        y = f(forward_ad.make_dual(x, direction(x)), w.detach().requires_grad_(trained))
        return forward_ad.unpack_dual(y).tangent.detach()


def of_many(of_one: Callable[[Function], Callable[..., Any]]) -> Callable[..., Any]:
    return lambda f, x, w: torch.vmap(of_one(f), (0, None))(torch.stack([x, 2 * x]), w)


DERIVATIVES: dict[str, Callable[[Function, Tensor, Tensor], Any]] = {
    "gradient penalty": gradient_penalty,
    "third derivative": third_derivative,
    "batch of gradients": batch_of_gradients,
    "dual numbers": dual_numbers,
    "dual numbers and gradients": lambda f, x, w: dual_numbers(f, x, w, trained=True),
    "hvp": lambda f, x, w: functional.hvp(f, (x, w), (direction(x), direction(w))),
    "vhp": lambda f, x, w: functional.vhp(f, (x, w), (direction(x), direction(w))),
    "hessian": lambda f, x, w: functional.hessian(f, (x, w)),
    "hessian, vectorized": lambda f, x, w: functional.hessian(f, (x, w), vectorize=True),
    "hessian, forward over reverse": lambda f, x, w: functional.hessian(
        f, (x, w), vectorize=True, outer_jacobian_strategy="forward-mode"
    ),
    "func.hessian": lambda f, x, w: torch.func.hessian(f, (0, 1))(x, w),
    "func.grad": lambda f, x, w: torch.func.grad(f, (0, 1))(x, w),
    "jvp": lambda f, x, w: torch.func.jvp(f, (x, w), (direction(x), direction(w))),
    "jacfwd": lambda f, x, w: torch.func.jacfwd(f, (0, 1))(x, w),
    "jacfwd of one": lambda f, x, w: torch.func.jacfwd(f)(x, w),  # of both torch 2.11 does not compile
    "jacrev": lambda f, x, w: torch.func.jacrev(f, (0, 1))(x, w),
    "vmap": of_many(lambda f: f),
    "gradients of each of many": of_many(lambda f: torch.func.grad(f, (0, 1))),
    "ensemble": lambda f, x, w: torch.vmap(torch.func.grad(f), (None, 0))(x, torch.stack([w, 2 * w])),
}


def compare(derive: Callable[..., Any], problem: tuple[Function, Tensor, Tensor]) -> None:
    found = flat(derive(*problem))
    with oracle():
        expected = flat(derive(*problem))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("derive", ["gradient penalty", "batch of gradients", "dual numbers", "hvp", "jvp", "vmap"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_on_kernels(name: str, derive: str, device: torch.device) -> None:
    compare(DERIVATIVES[derive], of_operator(name, device))


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("derive", DERIVATIVES)
@pytest.mark.parametrize("name", [*PROBLEMS, *MODULES])
def test_in_aten(name: str, derive: str) -> None:
    compare(DERIVATIVES[derive], of_module(name) if name in MODULES else of_operator(name))


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("name", PROBLEMS)
def test_gradgradcheck(name: str) -> None:
    args = {k: t.requires_grad_() for k, t in PROBLEMS[name](2, 2, 2, 3, F64, CPU).items()}

    def f(*values: Tensor) -> list[Tensor]:
        resets = torch.tensor([[False, False], [True, False]])
        return flat(getattr(tritonln, name)(**dict(zip(args, values)), lengths=torch.tensor([2, 1]), resets=resets))

    leaves = list(args.values())
    assert torch.autograd.gradcheck(f, leaves, check_batched_grad=True, check_forward_ad=True)
    assert torch.autograd.gradgradcheck(f, leaves, check_batched_grad=True)


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("derive", ["jvp", "jacfwd of one", "vmap"])
@pytest.mark.parametrize("name", PROBLEMS)
def test_compiled(name: str, derive: str) -> None:
    """Of a layer that is frozen, as nothing else asks for a gradient then."""
    torch._dynamo.reset()
    f, x, w = of_operator(name)
    compiled = torch.compile(lambda x, w: DERIVATIVES[derive](f, x, w), fullgraph=True, backend="aot_eager")
    found = flat(compiled(x, w))
    with oracle():
        expected = flat(DERIVATIVES[derive](f, x, w))
    for a, b in zip(found, expected, strict=True):
        torch.testing.assert_close(a, b, rtol=1e-9, atol=1e-9)


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("name", PROBLEMS)
def test_a_tensor_in_two_places(name: str) -> None:
    """Its derivative is the sum of both."""
    args = PROBLEMS[name](3, 2, 2, 3, F64, CPU)

    def f(x: Tensor, b: Tensor) -> Tensor:
        return number(getattr(tritonln, name)(**{**args, "x": x, "bias_ih": b, "bias_hh": b}))

    compare(DERIVATIVES["hessian"], (f, args["x"], args["bias_ih"]))


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_gradient_penalty_of_16_bit_layers(name: str, dtype: torch.dtype) -> None:
    """With the parameters of the norms in fp32, and by autocast, as near as 16 bits are."""
    wide = PROBLEMS[name](3, 2, 2, 3, F64, CPU)

    def f(args: dict[str, Tensor]) -> Function:
        return lambda x, w: number(getattr(tritonln, name)(**{**args, "x": x, "weight_hh": w})).double()

    mixed = {k: t.to(dtype if t.dim() > 1 else F32) for k, t in wide.items()}
    single = {k: t.float() for k, t in wide.items()}
    found = gradient_penalty(f(mixed), mixed["x"], mixed["weight_hh"])
    with torch.autocast("cpu", dtype):
        cast = gradient_penalty(f(single), single["x"], single["weight_hh"])
    with oracle():
        expected = gradient_penalty(f(wide), wide["x"], wide["weight_hh"])
    for a, b, reference in zip(found, cast, expected, strict=True):
        tolerance = 64 * torch.finfo(dtype).eps * float(reference.abs().max())
        torch.testing.assert_close(a.double(), reference, rtol=0, atol=tolerance)
        torch.testing.assert_close(b.double(), reference, rtol=0, atol=tolerance)


# ---- the path that all of this takes, as a path of its own ---------------------------------------


@pytest.fixture
def plain(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tritonln.ops.recurrent.operator.transformed", lambda: True)


VARIANTS = {
    "layer_norm_lstm": [{}, {"gates": False}, {"cell": False}, {"bias": False}, {"P": 3}, {"summed": True}],
    "layer_norm_gru": [{}, {"bias": False}],
}
OPTIONS = {"layer_norm_lstm": [{}, {"carry": True}], "layer_norm_gru": [{}, {"norm_groups": "joint"}]}
CASES = [
    (name, variant, options)
    for name in PROBLEMS
    for variant, options in itertools.product(VARIANTS[name], OPTIONS[name])
    if not ("cell" in variant and options)
]


@pytest.mark.usefixtures("plain")
@pytest.mark.parametrize(("name", "variant", "options"), CASES, ids=str)
@pytest.mark.parametrize("reverse", [False, True])
@pytest.mark.parametrize(("dtype", "parameters"), [(F32, F32), (BF16, BF16), (BF16, F32)], ids=str)
def test_plain_variants(
    name: str, variant: Any, options: Any, reverse: bool, dtype: torch.dtype, parameters: torch.dtype
) -> None:
    args = PROBLEMS[name](5, 3, 4, 7, dtype, CPU, parameters=parameters, **variant)
    expect(name, args, reverse=reverse, lengths=torch.tensor([5, 4, 1]) if reverse else None, **options)
