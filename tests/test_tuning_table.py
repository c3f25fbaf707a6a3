"""The files of configurations: whole at every moment, trusted never."""

import dataclasses
import json
import multiprocessing
import pathlib
import stat
import warnings
from typing import Any
from unittest import mock

import pytest
import torch
import triton
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

import tritonln
from tritonln.configurations import lookup, table
from tritonln.configurations.lookup import config_for, look_again
from tritonln.configurations.table import Entry, path_of, read, save, user_folder
from tritonln.device import TARGETS
from tritonln.kernels import row
from tritonln.ops.layer_norm import LAYER_NORM

FORWARD, BACKWARD = LAYER_NORM.forward_tunable, LAYER_NORM.backward_tunable

DEVICE = TARGETS["sm_90"]
KEY = next(iter(FORWARD.keys(1024, torch.bfloat16)))
CHOICE = FORWARD.choice(KEY, DEVICE)
OTHER, THIRD, *_ = sorted({*FORWARD.candidates(KEY, DEVICE)} - {CHOICE}, key=str)


@pytest.fixture
def path(new_process: None) -> pathlib.Path:
    """Of the forward kernel's table in a user's cache of its own."""
    folder = user_folder()
    assert folder is not None
    return path_of(folder, FORWARD, DEVICE)


def looked_up() -> Any:
    """As a new process would."""
    look_again()
    lookup._fixed.clear()
    return config_for(FORWARD, KEY, DEVICE)


def with_triton(version: str) -> Any:
    """As another Triton would be asked for its version; what it compiles is still this one's."""
    return mock.patch("triton.__version__", version)


def write(path: pathlib.Path, text: str) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)


def test_what_was_saved_is_looked_up(path: pathlib.Path) -> None:
    assert looked_up() == CHOICE
    assert save(path, FORWARD, DEVICE, {str(KEY): Entry(OTHER, "measured", 1.5)})
    assert looked_up() == OTHER


def test_one_entry_a_line_and_sorted(path: pathlib.Path) -> None:
    save(path, FORWARD, DEVICE, {name: Entry(OTHER, "measured") for name in ("b", "c", "a")})
    with with_triton("9.9.9"):
        save(path, FORWARD, DEVICE, {"b": Entry(CHOICE, "measured")})
    lines = path.read_text().splitlines()
    begins = [line.split(":")[0] for line in lines]
    assert begins == ['{"header"', '"entries"', '"a"', '"b"', '{"config"', '"c"', "}}"]


def test_the_same_result_on_another_day_changes_no_byte(path: pathlib.Path) -> None:
    runner = {"config": {"block_m": 1}, "microseconds": 2.0}
    first = Entry(OTHER, "modelled", 1.5, "2026-01-01", runners_up=(runner,))
    save(path, FORWARD, DEVICE, {"a": first})
    before = path.read_bytes()
    save(path, FORWARD, DEVICE, {"a": Entry(OTHER, "modelled", 1.5, "2027-01-01", runners_up=(runner,))})
    assert path.read_bytes() == before
    save(path, FORWARD, DEVICE, {"a": Entry(OTHER, "modelled", 1.6, "2027-01-01")})
    assert "2027" in path.read_text()


@pytest.mark.parametrize(
    "config",
    [
        {"block_m": 3},
        {"block_m": 1 << 40},
        {"block_m": True},
        {"block_m": 1.0},
        {"block_m": None},
        {"num_warps": 64},
        {"num_ctas": 16},  # on a Triton that cannot, the compiler would end the process
        {"block_n": 8192},
        {"surprise": 1},
    ],
    ids=str,
)
def test_an_illegal_configuration_is_not_used(path: pathlib.Path, config: dict[str, Any]) -> None:
    save(path, FORWARD, DEVICE, {str(KEY): Entry(OTHER, "measured")})
    found = json.loads(path.read_text())
    found["entries"][str(KEY)][0]["config"].update(config)
    path.write_text(json.dumps(found))
    assert looked_up() == CHOICE


