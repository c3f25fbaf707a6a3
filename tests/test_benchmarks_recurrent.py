"""The recurrent benchmarks: whoever is compared computes the same, and a policy learns from what it played."""

from __future__ import annotations

import dataclasses
from typing import Any

import pytest
import torch
from torch import Tensor

from benchmarks import cartpole, recurrent, recurrent_nets
from benchmarks.claims import control

SMALL = {n: dataclasses.replace(net, T=4, B=3, I=3, H=5) for n, net in recurrent_nets.NETS.items()}


@pytest.mark.usefixtures("aten")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own, of its scripts
@pytest.mark.parametrize("name", ["vowels", "rnnt", "dreamer"])
def test_loops_have_the_gradients_of_the_layers(name: str) -> None:
    problem = recurrent_nets.Problem(SMALL[name], torch.device("cpu"), torch.float64)
    expected: Any = recurrent_nets.tritonln(problem)()
    for provider in (recurrent_nets.eager, recurrent_nets.script):
        torch.testing.assert_close(provider(problem)(), expected)


@pytest.mark.usefixtures("aten")
def test_a_table_says_who_is_missing(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setattr(recurrent_nets, "NETS", SMALL)
    monkeypatch.setattr(recurrent, "MOST_ROUNDS", 2)
    cells = recurrent.measure(["rnnt"], ["tritonln", "eager loop", "haste"], False, 2, True)
    assert [len(c.get("samples", [])) for c in cells if c["provider"] != "haste"] == [2, 2]
    recurrent.table(cells, "title")
    assert "another function" in capsys.readouterr().out


class Counting:
    """Episodes of one to as many steps as there are environments; what is seen is the step."""

    def reset(self, seed: int) -> tuple[Any, dict[str, Any]]:
        self.step_of, self.over = torch.zeros(control.ENVIRONMENTS), torch.zeros(control.ENVIRONMENTS, dtype=torch.bool)
        return self._seen(), {}

    def step(self, action: Any) -> tuple[Any, ...]:
        self.step_of = torch.where(self.over, 0.0, self.step_of + 1)
        reward = (~self.over).float()
        self.over = self.step_of == torch.arange(control.ENVIRONMENTS) + 1
        return self._seen(), reward.numpy(), self.over.numpy(), None, {}

    def _seen(self) -> Any:
        return self.step_of[:, None].expand(-1, 4).numpy()


@pytest.mark.usefixtures("aten")
def test_a_policy_learns_from_what_it_played(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it thought of each step is what it thinks of the whole rollout with resets."""
    monkeypatch.setattr(control, "STEPS", 12)
    monkeypatch.setattr(control, "ENVIRONMENTS", 5)
    torch.manual_seed(0)
    policy = control.Policy(normalized=True)
    rollout = control._play(policy, Counting(), 0)
    assert rollout.resets[0].all()
    assert rollout.seen[..., 0][rollout.resets].eq(0).all()
    assert (~rollout.counts)[:, 0].tolist() == [False, True] * 6  # one step, and one that is not obeyed
    log_p, values, _ = policy(rollout.seen, resets=rollout.resets)
    torch.testing.assert_close(values, rollout.values)
    torch.testing.assert_close(log_p.gather(-1, rollout.actions[..., None])[..., 0], rollout.log_probabilities)
    before = [p.clone() for p in policy.parameters()]
    control._learn(policy, torch.optim.Adam(policy.parameters()), rollout)
    assert all(isinstance(p, Tensor) and p.isfinite().all() for p in policy.parameters())
    assert not all(p.equal(b) for p, b in zip(policy.parameters(), before))


def test_a_verdict_needs_every_seed() -> None:
    assert cartpole.verdict("x", [1, 2], [3, 4]) == "x: +2 steps, better on 2 of 2 seeds: " + (
        "layer normalization is better on every seed"
    )
    assert "no difference" in cartpole.verdict("x", [1, 9], [3, 4])
