"""Kernels run on an emulated GPU where there is none, or interpreted if TRITON_INTERPRET=1.  The option --benchmark."""

import os
import pathlib
import sys

import pytest
import torch

if not torch.accelerator.is_available():  # settled before anything imports Triton
    os.environ.setdefault("TRITON_INTERPRET", "1" if "--benchmark" in sys.argv else "0")

pytest_plugins = ["tritonln.emulator.pytest"]

CELLS = pathlib.Path(__file__).parent / "benchmarks" / "test_cells.py"


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("tritonln")
    group.addoption("--benchmark", action="store_true", help="run the benchmark cells instead of the tests")
    group.addoption(
        "--benchmark-mode", choices=("events", "graph", "wall"), default="events",
        help="what times a cell on a GPU: events around each call, replay of a graph, or the host's clock",
    )  # fmt: skip
    group.addoption("--benchmark-cases", default="hidden,rows,real", help="groups of cases (default: all)")
    group.addoption("--benchmark-dtypes", default="bf16", help="of bf16,fp16,fp32 (default: bf16)")
    group.addoption("--benchmark-passes", default="forward,backward", help="of forward,backward,both,no_grad")
    group.addoption("--benchmark-providers", help="default: all")


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    if not torch.accelerator.is_available() and os.environ["TRITON_INTERPRET"] == "0":
        config.option.emulate = config.option.emulate or "sm_90"
    config.addinivalue_line("markers", "benchmark: pytest-benchmark's own, known without that plugin too")
    if config.getoption("--benchmark") and not config.pluginmanager.hasplugin("benchmark"):
        raise pytest.UsageError("--benchmark: expected pytest-benchmark's plugin, which is not loaded")


def pytest_ignore_collect(collection_path: pathlib.Path, config: pytest.Config) -> bool | None:
    """With --benchmark the cells and nothing else; without it everything else."""
    if collection_path.suffix != ".py":
        return None
    return (collection_path == CELLS) != bool(config.getoption("--benchmark")) or None
