import gc
import os
import pathlib
import sys
import tempfile
from collections.abc import Iterator
from typing import Any

import pytest
import torch

from tests.helpers.cases import thorough
from tritonln.configurations import lookup, table
from tritonln.configurations.config import STEPS
from tritonln.device import Device, kernels_on, triton_device_type
from tritonln.launch import Launch, in_tuples, tensors_in


def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line("markers", "compiles: cross-compiles kernels for GPUs in a process of its own")
    config.addinivalue_line("markers", "interpreted: runs in Triton's interpreter too, or only there")
    config.addinivalue_line("markers", "thorough: more of what others hold too; `make test` leaves it out")
    config.addinivalue_line("markers", "kernels: runs kernels in this process; set for what asks for a device")
    torch.set_num_threads(1)  # the workers of xdist share the cores
    # Emulated kernels are a million objects that stay; to look for garbage among them took half of the time.
    gc.set_threshold(200_000, 20, 100)
    # Some images allow TF32 in all products, which is ten bits; child processes inherit this.
    os.environ.pop("TORCH_ALLOW_TF32_CUBLAS_OVERRIDE", None)
    torch.set_float32_matmul_precision("highest")
    os.environ["CI"] = "1"  # where Inductor asks more of custom ops
    # What is here of somebody's tuning is no part of a test; child processes inherit this.
    os.environ["TRITONLN_CACHE_DIR"] = tempfile.mkdtemp(prefix="tritonln-tests-")


def pytest_itemcollected(item: pytest.Item) -> None:
    if "device" in getattr(item, "fixturenames", ()):
        item.add_marker("kernels")


@pytest.fixture(autouse=True)
def poisoned() -> Iterator[None]:
    """Fills every torch.empty with NaN, so that what a kernel leaves unwritten is seen."""
    torch.use_deterministic_algorithms(True)
    yield
    torch.use_deterministic_algorithms(False)


@pytest.fixture(autouse=True, scope="session")
def arguments_of_one_kind() -> Iterator[None]:
    """A Launch does not look at the dtypes of its arguments: one that were given others would misread their memory."""
    carry_out, kinds = Launch.__call__, {}

    def checked(launch: Launch, programs: int, *arguments: Any) -> None:
        kind = [None if t is None else t.dtype for t in tensors_in(in_tuples(arguments))]
        assert kinds.setdefault(launch, kind) == kind, launch.name
        carry_out(launch, programs, *arguments)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Launch, "__call__", checked)
        yield


@pytest.fixture(autouse=True)
def compiled_anew() -> None:
    """What earlier tests compiled counts toward torch.compile's limit of recompilations, and is forgotten."""
    if "torch._dynamo" in sys.modules:
        torch._dynamo.reset()


@pytest.fixture
def device() -> torch.device:
    """Where the kernels run: the GPU, or the CPU, on an emulated GPU or interpreted."""
    return torch.device(triton_device_type() or "cpu")


@pytest.fixture
def eager_without_kernels(monkeypatch: pytest.MonkeyPatch) -> None:
    """Calls of operators on rows that nobody traces take the path of tensors that no kernel serves."""
    for module in ("rms_norm", "layer_norm", "row_autograd", "row_op", "known"):
        monkeypatch.setattr(f"tritonln.ops.{module}.kernels_on", lambda device: None)


@pytest.fixture
def without_kernels(eager_without_kernels: None, monkeypatch: pytest.MonkeyPatch) -> None:
    """All operators on rows take that path."""
    monkeypatch.setattr("tritonln.ops.row_autograd._has_kernels", lambda device_type: False)


@pytest.fixture(params=["kernels", "aten"])
def way(request: pytest.FixtureRequest) -> str:
    """Eager calls of operators on rows by kernels, and without."""
    if request.param == "aten":
        request.getfixturevalue("eager_without_kernels")
    return request.param


@pytest.fixture(params=[*thorough("kernels"), "aten"])
def way_thoroughly(request: pytest.FixtureRequest) -> str:
    """The same, by kernels in thorough runs only."""
    if request.param == "aten":
        request.getfixturevalue("eager_without_kernels")
    return request.param


@pytest.fixture
def aten(monkeypatch: pytest.MonkeyPatch) -> None:
    """Recurrent layers take the path of tensors that no kernel serves, fast on a CPU."""
    for operator in ("lstm", "gru"):
        monkeypatch.setattr(f"tritonln.ops.recurrent.{operator}_sequence.device_of", lambda x, state: None)


@pytest.fixture
def stepwise(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """Recurrent layers launch their time steps one by one, whatever fits on the chip."""
    lookup.look_again()
    monkeypatch.setattr("tritonln.configurations.recurrent.persistent", lambda *_: STEPS)
    yield
    lookup.look_again()


@pytest.fixture(params=["at once", "stepwise"])
def at_once(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Iterator[bool]:
    """Recurrent layers by either way, and that it is the one taken where the test did not ask for another."""
    if request.param == "stepwise":
        request.getfixturevalue("stepwise")
    launched = set()
    carry_out = Launch.__call__

    def noting(launch: Launch, *arguments: Any) -> None:
        launched.add(launch.name)
        carry_out(launch, *arguments)

    monkeypatch.setattr(Launch, "__call__", noting)
    yield request.param == "at once"
    kinds = {kind for kind in ("persistent", "step") if any(kind in name for name in launched)}
    assert kinds == {"persistent" if request.param == "at once" else "step"}


@pytest.fixture
def gpu(device: torch.device) -> Device:
    """What is known of it."""
    found = kernels_on(device)
    assert found is not None
    return found


@pytest.fixture
def new_process(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """No configuration is fixed, nobody was warned, and the user's cache is empty."""
    monkeypatch.setenv("TRITONLN_CACHE_DIR", str(tmp_path))
    monkeypatch.setattr(lookup, "_fixed", {})
    table.warn_once.cache_clear()
    lookup.look_again()
    yield
    lookup.look_again()
