"""The options of pytest --benchmark, as cells, and the device that they are timed on."""

from __future__ import annotations

import pytest
import torch

from benchmarks.cases import GROUPS, PASSES, SWEPT_DTYPES, cases, chosen
from benchmarks.providers import PROVIDERS
from benchmarks.sweep import Bench, open_bench


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    if "case" not in metafunc.fixturenames:
        return

    def option(name: str, known: tuple[str, ...]) -> list[str]:
        text = metafunc.config.getoption(f"--benchmark-{name}") or ",".join(known)
        try:
            return chosen(text, known)
        except ValueError as error:
            raise pytest.UsageError(f"--benchmark-{name}: {error}") from error

    swept = cases(option("cases", GROUPS), option("dtypes", SWEPT_DTYPES), option("passes", PASSES))
    providers = [PROVIDERS[name] for name in option("providers", tuple(PROVIDERS))]
    metafunc.parametrize(
        ("case", "provider"), [pytest.param(c, p, id=f"{c.id}-{p.name}") for c in swept for p in providers]
    )


@pytest.fixture(scope="session")
def bench(pytestconfig: pytest.Config) -> Bench:
    if not torch.accelerator.is_available():
        pytest.skip("needs a GPU: python -m benchmarks run --offline tells what can be known without one")
    return open_bench(mode=pytestconfig.getoption("--benchmark-mode"))
