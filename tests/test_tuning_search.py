"""Search, tune and warmup.  The clock is injected: what is promised does not depend on what is fastest here."""

import dataclasses
import itertools
import json
import pathlib
import warnings
from collections.abc import Callable, Sequence
from typing import Any

import pytest
import torch
from torch import Tensor

import tritonln
from tests.helpers.problems import BF16, F32, problem
from tests.helpers.recurrent import gru_problem, lstm_problem
from tests.helpers.tuning import ROWS, clock, key_of, never, other_than_choice
from tritonln import tuning
from tritonln.configurations import lookup
from tritonln.configurations.config import STEPS, Config
from tritonln.configurations.lookup import known
from tritonln.configurations.tunable import Key, Tunable, registered
from tritonln.device import Device, interpreting
from tritonln.launch import Launch
from tritonln.ops.column_sums import SUMS
from tritonln.ops.layer_norm import LAYER_NORM
from tritonln.plan import Plan
from tritonln.tuning import search

FORWARD, BACKWARD = LAYER_NORM.forward_tunable, LAYER_NORM.backward_tunable

pytestmark = pytest.mark.usefixtures("new_process")

# ---- search --------------------------------------------------------------------------------------


def test_the_fastest_verified_candidate_wins(gpu: Device, device: torch.device) -> None:
    key = key_of(BACKWARD)
    trials = search.measured(BACKWARD, key, gpu, ROWS, 5, clock, device)
    assert {t.config for t in trials} == {*search.nearest(BACKWARD, key, gpu, 5)}
    assert [t.error for t in trials] == [None] * 5
    assert trials[0].config == max((t.config for t in trials), key=lambda c: (c.num_warps, c.num_stages))
    entry = search.entry_of(trials, "measured", ROWS)
    assert entry.config == trials[0].config
    assert len(entry.runners_up) == 2


def named(value: Any) -> str:
    return value.name if isinstance(value, Tunable) else str(value)


@pytest.mark.thorough
@pytest.mark.parametrize(
    ("tunable", "dtype"), list(zip(registered().values(), itertools.cycle([F32, BF16]))), ids=named
)
def test_candidates_of_every_kernel_agree(
    tunable: Tunable, dtype: torch.dtype, gpu: Device, device: torch.device
) -> None:
    trials = search.measured(tunable, key_of(tunable, 48, dtype), gpu, ROWS, 3, clock, device)
    assert [t.error for t in trials] == [None] * 3


def test_what_a_kernel_updates_is_verified(gpu: Device, device: torch.device) -> None:
    """A step that leaves the new state unwritten: the old one stands in its place."""
    tunable = registered()["lstm_step_fwd"]
    key = key_of(tunable, 48)
    bad = other_than_choice(tunable, key, gpu)[0]

    class Idle(Launch):
        def __call__(self, *arguments: Any) -> None:
            pass

    def plan(key: Key, config: Config, device: Device) -> Plan:
        right = tunable.plan(key, config, device)
        idle = Idle(right.launch.kernel, right.launch.constants, device, config.num_warps)
        return right if config != bad else right._replace(launch=idle)

    key = tunable.key(48, **{k: v for k, v in key.operands.items() if k != "stats"})
    trials = search.measured(dataclasses.replace(tunable, plan=plan), key, gpu, ROWS, 3, clock, device)
    (rejected,) = [t for t in trials if t.error]
    assert rejected.config == bad
    assert "is off by" in str(rejected.error)


@pytest.mark.parametrize("wrong", ["columns", "a row", "nothing written"])
def test_a_wrong_kernel_is_rejected_however_fast(gpu: Device, device: torch.device, wrong: str) -> None:
    """One candidate's launch leaves out what it should write, or writes it wrong, and has the best time."""
    key = key_of(FORWARD)
    bad = other_than_choice(FORWARD, key, gpu)[0]

    def plan(key: Key, config: Config, device: Device) -> Plan:
        right = FORWARD.plan(key, config, device)
        if config != bad:
            return right

        class Wrong(Launch):
            def __call__(self, programs: int, *arguments: Any) -> None:
                if wrong == "nothing written":
                    return
                super().__call__(programs, *arguments)
                y: Tensor = arguments[2]
                if wrong == "columns":
                    y[:, 5] *= 1.001
                else:
                    y[-1] = float("nan")

        launch = right.launch
        return right._replace(launch=Wrong(launch.kernel, launch.constants, device, config.num_warps))

    def best_for_bad(config: Config, launches: Sequence[Callable[[], object]]) -> float:
        return 1e-9 if config == bad else clock(config, launches)

    tunable = dataclasses.replace(FORWARD, plan=plan)
    trials = search.measured(tunable, key, gpu, ROWS, 3, best_for_bad, device)
    entry = search.entry_of(trials, "measured", ROWS)
    assert entry.config != bad
    assert [r["config"] for r in entry.rejected] == [dataclasses.asdict(bad)]
    assert "y is off by" in entry.rejected[0]["error"]


