"""What strangers run their programs and tests with."""

import os
import pathlib
import subprocess
import sys

import pytest

from tests.helpers.cases import thorough

KERNEL = """
import torch, triton, triton.language as tl

@triton.jit
def copied(x_ptr, y_ptr, N, BLOCK: tl.constexpr):
    cols = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    tl.store(y_ptr + cols, tl.load(x_ptr + cols, mask=cols < N), mask=cols < N)

def copy(x, N):
    y = torch.empty_like(x)
    copied[(2,)](x, y, N, BLOCK=64)
    return y
"""

TESTS = """
import pytest, torch
from stranger import copy

@pytest.mark.parametrize("N", [100, 101, 128])
def test_copy(N):
    x = torch.randn(128)
    assert copy(x, N)[:N].equal(x[:N])

def test_past_the_end():
    copy(torch.randn(100), 128)
"""


def python(*arguments: str, folder: pathlib.Path) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if not k.startswith(("TRITON_INTERPRET", "PYTEST"))}
    environment["PYTHONPATH"] = os.pathsep.join([str(folder), *sys.path])
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, cwd=folder, env=environment)


@pytest.fixture
def stranger(tmp_path: pathlib.Path) -> pathlib.Path:
    (tmp_path / "stranger.py").write_text(KERNEL)
    (tmp_path / "test_stranger.py").write_text(TESTS)
    (tmp_path / "script.py").write_text(
        "import sys, torch\nfrom stranger import copy\nx = torch.ones(128)\n"
        "print(copy(x, 128).sum().item(), *sys.argv[1:], __name__)\n"
    )
    return tmp_path


@pytest.mark.parametrize("processes", ["0", *thorough("2")])
def test_the_plugin(processes: str, stranger: pathlib.Path) -> None:
    done = python(
        "-m", "pytest", "-p", "tritonln.emulator.pytest", "--emulate", "sm_90", "-n", processes, folder=stranger
    )
    assert "3 passed" in done.stdout
    assert "1 failed" in done.stdout
    assert "EmulationError: copied: access outside every tensor" in done.stdout
    assert "stranger.py:7" in done.stdout  # the line of the kernel
    assert "3 emulated launches" in done.stdout
    assert "copied: 3 (" in done.stdout


def test_the_plugin_says_what_it_cannot(stranger: pathlib.Path) -> None:
    done = python("-m", "pytest", "-p", "tritonln.emulator.pytest", "--emulate", "sm_91", folder=stranger)
    assert "expected target to be one of sm_80, " in done.stderr
    assert "'sm_91'" in done.stderr


def test_run(stranger: pathlib.Path) -> None:
    script = python("-m", "tritonln", "run", "--counters", "script.py", "--of", "mine", folder=stranger)
    assert script.stdout == "128.0 --of mine __main__\n", script.stderr
    *_, heading, line = script.stderr.splitlines()  # Triton 3.9 warns first, of its own default
    assert heading.split()[:3] == ["kernel", "programs", "instr/program"]
    assert line.split()[:2] == ["copied", "2"]
    module = python("-m", "tritonln", "run", "--emulate", "sm_80", "-m", "script", "--of", "mine", folder=stranger)
    assert module.stdout == script.stdout, module.stderr
    nothing = python("-m", "tritonln", "run", folder=stranger)
    assert "expected a script" in nothing.stderr
