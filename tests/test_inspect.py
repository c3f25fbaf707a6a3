"""Kernels compiled for GPUs that are not here, in processes of their own: an interpreted kernel cannot be compiled."""

import json
import subprocess
import sys
from typing import Any

import pytest

pytestmark = pytest.mark.compiles

SIZES = "64,256,1024,4096,8192,16384,65536"


def run(*arguments: str) -> str:
    done = subprocess.run([sys.executable, "-m", "tritonln", *arguments], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return done.stdout


def inspect(target: str, hidden: str, *more: str) -> list[dict[str, Any]]:
    return [
        json.loads(line)
        for line in run("inspect", "--target", target, "--hidden", hidden, "--json", *more).splitlines()
    ]


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
def test_nothing_spills(target: str) -> None:
    reports = inspect(target, SIZES)
    assert len(reports) == 3 * 7
    assert {r["kernel"]: r["spills"] for r in reports if r["spills"]} == {}


def test_loads_and_stores_are_wide() -> None:
    for r in inspect("sm_90", "64,96,1024,4096"):
        if r["kernel"] == "layer_norm_fwd":
            assert set(r["loads"]) == {"128"}
            assert r["stores"]["128"] >= 4
            assert set(r["stores"]) <= {"128", "32"}  # 32: the statistics
        if r["kernel"] == "layer_norm_bwd":
            assert r["async_copies"] > 0
            assert r["in_flight"] >= 32 * 1024
            assert r["barriers"] <= 3


def test_table_names_every_kernel() -> None:
    lines = run("inspect", "--hidden", "256", "--dtype", "fp32").splitlines()
    assert [line.split()[0] for line in lines] == ["kernel", "layer_norm_fwd", "layer_norm_bwd", "column_sum"]


def test_one_kernel_only() -> None:
    assert [r["kernel"] for r in inspect("sm_90", "256", "--kernel", "column_sum")] == ["column_sum"]


def test_unknown_target() -> None:
    done = subprocess.run(
        [sys.executable, "-m", "tritonln", "inspect", "--target", "sm_1"], capture_output=True, text=True
    )
    assert done.returncode == 2
    assert "sm_90" in done.stderr


def test_info() -> None:
    assert "torch" in run("info")