def test_a_candidate_that_raises_is_recorded(gpu: Device, device: torch.device) -> None:
    key = key_of(SUMS)

    def out_of_resources(config: Config, launches: Sequence[Callable[[], object]]) -> float:
        if config != SUMS.choice(key, gpu):
            raise RuntimeError("out of resource: shared memory")
        return 1.0

    trials = search.measured(SUMS, key, gpu, ROWS, 3, out_of_resources, device)
    assert trials[0].config == SUMS.choice(key, gpu)
    assert [t.error for t in trials[1:]] == ["RuntimeError: out of resource: shared memory"] * 2


@pytest.mark.parametrize(
    ("name", "steps_are_fast"),
    [("layer_norm_lstm", True), pytest.param("layer_norm_gru", False, marks=pytest.mark.thorough)],
)
def test_search_decides_between_whole_sequences_and_steps(
    name: str, steps_are_fast: bool, gpu: Device, device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """All four kernels of a layer on its first forward; the faster way is taken forward and backward."""
    monkeypatch.setattr(search, "LIMIT", 3)  # each of them compiles several kernels
    args = {"layer_norm_lstm": lstm_problem, "layer_norm_gru": gru_problem}[name](2, 3, 3, 16, F32, device)
    timed = []

    def best_for_steps(config: Config, launches: Sequence[Callable[[], object]]) -> float:
        timed.append(config)
        return 0.1 if (config == STEPS) == steps_are_fast else 1.0

    with tuning.policy("search", rows=ROWS, clock=best_for_steps):
        leaves = {k: t.requires_grad_() for k, t in args.items()}
        y = getattr(tritonln, name)(**leaves)[0]
        assert timed.count(STEPS) == 2
        assert {entry.provenance for entry in lookup._fixed.values()} == {"measured"}
        tried = len(timed)
        with pytest.warns(UserWarning, match="does not tune in a backward pass"):  # the gradients of the gains
            y.sum().backward()
        assert len(timed) == tried
        if name == "layer_norm_gru":  # one group of norms takes what was found for two
            tritonln.layer_norm_gru(**leaves, norm_groups="joint")
            assert timed.count(STEPS) == 2
    chosen = [entry.config for key, entry in lookup._fixed.items() if "persistent" in key[2]]
    assert [c == STEPS for c in chosen] == [steps_are_fast] * 2


def test_search_tunes_on_first_use_and_the_backward_with_the_forward(gpu: Device, device: torch.device) -> None:
    x, w, b, dy = problem(5, 64, F32, device)
    timed = []

    def noting(config: Config, launches: Sequence[Callable[[], object]]) -> float:
        timed.append(config)
        return clock(config, launches)

    with warnings.catch_warnings(action="error"), tuning.policy("search", rows=ROWS, clock=noting):
        y = tritonln.layer_norm(x.requires_grad_(), (64,), w.requires_grad_(), b.requires_grad_())
        assert len(timed) == 3 * search.LIMIT
        assert {e.provenance for e in lookup._fixed.values()} == {"measured"}
        y.backward(dy)
        tritonln.layer_norm(torch.cat([x, x]), (64,), w, b)
        assert len(timed) == 3 * search.LIMIT
    lookup._fixed.clear()
    with tuning.policy("search", clock=never):  # saved: another process measures nothing
        tritonln.layer_norm(x, (64,), w, b)


def test_search_measures_nothing_in_a_backward_pass(device: torch.device) -> None:
    x = torch.randn(5, 64, device=device, requires_grad=True)
    y = tritonln.layer_norm(x, 64)
    with tuning.policy("search", clock=never), pytest.warns(UserWarning, match="in a backward pass") as caught:
        y.sum().backward()
    assert len([w for w in caught if "does not tune" in str(w.message)]) >= 1
    assert {e.provenance for e in lookup._fixed.values()} <= {"default", "modelled"}


def test_search_measures_nothing_in_capture(device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_initialized", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_current_stream_capturing", lambda: True)
    x = torch.randn(5, 64, device=device)
    with tuning.policy("search", clock=never):
        with pytest.warns(UserWarning, match="CUDA-graph capture"):
            tritonln.layer_norm(x, 64)
        tritonln.layer_norm(x.half(), 64)  # warned once: another warning would be an error
    with tuning.policy("frozen"):
        tritonln.layer_norm(x, 64)


def test_search_without_a_gpu_says_so(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("a GPU is here")
    with (
        tuning.policy("search"),
        pytest.warns(UserWarning, match="does not tune in (Triton's interpreter|an emulation)"),
    ):
        tritonln.layer_norm(torch.ones(2, 64), 64)


# ---- tune and warmup -----------------------------------------------------------------------------


def test_tune(gpu: Device, device: torch.device, tmp_path: pathlib.Path) -> None:
    tried = tuning.tune(64, F32, rows=ROWS, limit=2, clock=clock, kernels=["layer_norm_bwd"], folder=tmp_path / "t")
    assert [key.kernel for key in tried] == ["layer_norm_bwd"]
    (trials,) = tried.values()
    assert len(trials) == 2
    assert known(BACKWARD, key_of(BACKWARD), gpu).config == trials[0].config
    (file,) = (tmp_path / "t").rglob("*.json")
    ((entry,),) = json.loads(file.read_text())["entries"].values()
    assert entry["config"] == dataclasses.asdict(trials[0].config)
    assert entry["provenance"] == "measured"
    assert entry["microseconds"] == pytest.approx(trials[0].seconds * 1e6, rel=1e-3)


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"kernels": ["softmax"], "clock": clock}, ValueError, "layer_norm_fwd, .*, but got softmax"),
        ({"keys": ["layer_norm_fwd N=x"], "clock": clock}, ValueError, "expected a key such as"),
        ({"keys": ["layer_norm_fwd N=64 y=bf16 x=bf16"], "clock": clock}, ValueError, "in this order"),
        ({"hidden": ()}, ValueError, "expected row lengths"),
        ({"offline": True}, ValueError, "target together with offline"),
        ({"target": "sm_90"}, ValueError, "target together with offline"),
        ({"target": "sm_1", "offline": True}, ValueError, "sm_90.*but got 'sm_1'"),
    ],
)
def test_tune_says_what_it_expects(arguments: dict[str, Any], error: type[Exception], message: str) -> None:
    with pytest.raises(error, match=message):
        tuning.tune(**{"hidden": 64, **arguments})


