"""layer_norm at the ends of its ranges: magnitudes, variances and strides, in every regime of its kernels."""

import itertools
from collections.abc import Callable, Iterator

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor

import tritonln
from tests.helpers import recurrent
from tests.helpers.cases import thorough
from tests.helpers.problems import BF16, F16, F32, F64, expect, problem, rand
from tritonln.configurations import lookup
from tritonln.configurations.config import Config
from tritonln.device import interpreting
from tritonln.emulator import emulated_gpu
from tritonln.kernels.recurrent.gates import load_gates, own_tile, standardize, store_gates

N = 777  # in no table
FORWARD = {"one tile": Config(1, 1024, 4), "two rows a tile": Config(2, 1024, 4), "chunks": Config(1, 256, 4)}
BACKWARD = {
    "one tile": Config(2, 1024, 8, num_stages=2),
    "two rows a tile": Config(4, 1024, 8, num_stages=2),
    "chunks": Config(16, 256, 4),
}

# numpy, under the interpreter, warns of what overflows and of rows of a tile that are past the last one.
numpy_warns = pytest.mark.filterwarnings("ignore::RuntimeWarning")


@pytest.fixture(params=list(FORWARD))
def regime(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    lookup.look_again()
    monkeypatch.setattr("tritonln.configurations.rows.forward", lambda *_: FORWARD[request.param])
    monkeypatch.setattr("tritonln.configurations.rows_backward.backward", lambda *_: BACKWARD[request.param])
    yield request.param
    lookup.look_again()


def gradients(x: Tensor, eps: float) -> tuple[Tensor, Tensor]:
    x = x.detach().requires_grad_()
    y = tritonln.layer_norm(x, x.shape[-1], eps=eps)
    return y.detach(), torch.autograd.grad(y, x, rand(*x.shape, dtype=x.dtype, device=x.device, seed=1))[0]


ROWS = {
    "of both signs": lambda r: r,
    "of one sign": lambda r: r.abs(),
    "constant": lambda r: torch.ones_like(r),
    "in halves": lambda r: torch.where(torch.arange(N, device=r.device) < N // 2, 0.5 * r.abs(), -0.5 * r.abs()),
}


MAGNITUDES = (1e-38, 1e-30, 1e-20, 1e-10, 1.0, 1e10, 1e17, 1e18, 1e19, 1e20, 1e30, 1e37, 1e38, 3e38)


def standardized(x: Tensor) -> Tensor:
    """x_hat for eps = 1e-5; 0 where the squares of the deviations add up to more than fp32 has."""
    deviation = x.double() - x.double().mean(1, keepdim=True)
    squares = deviation.square().sum(1, keepdim=True)
    rstd = torch.where(squares < torch.finfo(F32).max, (squares / x.shape[1] + 1e-5).rsqrt(), 0.0)
    return deviation * rstd


@numpy_warns
@pytest.mark.parametrize("rows", list(ROWS))
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_magnitudes(rows: str, dtype: torch.dtype, regime: str, device: torch.device) -> None:
    """Finite rows give finite results: right ones, or 0 where the squares of the deviations add up to infinity.

    Not covered, and NaN in every regime, as in torch: values that are further from the mean than a float is from 0.
    """
    unit = ROWS[rows](rand(3, N, dtype=F32, device=device).clamp(-1, 1)).double()
    rounding = 2e-6 if dtype == F32 else 128 * torch.finfo(dtype).eps  # of y, up to sqrt(N) where a row is one value
    for magnitude in MAGNITUDES:
        x = (unit * magnitude).to(dtype)
        y, dx = gradients(x, 1e-5)
        assert (y.double() - standardized(x)).abs().max() <= rounding, magnitude
        assert dx.isfinite().all(), magnitude


@triton.jit
def normalized_gates(x_ptr, y_ptr, M, H: tl.constexpr, G: tl.constexpr, BLOCK_H: tl.constexpr):
    row0, rows, cols, in_row, inside = own_tile(M, H, 4, BLOCK_H)
    x_hat, mean, rstd = standardize(load_gates(x_ptr, rows * (G * H) + cols, inside, H, G), in_row, H, 1e-5)
    store_gates(y_ptr, rows * (G * H) + cols, inside, H, x_hat)


@numpy_warns
@pytest.mark.parametrize("G", [1, 2, 3, 4])
def test_magnitudes_of_gates(G: int, device: torch.device) -> None:
    """The norms of the recurrent layers, over one to four tiles, as those of layer_norm."""
    for rows, magnitude in itertools.product(ROWS.values(), MAGNITUDES):
        # Half of it: the difference of two values is finite.
        x = (rows(rand(3, N, dtype=F32, device=device).clamp(-1, 1))[:, : 12 * G].double() * magnitude / 2).to(F32)
        y = torch.empty_like(x)
        normalized_gates[(1,)](x, y, 3, 12, G, 16)
        assert (y.double() - standardized(x)).abs().max() <= 2e-6, magnitude


@numpy_warns
@pytest.mark.parametrize(("dtype", "scale"), [(F32, 3e-20), (F32, 1e-21), (F64, 1e-157)])
def test_variances_below_the_normal_numbers(
    dtype: torch.dtype, scale: float, regime: str, device: torch.device
) -> None:
    """As in torch, on the CPU and on CUDA: rsqrt of the number itself, not of the zero that a GPU may take it for."""
    unit = rand(3, N, dtype=dtype, device=device)
    y, dx = gradients(unit * scale, 0.0)
    expected = torch.nn.functional.layer_norm((unit * scale).cpu(), (N,), eps=0.0)
    assert (y.cpu() - expected).abs().max() <= 0.02  # a variance of few digits
    assert dx.isfinite().all()


@pytest.mark.interpreted
@pytest.mark.parametrize(("N", "stride"), [(64, 1 << 26), (8, 1 << 27), (8_269, 1 << 28)])
def test_rows_far_apart(N: int, stride: int, device: torch.device, pytestconfig: pytest.Config) -> None:
    """Rows of a tile that are more than 2^31 values apart: x[:, 0] of a large tensor."""
    if pytestconfig.getoption("emulate"):
        pytest.skip("the emulated GPU notes who may touch each of these gigabytes")
    M = 40 if N < 1000 else 9
    torch.utils.deterministic.fill_uninitialized_memory = False  # most of these gigabytes are never touched
    try:
        spread = torch.empty(2 * M * stride, dtype=torch.int8, device=device).view(F16)
    finally:
        torch.utils.deterministic.fill_uninitialized_memory = True
    x, dy = (spread.as_strided((M, N), (stride, 1), offset) for offset in (0, stride // 2))
    near = [rand(M, N, dtype=F16, device=device, seed=seed) for seed in (0, 3)]
    w = rand(N, dtype=F16, device=device, seed=1)
    x.copy_(near[0])
    dy.copy_(near[1])

    def run(x: Tensor, dy: Tensor) -> list[Tensor]:
        leaves = [x.detach().requires_grad_(), w.detach().requires_grad_()]
        y = tritonln.layer_norm(leaves[0], N, leaves[1])
        return [y.detach(), *torch.autograd.grad(y, leaves, dy)]

    for far, close in zip(run(x, dy), run(*near)):
        assert far.equal(close)


@pytest.mark.skipif(interpreting(), reason="an emulated GPU runs compiled kernels")
@pytest.mark.parametrize("norm", [tritonln.layer_norm, tritonln.rms_norm], ids=["layer_norm", "rms_norm"])
@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
def test_the_lanes_of_a_row_agree(dtype: torch.dtype, norm: Callable[..., Tensor]) -> None:
    """Each stores the row's statistics at one place: the emulated GPU notes where they are not the same."""
    with emulated_gpu("sm_90") as gpu:
        for N in (3, 4, 5, 9, 17, 31, 33):
            norm(rand(300, N, dtype=dtype, device=torch.device("cpu")).requires_grad_(), N)
    assert [run.counters.notes for run in gpu.runs] == [{}] * 7


@pytest.mark.skipif(interpreting(), reason="an emulated GPU runs compiled kernels")
@pytest.mark.parametrize("seed", [0, 1, *thorough(2, 3, 4, 5)])
def test_the_tolerance_holds_wherever_approximations_fall(seed: int) -> None:
    """rsqrt.approx, div.full and ex2.approx give anything within their documented errors."""
    cpu = torch.device("cpu")
    with emulated_gpu("sm_90", perturbed=True, seed=seed):
        for n in (7, 100, 1000, 1024, 20_000):
            x, w, b, dy = problem(5, n, F32, cpu)
            expect(x, (n,), w, b, dy)
        recurrent.expect("layer_norm_lstm", {**recurrent.lstm_problem(3, 5, 8, 24, F32, cpu)})
        recurrent.expect("layer_norm_gru", recurrent.gru_problem(3, 5, 8, 24, F32, cpu))
