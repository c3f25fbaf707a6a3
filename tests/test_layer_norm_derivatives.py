"""Derivatives of layer_norm to any order, in every mode and by every path, against plain torch in fp64."""

import itertools
from collections.abc import Callable

import pytest
import torch
from torch import Tensor
from torch.func import grad, hessian, jacfwd, jacrev, jvp, vjp, vmap

import tritonln
from benchmarks.second_order import NORMS, counts, steps
from tests.helpers.problems import BF16, F16, F32, F64, problem
from tests.helpers.tolerance import assert_close
from tritonln import reference

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from its forward mode
N = 6


def by_the_op(
    x: Tensor, shape: tuple[int, ...], weight: Tensor | None = None, bias: Tensor | None = None, eps: float = 1e-5
) -> Tensor:
    """As a graph calls it that was captured where nothing required a gradient."""
    return torch.ops.tritonln.layer_norm.default(x, N, weight, bias, eps, x.dtype, False)[0]


@pytest.fixture(params=["kernels", "aten", "op"])
def layer_norm(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    """layer_norm by each of its ways."""
    if request.param == "aten":
        request.getfixturevalue("eager_without_kernels")
    return by_the_op if request.param == "op" else tritonln.layer_norm


def arguments(device: torch.device, dtype: torch.dtype = F64) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    return problem(3, N, dtype, device)


def close(out: Tensor, ref: Tensor) -> None:
    assert float((out - ref).abs().max()) <= 1e-12 * float(ref.abs().max())


def derivatives(f: Callable[..., Tensor], leaves: list[Tensor | None], order: int) -> list[Tensor]:
    """Of a cubed y, and again and again of a fixed combination of all gradients before."""
    inputs = [t.detach().clone().requires_grad_() for t in leaves if t is not None]
    each = iter(inputs)
    x, w, b = (None if t is None else next(each) for t in leaves)
    result, found = f(x, (N,), w, b).pow(3).sum(), []
    for _ in range(order):
        gradients = torch.autograd.grad(result, inputs, create_graph=True, materialize_grads=True)
        found += [g.detach() for g in gradients]
        result = sum(
            (torch.arange(1, g.numel() + 1, device=g.device).cos().reshape(g.shape) * g).sum() for g in gradients
        )
    return found


@pytest.mark.parametrize(("weight", "bias"), list(itertools.product([True, False], repeat=2)))
def test_four_orders(layer_norm, weight: bool, bias: bool, device: torch.device) -> None:  # type: ignore[no-untyped-def]
    x, w, b, _ = arguments(device)
    leaves = [x, w if weight else None, b if bias else None]
    for out, ref in zip(derivatives(layer_norm, leaves, 4), derivatives(reference.layer_norm, leaves, 4), strict=True):
        close(out, ref)


@pytest.mark.parametrize(("weight", "bias"), list(itertools.product([True, False], repeat=2)))
def test_gradcheck(layer_norm, weight: bool, bias: bool, device: torch.device) -> None:  # type: ignore[no-untyped-def]
    """Numerically, one by one and many at once by vmap; and the second derivative."""
    x, w, b, _ = (t.requires_grad_() for t in arguments(device))
    given = [t for t, there in ((w, weight), (b, bias)) if there]
    f = lambda x, *p: layer_norm(x, (N,), *[dict(zip(map(id, given), p)).get(id(t)) for t in (w, b)])  # noqa: E731
    assert torch.autograd.gradcheck(f, (x, *given), check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, (x, *given))


def test_many_gradients_at_once(layer_norm, device: torch.device) -> None:  # type: ignore[no-untyped-def]
    x, w, b, _ = (t.requires_grad_() for t in arguments(device))
    many = torch.randn(5, 3, N, dtype=F64, device=device)
    y = layer_norm(x, (N,), w, b)
    batched = torch.autograd.grad(y, (x, w, b), many, is_grads_batched=True, retain_graph=True)
    singly = zip(*(torch.autograd.grad(y, (x, w, b), one, retain_graph=True) for one in many))
    for out, ref in zip(batched, singly, strict=True):
        close(out, torch.stack(ref))


def test_functional_jacobian_and_hessian(layer_norm, device: torch.device) -> None:  # type: ignore[no-untyped-def]
    x, w, b, _ = arguments(device)
    f = lambda x: layer_norm(x, (N,), w, b)  # noqa: E731
    g = lambda x: reference.layer_norm(x, (N,), w, b)  # noqa: E731
    for vectorize in (True, False):
        close(torch.autograd.functional.jacobian(f, x, vectorize=vectorize), torch.autograd.functional.jacobian(g, x))
        close(
            torch.autograd.functional.hessian(lambda x: f(x).pow(3).sum(), x, vectorize=vectorize),
            torch.autograd.functional.hessian(lambda x: g(x).pow(3).sum(), x),
        )


def test_a_tangent_of_the_incoming_gradient_is_kept(layer_norm, device: torch.device) -> None:  # type: ignore[no-untyped-def]
    """Forward over reverse, where forward mode begins after the forward pass."""
    x, w, b, dy = (t.requires_grad_() for t in arguments(device))
    y = layer_norm(x, (N,), w, b)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(torch.ones_like(dy), dy.detach())
        (dx,) = torch.autograd.grad(y, x, dual, retain_graph=True)
        tangent = torch.autograd.forward_ad.unpack_dual(dx).tangent
    assert tangent is not None
    close(tangent, torch.autograd.grad(y, x, dy.detach())[0])


# ---- torch.func ----------------------------------------------------------------------------------------


def along(f: Callable[..., Tensor], leaves: tuple[Tensor, ...]) -> Callable[..., Tensor]:
    """The derivative of f in one direction."""
    return lambda *inputs: jvp(f, inputs, tuple(t.cos() for t in leaves))[1]


TRANSFORMED = {
    "jvp": lambda f, t: along(f, t)(*t),
    "jvp of jvp": lambda f, t: along(along(f, t), t)(*t),
    "three jvps": lambda f, t: along(along(along(f, t), t), t)(*t),
    "vjp": lambda f, t: vjp(f, *t)[1](t[0].reshape(3, N).cos()),
    "hessian": lambda f, t: hessian(lambda *s: f(*s).pow(3).sum())(*t),
    "third derivative": lambda f, t: jacfwd(jacrev(grad(lambda *s: f(*s).pow(3).sum())))(*t),
    "jacfwd of jacrev of the weight": lambda f, t: jacfwd(jacrev(f, argnums=1), argnums=0)(*t),
    "vmap": lambda f, t: vmap(f, in_dims=(0, None, None))(*t),
    "vmap of all": lambda f, t: vmap(f)(t[0], *(s.expand(3, N) * 2 for s in t[1:])),
    "gradients by row": lambda f, t: vmap(grad(lambda *s: f(*s).pow(3).sum(), argnums=1), (0, None, None))(*t),
}


@pytest.mark.parametrize(
    ("name", "compiled"),
    # torch compiles no three jvps in each other, whatever they are of
    [(name, compiled) for name in TRANSFORMED for compiled in (False, True) if not compiled or name != "three jvps"],
)
def test_transforms(name: str, compiled: bool, device: torch.device) -> None:
    leaves = arguments(device)[:3]
    f = lambda x, w, b: tritonln.layer_norm(x, (N,), w, b)  # noqa: E731
    g = lambda x, w, b: reference.layer_norm(x, (N,), w, b)  # noqa: E731
    transform = lambda *t: TRANSFORMED[name](f, t)  # noqa: E731
    if compiled:
        torch._dynamo.reset()
        transform = torch.compile(transform, fullgraph=True, backend="aot_eager")
    found, expected = transform(*leaves), TRANSFORMED[name](g, leaves)
    for out, ref in zip(*(t if isinstance(t, tuple) else (t,) for t in (found, expected))):
        close(out, ref)


@pytest.mark.parametrize("dtype", [F16, BF16])
@pytest.mark.parametrize("mode", ["jvp", "vmap", "grad"])
def test_fp32_parameters_of_16_bit_x_under_transforms(mode: str, dtype: torch.dtype, device: torch.device) -> None:
    """What ATen's operator for CUDA refuses."""
    x, w, b, dy = problem(3, N, dtype, device, parameters=F32)
    f = lambda x, w: tritonln.layer_norm(x, N, w, b)  # noqa: E731
    ref = lambda x, w: reference.layer_norm(x, (N,), w, b)  # noqa: E731
    wide = x.double(), w.double()
    if mode == "jvp":
        (y, out), (_, expected) = jvp(f, (x, w), (dy, w)), jvp(ref, wide, (dy.double(), w.double()))
        assert y.dtype == dtype
    elif mode == "vmap":
        out, expected = vmap(f, (0, None))(x, w), ref(*wide)
    else:
        out = grad(lambda x, w: (f(x, w) * dy).float().sum())(x, w)
        expected = grad(lambda x, w: (ref(x, w) * dy).sum())(*wide)
    assert out.dtype == dtype
    assert float((out - expected).abs().max()) <= 2 * torch.finfo(dtype).eps * float(expected.abs().max())


def test_large_means_under_transforms(device: torch.device) -> None:
    x, w, b, _ = problem(3, 1024, F32, device, mean=1e4)
    y = vmap(lambda x: tritonln.layer_norm(x, 1024, w, b))(x)
    ref = reference.layer_norm(x.double(), (1024,), w.double(), b.double())
    assert_close("y", y, ref, kappa=reference.condition(x, (1024,), 1e-5))


def test_a_captured_graph_refuses_forward_mode_in_words(device: torch.device) -> None:
    """torch would give tangents of zero."""
    x, w, b, dy = arguments(device)
    with pytest.raises(RuntimeError, match="no forward-mode derivative: call tritonln.layer_norm itself"):
        jvp(lambda x: by_the_op(x, (N,), w, b), (x,), (dy,))


@pytest.mark.usefixtures("without_kernels")
def test_what_a_second_derivative_costs_is_counted() -> None:
    """ATen's first gradient is one operator, that of tritonln a composition, if a graph is asked for."""
    (parameters, ours), (_, theirs) = (NORMS[f"{owner}.layer_norm"] for owner in ("tritonln", "F"))
    for norm, composed in ((ours, True), (theirs, False)):
        forward, backward, second = counts(steps(norm, parameters, 64, 64), 64, 64)
        assert forward == (1, pytest.approx(2, abs=0.1))
        assert (backward[0] > 1) == composed
        assert second[1] > 10
