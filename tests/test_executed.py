"""What a launch asks of a GPU's memory pipes and schedulers, counted on the emulated H100."""

import dataclasses

import pytest
import torch

from tests.helpers.cases import thorough
from tests.helpers.problems import BF16, F32, F64
from tritonln import executed
from tritonln.configurations.config import STEPS
from tritonln.configurations.lookup import known
from tritonln.configurations.tunable import registered
from tritonln.device import interpreting, triton_version
from tritonln.emulator.driver import emulated_gpu
from tritonln.launches import prepared

pytestmark = pytest.mark.skipif(interpreting(), reason="an emulated GPU runs compiled kernels")

TARGET = "sm_90"


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize(("dtype", "parameters"), [(BF16, F32), (F32, F32), *thorough((BF16, BF16))], ids=str)
@pytest.mark.parametrize("N", [64, 1024, 16384, *thorough(256, 4096)])
def test_training(N: int, dtype: torch.dtype, parameters: torch.dtype, norm: str) -> None:
    launches = executed.training(norm, TARGET, N, dtype, parameters)
    cluster = N > 8192 and "sum" not in launches[1].kernel  # holds such rows whole; else they take two kernels backward
    for m in launches:
        # fp32 weights of 8 columns that a lane has of a 16-bit row: two interleaved loads, each of which touches all.
        # Forward, where they are loaded for some rows and not once a program, rows of many lanes come 4 at a time.
        apart = parameters != dtype and (m is not launches[0] or N < 256)
        # Requests touch the sectors that their bytes need; the sums of a chunk of a wide row are 8 bytes of one.
        assert m.load_sectors <= (1.05 if "dx" in m.kernel else 1.01) * (2 if apart else 1) * m.load_least, m.kernel
        assert m.store_sectors <= (1.1 if "sums" in m.kernel else 1) * m.store_least, m.kernel
        # The blocks of a cluster exchange the sums of each row too.
        assert m.wavefronts <= (1200 + 850 * m.rows / m.programs if cluster else 3000), m.kernel
        assert m.wavefronts <= (1.04 if cluster else 1.01) * m.wavefronts_least, m.kernel
    forward, *backward = [m for m in launches if m.kernel != "column_sum"]
    # Weight and bias come from the cache, once for all rows that a thread holds: two, of fp32 ones one.
    several = 8 if N < 512 else 1 if dtype == F32 else 2
    times = 1 + 2 * parameters.itemsize / dtype.itemsize * (2 if parameters != dtype and N < 256 else 1) / several
    assert forward.executed.loaded_per_element <= times * dtype.itemsize
    # Of a thread.  An H100 issues 40 in the time that DRAM takes to read and write a 16-bit value.
    assert forward.executed.instructions_per_element <= 27
    # Wide rows take two kernels, each of which issues while DRAM reads all once.
    assert sum(m.executed.instructions_per_element for m in backward) <= (36 if len(backward) == 1 else 48)


COVERING = [  # every place where a kernel loads what rows have in common
    "layer_norm_fwd",
    "layer_norm_bwd",
    "adaptive_layer_norm_bwd",
    "gated_residual_fwd",
    "qk_norm_fwd",
    "qk_norm_bwd",
    "quantized_layer_norm_fwd",
    "lstm_step_fwd",
    "lstm_step_bwd",
    "gru_step_fwd",
    "gru_step_bwd",
]
WIDE = "layer_norm_fwd", "layer_norm_bwd", "quantized_layer_norm_fwd"
STEPWISE = [name for name in registered() if "persistent" not in name and name != "column_sum"]


@pytest.mark.parametrize(
    ("name", "N"),
    [
        *((name, 1001) for name in COVERING),
        *((name, 20_001) for name in WIDE),
        *thorough(*((name, N) for name in STEPWISE for N in (65, 1001))),
    ],
)
def test_lanes_load_neighbours_of_rows_that_are_not_aligned(name: str, N: int) -> None:
    """A request of 64 bytes at any address touches 2.5 sectors on average: 1.25 times the fewest, and more of edges."""
    tunable = registered()[name]
    key = next(tunable.keys(N, BF16))
    with emulated_gpu(TARGET, check=False) as gpu:
        device = executed.emulated_device()
        config = known(tunable, key, device).config
        rows = 4 * config.block_m
        prepared(tunable, key, tunable.plan(key, config, device), rows, 0, torch.device("cpu"))[0]()
        for m in (executed.measured(run, rows, N) for run in gpu.runs):
            # Triton 3.6 loads the weights of a backward's program, once, in a layout of their own.
            once = triton_version() == (3, 6) and "bwd" in m.kernel
            assert m.load_sectors <= (3 if once else 1.5) * m.load_least, m.kernel
            # What is stored in 8 bits is 32 bytes at any address.
            assert m.store_sectors <= (2 if "quantized" in name else 1.6) * m.store_least, m.kernel


