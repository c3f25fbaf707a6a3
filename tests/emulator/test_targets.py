"""Other GPUs than the suite's, and arithmetic as far from the nearest value as their documentation allows."""

import pytest
import torch

from tests.helpers.cases import thorough
from tests.helpers.problems import BF16, F16, F32, F64, expect, problem
from tests.helpers.recurrent import expect as expect_recurrent
from tests.helpers.recurrent import gru_problem, lstm_problem
from tritonln.device import interpreting
from tritonln.emulator import emulated_gpu

pytestmark = pytest.mark.skipif(interpreting(), reason="an emulated GPU runs compiled kernels")

CPU = torch.device("cpu")


def every_regime() -> None:
    for N, dtype in ((1, F32), (17, BF16), (64, BF16), (100, F64), (256, F32), (1000, F16), (1024, BF16), (4096, BF16)):
        x, w, b, dy = problem(37, N, dtype, CPU)
        expect(x, (N,), w, b, dy)
    x, w, b, dy = problem(3, 40_499, BF16, CPU, parameters=F32)
    expect(x, (40_499,), w, b, dy)


def recurrent_layers() -> None:
    lengths = torch.tensor([5, 3])
    expect_recurrent("layer_norm_lstm", lstm_problem(5, 2, 5, 48, F32, CPU), lengths=lengths)
    expect_recurrent("layer_norm_gru", gru_problem(5, 2, 5, 64, BF16, CPU), lengths=lengths)


@pytest.mark.parametrize(
    ("target", "results"),
    [
        *(("sm_80", every_regime), ("sm_100", every_regime), ("sm_100", recurrent_layers)),
        *thorough(("sm_80", recurrent_layers)),
    ],
)
def test_other_gpus(target: str, results) -> None:  # type: ignore[no-untyped-def]
    with emulated_gpu(target):
        results()


@pytest.mark.parametrize(
    ("seed", "results"),
    [(1, every_regime), *thorough((2, every_regime)), (1, recurrent_layers)],
)
def test_the_tolerance_holds_for_a_gpus_approximate_instructions(seed: int, results) -> None:  # type: ignore[no-untyped-def]
    with emulated_gpu("sm_90", perturbed=True, seed=seed):
        results()
