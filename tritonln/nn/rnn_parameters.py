"""The parameters of the norms and the options of the variants, for layers and cells."""

from __future__ import annotations

import math

import torch
from torch.nn import init


def one_of(name: str, value: str, known: tuple[str, ...]) -> str:
    if value not in known:
        raise ValueError(f"{name} should be one of {', '.join(map(repr, known))}, got {value!r}")
    return value


def reset(module: torch.nn.Module, hidden_size: int) -> None:
    """Weights and biases uniform in +-1/sqrt(hidden_size) as torch's, gains 1, the bias of LN(c) 0.

    The biases must not start at zero: a step whose input row is constant, such as padding, is then
    normalized with a slope of 1/sqrt(eps), and the gradient grows a thousandfold at each such step.
    """
    bound = 1.0 / math.sqrt(hidden_size) if hidden_size else 0.0
    for name, parameter in module.named_parameters():
        if not name.startswith("ln_"):
            init.uniform_(parameter, -bound, bound)
        else:
            init.constant_(parameter, 0.0 if name.startswith("ln_c_bias") else 1.0)


DEFAULTS = {"cell_norm": "output", "gate_norm": "joint", "norm_groups": "paper", "eps": 1e-5}


def changed(module: torch.nn.Module) -> str:
    """What extra_repr adds: the options that are not the defaults."""
    return "".join(f", {k}={getattr(module, k)}" for k, v in DEFAULTS.items() if getattr(module, k, v) != v)


def lstm_norm_sizes(H: int, gate_norm: str, cell_norm: str, bias: bool) -> dict[str, int]:
    sizes = {"ln_ih_weight": 4 * H, "ln_hh_weight": 4 * H} if gate_norm != "none" else {}
    if cell_norm != "none":
        sizes |= {"ln_c_weight": H, "ln_c_bias": H} if bias else {"ln_c_weight": H}
    return sizes


def gru_norm_sizes(H: int) -> dict[str, int]:
    return {"ln_ih_weight": 3 * H, "ln_hh_weight": 3 * H}
