"""Look-up and policies: where configurations come from."""

import dataclasses
import pathlib
import re
from collections.abc import Callable

import pytest
import torch

import tritonln
from tests.helpers.problems import BF16, F16, F32, F64, expect, problem
from tests.helpers.recurrent import expect as expect_recurrent
from tests.helpers.recurrent import gru_problem, lstm_problem
from tests.helpers.tuning import ROWS, clock, key_of, other_than_choice
from tritonln import tuning
from tritonln.configurations import lookup
from tritonln.configurations.config import STEPS, Config
from tritonln.configurations.lookup import config_for
from tritonln.configurations.table import Entry, path_of, save, user_folder
from tritonln.configurations.tunable import Tunable, registered
from tritonln.device import TARGETS, Device, of_arch
from tritonln.kernels import row
from tritonln.ops.column_sums import SUMS
from tritonln.ops.layer_norm import LAYER_NORM

FORWARD, BACKWARD = LAYER_NORM.forward_tunable, LAYER_NORM.backward_tunable
TUNABLES = LAYER_NORM.forward_tunable, LAYER_NORM.backward_tunable, SUMS

pytestmark = pytest.mark.usefixtures("new_process")

# ---- look-up ------------------------------------------------------------------------------------


def test_every_kernel_is_registered() -> None:
    """Those that are launched, by their decorator, against those that a registered tunable launches."""
    folder = pathlib.Path(row.__file__).parent
    launched = re.compile(r"^@triton\.jit\(do_not_specialize=.*\)\ndef (\w+)", re.MULTILINE)
    names = {name for file in folder.rglob("*.py") for name in launched.findall(file.read_text())}
    assert len(names) == 22
    assert names <= {kernel.fn.__name__ for tunable in registered().values() for kernel in tunable.kernels()}


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100", "gfx942"])
@pytest.mark.parametrize("tunable", registered().values(), ids=lambda t: t.name)
def test_the_choice_is_a_candidate(tunable: Tunable, target: str) -> None:
    for N in (1, 7, 64, 100, 768, 1000, 1024, 5120, 8192, 16384, 65536, 262_144):
        for dtype in (BF16, F16, F32, F64):
            for key in tunable.keys(N, dtype):
                choice = tunable.choice(key, TARGETS[target])
                assert choice in {*tunable.candidates(key, TARGETS[target])}, (key, choice)