@pytest.mark.parametrize("field", ["format", "kernel", "source", "tritonln"])
def test_a_table_of_another_version_is_ignored_and_kept(path: pathlib.Path, field: str) -> None:
    save(path, FORWARD, DEVICE, {str(KEY): Entry(OTHER, "measured")})
    found = json.loads(path.read_text())
    found["header"][field] = "another"
    path.write_text(json.dumps(found))
    assert looked_up() == CHOICE
    save(path, FORWARD, DEVICE, {"new": Entry(OTHER, "measured")})
    assert list(read(path, FORWARD, DEVICE)) == ["new"]
    assert json.loads(path.with_suffix(".old.json").read_text())["header"][field] == "another"


def test_each_triton_takes_its_own_entry(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Of the shipped table; the user's tables have a folder for each.  One that no entry names takes none."""
    shipped = tmp_path / "shipped"
    with mock.patch.object(lookup, "SHIPPED", shipped):
        for version, config in (("9.0.0", OTHER), ("9.1.0", THIRD), ("9.2.0", OTHER)):
            with with_triton(version):
                assert looked_up() == CHOICE
                save(path_of(shipped, FORWARD, DEVICE), FORWARD, DEVICE, {str(KEY): Entry(config, "modelled")})
                assert looked_up() == config
        expected = {"9.0.0": OTHER, "9.1.0": THIRD, "9.2.0": OTHER, "9.2.1": CHOICE, "9.2": CHOICE}
        for version, config in ({triton.__version__: CHOICE} | expected).items():
            with with_triton(version):
                assert looked_up() == config, version


def test_a_configuration_that_several_tritons_found_stands_once(path: pathlib.Path) -> None:
    """With the times of the first; one that finds another anew is named there alone."""

    def found() -> list[tuple[Any, ...]]:
        value = json.loads(path.read_text())["entries"]["a"]
        return [(e["triton"], e["config"]["num_warps"], e["microseconds"], e["provenance"]) for e in value]

    def saved(version: str, entry: Entry) -> None:
        with with_triton(version):
            save(path, FORWARD, DEVICE, {"a": entry})

    four, eight = (dataclasses.replace(OTHER, num_warps=n) for n in (4, 8))
    saved("9.0.0", Entry(four, "modelled", 1.0))
    saved("9.1.0", Entry(four, "modelled", 2.0))
    saved("9.2.0", Entry(eight, "modelled", 3.0))
    assert found() == [(["9.0.0", "9.1.0"], 4, 1.0, "modelled"), (["9.2.0"], 8, 3.0, "modelled")]
    saved("9.0.0", Entry(four, "modelled", 1.5))
    saved("9.1.0", Entry(eight, "modelled", 2.5))
    assert found() == [(["9.0.0"], 4, 1.5, "modelled"), (["9.2.0", "9.1.0"], 8, 3.0, "modelled")]
    saved("9.2.0", Entry(eight, "measured", 3.5))
    assert found() == [
        (["9.0.0"], 4, 1.5, "modelled"),
        (["9.1.0"], 8, 3.0, "modelled"),
        (["9.2.0"], 8, 3.5, "measured"),
    ]


def test_an_entry_without_clusters_asks_for_none(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Whether a Triton has them is tried in a process of its own, which takes seconds once."""
    key = next(iter(BACKWARD.keys(1024, torch.bfloat16)))
    others = {c for c in BACKWARD.candidates(key, DEVICE) if c.num_ctas == 1} - {BACKWARD.choice(key, DEVICE)}
    monkeypatch.setattr("tritonln.clusters._triton_clusters", mock.Mock(side_effect=AssertionError))
    for tunable, name, config in ((FORWARD, KEY, OTHER), (BACKWARD, key, min(others, key=str))):
        save(path_of(path.parents[1], tunable, DEVICE), tunable, DEVICE, {str(name): Entry(config, "measured")})
        look_again()
        lookup._fixed.clear()
        assert config_for(tunable, name, DEVICE) == config


def test_a_changed_kernel_has_another_source(monkeypatch: pytest.MonkeyPatch) -> None:
    before = FORWARD.source()
    lines = row.row_sum.raw_src  # which is called by what the kernel calls
    monkeypatch.setattr(row.row_sum, "raw_src", [*lines, "    # changed\n"])
    assert FORWARD.source() != before
    monkeypatch.undo()
    assert FORWARD.source() == before


@pytest.mark.parametrize("text", ["", '{"header": {', "[]", '{"header": 1, "entries": []}', "\x00\xff", "[" * 99_999])
def test_a_broken_file_is_missing_and_kept_aside(path: pathlib.Path, text: str) -> None:
    write(path, text)
    with pytest.warns(UserWarning, match="broken table"):
        assert looked_up() == CHOICE
    with warnings.catch_warnings(action="error"):  # warned once
        assert looked_up() == CHOICE
        save(path, FORWARD, DEVICE, {str(KEY): Entry(OTHER, "measured")})
        assert looked_up() == OTHER
    assert path.with_suffix(".broken.json").read_text() == text


def test_a_directory_that_cannot_be_written(path: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """A file is where the directory should be, which stops root as well."""
    (tmp_path / path.relative_to(tmp_path).parts[0]).write_text("")
    assert looked_up() == CHOICE
    with pytest.warns(UserWarning, match="cannot save"):
        assert not save(path, FORWARD, DEVICE, {str(KEY): Entry(OTHER, "measured")})


def test_a_lock_that_somebody_keeps(path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from filelock import FileLock

    monkeypatch.setattr(table, "LOCK_TIMEOUT", 0.05)
    path.parent.mkdir(parents=True)
    with FileLock(f"{path}.lock"), pytest.warns(UserWarning, match="cannot save"):
        assert not save(path, FORWARD, DEVICE, {"a": Entry(OTHER, "measured")})


def test_others_may_read_what_was_saved(path: pathlib.Path) -> None:
    save(path, FORWARD, DEVICE, {"a": Entry(OTHER, "measured")})
    assert stat.S_IMODE(path.stat().st_mode) == 0o644


def hundred(path: pathlib.Path, process: int) -> None:
    for tens in range(10):
        assert save(path, FORWARD, DEVICE, {f"{process} {tens} {i}": Entry(OTHER, "measured") for i in range(10)})


def test_sixteen_processes_lose_nothing(path: pathlib.Path) -> None:
    context = multiprocessing.get_context("fork")
    processes = [context.Process(target=hundred, args=(path, i)) for i in range(16)]
    for p in processes:
        p.start()
    while any(p.is_alive() for p in processes):
        if path.exists():
            assert json.loads(path.read_text())["entries"]
        processes[0].join(0.01)
    assert [p.exitcode for p in processes] == [0] * 16
    assert len(read(path, FORWARD, DEVICE)) == 1600
    assert {f.name for f in path.parent.iterdir()} == {path.name, f"{path.name}.lock"}


values = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=6,
)
numbers = st.integers(-(2**70), 2**70) | st.sampled_from([1, 2, 4, 8, 16, 32, 1024, 4096]) | values
configs = st.fixed_dictionaries(dict.fromkeys(("block_m", "block_n", "num_warps"), numbers), optional={"x": values})
tritons = st.just([triton.__version__]) | values
fields = {"config": configs | values, "provenance": st.just("measured") | values, "triton": tritons}
entries = st.lists(st.fixed_dictionaries(fields), max_size=2) | values


@settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.binary(max_size=40) | st.integers(0, 10_000) | st.tuples(entries))
def test_no_file_makes_layer_norm_fail(path: pathlib.Path, content: Any) -> None:
    """Random bytes, a table cut short, or entries of random values; what is saved then is found."""
    path.unlink(missing_ok=True)
    save(path, FORWARD, DEVICE, {str(KEY): Entry(OTHER, "measured")})
    if isinstance(content, bytes):
        path.write_bytes(content)
    elif isinstance(content, int):
        text = path.read_bytes()
        path.write_bytes(text[: content % len(text)])
    else:
        found = json.loads(path.read_text())
        (found["entries"][str(KEY)],) = content
        path.write_text(json.dumps(found))
    with warnings.catch_warnings(action="ignore"):
        assert looked_up() in {*FORWARD.candidates(KEY, DEVICE)}
        tritonln.layer_norm(torch.ones(1, 1024, dtype=torch.bfloat16), 1024)
        assert save(path, FORWARD, DEVICE, {str(KEY): Entry(OTHER, "measured")})
        assert looked_up() == OTHER
