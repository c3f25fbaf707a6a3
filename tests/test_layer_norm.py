"""tritonln.layer_norm against the fp64 oracle."""

import itertools

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.problems import BF16, F16, F32, F64, WIDE, expect, problem, rand, run
from tests.helpers.tolerance import assert_close
from tritonln import reference
from tritonln.clusters import largest_cluster
from tritonln.device import Device, interpreting

# ---- sizes and dtypes --------------------------------------------------------------------------


EACH = F32, F16, BF16, F64


@pytest.mark.parametrize(
    ("M", "N", "dtype"),
    [
        *(pytest.param(5, N, dtype, marks=pytest.mark.interpreted) for N in (1, 7, 100, 2049) for dtype in EACH),
        *itertools.product([5], [2, 3, 33, 64, 256, 1000], [F32, BF16]),
        *itertools.product([5], [31, 65, 127, 511, 1536, 2047], [F32]),
        *itertools.product([5], [32, 96, 129, 1023, 3072], [BF16]),
        *itertools.product([70], [1, 3, 17, 64, 136, 255, 1024], [F32, BF16]),
        *thorough(
            *itertools.product([5], [2, 3, 33, 64, 256, 1000], [F16, F64]),
            *itertools.product([5], [31, 65, 127, 511, 1536, 2047], [BF16]),
            *itertools.product([5], [32, 96, 129, 1023, 3072], [F32]),
            *itertools.product([5], [8, 17, 136, 255, 768, 1024], [F32, BF16]),
            *itertools.product([70], [2, 8, 33, 100, 256, 1000, 2049], EACH),
        ),
    ],
    ids=str,
)
def test_hidden_sizes(M: int, N: int, dtype: torch.dtype, device: torch.device) -> None:
    x, w, b, dy = problem(M, N, dtype, device)
    expect(x, (N,), w, b, dy)


@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
@pytest.mark.parametrize("N", [8191, WIDE, 65536, *thorough(4096, 8192, 16384)])
def test_wide_rows(N: int, dtype: torch.dtype, device: torch.device) -> None:
    x, w, b, dy = problem(2, N, dtype, device)
    expect(x, (N,), w, b, dy)


@pytest.mark.parametrize("N", [pytest.param(40_503, marks=pytest.mark.interpreted), 65_544, 131_072])
def test_rows_over_clusters(N: int, monkeypatch: pytest.MonkeyPatch, device: torch.device, gpu: Device) -> None:
    """The configurations that a GPU with clusters gets; the interpreter runs each cluster as one program."""
    if interpreting():
        monkeypatch.setattr("tritonln.configurations.rows.largest_cluster", lambda _, wanted: min(wanted, 16))
    elif largest_cluster(gpu, 2) == 1:
        pytest.skip(f"{gpu.name} with this Triton has no clusters")
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


@pytest.mark.parametrize("given", ["weight, bias", *thorough("weight", "bias", "")])
@pytest.mark.parametrize(
    ("N", "dtype", "parameters"),
    [(12_288, BF16, F32), (16_376, F16, F16), *thorough((16_384, BF16, BF16), (16_384, BF16, F32), (13_000, F16, F32))],
    ids=str,
)
def test_rows_that_few_programs_stream(
    N: int, dtype: torch.dtype, parameters: torch.dtype, given: str, device: torch.device
) -> None:
    """Forward, a program of a multiprocessor walks two or three of these rows, which are cut out of wider ones here."""
    M = 2 * 132 + 3
    x, w, b, _ = problem(M, N + 24, dtype, device, parameters)
    x, w, b = x[:, 8:-16], w[:N], b[:N]
    w_given, b_given = (t if name in given else None for name, t in (("weight", w), ("bias", b)))
    y = tritonln.layer_norm(x, N, w_given, b_given)
    assert_close("y", y, reference.layer_norm(x, (N,), w_given, b_given, 1e-5), 1, reference.condition(x, (N,), 1e-5))
    for rows in (slice(0, 1), slice(131, 134), slice(M - 1, M)):
        assert tritonln.layer_norm(x[rows], N, w_given, b_given).equal(y[rows])


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
    """The correction term: a variance at an offset of 1e5 is as right as the sum of its squares.

    A lane of a GPU adds 32 of them one after the other and 32 lanes their sums pairwise: 37 roundings and a few of
    rstd, together up to 8e-7.  Without the term the error of the mean, squared, is 1e-5 and more.
    """
    x = rand(16, 1024, dtype=F32, device=device, mean=1e5)
    y = tritonln.layer_norm(x, 1024, eps=0.0)
    true = x.double().sub(x.double().mean(1, keepdim=True))
    rstd = (y.double() * true).sum(1) / true.square().sum(1)  # least squares: y = true * rstd
    variance = true.square().mean(1)
    assert float((1 / rstd.square() / variance - 1).abs().max()) <= 8e-7


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


@pytest.mark.parametrize(
    ("kind", "N"),
    # Wide rows only where they are read in place: the rest is copied before it reaches a kernel.
    [
        *(pytest.param(kind, 24, marks=pytest.mark.interpreted) for kind in STRIDED),
        *itertools.product(STRIDED, [1000]),
        *thorough(*itertools.product(STRIDED, [7])),
        *itertools.product(["odd row stride", "expanded rows", "permuted"], [WIDE]),
    ],
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
