"""Tuning for GPUs that are not here, and the shipped tables.  Compiles, so in processes without the interpreter."""

import json
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import torch

from tritonln.configurations.table import SHIPPED, entry_from, header, path_of, read
from tritonln.configurations.tunable import Key, Tunable
from tritonln.device import TARGETS
from tritonln.ops.column_sums import SUMS
from tritonln.ops.layer_norm import LAYER_NORM

TUNABLES = LAYER_NORM.forward_tunable, LAYER_NORM.backward_tunable, SUMS

TRITONS = ["3.6.0", "3.7.1", "3.8.0", "3.9.0"]
TABLES = [(tunable, target) for target in ("sm_80", "sm_90", "H200") for tunable in TUNABLES]


def tune(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "tritonln", "tune", *arguments], capture_output=True, text=True)


def entries(file: pathlib.Path) -> Any:
    """Of each key those that some Triton found."""
    return json.loads(file.read_text())["entries"]


def keys(tunable: Tunable) -> dict[str, Key]:
    sizes = (64, 128, 256, 512, 768, 1024, 1536, 2048, 3072, 4096, 5120, 8192, 12288, 16384, 32768, 65536)
    return {str(key): key for N in sizes for key in tunable.keys(N, torch.bfloat16)}


@pytest.mark.compiles
def test_offline(tmp_path: pathlib.Path) -> None:
    """Twice: the second time changes no byte."""
    arguments = ("--offline", "--target", "gfx942", "--hidden", "256", "--dtype", "fp32", "--candidates", "2")
    arguments += ("--folder", str(tmp_path))
    done = tune(*arguments)
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "modelled, not measured"
    files = sorted(tmp_path.rglob("*.json"))
    assert [f.name for f in files] == ["column_sum.json", "layer_norm_bwd.json", "layer_norm_fwd.json"]
    assert all(e["provenance"] == "modelled" for f in files for found in entries(f).values() for e in found)
    before = [f.read_bytes() for f in files]
    assert tune(*arguments).returncode == 0
    assert [f.read_bytes() for f in files] == before


@pytest.mark.compiles
def test_offline_takes_the_first_recurrent_kernel_that_does_not_spill(tmp_path: pathlib.Path) -> None:
    """256 is more than stays on the chip: no kernel of whole sequences, and no line of its own."""
    kernels = ("--kernels", "gru_persistent_fwd,gru_step_fwd", "--folder", str(tmp_path))
    done = tune("--offline", "--target", "sm_90", "--hidden", "64,256", *kernels)
    assert done.returncode == 0, done.stderr
    found = {f.stem: entries(f) for f in tmp_path.rglob("*.json")}
    assert {key.split()[0] for key in found["gru_persistent_fwd"]} == {"N=64"}
    assert {key.split()[0] for key in found["gru_step_fwd"]} == {"N=64", "N=256"}
    assert not any("runners_up" in entry for table in found.values() for (entry,) in table.values())


def test_errors_are_a_line() -> None:
    done = tune("--hidden", "64", "--offline")
    assert done.returncode == 1
    assert done.stderr.startswith("python -m tritonln tune: expected target together with offline")
    assert len(done.stderr.splitlines()) == 1


@pytest.mark.parametrize(("tunable", "target"), TABLES, ids=lambda p: getattr(p, "name", p))
def test_shipped_tables_are_complete_and_of_this_source(
    tunable: Tunable, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A changed kernel needs `make tables`.  No Triton has two entries of a key."""
    device = TARGETS[target]
    found = json.loads(path_of(SHIPPED, tunable, device).read_text())
    assert found["header"] == header(tunable, device)
    expected = keys(tunable)
    assert set(found["entries"]) == set(expected)
    monkeypatch.setattr("tritonln.clusters._triton_clusters", lambda arch: True)
    for name, held in found["entries"].items():
        legal = {*tunable.candidates(expected[name], device)}
        named = [triton for entry in held for triton in entry["triton"]]
        assert len(named) == len({*named}), name
        assert {*named} >= {*TRITONS}, name
        for entry in held:
            assert entry_from(entry, legal) is not None, name
            assert entry["config"]["num_ctas"] == 1 or set(entry["triton"]) <= {"3.9.0"}, name


def test_a_shipped_entry_is_looked_up_by_the_triton_that_it_names(monkeypatch: pytest.MonkeyPatch) -> None:
    """Rows of 65,536 values are read twice by a Triton without clusters, once by one that has them."""
    tunable, device = LAYER_NORM.forward_tunable, TARGETS["sm_90"]
    path = path_of(SHIPPED, tunable, device)
    for version in (*TRITONS, "3.5.0", "3.7.2", "3.10.0", "3.9.0+git"):
        monkeypatch.setattr("triton.__version__", version)
        taken = [entry["config"] for name, entry in read(path, tunable, device).items() if "N=65536" in name]
        assert len(taken) == (4 if version in TRITONS else 0), version
        assert {config["num_ctas"] for config in taken} <= {4 if version == "3.9.0" else 1}, version


@pytest.mark.compiles
def test_shipped_tables_are_what_the_command_makes(tmp_path: pathlib.Path) -> None:
    """One size of one table, as all of them take half an hour."""
    import triton

    if triton.__version__ not in TRITONS:
        pytest.skip("the tables are of other Tritons")
    device = TARGETS["sm_90"]
    arguments = ("--dtype", "bf16", "--candidates", "4", "--kernels", "layer_norm_fwd", "--folder", str(tmp_path))
    done = tune("--offline", "--target", "sm_90", "--hidden", "1024", *arguments)
    assert done.returncode == 0, done.stderr
    made, shipped = (read(path_of(folder, TUNABLES[0], device), TUNABLES[0], device) for folder in (tmp_path, SHIPPED))
    assert made
    assert {name: entry["config"] for name, entry in made.items()}.items() <= {
        name: entry["config"] for name, entry in shipped.items()
    }.items()


@pytest.mark.parametrize("tunable", [LAYER_NORM.forward_tunable, LAYER_NORM.backward_tunable], ids=lambda t: t.name)
@pytest.mark.parametrize("target", TARGETS)
def test_every_row_length_has_a_configuration(target: str, tunable: Tunable) -> None:
    """Whose tile holds some of a row, and all of one of up to 8,192 values of 16 bits."""
    for N in (*range(8, 12_289, 8), *range(1, 12_289, 101)):
        for dtype in (torch.bfloat16, torch.float32, torch.float64):
            c = tunable.choice(next(tunable.keys(N, dtype)), TARGETS[target])
            held = c.block_n * min(c.pieces, max(1, N // c.block_n) if c.rest else c.pieces) + c.rest
            assert min(c.block_m, c.num_warps) >= 1, N
            assert held >= N or N > 8192 or dtype != torch.bfloat16, N
