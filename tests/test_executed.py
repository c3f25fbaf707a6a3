"""What a launch asks of a GPU's memory pipes and schedulers, counted on the emulated H100."""

import pytest
import torch

from tests.helpers.problems import BF16, F32, F64
from tritonln import executed
from tritonln.configurations.config import STEPS
from tritonln.configurations.lookup import known
from tritonln.configurations.tunable import registered
from tritonln.device import interpreting
from tritonln.emulator.driver import emulated_gpu
from tritonln.launches import prepared

pytestmark = pytest.mark.skipif(interpreting(), reason="an emulated GPU runs compiled kernels")

TARGET = "sm_90"
each_size = pytest.mark.parametrize("N", [64, 256, 1024, 4096, 16384])
each_norm = pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
each_dtype = pytest.mark.parametrize(("dtype", "parameters"), [(BF16, F32), (BF16, BF16), (F32, F32)], ids=str)


@each_norm
@each_dtype
@each_size
def test_requests_touch_the_sectors_that_their_bytes_need(
    N: int, dtype: torch.dtype, parameters: torch.dtype, norm: str
) -> None:
    # fp32 weights of 8 columns that a lane has of a 16-bit row: two interleaved loads, each of which touches all.
    interleaved = 2 if parameters != dtype else 1
    for m in executed.training(norm, TARGET, N, dtype, parameters):
        assert m.load_sectors <= 1.01 * interleaved * m.load_least, m.kernel
        assert m.store_sectors <= m.store_least, m.kernel


@each_norm
@each_dtype
@each_size
def test_parameters_in_the_forward(N: int, dtype: torch.dtype, parameters: torch.dtype, norm: str) -> None:
    """Sectors over those of x: weight and bias come from the cache, for every row that a thread holds anew."""
    forward, *_ = executed.training(norm, TARGET, N, dtype, parameters)
    assert forward.load_sectors * 32 <= (9 if parameters != dtype else 3) * forward.rows * N * dtype.itemsize


@each_norm
@each_dtype
@each_size
def test_bank_conflicts(N: int, dtype: torch.dtype, parameters: torch.dtype, norm: str) -> None:
    for m in executed.training(norm, TARGET, N, dtype, parameters):
        # A program that walks wide rows reduces chunk after chunk: half a wavefront for each column of its 16 rows.
        assert m.wavefronts <= min(max(3000, N // 2), 1.01 * m.wavefronts_least), m.kernel


@each_norm
@each_dtype
@each_size
def test_instructions_per_value(N: int, dtype: torch.dtype, parameters: torch.dtype, norm: str) -> None:
    """Of a thread.  An H100 issues 40 in the time that DRAM takes to read and write a 16-bit value."""
    forward, backward, _ = executed.training(norm, TARGET, N, dtype, parameters)
    assert forward.executed.instructions_per_element <= 27
    assert backward.executed.instructions_per_element <= 36


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
@pytest.mark.parametrize("H", [32, 64, 128, 256])
@pytest.mark.parametrize("name", [name for name in registered() if name.startswith(("lstm", "gru"))])
def test_recurrent_kernels(name: str, H: int, dtype: torch.dtype) -> None:
    tunable = registered()[name]
    m = executed.kernel(TARGET, tunable, next(tunable.keys(H, dtype)))
    if m is None:
        pytest.skip("its time steps are launched one by one")
    assert m.wavefronts <= 2 * m.wavefronts_least
    assert m.load_sectors <= 1.25 * m.load_least


@pytest.mark.parametrize("dtype", [F32, F64], ids=str)
@pytest.mark.parametrize("name", [name for name in registered() if name.startswith(("lstm", "gru"))])
def test_threads_that_store_to_one_place_agree(name: str, dtype: torch.dtype) -> None:
    """In every bit: which store comes last is not defined, and would decide the last bit of a column's sum."""
    tunable = registered()[name]
    with emulated_gpu(TARGET) as gpu:
        device = executed.emulated_device()
        for H in (3, 9):
            key = next(tunable.keys(H, dtype))
            config = known(tunable, key, device).config
            if config != STEPS:
                prepared(tunable, key, config, device, 40, 0, torch.device("cpu"))[0]()
    assert [run.counters.notes for run in gpu.runs] == [{}] * len(gpu.runs)
