"""The recurrent kernels on a GPU: matrix units, graphs of steps, a second device.  Part of `make gpu-acceptance`."""

import pytest
import torch
from torch import Tensor

import tritonln
from tests.helpers.problems import BF16, F32, rand
from tests.helpers.recurrent import expect, gru_problem, lstm_problem
from tritonln.device import triton_device_type

pytestmark = [
    pytest.mark.skipif(not torch.accelerator.is_available(), reason="needs a GPU"),
    pytest.mark.filterwarnings("default"),  # of a torch or triton that this was not developed on
]


@pytest.fixture(params=[0, 1], ids=["first GPU", "second GPU"])
def gpu(request: pytest.FixtureRequest) -> torch.device:
    """The second while the first is current."""
    if request.param >= torch.accelerator.device_count():
        pytest.skip("needs a second GPU")
    kind = triton_device_type() or "cuda"
    return torch.device(kind, request.param)


@pytest.mark.parametrize("H", [64, 128])
def test_whole_sequences_against_the_oracle(H: int, gpu: torch.device) -> None:
    """W_hh in shared memory, products by the matrix units, steps read ahead; forward and backward."""
    expect("layer_norm_lstm", {**lstm_problem(12, 33, 48, H, BF16, gpu, parameters=F32)})
    expect("layer_norm_gru", gru_problem(12, 33, 48, H, BF16, gpu, parameters=F32))


@pytest.mark.parametrize("layer", [tritonln.nn.LayerNormLSTM, tritonln.nn.LayerNormGRU])
def test_graphs_of_steps_on_new_inputs(layer: type[tritonln.nn.LayerNormLSTM], gpu: torch.device) -> None:
    """H = 256 takes a launch a step: warmed up, captured, replayed, each time as without a graph."""
    H = 256
    torch.manual_seed(0)
    graphed = layer(32, H, device=gpu, dtype=BF16, cuda_graph=True)
    plain = layer(32, H, device=gpu, dtype=BF16, cuda_graph=False)
    plain.load_state_dict(graphed.state_dict())

    def step(rnn: tritonln.nn.LayerNormLSTM, seed: int) -> list[Tensor]:
        x, dy = (rand(9, 20, width, dtype=BF16, device=gpu, seed=seed + k) for k, width in enumerate((32, H)))
        y = rnn(x.requires_grad_())[0]
        return [y.detach(), *torch.autograd.grad(y, [x, *rnn.parameters()], dy)]

    for seed in (1, 3, 5):
        for found, expected in zip(step(graphed, seed), step(plain, seed), strict=True):
            assert found.equal(expected)
