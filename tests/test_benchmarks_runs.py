"""Runs, their files, comparisons and acceptance, on a CPU taken for a GPU."""

import json
import os
import pathlib
import shutil
import subprocess
import sys
import time
from typing import Any

import pytest

from benchmarks.__main__ import main
from benchmarks.acceptance import Step, perform, put_aside, steps
from benchmarks.cases import Case, Shape
from benchmarks.compare import changes, compare
from benchmarks.offline import cell, child
from benchmarks.plots import SHORT
from benchmarks.results_file import Results, cells, continues, read
from tests.helpers.cases import thorough
from tritonln.device import TARGETS

RUN = ("--rehearse", "--most-values", "1024", "--samples", "3", "--dtypes", "fp32", "--passes", "forward")


def run(out: pathlib.Path, *more: str) -> list[dict[str, Any]]:
    main(["run", *RUN, "--out", str(out), *more])
    return read(out / "results.jsonl")


def test_a_killed_run_goes_on(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    whole = run(tmp_path, "--providers", "eager,copy,quack")
    assert str(tmp_path / "results.jsonl") in capsys.readouterr().out
    ids = [r["id"] for r in cells(whole)]
    assert len(ids) == len(set(ids)) == 3
    assert {r["status"] for r in cells(whole)} == {"ok", "missing"}
    assert {"device", "versions", "commit", "python", "copy_bandwidth"} <= whole[0].keys()
    # Cut within the last cell's line.
    path = tmp_path / "results.jsonl"
    lines = path.read_text().splitlines(keepends=True)
    last = max(i for i, line in enumerate(lines) if '"record": "cell"' in line)
    path.write_text("".join(lines[:last]) + lines[last][:40])
    again = cells(run(tmp_path, "--providers", "eager,copy,quack"))
    assert sorted(r["id"] for r in again) == sorted(ids)
    assert again[0] == cells(whole)[0]  # not measured again


def test_what_ended_the_process_twice_is_not_tried_a_third_time(tmp_path: pathlib.Path) -> None:
    done = run(tmp_path, "--providers", "eager")
    path, identity = tmp_path / "results.jsonl", cells(done)[0]["id"]
    begun = json.dumps({"record": "begun", "id": identity}) + "\n"
    path.write_text(json.dumps(done[0]) + "\n" + begun + begun)
    (found,) = cells(run(tmp_path, "--providers", "eager"))
    assert found["status"] == "failed"
    assert "twice" in found["reason"]


HEADER = {"record": "environment", "device": "A", "commit": "1", "versions": {}, "mode": "events", "kind": "measured"}


def test_results_of_another_machine_are_not_continued(tmp_path: pathlib.Path) -> None:
    Results(tmp_path / "r.jsonl", HEADER)
    with pytest.raises(ValueError, match="device 'A' there, 'B' here"):
        Results(tmp_path / "r.jsonl", HEADER | {"device": "B"})
    assert Results(tmp_path / "r.jsonl", HEADER | {"device": "B"}, fresh=True).done == set()


def test_make_bench_starts_over_but_where_it_was_stopped(tmp_path: pathlib.Path) -> None:
    """The committed report is of another commit: that must not be in the way."""
    path = tmp_path / "r.jsonl"
    assert not continues(path, HEADER)
    file = Results(path, HEADER)
    assert continues(path, HEADER)
    assert not continues(path, HEADER | {"commit": "2"})
    file.append({"record": "finished"})
    assert not continues(path, HEADER)


def test_time_that_is_over_ends_a_run(tmp_path: pathlib.Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cells(run(tmp_path, "--providers", "eager", "--seconds", "0")) == []
    assert "goes on" in capsys.readouterr().err


def test_without_a_gpu_a_run_says_what_to_do() -> None:
    import torch

    if torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    with pytest.raises(SystemExit, match="--offline --target sm_90"):
        main(["run"])


def test_unknown_names_are_refused(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        main(["run", "--providers", "cuddn"])
    assert "expected some of tritonln, eager" in capsys.readouterr().err


def record(name: str, center: float) -> dict[str, Any]:
    samples = [center * (1 + 0.01 * (i % 7 - 3)) for i in range(40)]
    return {"record": "cell", "id": name, "status": "ok", "seconds": center, "samples": samples}


def test_regressions_come_first_and_noise_is_named(tmp_path: pathlib.Path) -> None:
    head = {"record": "environment", "device": "A", "kind": "measured", "commit": "1"}
    old = [head, record("same", 1.0), record("slow", 1.0), record("slower", 1.0), record("fast", 1.0)]
    new = [head, record("same", 1.001), record("slow", 1.1), record("slower", 1.5), record("fast", 0.8)]
    assert [(c.id, c.verdict) for c in changes(old, new)] == [
        ("slower", "slower"), ("slow", "slower"), ("same", "inside the noise"), ("fast", "faster")
    ]  # fmt: skip
    paths = []
    for name, records in (("a", old), ("b", new)):
        paths.append(tmp_path / name)
        paths[-1].write_text("".join(json.dumps(r) + "\n" for r in records))
    text = compare(*paths)
    assert text.index("slower") < text.index("fast")
    assert "4 cells in both: 2 slower, 1 inside the noise, 1 faster" in text


@pytest.mark.parametrize("operator", ["layer_norm", *thorough("rms_norm")])
def test_an_offline_cell(operator: str) -> None:
    """A backward of two launches, compiled and read."""
    given = json.dumps([{"operator": operator, "M": 4096, "N": 64, "dtype": "bf16"}])
    (kernels,) = child("offline_compile", "--provider", "tritonln", given=given)
    shape = Shape("hidden", operator, 4096, 64, "")
    backward = cell(Case(shape, "bf16", "backward"), kernels, TARGETS["sm_90"].bandwidth)
    assert backward["status"] == "modelled"
    assert (backward["launches"], backward["spills"]) == (2, 0)
    assert 1 <= backward["moved"] / Case(shape, "bf16", "backward").least_bytes < 1.1
    forward, both = (cell(Case(shape, "bf16", d), kernels, TARGETS["sm_90"].bandwidth) for d in ("forward", "both"))
    assert both["seconds"] == pytest.approx(forward["seconds"] + backward["seconds"])
    assert set(forward["loads"]) == {"128"}


@pytest.mark.skipif(shutil.which("cc") is None, reason="the stub driver needs a C compiler")
def test_host_times_have_the_passes_that_the_report_shows() -> None:
    few = "--rounds", "1", "--calls", "1", "--hidden", "64"
    assert {r["pass"] for r in child("host", "--json", *few)} == {"no_grad", "forward", "both"} <= SHORT.keys()


def test_acceptance_goes_on_behind_what_fails_and_keeps_its_time(tmp_path: pathlib.Path) -> None:
    flag = f"p = pathlib.Path({str(tmp_path / 'flag')!r})"
    once = f"import pathlib, sys; {flag}; seen = p.exists(); p.touch(); sys.exit(not seen)"
    agenda = [
        Step("passes", 1, ("-c", "print('seen')")),
        Step("fails", 1, ("-c", "raise SystemExit(3)")),
        Step("crashes once", 1, ("-c", once), tries=2),
        Step("hangs", 1, ("-c", "import time; time.sleep(60)")),
        Step("tunes", 1, ("-c", "import time; print('a table', flush=True); time.sleep(60)"), partial=True),
        Step("late", 1, ("-c", "print()")),
    ]
    start = time.monotonic()
    done = perform(agenda, tmp_path, minutes=10 / 60)
    assert time.monotonic() - start < 25
    assert [d["status"] for d in done][:5] == ["ok", "failed with 3", "ok", "out of time", "ended by its time"]
    assert (tmp_path / "1-passes.log").read_text() == "seen\n"
    assert "KeyboardInterrupt" in (tmp_path / "4-hangs.log").read_text()  # it says where it was
    assert (tmp_path / "5-tunes.log").read_text().startswith("a table\n")
    assert json.loads((tmp_path / "acceptance.json").read_text()) == done


def test_acceptance_at_another_commit_measures_anew(tmp_path: pathlib.Path) -> None:
    from benchmarks.results_file import commit, versions

    path = tmp_path / "results.jsonl"
    Results(path, HEADER)  # of commit 1
    put_aside(path)
    assert [p.name for p in tmp_path.iterdir()] == ["results-1.jsonl"]
    Results(path, {**HEADER, "commit": commit(), "versions": versions()})
    put_aside(path)
    assert path.exists()  # a run that was cut off goes on


def test_acceptance_does_what_was_promised_in_order(tmp_path: pathlib.Path) -> None:
    agenda = steps(tmp_path, rehearse=False)
    assert [s.name for s in agenda] == [
        *("environment", "tests of the device", "tests on the device", "copy bandwidth", "tuning", "sweep"),
        *("recurrent layers", "report"),
    ]
    assert sum(s.seconds for s in agenda) <= 8.5 * 60
    for step in agenda:  # every option is one that the command knows
        if step.command[:2] == ("-m", "benchmarks"):
            from benchmarks.__main__ import parser

            parser().parse_args(step.command[2:])


ROOT = pathlib.Path(__file__).parents[1]


def run_pytest(*arguments: str, pythonpath: str = "") -> subprocess.CompletedProcess[str]:
    """As from a terminal: a worker of xdist, which this may be, is none where benchmarks run."""
    environment = {k: v for k, v in os.environ.items() if not k.startswith("PYTEST_XDIST")}
    return subprocess.run(
        [sys.executable, "-m", "pytest", "-p", "no:cacheprovider", *arguments],
        capture_output=True,
        text=True,
        cwd=ROOT,
        env={**environment, "PYTHONPATH": f"{pythonpath}:{ROOT}"},
    )


def test_pytest_collects_cells_only_when_asked() -> None:
    def collected(*arguments: str) -> str:
        return run_pytest("--collect-only", "-q", *arguments).stdout

    with_flag = collected("--benchmark", "--benchmark-cases", "rows", "--benchmark-providers", "eager,copy")
    assert "test_cells.py::test_device[layer_norm-forward-bf16-1x1024-eager]" in with_flag
    assert "tests/test_" not in with_flag
    without = collected("benchmarks", "tests/test_nn_norm.py")
    assert "test_cells" not in without
    assert "test_nn_norm" in without


def test_a_device_cell_without_a_gpu_is_skipped_with_its_reason() -> None:
    import torch

    if torch.accelerator.is_available():
        pytest.skip("there is a GPU")
    done = run_pytest(
        *("-rs", "-k", "device or dispatch", "--benchmark", "--benchmark-cases", "rows"),
        *("--benchmark-passes", "forward", "--benchmark-providers", "eager,quack"),
    )
    assert done.returncode == 0, done.stdout
    assert "needs a GPU" in done.stdout
    assert "pip install quack-kernels" in done.stdout
    assert "test_cpu_dispatch[tritonln]" in done.stdout  # in the table of times


PLAYED = """
import os
os.environ["TRITON_INTERPRET"] = "1"
import torch
from benchmarks import sweep
opened = sweep.open_bench
sweep.open_bench = lambda mode: opened(rehearse=True, mode=mode, samples=5)
torch.accelerator.is_available = lambda: True
"""


@pytest.mark.parametrize("mode", ["events", *thorough("graph")])
def test_device_cells_rehearsed(mode: str, tmp_path: pathlib.Path) -> None:
    """pytest --benchmark as on a GPU, with the CPU taken for one."""
    (tmp_path / "played.py").write_text(PLAYED)
    done = run_pytest(
        *("-p", "played", "--benchmark", "--benchmark-mode", mode, "--benchmark-cases", "rows", "-k", "bf16-1x1024"),
        *("--benchmark-providers", "tritonln,copy", f"--benchmark-json={tmp_path / 'out.json'}"),
        pythonpath=str(tmp_path),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out.json").read_text())["benchmarks"]
    assert len(found) == 4
    for one in found:
        assert one["extra_info"].keys() >= {"GB/s", "of_copy", "configuration", "mode"}
        assert one["extra_info"]["mode"] == mode
        assert one["stats"]["median"] > 0
        assert one["stats"]["rounds"] == 5
    assert any(c["extra_info"]["configuration"] for c in found)
