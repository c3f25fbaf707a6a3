"""What is run for the claims: each function trains or probes one net of one seed and returns plain numbers.

Seconds are CPU time of the training alone, on this machine.  Errors are percentages of the test set.
"""

from __future__ import annotations

import itertools
import time
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor, nn

from benchmarks.claims import data
from benchmarks.claims.control import balance as balance
from benchmarks.claims.nets import COEFFICIENTS, HIDDEN, RECURRENT, Speaker, mlp
from tritonln.device import triton_device_type

Numbers = dict[str, Any]
SIZES = {"digits": (64, 128, 128, 10), "mnist": (784, 256, 256, 10)}
OPTIMIZERS: dict[str, Callable[..., torch.optim.Optimizer]] = {"adam": torch.optim.Adam, "sgd": torch.optim.SGD}
STEPS, BACK, PROBED = 60, 50, 32  # time steps, over how many of them gradients are followed, sequences


def device() -> torch.device:
    """The GPU where there is one, so that kernels run; else the CPU, where ATen does."""
    return torch.device((triton_device_type() if torch.accelerator.is_available() else None) or "cpu")


def train_mlp(of: str, norm: str, batch: int, optimizer: str, rate: float, iterations: int, seed: int) -> Numbers:
    """The test error over iterations and over seconds."""
    torch.manual_seed(seed)
    x, y, x_test, y_test = (t.to(device()) for t in getattr(data, of)())
    net = mlp(SIZES[of], norm).to(device())

    def loss() -> Tensor:
        some = torch.randint(len(x), (batch,), device=x.device)
        return F.cross_entropy(net(x[some]), y[some])

    return _train(net, loss, lambda: net(x_test), y_test, OPTIMIZERS[optimizer](net.parameters(), rate), iterations)


def train_speaker(cell: str, normalized: bool, rate: float, iterations: int, seed: int) -> Numbers:
    """The test error of a recurrent net on JapaneseVowels, batches of 32, Adam."""
    torch.manual_seed(seed)
    train, test = data.vowels("train"), data.vowels("test")
    net = Speaker(RECURRENT[cell][normalized]).to(device())

    def loss() -> Tensor:
        frames, lengths, speakers = train[torch.randint(len(train.speakers), (32,))]
        return F.cross_entropy(net(frames.to(device()), lengths), speakers.to(device()))

    speakers = test.speakers.to(device())
    predict = lambda: net(test.frames.to(device()), test.lengths)  # noqa: E731
    return _train(net, loss, predict, speakers, torch.optim.Adam(net.parameters(), rate), iterations)


def _train(
    net: nn.Module,
    loss_of: Callable[[], Tensor],
    predict: Callable[[], Tensor],
    labels: Tensor,
    optimizer: torch.optim.Optimizer,
    iterations: int,
) -> Numbers:
    every, seconds = max(1, iterations // 20), 0.0
    curve: list[tuple[int, float, float]] = []
    for i in range(1, iterations + 1):
        start = time.thread_time()
        loss = loss_of()
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        seconds += time.thread_time() - start
        if i % every == 0:
            net.eval()
            with torch.no_grad():
                curve.append((i, seconds, 100 * float((predict().argmax(1) != labels).float().mean())))
            net.train()
    return {"curve": curve, "error": curve[-1][2]}


def probe(cell: str, normalized: bool, scale: float, seed: int) -> Numbers:
    """States of a new recurrent layer over time, and gradients back through it.

    The recurrent matrix of each gate is `scale` times an orthogonal one; inputs are normal noise.
    """
    torch.manual_seed(seed)
    layer = RECURRENT[cell][normalized](COEFFICIENTS, HIDDEN)
    with torch.no_grad():
        for gate in layer.weight_hh_l0.split(HIDDEN):  # type: ignore[operator]
            gate.copy_(scale * nn.init.orthogonal_(torch.empty_like(gate)))
    layer.to(device())
    x = torch.randn(STEPS, PROBED, COEFFICIENTS, device=device(), requires_grad=True)
    states, _ = layer(x)
    (gradient,) = torch.autograd.grad((states[-1] * torch.randn_like(states[-1])).sum(), x)
    norms = gradient.double().flatten(1).norm(dim=1).flip(0)
    states = states.detach()
    return {
        "saturated": (states.abs() > 0.9).float().mean((1, 2)).tolist(),
        "norm": states.norm(dim=2).mean(1).tolist(),
        "gradient": (norms / norms[0]).tolist()[: BACK + 1],
    }


def descend(norm: str, rate: float, iterations: int, seed: int) -> Numbers:
    """Of each step of full-batch gradient descent on the digits: how much the loss and the gradient change.

    |L' - L| / L and |g' - g| / |g|, where ' is after the step.
    """
    torch.manual_seed(seed)
    x, y, *_ = (t.to(device()) for t in data.digits())
    net = mlp((64, 128, 128, 128, 128, 10), norm).to(device())
    parameters = list(net.parameters())
    losses, changes, before = [], [], None
    for _ in range(iterations):
        loss = F.cross_entropy(net(x), y)
        gradients = torch.autograd.grad(loss, parameters)
        g = torch.cat([t.flatten() for t in gradients]).double()
        if before is not None:
            changes.append(float((g - before).norm() / before.norm()))
        before = g
        losses.append(float(loss.detach()))
        with torch.no_grad():
            for p, t in zip(parameters, gradients):
                p.sub_(t, alpha=rate)
    jumps = [abs(b - a) / a if a else 0.0 for a, b in itertools.pairwise(losses)]
    return {"losses": losses, "jumps": jumps, "changes": changes}


def same_in_any_batch(norm: str, of: str, seed: int) -> Numbers:
    """The largest difference of an image's result in a batch of 128 from its result alone, in training mode.

    BatchNorm refuses a batch of one, and is compared in a batch of two.
    """
    torch.manual_seed(seed)
    x = getattr(data, of)().x[:128].to(device())
    net = mlp(SIZES[of], norm).to(device())
    first, norm_of_first = list(net)[:2]
    few = 2 if norm == "BatchNorm" else 1
    with torch.no_grad():
        inputs = first(x)  # once, as products have bits of each batch size
        among, alone = (norm_of_first(t)[:few] for t in (inputs, inputs[:few]))
    return {"difference": float((among - alone).abs().max())}
