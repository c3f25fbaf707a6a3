"""A control task that needs memory: CartPole from gymnasium with its velocities hidden, learned by a recurrent policy.

Proximal policy optimization (Schulman et al. 2017) over whole rollouts.  Each begins with new episodes and zero states,
and where an episode ends within it, the next one begins there: `resets` of the layer.  What is compared is only the
layer: an LSTM with layer normalization or without, which is torch's function.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from benchmarks.claims.data import Missing
from tritonln.nn import LayerNormLSTM

STEPS, ENVIRONMENTS, UNITS = 200, 32, 32  # of a rollout, of which no episode sees the end
DISCOUNT, TRACE, CLIP, EPOCHS, ENTROPY, VALUE, GRADIENT = 0.99, 0.95, 0.2, 4, 0.01, 0.5, 0.5
SCALE = 2.4, 0.21  # of position and angle where episodes end


class Policy(nn.Module):
    def __init__(self, normalized: bool) -> None:
        super().__init__()
        plain = {} if normalized else {"gate_norm": "none", "cell_norm": "none"}
        self.rnn = LayerNormLSTM(2, UNITS, **plain)  # type: ignore[arg-type]
        self.heads = nn.Linear(UNITS, 3)  # logits of left and right, and the value

    def forward(self, seen: Tensor, state: Any = None, resets: Tensor | None = None) -> tuple[Tensor, Tensor, Any]:
        """Log probabilities (T, B, 2), values (T, B) and the last state, of what is seen (T, B, 2)."""
        hidden, state = self.rnn(seen, state, resets=resets)
        logits, values = self.heads(hidden).split((2, 1), -1)
        return logits.log_softmax(-1), values.squeeze(-1), state


class Rollout(NamedTuple):
    """(STEPS, ENVIRONMENTS) of each step: what was seen, done and found; `counts` where the action was obeyed."""

    seen: Tensor
    resets: Tensor
    actions: Tensor
    log_probabilities: Tensor
    values: Tensor
    rewards: Tensor
    ended: Tensor
    counts: Tensor
    last_value: Tensor


def task() -> Any:
    try:
        import gymnasium  # type: ignore[import-not-found,unused-ignore]
    except ImportError as error:
        raise Missing("pip install 'tritonln[claims]'") from error
    return gymnasium.make_vec("CartPole-v1", ENVIRONMENTS, "vector_entry_point")


def balance(normalized: bool, rate: float, iterations: int, seed: int) -> dict[str, Any]:
    """The mean length of the episodes of each rollout, of those that it cut short too."""
    torch.manual_seed(seed)
    policy, environment = Policy(normalized), task()
    optimizer = torch.optim.Adam(policy.parameters(), rate)
    lengths = []
    for i in range(iterations):
        rollout = _play(policy, environment, 1000 * seed + i)
        episodes = ENVIRONMENTS + int(rollout.resets[1:].sum())
        lengths.append(float(rollout.rewards.sum()) / episodes)
        _learn(policy, optimizer, rollout)
    return {"lengths": lengths}


@torch.no_grad()
def _play(policy: Policy, environment: Any, seed: int) -> Rollout:
    found, _ = environment.reset(seed=seed)
    state, anew = None, torch.ones(ENVIRONMENTS, dtype=torch.bool)
    steps: list[tuple[Tensor, ...]] = []
    for _ in range(STEPS):
        seen = torch.from_numpy(found[:, ::2].copy()) / torch.tensor(SCALE)
        if state is not None and anew.any():
            state = tuple(s.masked_fill(anew[None, :, None], 0.0) for s in state)
        log_p, value, state = policy(seen[None], state)
        action = torch.multinomial(log_p[0].exp(), 1)[:, 0]
        found, reward, terminated, *_ = environment.step(action.numpy())
        ended = torch.from_numpy(terminated)
        # After an end the environment begins anew whatever the action is.
        over = steps[-1][6] if steps else torch.zeros_like(ended)
        chosen = log_p[0].gather(1, action[:, None])[:, 0]
        steps.append((seen, anew, action, chosen, value[0], torch.from_numpy(reward), ended, ~over))
        anew = over
    seen = torch.from_numpy(found[:, ::2].copy()) / torch.tensor(SCALE)
    _, value, _ = policy(seen[None], state)
    seen, anew, *others = (torch.stack(part) for part in zip(*steps))
    return Rollout(seen, anew, *others, value[0])  # type: ignore[call-arg]


def _learn(policy: Policy, optimizer: torch.optim.Optimizer, r: Rollout) -> None:
    advantages, following, ahead = torch.zeros_like(r.values), r.last_value, torch.zeros(ENVIRONMENTS)
    for t in reversed(range(STEPS)):
        goes_on = ~r.ended[t]
        delta = (1 - DISCOUNT) * r.rewards[t] + DISCOUNT * following * goes_on - r.values[t]
        ahead = delta + DISCOUNT * TRACE * ahead * goes_on
        advantages[t], following = ahead, r.values[t]
    returns, counts = advantages + r.values, r.counts
    mean, deviation = advantages[counts].mean(), advantages[counts].std()
    advantages = (advantages - mean) / (deviation + 1e-8)
    for _ in range(EPOCHS):
        log_p, values, _ = policy(r.seen, resets=r.resets)
        ratio = (log_p.gather(-1, r.actions[..., None])[..., 0] - r.log_probabilities).exp()
        gain = torch.minimum(ratio * advantages, ratio.clamp(1 - CLIP, 1 + CLIP) * advantages)
        entropy = -(log_p.exp() * log_p).sum(-1)
        loss = (VALUE * (values - returns).square() - gain - ENTROPY * entropy)[counts].mean()
        optimizer.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(policy.parameters(), GRADIENT)
        optimizer.step()
