"""Modules beside the same in plain torch: parameters, results and gradients."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from tests.helpers.problems import rand
from tests.helpers.tolerance import assert_close
from tritonln.ops.noise import noise, seed_from


class Dropout(nn.Dropout):
    """Drops what tritonln's operators drop, of seeds that are drawn in the same order."""

    def forward(self, x: Tensor) -> Tensor:
        if not self.training or self.p == 0.0:
            return x
        drawn = noise(seed_from(None, x.device), x.numel() // x.shape[-1], x.shape[-1], self.p)
        return x * drawn.view(x.shape).to(x.dtype)


def drops_alike(model: nn.Module, but: str = "") -> nn.Module:
    """The model, its residual dropouts (dropout1, dropout2, ...) as tritonln's, those of one name as torch's."""
    for name, module in model.named_modules():
        if isinstance(module, nn.Dropout) and name[-1].isdigit():
            module.__class__ = nn.Dropout if name.rpartition(".")[2] == but else Dropout
    return model


def fill(model: nn.Module) -> None:
    """Random parameters, none at its default; the weights of norms around 1."""
    for seed, (name, p) in enumerate(model.named_parameters()):
        values = rand(*p.shape, dtype=p.dtype, device=p.device, seed=seed) / max(1, p.shape[-1]) ** 0.5
        p.data.copy_(values + (1.0 if p.dim() == 1 and name.endswith("weight") else 0.0))


def results(model: nn.Module, x: Tensor, call: Callable[[Any, Tensor], Tensor]) -> dict[str, Tensor]:
    """y, and the gradients of x and of all parameters, of one seed."""
    torch.manual_seed(5)
    leaf = x.detach().requires_grad_()
    y = call(model, leaf)
    names, parameters = zip(*model.named_parameters())
    dy = rand(*y.shape, dtype=y.dtype, device=y.device, seed=99)
    gradients = torch.autograd.grad(y, [leaf, *parameters], dy)
    return {"y": y.detach(), **dict(zip(("dx", *(f"d{name}" for name in names)), gradients))}


def alike(
    ours: nn.Module, theirs: nn.Module, x: Tensor, call: Callable[[Any, Tensor], Tensor], kappa: float = 1.0
) -> None:
    """Values and gradients of one module are the other's, which has its parameters; of one dtype.

    kappa says how much sublayers enlarge the rounding of those before them.
    """
    found, expected = results(ours, x, call), results(theirs, x, call)
    assert found.keys() == expected.keys()
    for name, r in expected.items():
        assert found[name].dtype == r.dtype, name
        assert_close(name, found[name], r, x.numel(), kappa, float(expected["dx"].square().mean().sqrt()))