def test_the_order_of_tables(gpu: Device, tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Process, user's cache, shipped for the device, shipped for its architecture, analytic choice."""
    key = key_of(FORWARD)
    mine = dataclasses.replace(gpu, name="NVIDIA H100 of a kind")
    monkeypatch.setattr(lookup, "SHIPPED", tmp_path / "shipped")
    architecture, device, user = other_than_choice(FORWARD, key, mine)
    found = [config_for(FORWARD, key, mine)]
    folder = user_folder()
    assert folder is not None
    for where, owner, config in (
        (tmp_path / "shipped", of_arch(gpu.backend, gpu.arch), architecture),
        (tmp_path / "shipped", mine, device),
        (folder, mine, user),
    ):
        save(path_of(where, FORWARD, owner), FORWARD, owner, {str(key): Entry(config, "modelled")})
        assert config_for(FORWARD, key, mine) == found[-1]  # fixed in this process
        lookup.look_again()
        found.append(config_for(FORWARD, key, mine))
    assert found == [FORWARD.choice(key, mine), architecture, device, user]


def test_a_directory_given_to_the_policy(gpu: Device, tmp_path: pathlib.Path) -> None:
    key = key_of(FORWARD)
    other = other_than_choice(FORWARD, key, gpu)[0]
    folder = user_folder(tmp_path / "mine")
    assert folder is not None
    save(path_of(folder, FORWARD, gpu), FORWARD, gpu, {str(key): Entry(other, "measured")})
    assert config_for(FORWARD, key, gpu) == FORWARD.choice(key, gpu)
    with tuning.policy("lookup", cache_dir=tmp_path / "mine"):
        assert config_for(FORWARD, key, gpu) == other


def test_a_looked_up_configuration_is_launched(gpu: Device, device: torch.device) -> None:
    """Also one with another tile and another number of programs, and its results are right."""
    folder = user_folder()
    assert folder is not None
    chosen = {}
    for tunable in TUNABLES:
        for key in tunable.keys(100, F32):
            chosen[tunable.name] = other_than_choice(tunable, key, gpu)[-1]
            entry = Entry(chosen[tunable.name], "measured")
            save(path_of(folder, tunable, gpu), tunable, gpu, {str(key): entry})
    x, w, b, dy = problem(40, 100, F32, device)
    expect(x, (100,), w, b, dy)
    assert set(lookup.fixed().values()) == set(chosen.values())


def tabled(kind: str, gpu: Device, wanted: Callable[[Config], bool]) -> None:
    """Puts a candidate of each recurrent kernel of a kind into the user's cache, for H = 16."""
    folder = user_folder()
    assert folder is not None
    for tunable in registered().values():
        if kind in tunable.name:
            for usual in tunable.keys(16, F32):
                key = tunable.key(16, **usual.operands, dcells=F32)  # where the kernel has one
                entry = Entry(next(c for c in tunable.candidates(key, gpu) if wanted(c)), "measured")
                save(path_of(folder, tunable, gpu), tunable, gpu, {str(key): entry})


PROBLEMS = {"layer_norm_lstm": lstm_problem, "layer_norm_gru": gru_problem}


@pytest.mark.usefixtures("stepwise")
@pytest.mark.parametrize("name", PROBLEMS)
def test_step_kernels_take_what_is_looked_up(name: str, gpu: Device, device: torch.device) -> None:
    """More programs than chosen, and with them more rows of the LSTM's partial sums."""
    tabled("step", gpu, lambda c: c.block_m == 2)
    expect_recurrent(name, PROBLEMS[name](2, 5, 3, 16, F32, device))
    assert [c.block_m for key, c in lookup.fixed().items() if "step" in key] == [2, 2]


@pytest.mark.parametrize("name", PROBLEMS)
def test_whole_sequences_take_what_is_looked_up(name: str, gpu: Device, device: torch.device) -> None:
    tabled("persistent", gpu, lambda c: c.block_m == 32)
    expect_recurrent(name, PROBLEMS[name](2, 5, 3, 16, F32, device))
    assert [c.block_m for key, c in lookup.fixed().items() if "persistent" in key] == [32, 32]
    assert not any("step" in key for key in lookup.fixed())


@pytest.mark.parametrize("name", PROBLEMS)
def test_a_table_can_ask_for_steps(name: str, gpu: Device, device: torch.device) -> None:
    tabled("persistent", gpu, lambda c: c == STEPS)
    expect_recurrent(name, PROBLEMS[name](2, 5, 3, 16, F32, device))
    assert [c for key, c in lookup.fixed().items() if "persistent" in key] == [STEPS, STEPS]
    assert sum("step" in key for key in lookup.fixed()) == 2


def test_no_row_count_asks_again(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    asked = []
    real = lookup._looked_up
    monkeypatch.setattr(lookup, "_looked_up", lambda t, key, d: asked.append(str(key)) or real(t, key, d))
    for M in (1, 2, 3, 40):
        x, w, b, dy = problem(M, 64, F32, device)
        expect(x, (64,), w, b, dy)
    assert len(asked) == len(set(asked)) == 3


def test_unknown_policy() -> None:
    with pytest.raises(ValueError, match="'lookup', 'search', 'frozen', but got 'fast'"), tuning.policy("fast"):
        pass


# ---- frozen --------------------------------------------------------------------------------------


def test_frozen_names_the_command(device: torch.device) -> None:
    x = torch.randn(3, 1000, dtype=BF16, device=device)
    command = "python -m tritonln tune --key '(layer_norm_fwd N=1000 x=bf16 y=bf16)'"
    with tuning.policy("frozen"), pytest.raises(LookupError, match=command) as caught:
        tritonln.layer_norm(x, 1000)
    (key,) = re.findall(command, str(caught.value))
    tuning.tune(keys=[key], rows=ROWS, limit=1, clock=clock)
    with tuning.policy("frozen"):
        tritonln.layer_norm(x, 1000)


def test_frozen_misses_a_backward_key_in_the_forward(gpu: Device, device: torch.device) -> None:
    x = torch.randn(3, 96, device=device, requires_grad=True)
    key = FORWARD.key(96, x=F32, y=F32, stats=F32)
    lookup.fix(FORWARD, key, gpu, Entry(FORWARD.choice(key, gpu), "measured"))
    with tuning.policy("frozen"):
        with pytest.raises(LookupError, match="layer_norm_bwd"):
            tritonln.layer_norm(x, 96)
        with torch.no_grad(), pytest.raises(LookupError, match="layer_norm_fwd"):
            tritonln.layer_norm(x, 96)


def test_frozen_takes_what_is_in_a_table(gpu: Device, device: torch.device) -> None:
    x, w, b, dy = problem(5, 64, F32, device)
    with tuning.policy("search", rows=ROWS, clock=clock):
        expect(x, (64,), w, b, dy)
    with tuning.policy("frozen"):
        expect(x, (64,), w, b, dy)
    lookup._fixed.clear()  # as another process: the search was saved
    with tuning.policy("frozen"):
        expect(x, (64,), w, b, dy)


def test_a_policy_ends(device: torch.device) -> None:
    x = torch.randn(3, 100, device=device)
    with pytest.raises(LookupError), tuning.policy("frozen"):
        tritonln.layer_norm(x, 100)
    tritonln.layer_norm(x, 100)