@pytest.mark.parametrize(("N", "dtype"), [(1001, BF16), *thorough((5001, BF16), (333, F32))], ids=str)
def test_of_rows_that_are_not_copied_each_sector_is_asked_for_ahead(N: int, dtype: torch.dtype) -> None:
    """On a GPU of two multiprocessors, whose programs take seven tiles each."""
    tunable = registered()["layer_norm_bwd"]
    key = next(tunable.keys(N, dtype))
    with emulated_gpu(TARGET, check=False) as gpu:
        device = dataclasses.replace(executed.emulated_device(), multiprocessors=2)
        config = tunable.choice(key, device)
        rows = 13 * config.block_m + 1
        for stages in (config.num_stages, 1):
            plan = tunable.plan(key, dataclasses.replace(config, num_stages=stages), device)
            prepared(tunable, key, plan, rows, 0, torch.device("cpu"))[0]()
        ahead, never = (executed.measured(run, rows, N) for run in gpu.runs)
    later = rows - 2 * (config.num_stages - 1) * config.block_m  # than the first tiles, which nothing can be ahead of
    assert ahead.load_sectors - never.load_sectors == 2 * later * -(-N * dtype.itemsize // 32)


@pytest.mark.parametrize(
    ("name", "N", "dtype"),
    [
        ("layer_norm_fwd", 20_001, F32),
        *thorough(("layer_norm_fwd", 40_001, BF16), ("quantized_rms_norm_fwd", 40_001, BF16)),
    ],
    ids=str,
)
def test_of_wide_rows_that_are_not_copied_each_sector_is_asked_for_ahead(name: str, N: int, dtype: torch.dtype) -> None:
    tunable, rows = registered()[name], 3
    key = next(tunable.keys(N, dtype))
    with emulated_gpu(TARGET, check=False) as gpu:
        device = executed.emulated_device()
        config = tunable.choice(key, device)
        if config.num_ctas > 1:
            pytest.skip("a cluster holds its rows")
        for stages in (config.num_stages, 1):
            plan = tunable.plan(key, dataclasses.replace(config, num_stages=stages), device)
            prepared(tunable, key, plan, rows, 0, torch.device("cpu"))[0]()
        ahead, never = (executed.measured(run, rows, N) for run in gpu.runs)
    later = N - (config.num_stages - 1) * config.block_n  # columns than the first chunks
    assert later > 0
    streams = sum(operand in key.operands for operand in ("x", "residual"))
    alike = max(1, 32 * config.num_warps // (config.block_n * dtype.itemsize // 32))  # threads that ask for a sector
    asked = rows * streams * alike * -(-later * dtype.itemsize // 32)
    assert ahead.load_sectors - never.load_sectors == pytest.approx(asked, rel=0.002)


@pytest.mark.parametrize(("kernel", "N"), [("layer_norm_bwd", 1024), ("layer_norm_bwd", 16384), ("column_sum", 1024)])
def test_cycles_of_many_rows_are_told_from_few(kernel: str, N: int) -> None:
    """On a GPU of four multiprocessors, whose programs take nine tiles each or more."""
    tunable = registered()[kernel]
    key = next(tunable.keys(N, BF16))
    with emulated_gpu(TARGET, check=False) as gpu:
        device = dataclasses.replace(executed.emulated_device(), multiprocessors=4)
        config = tunable.choice(key, device)
        rows = 37 * config.block_m
        prepared(tunable, key, tunable.plan(key, config, device), rows, 0, torch.device("cpu"))[0]()
        counted = [executed.measured(run, rows, N).cycles for run in gpu.runs]
    assert executed.cycles(tunable, key, config, device, rows) == pytest.approx(counted, rel=0.01)


@pytest.mark.parametrize(("H", "dtype"), [*thorough((64, F32)), (128, BF16), (256, BF16)], ids=str)
@pytest.mark.parametrize("name", [name for name in registered() if name.startswith(("lstm", "gru"))])
def test_recurrent_kernels(name: str, H: int, dtype: torch.dtype) -> None:
    tunable = registered()[name]
    m = executed.kernel(TARGET, tunable, next(tunable.keys(H, dtype)))
    if m is None:
        pytest.skip("its time steps are launched one by one")
    assert m.wavefronts <= 2 * m.wavefronts_least
    assert m.load_sectors <= 1.25 * m.load_least


@pytest.mark.parametrize("dtype", [F32, *thorough(F64)], ids=str)
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
                prepared(tunable, key, tunable.plan(key, config, device), 40, 0, torch.device("cpu"))[0]()
    assert [run.counters.notes for run in gpu.runs] == [{}] * len(gpu.runs)
