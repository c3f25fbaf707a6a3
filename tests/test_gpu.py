"""What only a GPU can show, an emulated one too where it can.  `make gpu-acceptance` runs these first."""

import pytest
import torch

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.problems import BF16, expect, problem
from tritonln.clusters import largest_cluster
from tritonln.device import interpreting, kernels_on, triton_device_type

HARDWARE = torch.accelerator.is_available()
pytestmark = [
    pytest.mark.skipif(interpreting(), reason="kernels are interpreted"),
    pytest.mark.filterwarnings("default"),  # of a torch or triton that this was not developed on
]


@pytest.fixture(autouse=True)
def poisoned() -> None:
    """Not here: tensors of 8 GB would be filled, and a filling inside a captured graph proves nothing."""


@pytest.fixture
def gpu() -> torch.device:
    return torch.device(triton_device_type() or "cuda", 0 if HARDWARE else None)


def test_kernels_are_compiled(gpu: torch.device) -> None:
    assert not interpreting()
    assert kernels_on(gpu) is not None


@pytest.mark.parametrize("N", [1, 64, 4096, 65536, *thorough(100, 1024, 8192, 16384)])
@pytest.mark.parametrize("dtype", [torch.float32, *thorough(torch.float16), BF16])
def test_every_regime_against_the_oracle(gpu: torch.device, N: int, dtype: torch.dtype) -> None:
    expect(*_arguments(37 if HARDWARE or N <= 4096 else 5, N, dtype, gpu))  # an emulated GPU takes long for wide rows


@pytest.mark.parametrize("N", [16384, 32768, 65536, 131072])
def test_rows_over_clusters_against_the_oracle(gpu: torch.device, N: int) -> None:
    device = kernels_on(gpu)
    assert device is not None
    if largest_cluster(device, 2) == 1:
        pytest.skip(f"{device.name} with this Triton has no clusters")
    for M in (1, 5, 1000) if HARDWARE else (1, 5):
        expect(*_arguments(M, N, BF16, gpu))


def _arguments(M: int, N: int, dtype: torch.dtype, gpu: torch.device):  # type: ignore[no-untyped-def]
    x, w, b, dy = problem(M, N, dtype, gpu)
    return x, (N,), w, b, dy


def test_the_same_bits_on_every_run_and_in_every_batch(gpu: torch.device) -> None:
    x, w, b, dy = problem(1000, 1024, BF16, gpu)
    runs = []
    for rows in (slice(None), slice(None), slice(100, 200)):
        leaves = [t.detach().requires_grad_() for t in (x[rows], w, b)]
        y = tritonln.layer_norm(leaves[0], 1024, leaves[1], leaves[2])
        runs.append((y, *torch.autograd.grad(y, leaves, dy[rows])))
    for first, second in zip(runs[0], runs[1]):
        assert torch.equal(first, second)
    assert torch.equal(runs[0][0][100:200], runs[2][0])
    assert torch.equal(runs[0][1][100:200], runs[2][1])


@pytest.mark.skipif(not HARDWARE, reason="an emulated GPU's tensors are the CPU's")
def test_on_the_second_gpu_while_the_first_is_current(gpu: torch.device) -> None:
    if torch.accelerator.device_count() < 2:
        pytest.skip("needs a second GPU")
    expect(*_arguments(64, 1024, BF16, torch.device(gpu.type, 1)))


def test_in_a_captured_graph(gpu: torch.device) -> None:
    """Forward and backward, replayed on new values."""
    x, w, b, dy = problem(256, 1024, BF16, gpu)
    leaves = [t.requires_grad_() for t in (x, w, b)]

    def step() -> tuple[torch.Tensor, ...]:
        y = tritonln.layer_norm(x, 1024, w, b)
        return (y, *torch.autograd.grad(y, leaves, dy))

    stream = torch.cuda.Stream()
    stream.wait_stream(torch.cuda.current_stream())
    with torch.cuda.stream(stream):
        for _ in range(2):
            step()
    torch.cuda.current_stream().wait_stream(stream)
    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        captured = step()
    with torch.no_grad():
        x.mul_(2).add_(1)
    graph.replay()
    for found, expected in zip(captured, step()):
        assert torch.equal(found, expected)


@pytest.mark.skipif(not HARDWARE, reason="takes hours on an emulated GPU")
def test_more_than_2_to_the_31_values(gpu: torch.device) -> None:
    """The last rows, whose offsets do not fit 32 bits, are those of a small call."""
    M, N = (1 << 21) + 24, 1024
    if torch.cuda.get_device_properties(gpu).total_memory < 24 << 30:
        pytest.skip("needs 24 GB")
    x = torch.randn(M, N, device=gpu, dtype=BF16, requires_grad=True)
    w, b = (torch.randn(N, device=gpu, dtype=BF16) for _ in range(2))
    dy = torch.randn(M, N, device=gpu, dtype=BF16)
    y = tritonln.layer_norm(x, N, w, b)
    (dx,) = torch.autograd.grad(y, x, dy)
    tail = x[-40:].detach().clone().requires_grad_()
    y_tail = tritonln.layer_norm(tail, N, w, b)
    assert torch.equal(y[-40:], y_tail)
    assert torch.equal(dx[-40:], torch.autograd.grad(y_tail, tail, dy[-40:])[0])
    assert torch.equal(y[:40], tritonln.layer_norm(x[:40].detach().clone(), N, w, b))