def test_tuning_without_a_gpu_names_the_alternative(device: torch.device) -> None:
    if device.type != "cpu":
        pytest.skip("a GPU is here")
    with pytest.raises(RuntimeError, match="offline=True"):
        tuning.tune(64)
    if interpreting():
        with pytest.raises(RuntimeError, match="TRITON_INTERPRET"):
            tuning.tune(64, offline=True, target="sm_90")


class Net(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.first = tritonln.nn.LayerNorm(32)
        self.batch = torch.nn.BatchNorm1d(32)
        self.linear = torch.nn.Linear(32, 48)
        self.second = tritonln.nn.LayerNorm(48, bias=False)

    def forward(self, x: Tensor) -> Tensor:
        return self.second(torch.nn.functional.dropout(self.linear(self.batch(self.first(x)))))


def test_warmup_fixes_everything_and_leaves_no_trace(device: torch.device) -> None:
    net = Net().to(device)
    before = {name: t.clone() for name, t in net.state_dict().items()}
    state = torch.get_rng_state()
    tuning.warmup(net, [(3, 32)])
    assert torch.equal(torch.get_rng_state(), state)
    assert all(torch.equal(t, before[name]) for name, t in net.state_dict().items())
    assert all(p.grad is None for p in net.parameters())
    fixed = lookup.fixed()
    assert sum("layer_norm_fwd" in key for key in fixed) == 4  # two modules, with statistics and without
    net(torch.randn(7, 32, device=device)).sum().backward()
    with torch.no_grad():
        net(torch.randn(7, 32, device=device))
    assert lookup.fixed() == fixed


def test_warmup_with_tokens(device: torch.device) -> None:
    net = torch.nn.Sequential(torch.nn.Embedding(5, 16), tritonln.nn.LayerNorm(16)).to(device)
    tuning.warmup(net, [torch.tensor([[0, 1, 4]], device=device)])
    assert sum("layer_norm" in key for key in lookup.fixed()) == 3
