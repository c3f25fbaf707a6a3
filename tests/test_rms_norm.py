"""tritonln.rms_norm against the fp64 oracle and against F.rms_norm."""

import itertools
from collections.abc import Callable

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor
from torch.func import jacfwd, jacrev, jvp, vmap

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.problems import BF16, F16, F32, F64, WIDE, problem
from tests.helpers.tolerance import assert_close
from tritonln import reference

forward_mode_warns = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own


def expect(
    x: Tensor, shape: tuple[int, ...], w: Tensor | None, dy: Tensor, eps: float | None = 1e-5
) -> dict[str, Tensor]:
    """Runs tritonln, y and all gradients, and holds it to the oracle."""
    given = {name: t for name, t in (("dx", x), ("dw", w)) if t is not None}
    leaves = [t.detach().requires_grad_() for t in given.values()]
    y = tritonln.rms_norm(leaves[0], shape, *leaves[1:], eps=eps)
    out = {"y": y.detach(), **dict(zip(given, torch.autograd.grad(y, leaves, dy)))}
    number = torch.finfo(F64 if x.dtype == F64 else F32).eps if eps is None else eps
    ref = reference.rms_norm_gradients(x, shape, w, number, dy)
    assert out.keys() == ref.keys()
    rows = max(1, x.numel() // max(1, torch.Size(shape).numel()))
    scale = reference.dx_scale(x, shape, w, number, dy, centred=False)
    for name in ref:
        assert_close(name, out[name], ref[name], rows if name == "dw" else 1, 1.0, scale if name == "dx" else 0.0)
        assert out[name].dtype == (x if name == "y" else given[name]).dtype, name
    return out


def inputs(
    M: int, N: int, dtype: torch.dtype, device: torch.device, parameters: torch.dtype | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    x, w, _, dy = problem(M, N, dtype, device, parameters)
    return x, w, dy


# ---- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("M", [5, *thorough(1)])
@pytest.mark.parametrize(
    ("N", "dtype"),
    [
        *(pytest.param(N, dtype, marks=pytest.mark.interpreted) for N in (1, 100) for dtype in (F32, F16, BF16, F64)),
        *itertools.product((7, 64, 768, 4096), (F32, BF16)),
        *thorough(*itertools.product((7, 64), (F16, F64)), *itertools.product((2, 33, 1000), (F32, BF16))),
    ],
    ids=str,
)
def test_hidden_sizes(M: int, N: int, dtype: torch.dtype, device: torch.device) -> None:
    x, w, dy = inputs(M, N, dtype, device)
    expect(x, (N,), w, dy)


@pytest.mark.parametrize(("dtype", "N"), [(F32, WIDE), (BF16, WIDE), (F64, WIDE // 2)], ids=str)
def test_wide_rows(dtype: torch.dtype, N: int, device: torch.device) -> None:
    x, w, dy = inputs(3, N, dtype, device)
    expect(x, (N,), w, dy)
    expect(x, (N,), None, dy)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("N", [64, 1000])
def test_fp32_weight_of_16_bit_x(N: int, dtype: torch.dtype, device: torch.device) -> None:
    x, w, dy = inputs(70, N, dtype, device, parameters=F32)
    expect(x, (N,), w, dy)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_without_weight(dtype: torch.dtype, device: torch.device) -> None:
    x, _, dy = inputs(5, 100, dtype, device)
    expect(x, (100,), None, dy)


@pytest.mark.parametrize("dtype", [F32, F16, BF16, F64], ids=str)
def test_eps_is_that_of_the_arithmetic(dtype: torch.dtype, device: torch.device) -> None:
    """Rows so small that eps decides: a 16-bit x gets fp32's, as in torch."""
    x, w, dy = inputs(5, 64, dtype, device)
    x = x * 1e-4
    y = expect(x, (64,), w, dy, eps=None)["y"]
    torch.testing.assert_close(y, F.rms_norm(x, (64,), w))


@pytest.mark.parametrize("size", [1e4, 1e-3, 1e-12])
@pytest.mark.parametrize("N", [7, 1000, WIDE])
def test_magnitudes(size: float, N: int, device: torch.device) -> None:
    x, w, dy = inputs(3, N, F32, device)
    expect(x * size, (N,), w, dy)
    expect(x * size, (N,), w, dy, eps=0.0)


def test_strided_rows_and_several_dimensions(device: torch.device) -> None:
    x, w, dy = inputs(6, 100, F32, device)
    far = torch.full((6, 130), float("nan"), device=device)
    far[:, 20:120] = x
    plain = expect(x, (100,), w, dy)
    for name, t in expect(far[:, 20:120], (100,), w, dy).items():
        assert t.equal(plain[name])
    for name, t in expect(x.t().contiguous().t(), (100,), w, dy).items():
        assert t.equal(plain[name])
    shaped = expect(x.reshape(2, 3, 4, 25), (4, 25), w.reshape(4, 25), dy.reshape(2, 3, 4, 25))
    for name, t in shaped.items():
        assert t.equal(plain[name].reshape(t.shape))


@pytest.mark.parametrize("shape", [(0, 8), (3, 0), (0, 0)])
def test_empty(shape: tuple[int, int], device: torch.device) -> None:
    x, w = torch.empty(shape, device=device), torch.ones(shape[1], device=device)
    leaves = [x.requires_grad_(), w.requires_grad_()]
    y = tritonln.rms_norm(x, shape[1], w)
    dx, dw = torch.autograd.grad(y, leaves, torch.empty_like(y))
    assert y.shape == dx.shape == shape
    assert dw.equal(torch.zeros_like(w))


def test_repeats_to_the_bit_and_rows_do_not_depend_on_each_other(device: torch.device) -> None:
    x, w, dy = inputs(70, 100, F32, device)
    first, again = (expect(x, (100,), w, dy) for _ in range(2))
    alone = expect(x[33:34], (100,), w, dy[33:34])
    for name in first:
        assert first[name].equal(again[name])
    assert alone["y"].equal(first["y"][33:34])
    assert alone["dx"].equal(first["dx"][33:34])


def test_gradients_only_of_what_requires_them(device: torch.device) -> None:
    x, w, dy = inputs(5, 24, F32, device)
    ref = reference.rms_norm_gradients(x, (24,), w, 1e-5, dy)
    for needs in ((True, False), (False, True)):
        leaves = [t.detach().requires_grad_(n) for t, n in zip((x, w), needs)]
        tritonln.rms_norm(leaves[0], 24, leaves[1], 1e-5).backward(dy)
        for name, t, needed in zip(("dx", "dw"), leaves, needs):
            assert (t.grad is not None) == needed
            if t.grad is not None:
                assert_close(name, t.grad, ref[name], 5)
    assert tritonln.rms_norm(x, 24, w).grad_fn is None


# ---- without kernels ---------------------------------------------------------------------------


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize("dtype", [F32, F16, BF16, F64], ids=str)
@pytest.mark.parametrize("affine", [True, False])
def test_without_kernels_it_is_torch_s_to_the_bit(dtype: torch.dtype, affine: bool) -> None:
    x, w, dy = inputs(5, 100, dtype, torch.device("cpu"))
    y = expect(x, (100,), w if affine else None, dy)["y"]
    assert y.equal(F.rms_norm(x, (100,), w if affine else None, 1e-5))
    if dtype in (F16, BF16):
        expect(x, (100,), w.float(), dy)


# ---- derivatives and transforms ------------------------------------------------------------------


def by_the_op(x: Tensor, shape: tuple[int, ...], weight: Tensor | None = None, eps: float = 1e-5) -> Tensor:
    """As a graph calls it that was captured where nothing required a gradient."""
    return torch.ops.tritonln.rms_norm.default(x, shape[0], weight, eps, x.dtype, False)[0]


@pytest.fixture(params=["kernels", "aten", "op"])
def norm(request: pytest.FixtureRequest) -> Callable[..., Tensor]:
    """rms_norm by each of its ways."""
    if request.param == "aten":
        request.getfixturevalue("without_kernels")
    return by_the_op if request.param == "op" else tritonln.rms_norm


@forward_mode_warns
@pytest.mark.parametrize("affine", [True, False])
def test_gradcheck(norm, affine: bool, device: torch.device) -> None:  # type: ignore[no-untyped-def]
    x, w, _ = (t.requires_grad_() for t in inputs(3, 6, F64, device))
    leaves = (x, w) if affine else (x,)
    f = lambda x, *w: norm(x, (6,), *w, eps=1e-5)  # noqa: E731
    assert torch.autograd.gradcheck(f, leaves, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, leaves)


@forward_mode_warns
def test_transforms(device: torch.device) -> None:
    x, w, dy = inputs(3, 6, F64, device)
    ours = lambda x, w: tritonln.rms_norm(x, (6,), w, 1e-5)  # noqa: E731
    theirs = lambda x, w: F.rms_norm(x, (6,), w, 1e-5)  # noqa: E731
    pairs = [
        (vmap(f, (0, None))(x, w), jvp(f, (x, w), (dy, w))[1], jacrev(f, 1)(x, w), jacfwd(jacrev(f))(x, w))
        for f in (ours, theirs)
    ]
    for out, ref in zip(*pairs):
        torch.testing.assert_close(out, ref, rtol=1e-12, atol=1e-12)


# ---- traced --------------------------------------------------------------------------------------


@pytest.mark.interpreted
@forward_mode_warns
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_gives_the_bits_of_eager(backend: str) -> None:
    x, w, dy = (t.requires_grad_() for t in inputs(5, 24, F32, torch.device("cpu")))
    compiled = torch.compile(tritonln.rms_norm, fullgraph=True, backend=backend)
    results = [(y := f(x, (24,), w), *torch.autograd.grad(y, (x, w), dy)) for f in (compiled, tritonln.rms_norm)]
    assert all(out.equal(ref) for out, ref in zip(*results))


@forward_mode_warns
@pytest.mark.parametrize(("dtype", "affine"), list(itertools.product([F32, BF16], [True, False])), ids=str)
def test_opcheck(dtype: torch.dtype, affine: bool) -> None:
    x, w, dy = inputs(5, 24, dtype, torch.device("cpu"), F32)
    weight = w.requires_grad_() if affine else None
    op = torch.ops.tritonln.rms_norm.default
    torch.library.opcheck(op, (x.requires_grad_(), 24, weight, 1e-5, dtype, True))
    torch.library.opcheck(op, (x.detach(), 24, weight, 1e-5, dtype, False))
    backward = torch.ops.tritonln.rms_norm_backward.default
    args = (dy, x, 24, weight, torch.ones(5, 1), [True, affine])
    torch.library.opcheck(backward, args, test_utils=("test_schema", "test_faketensor"))


def test_exported_is_one_op() -> None:
    x, w, _ = inputs(5, 24, F32, torch.device("cpu"))
    exported = torch.export.export(tritonln.nn.RMSNorm(24), (x,))
    ops = [n.target for n in exported.graph.nodes if isinstance(n.target, torch._ops.OpOverload)]
    assert ops == [torch.ops.tritonln.rms_norm.default]
    torch.testing.assert_close(exported.module()(x), F.rms_norm(x, (24,)))


# ---- what is refused ---------------------------------------------------------------------------

X, ONES = torch.randn(2, 4), torch.ones(4)
REFUSED = {
    "no normalized dimension": (X, []),
    "another size": (X, (5,)),
    "more dimensions than x": (X, (3, 2, 4)),
    "weight of another shape": (X, (4,), torch.ones(5)),
    "weight of another rank": (X, (4,), torch.ones(1, 4)),
    "integers": (X.int(), (4,)),
    "x no tensor": ([1.0], (1,)),
    "weight no tensor": (X, (4,), 3),
    "sizes no integers": (X, (4.0,)),
    "eps a string": (X, (4,), None, "a"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_torch_s_exceptions(case: str) -> None:
    with pytest.raises(Exception, match=".") as theirs:
        F.rms_norm(*REFUSED[case])
    with pytest.raises(type(theirs.value)) as ours:
        tritonln.rms_norm(*REFUSED[case])
    assert type(ours.value) is type(theirs.value)
    assert str(ours.value) == str(theirs.value)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # torch's own
@pytest.mark.parametrize(("x", "w"), [(X, ONES.double()), (X.double(), ONES), (X.cfloat(), None)])
def test_dtypes_that_torch_takes_and_no_kernel(x: Tensor, w: Tensor | None) -> None:
    with pytest.raises(RuntimeError, match="rms_norm expects x in float32, .* of dtypes"):
        tritonln.rms_norm(x, 4, w)


@pytest.mark.filterwarnings("ignore:Mismatch dtype")  # torch's own
@pytest.mark.parametrize(("x", "w"), [(F32, BF16), (F16, BF16), (BF16, F16)], ids=str)
def test_a_weight_of_another_dtype(x: torch.dtype, w: torch.dtype, device: torch.device) -> None:
    """Which F.rms_norm takes too, and F.layer_norm does not."""
    rows, weight = (t.to(device, dtype, copy=True).requires_grad_() for t, dtype in ((X, x), (X[0], w)))
    y = tritonln.rms_norm(rows, 4, weight, 1e-5)
    assert y.dtype == x
    dy = X.flip(0).to(device, x)
    wide = rows.detach().double().requires_grad_(), weight.detach().double().requires_grad_()
    expected = F.rms_norm(wide[0], (4,), wide[1], 1e-5)
    found = (y, *torch.autograd.grad(y, (rows, weight), dy))
    for out, ref, t in zip(found, (expected, *torch.autograd.grad(expected, wide, dy.double())), (rows, rows, weight)):
        assert out.dtype == t.dtype
        torch.testing.assert_close(out, ref.to(out.dtype), rtol=1e-2, atol=1e-2)


def test_an_offset_that_is_no_number() -> None:
    with pytest.raises(TypeError, match="argument 'weight_offset' must be float, not str"):
        tritonln.rms_norm(X, 4, ONES, weight_offset="one")


def test_devices_must_agree() -> None:
    message = "same device, but got weight is on meta, different from other tensors on cpu .*method rms_norm"
    with pytest.raises(RuntimeError, match=message):
        tritonln.rms_norm(X, 4, ONES.to("meta"))


@pytest.mark.skipif(torch.__version__ < "2.13", reason="F.rms_norm of torch 2.11 is not autocast")
def test_autocast_is_fp32_exactly_where_torch_s_is() -> None:
    for key, casts in (("AutocastCPU", False), ("AutocastCUDA", True)):
        assert torch._C._dispatch_has_kernel_for_dispatch_key("aten::rms_norm", key) == casts
