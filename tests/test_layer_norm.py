"""tritonln.layer_norm against the fp64 oracle."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tritonln
from tests.tolerance import assert_close
from tritonln import reference

F64, F32, F16, BF16 = torch.float64, torch.float32, torch.float16, torch.bfloat16
WIDE = 4 * 8192 + 77  # past one tile forward and backward


def rand(*shape: int, dtype: torch.dtype, device: torch.device, mean: float = 0.0, seed: int = 0) -> Tensor:
    g = torch.Generator().manual_seed(seed)
    return (torch.randn(shape, generator=g, dtype=F64) + mean).to(dtype).to(device)


def problem(
    M: int, N: int, dtype: torch.dtype, device: torch.device, parameters: torch.dtype | None = None, mean: float = 0.0
):  # type: ignore[no-untyped-def]
    x = rand(M, N, dtype=dtype, device=device, mean=mean)
    w, b = (rand(N, dtype=parameters or dtype, device=device, seed=s) for s in (1, 2))
    dy = rand(M, N, dtype=dtype, device=device, seed=3)
    return x, w, b, dy


def run(
    x: Tensor, shape: tuple[int, ...], w: Tensor | None, b: Tensor | None, dy: Tensor, eps: float = 1e-5
) -> dict[str, Tensor]:
    """y and all gradients from tritonln, as the oracle gives them."""
    names = [n for n, t in (("dx", x), ("dw", w), ("db", b)) if t is not None]
    leaves = [t.detach().requires_grad_() for t in (x, w, b) if t is not None]
    full = iter(leaves)
    args = [None if t is None else next(full) for t in (x, w, b)]
    assert args[0] is not None
    y = tritonln.layer_norm(args[0], shape, args[1], args[2], eps)
    return {"y": y.detach(), **dict(zip(names, torch.autograd.grad(y, leaves, dy)))}


def expect(
    x: Tensor, shape: tuple[int, ...], w: Tensor | None, b: Tensor | None, dy: Tensor, eps: float = 1e-5
) -> dict[str, Tensor]:
    """Runs tritonln and holds it to the oracle."""
    out = run(x, shape, w, b, dy, eps)
    ref = reference.layer_norm_gradients(x, shape, w, b, eps, dy)
    kappa = reference.condition(x, shape, eps)
    rows = max(1, x.numel() // max(1, torch.Size(shape).numel()))
    assert out.keys() == ref.keys()
    scale = reference.dx_scale(x, shape, w, eps, dy)
    for name in ref:
        terms = rows if name in ("dw", "db") else 1
        assert_close(name, out[name], ref[name], terms, kappa, scale if name == "dx" else 0.0)
    for name, t in (("y", x), ("dx", x), ("dw", w), ("db", b)):
        assert t is None or out[name].dtype == t.dtype, name
    return out


# ---- sizes and dtypes --------------------------------------------------------------------------


@pytest.mark.smoke
@pytest.mark.parametrize("dtype", [F32, F16, BF16, F64], ids=str)
@pytest.mark.parametrize("N", [1, 2, 3, 7, 33, 64, 96, 100, 255, 256, 1000, 1024, 2049])
def test_hidden_sizes(N: int, dtype: torch.dtype, device: torch.device) -> None:
    x, w, b, dy = problem(5, N, dtype, device)
    expect(x, (N,), w, b, dy)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("N", [4096, 8191, 8192, 16384, WIDE, 65536])
def test_wide_rows(N: int, dtype: torch.dtype, device: torch.device) -> None:
    x, w, b, dy = problem(2, N, dtype, device)
    expect(x, (N,), w, b, dy)


@pytest.mark.parametrize("N", [40_503, 65_544, 131_072])
def test_rows_over_clusters(N: int, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """The configurations that a GPU with clusters gets; the interpreter runs each cluster as one program."""
    if device.type == "cpu":
        monkeypatch.setattr("tritonln.tuning.config.largest_cluster", lambda device, wanted: min(wanted, 16))
    x, w, b, dy = problem(2, N, BF16, device, parameters=F32)
    expect(x, (N,), w, b, dy)


@pytest.mark.parametrize("N", [4100, 16400, 40499])
def test_wide_rows_in_fp64(N: int, device: torch.device) -> None:
    x, w, b, dy = problem(2, N, F64, device)
    expect(x, (N,), w, b, dy)


@pytest.mark.parametrize(
    ("M", "N"), [(1, 64), (2, 8), (63, 64), (64, 64), (65, 64), (257, 33), (129, 1), (17, 1024), (33, WIDE)]
)
def test_row_counts(M: int, N: int, device: torch.device) -> None:
    x, w, b, dy = problem(M, N, F32, device)
    expect(x, (N,), w, b, dy)


def test_more_tiles_than_programs(device: torch.device) -> None:
    """Persistent programs walk several tiles each."""
    x, w, b, dy = problem(3 * 132 + 5, 8192, F32, device)
    expect(x, (8192,), w, b, dy)


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
@pytest.mark.parametrize("N", [64, 1000, WIDE])
def test_fp32_parameters_of_16_bit_x(N: int, dtype: torch.dtype, device: torch.device) -> None:
    x, w, b, dy = problem(3, N, dtype, device, parameters=F32)
    expect(x, (N,), w, b, dy)


def test_parameters_of_two_dtypes(device: torch.device) -> None:
    x, w, b, dy = problem(3, 64, BF16, device)
    expect(x, (64,), w.float(), b, dy)
    expect(x, (64,), w, b.float(), dy)


@pytest.mark.parametrize("N", [64, WIDE])
@pytest.mark.parametrize(("weight", "bias"), list(itertools.product([True, False], repeat=2)))
def test_missing_parameters(weight: bool, bias: bool, N: int, device: torch.device) -> None:
    x, w, b, dy = problem(3, N, F32, device)
    expect(x, (N,), w if weight else None, b if bias else None, dy)


@pytest.mark.parametrize("N", [2, 100, 1024, WIDE])
@pytest.mark.parametrize("mean", [1e3, -1e4])
def test_large_means(mean: float, N: int, device: torch.device) -> None:
    x, w, b, dy = problem(3, N, F32, device, mean=mean)
    expect(x, (N,), w, b, dy)


def test_parameter_gradients_keep_their_digits(device: torch.device) -> None:
    """Sums over many rows through fp32 partial sums are right to 5e-7 of their size."""
    x, w, b, dy = problem(4096, 64, F32, device)
    out, ref = run(x, (64,), w, b, dy), reference.layer_norm_gradients(x, (64,), w, b, 1e-5, dy)
    for name in ("dw", "db"):
        assert float((out[name] - ref[name]).norm() / ref[name].norm()) <= 5e-7


def test_variance_of_offset_rows(device: torch.device) -> None:
    """The correction term: a variance is right to 2e-7 at an offset of 1e4, where two passes alone give 1e-6."""
    x = rand(16, 1024, dtype=F32, device=device, mean=1e4)
    y = tritonln.layer_norm(x, 1024, eps=0.0)
    true = x.double().sub(x.double().mean(1, keepdim=True))
    rstd = (y.double() * true).sum(1) / true.square().sum(1)  # least squares: y = true * rstd
    variance = true.square().mean(1)
    assert float((1 / rstd.square() / variance - 1).abs().max()) <= 2e-7


# numpy, under the interpreter, warns of the rows of a tile that are past the last one.
numpy_warns = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@numpy_warns
@pytest.mark.parametrize("eps", [0.0, 1e-12, 1e-5, 0.5, 10.0, -0.25])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_eps(eps: float, dtype: torch.dtype, device: torch.device) -> None:
    x, w, b, dy = problem(3, 64, dtype, device)
    expect(x, (64,), w, b, dy, eps)


@numpy_warns
def test_negative_eps_beyond_the_variance_is_nan_as_in_torch(device: torch.device) -> None:
    x = rand(2, 8, dtype=F32, device=device)
    assert F.layer_norm(x, (8,), eps=-100.0).isnan().all()
    assert tritonln.layer_norm(x, (8,), eps=-100.0).isnan().all()


def test_integer_eps(device: torch.device) -> None:
    x = rand(2, 8, dtype=F32, device=device)
    assert tritonln.layer_norm(x, 8, eps=1).equal(tritonln.layer_norm(x, 8, eps=1.0))


def test_constant_rows_give_the_bias(device: torch.device) -> None:
    b = rand(48, dtype=F32, device=device)
    assert tritonln.layer_norm(torch.full((3, 48), 7.0, device=device), 48, None, b).equal(b.expand(3, 48))


@numpy_warns
@pytest.mark.parametrize("bad", [float("nan"), float("inf")])
@pytest.mark.parametrize("N", [64, WIDE])
def test_non_finite_rows_stay_alone(bad: float, N: int, device: torch.device) -> None:
    x = rand(3, N, dtype=F32, device=device)
    clean = tritonln.layer_norm(x, N)
    x[1, 5] = bad
    y = tritonln.layer_norm(x, N)
    assert y[1].isnan().all()
    assert y[0].equal(clean[0])
    assert y[2].equal(clean[2])


# ---- shapes and strides ------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("leading", "shape"),
    [((), (8,)), ((3,), (8,)), ((2, 3), (4, 5)), ((2,), (3, 4, 5)), ((), (3, 4)), ((2, 1, 3), (1, 7))],
)
def test_shapes(leading: tuple[int, ...], shape: tuple[int, ...], device: torch.device) -> None:
    x, dy = (rand(*leading, *shape, dtype=F32, device=device, seed=s) for s in (0, 1))
    w, b = (rand(*shape, dtype=F32, device=device, seed=s) for s in (2, 3))
    expect(x, shape, w, b, dy)


def test_normalized_shape_as_int_list_and_size(device: torch.device) -> None:
    x = rand(3, 8, dtype=F32, device=device)
    y = tritonln.layer_norm(x, 8)
    assert y.equal(tritonln.layer_norm(x, [8]))
    assert y.equal(tritonln.layer_norm(x, torch.Size([8])))


@pytest.mark.parametrize("shape", [(0, 8), (2, 0, 8), (0,), (3, 0)])
def test_empty(shape: tuple[int, ...], device: torch.device) -> None:
    x = torch.empty(shape, device=device)
    N = shape[-1]
    out = run(x, (N,), torch.ones(N, device=device), torch.ones(N, device=device), torch.empty(shape, device=device))
    assert out["y"].shape == out["dx"].shape == shape
    assert out["dw"].equal(torch.zeros(N, device=device))
    assert out["db"].equal(torch.zeros(N, device=device))


STRIDED = {
    "row stride": lambda M, N, r: r(M, 2 * N)[:, :N],
    "odd row stride": lambda M, N, r: r(M, N + 3)[:, 1 : N + 1],
    "every third row": lambda M, N, r: r(3 * M, N)[::3],
    "every third column": lambda M, N, r: r(M, 3 * N)[:, ::3],
    "transposed": lambda M, N, r: r(N, M).t(),
    "expanded rows": lambda M, N, r: r(1, N).expand(M, N),
    "expanded columns": lambda M, N, r: r(M, 1).expand(M, N),
    "expanded": lambda M, N, r: r(1, 1).expand(M, N),
    "permuted": lambda M, N, r: r(M, 2, N).permute(1, 0, 2),
}


def strided(kind: str, M: int, N: int, device: torch.device, seed: int) -> Tensor:
    return STRIDED[kind](M, N, lambda *shape: rand(*shape, dtype=F32, device=device, seed=seed))


@pytest.mark.smoke
@pytest.mark.parametrize(
    ("kind", "N"),
    # Wide rows only where they are read in place: the rest is copied before it reaches a kernel.
    [*((kind, 24) for kind in STRIDED), ("odd row stride", WIDE), ("expanded rows", WIDE), ("permuted", WIDE)],
)
def test_strides(kind: str, N: int, device: torch.device) -> None:
    x = strided(kind, 4, N, device, seed=0)
    dy = strided(kind, 4, N, device, seed=1)
    w, b = (rand(N, dtype=F32, device=device, seed=s) for s in (2, 3))
    expect(x, (N,), w, b, dy)
    expect(x.contiguous(), (N,), w, b, dy)
    expect(x, (N,), w, b, dy.contiguous())


def test_strided_parameters(device: torch.device) -> None:
    x, w, b, dy = problem(3, 8, F32, device)
    every_other = torch.stack([w, b], 1)
    expect(x, (8,), every_other[:, 0], every_other[:, 1], dy)


def test_the_gradient_of_a_sum(device: torch.device) -> None:
    """dy is one number, expanded."""
    x, w, b, _ = problem(4, 24, F32, device)
    leaves = [t.clone().requires_grad_() for t in (x, w, b)]
    tritonln.layer_norm(leaves[0], 24, *leaves[1:]).sum().backward()
    ref = reference.layer_norm_gradients(x, (24,), w, b, 1e-5, torch.ones_like(x))
    scale = reference.dx_scale(x, (24,), w, 1e-5, torch.ones_like(x))
    for name, t in zip(("dx", "dw", "db"), leaves):
        assert t.grad is not None
        assert_close(name, t.grad, ref[name], 4, scale=scale if name == "dx" else 0.0)


def test_inputs_are_left_alone(device: torch.device) -> None:
    x, w, b, dy = problem(4, 24, F32, device)
    copies = [t.clone() for t in (x, w, b, dy)]
    run(x, (24,), w, b, dy)
    assert all(t.equal(c) for t, c in zip((x, w, b, dy), copies))


# ---- autograd ----------------------------------------------------------------------------------


@pytest.mark.parametrize("N", [24, WIDE])
@pytest.mark.parametrize("needs", [n for n in itertools.product([True, False], repeat=3) if any(n)])
def test_gradients_only_of_what_requires_them(needs: tuple[bool, ...], N: int, device: torch.device) -> None:
    x, w, b, dy = problem(3, N, F32, device)
    leaves = [t.requires_grad_(n) for t, n in zip((x, w, b), needs)]
    tritonln.layer_norm(*leaves[:1], N, *leaves[1:]).backward(dy)
    ref = reference.layer_norm_gradients(x, (N,), w, b, 1e-5, dy)
    for name, t, needed in zip(("dx", "dw", "db"), leaves, needs):
        assert (t.grad is not None) == needed
        if t.grad is not None:
            assert_close(name, t.grad, ref[name], 3)


def test_no_grad_saves_nothing(device: torch.device) -> None:
    x, w, b, _ = (t.requires_grad_() for t in problem(3, 24, F32, device))
    with torch.no_grad():
        assert tritonln.layer_norm(x, 24, w, b).grad_fn is None
    assert tritonln.layer_norm(x.detach(), 24, w.detach(), b.detach()).grad_fn is None


def test_backward_twice_and_accumulation(device: torch.device) -> None:
    x, w, b, dy = (t.requires_grad_() for t in problem(3, 24, F32, device))
    y = tritonln.layer_norm(x, 24, w, b)
    first = torch.autograd.grad(y, (x, w, b), dy, retain_graph=True)
    again = torch.autograd.grad(y, (x, w, b), dy)
    assert all(p.equal(q) for p, q in zip(first, again))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y, (x, w, b), dy)


def test_a_changed_input_is_noticed(device: torch.device) -> None:
    x, w, b, dy = problem(3, 24, F32, device)
    y = tritonln.layer_norm(x.requires_grad_() * 1, 24, w.requires_grad_(), b)
    with torch.no_grad():
        w.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(dy)


@pytest.mark.parametrize("affine", [True, False])
def test_gradcheck_and_gradgradcheck(affine: bool, device: torch.device) -> None:
    x, w, b, _ = (t.requires_grad_() for t in problem(2, 5, F64, device))
    parameters = (w, b) if affine else ()
    f = lambda x, *p: tritonln.layer_norm(x, (5,), *p)  # noqa: E731
    assert torch.autograd.gradcheck(f, (x, *parameters))
    assert torch.autograd.gradgradcheck(f, (x, *parameters))


def test_gradient_penalty_in_16_bit(device: torch.device) -> None:
    """A second derivative with fp32 parameters and 16-bit x."""
    x, w, b, dy = problem(3, 24, BF16, device, parameters=F32)
    leaves = x.requires_grad_(), w.requires_grad_(), b.requires_grad_()
    (dx,) = torch.autograd.grad(tritonln.layer_norm(x, 24, w, b), x, dy, create_graph=True)
    (dw,) = torch.autograd.grad(dx.float().square().sum(), w)
    wide = [t.detach().double().requires_grad_() for t in leaves]
    (dx64,) = torch.autograd.grad(
        reference.layer_norm(wide[0], (24,), *wide[1:]), wide[0], dy.double(), create_graph=True
    )
    (dw64,) = torch.autograd.grad(dx64.square().sum(), wide[1])
    assert dw.dtype == F32
    assert float((dw - dw64).abs().max()) <= 3 * 2**-7 * float(dw64.abs().max())


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, from its forward mode
def test_forward_mode_and_transforms(device: torch.device) -> None:
    x, w, b, dy = problem(3, 24, F32, device)
    f = lambda x: tritonln.layer_norm(x, 24, w, b)  # noqa: E731
    g = lambda x: F.layer_norm(x, (24,), w, b)  # noqa: E731
    for out, ref in zip(torch.func.jvp(f, (x,), (dy,)), torch.func.jvp(g, (x,), (dy,))):
        torch.testing.assert_close(out, ref)
    torch.testing.assert_close(torch.func.vmap(f)(x), g(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
def test_dual_numbers(device: torch.device) -> None:
    x, w, b, dx = problem(3, 24, F32, device)
    with torch.autograd.forward_ad.dual_level():
        dual = torch.autograd.forward_ad.make_dual(x, dx)
        tangents = [
            torch.autograd.forward_ad.unpack_dual(f(dual, (24,), w, b)).tangent
            for f in (tritonln.layer_norm, F.layer_norm)
        ]
    torch.testing.assert_close(*tangents)


# ---- the same bits -----------------------------------------------------------------------------


@pytest.mark.parametrize("N", [48, 1024, WIDE])
def test_repeatable_bitwise(N: int, device: torch.device) -> None:
    x, w, b, dy = problem(37, N, F32, device)
    one, two = run(x, (N,), w, b, dy), run(x, (N,), w, b, dy)
    assert all(one[k].equal(two[k]) for k in one)


@pytest.mark.parametrize("N", [48, 1024, WIDE])
def test_a_row_does_not_depend_on_the_batch(N: int, device: torch.device) -> None:
    x, w, b, dy = problem(37, N, F32, device)
    full, part = run(x, (N,), w, b, dy), run(x[30:31], (N,), w, b, dy[30:31])
    assert full["y"][30:31].equal(part["y"])
    assert full["dx"][30:31].equal(part["dx"])


def test_programs_follow_the_device_and_not_the_batch() -> None:
    from tritonln.device import TARGETS
    from tritonln.ops.layer_norm import backward_plan, forward_plan

    forward = forward_plan(1024, BF16, BF16, F32, F32, True, TARGETS["sm_90"])
    backward, *_ = backward_plan(1024, BF16, BF16, F32, F32, (True, True, True), TARGETS["sm_90"])
    assert forward.count(10**6) * forward.rows_per_program == 10**6
    assert backward.count(10**6) == 132
    assert backward.count(1) == 1


# ---- launches ----------------------------------------------------------------------------------


@pytest.mark.parametrize("N", [24, 4096, WIDE])
def test_launches(N: int, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    from tritonln.launch import Launch

    launched: list[str] = []
    real = Launch.__call__

    def counting(self: Launch, *args: object) -> None:
        launched.append(self.kernel.__name__)
        real(self, *args)

    monkeypatch.setattr(Launch, "__call__", counting)
    x, w, b, dy = problem(640 // (1 + N // 24) + 17, N, BF16, device, parameters=F32)
    y = tritonln.layer_norm(x.requires_grad_(), N, w.requires_grad_(), b.requires_grad_())
    assert len(launched) == 1
    y.backward(dy)
    assert len(launched) == 3
    launched.clear()
    tritonln.layer_norm(x[:1], N, w, b).backward(dy[:1])
    assert len(launched) == 2  # one program's sums are the gradients
    launched.clear()
    tritonln.layer_norm(x, N, w.detach(), b.detach()).backward(dy)
    assert len(launched) == 2  # no column sum for frozen parameters
