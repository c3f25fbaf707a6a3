import os
import tempfile
from collections.abc import Iterator

import pytest
import torch

from tritonln.device import triton_device_type


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "compiles: cross-compiles kernels for GPUs in a process of its own")
    config.addinivalue_line("markers", "smoke: a short part of what runs interpreted, for other versions of Triton")
    torch.set_num_threads(1)  # the workers of xdist share the cores
    # What is here of somebody's tuning is no part of a test; child processes inherit this.
    os.environ["TRITONLN_CACHE_DIR"] = tempfile.mkdtemp(prefix="tritonln-tests-")


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fills every torch.empty with NaN, so that what a kernel leaves unwritten is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run: the GPU, or the CPU, interpreted."""
    return torch.device(triton_device_type() or "cpu")
