"""The parameters of the norms and the options of the variants, for layers and cells."""

from __future__ import annotations

import inspect
import math
from collections.abc import Callable
from typing import Any, NoReturn

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
            init.constant_(parameter, 0.0 if "bias" in name else 1.0)


def changed(module: torch.nn.Module) -> str:
    """What extra_repr adds: the options that are not the defaults."""
    parameters = inspect.signature(type(module)).parameters.values()
    options = {p.name: p.default for p in parameters if p.kind is p.KEYWORD_ONLY and p.name != "cuda_graph"}
    return "".join(f", {k}={getattr(module, k)}" for k, default in options.items() if getattr(module, k) != default)


def gate_norm_sizes(size: int, gate_norm: str) -> dict[str, int]:
    """Of the norms of the products, or of their sum, whose norm has a bias whether the products have or not."""
    kinds = {"products": ("ln_ih_weight", "ln_hh_weight"), "sum": ("ln_weight", "ln_bias"), "none": ()}
    return dict.fromkeys(kinds[gate_norm], size)


def lstm_norm_sizes(H: int, gate_norm: str, cell_norm: str, bias: bool) -> dict[str, int]:
    sizes = gate_norm_sizes(4 * H, gate_norm)
    if cell_norm != "none":
        sizes |= {"ln_c_weight": H, "ln_c_bias": H} if bias or gate_norm == "sum" else {"ln_c_weight": H}
    return sizes


def take_lstm_options(module: Any, cell_norm: str, gate_norm: str, norm_groups: str, eps: float) -> None:
    module.cell_norm = one_of("cell_norm", cell_norm, ("output", "carry", "none"))
    module.gate_norm = one_of("gate_norm", gate_norm, ("products", "sum", "none"))
    known = ("joint", "gates") if gate_norm == "sum" else ("joint",)
    module.norm_groups = one_of(f"norm_groups with gate_norm={gate_norm!r}", norm_groups, known)
    module.eps = eps


def take_gru_options(module: Any, gate_norm: str, norm_groups: str, reset: str, update_bias: float, eps: float) -> None:
    module.gate_norm = one_of("gate_norm", gate_norm, ("products", "sum"))
    resets = {"products": ("recurrent",), "sum": ("recurrent", "candidate")}[gate_norm]
    module.reset = one_of(f"reset with gate_norm={gate_norm!r}", reset, resets)
    # A joint norm of the sum is where r comes from.
    known = {"products": ("paper", "joint"), "sum": ("paper", "gates", *(["joint"] if reset == "candidate" else []))}
    others = f"gate_norm={gate_norm!r}" + (f" and reset={reset!r}" if gate_norm == "sum" else "")
    module.norm_groups = one_of(f"norm_groups with {others}", norm_groups, known[gate_norm])
    module.update_bias, module.eps = update_bias, eps


def refuse(torch_forward: Callable[..., Any], *arguments: Any) -> NoReturn:
    """Raises what torch says of an input and hx that do not fit; it would not normalize those that do."""
    torch_forward(*arguments)
    raise RuntimeError("expected input and hx to have the shapes that torch's own module takes")
