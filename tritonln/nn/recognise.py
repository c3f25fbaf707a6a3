"""Which norm a module computes: told by its class, or by its parameters and a trial on random numbers."""

from __future__ import annotations

import inspect
from typing import Any, NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Module, Parameter

from tritonln.ops.contract import DTYPES

EPS = ("variance_epsilon", "eps", "epsilon")  # the names that models give it


class Formula(NamedTuple):
    """A function of tritonln's, and where a module has its eps."""

    function: str
    weight_offset: float = 0.0
    eps: str = "eps"
    cast: str = "native"  # of rms_norm

    def __str__(self) -> str:
        offset = f", weight_offset={self.weight_offset}" if self.weight_offset else ""
        cast = f', cast="{self.cast}"' if self.cast != "native" else ""
        return f"tritonln.{self.function}{offset}{cast}"


def is_norm(module: Module) -> bool:
    """Whether it is one by its class, its class's name or its parameters, served or not."""
    if isinstance(module, torch.jit.ScriptModule):  # its code is no longer its class's
        return False
    if isinstance(module, (torch.nn.LayerNorm, torch.nn.RMSNorm)):
        return True
    return not module._modules and ("norm" in type(module).__name__.lower() or lacking(module) is None)


def recognised(module: Module) -> Formula | str:
    """Its formula, or why it has none."""
    forward = type(module).forward
    if "forward" in vars(module):
        return "its forward was set on the instance, as accelerate's hooks do it"
    if module._modules:
        return "it holds other modules, as parametrized modules do"
    for name, parameter in module._parameters.items():
        if parameter is not None and parameter.dtype not in DTYPES:
            return f"its {name} is of {parameter.dtype}"
    if forward is torch.nn.LayerNorm.forward:
        return Formula("layer_norm")
    if forward is torch.nn.RMSNorm.forward:
        return Formula("rms_norm")
    if str(forward.__module__).startswith("torch."):
        return "its forward is torch's, and neither LayerNorm's nor RMSNorm's"
    return lacking(module) or tried(module, str(eps_attribute(module)))


def eps_attribute(module: Module) -> str | None:
    return next((name for name in EPS if isinstance(getattr(module, name, None), float)), None)


def lacking(module: Module) -> str | None:
    """What it has not of a norm of rows, or has beside it; None if nothing."""
    parameters = {name: p for name, p in module._parameters.items() if p is not None}
    if parameters.keys() not in ({"weight"}, {"weight", "bias"}):
        return f"its parameters are {', '.join(parameters) or 'none'}, where weight or weight and bias were expected"
    if any(p.dim() != 1 or p.shape != parameters["weight"].shape for p in parameters.values()):
        return "its parameters are not vectors of one length"
    if any(b is not None for b in module._buffers.values()):
        return "it has buffers"
    if eps_attribute(module) is None:
        return f"it has no {', '.join(EPS)}"
    taken = [str(p) for p in inspect.signature(type(module).forward).parameters.values()][1:]
    if len(taken) != 1 or taken[0].startswith("*"):
        return f"its forward takes ({', '.join(taken)}), where one tensor was expected"
    return None


def tried(module: Module, eps: str) -> Formula | str:
    """The formula that its forward agrees with on the CPU, in values, gradients and dtypes.

    The trial is of a bare copy with random parameters: nothing of the module is written, no hook of it runs, and
    its parameters may be sharded or on the meta device.
    """
    names = [name for name, p in module._parameters.items() if p is not None]
    functions = ("layer_norm",) if "bias" in names else ("rms_norm", "layer_norm")
    formulas = [Formula(function, offset, eps) for function in functions for offset in (0.0, 1.0)]
    formulas += [Formula("rms_norm", offset, eps, "llama") for offset in (0.0, 1.0) if "rms_norm" in functions]
    g = torch.Generator().manual_seed(0)
    N = module._parameters["weight"].numel() or 8  # type: ignore[union-attr]  # 0 where all is on other ranks
    epsilon = getattr(module, eps)
    # Rows of the size of sqrt(eps) show where it is added; a mean that is not 0, whether it is taken off.
    scales = torch.tensor([1.0, epsilon**0.5 or 1.0, 1.0], device="cpu")

    def normal(shape: tuple[int, ...], dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=g, dtype=dtype, device="cpu")

    probe: Any = object.__new__(type(module))
    vars(probe).update(vars(module))
    with torch.inference_mode(False), torch.enable_grad(), torch.autocast("cpu", enabled=False):
        for shape, training, dtype in (
            ((2, 3, N), True, torch.float32),
            ((2, 2, 3, N), False, torch.float32),
            ((2, 3, N), False, torch.float64),
            ((2, 3, N), False, torch.bfloat16),
        ):
            parameters = {name: Parameter(normal((N,), dtype)) for name in names}
            probe.training = training
            vars(probe)["_parameters"] = {name: parameters.get(name) for name in module._parameters}
            x = ((normal(shape, dtype) + 1) * scales[:, None].to(dtype)).requires_grad_()
            dy, leaves = normal(shape, dtype), (x, *parameters.values())
            try:
                y = type(module).forward(probe, x)
                out = (y, *torch.autograd.grad(y, leaves, dy))
            except Exception as error:  # whatever the forward of somebody else raises
                what = f"{type(error).__name__}: {error}"
                return f"its forward, tried on a CPU tensor of shape {shape} and {dtype}, raised {what}"
            if y.dtype is not dtype:
                return f"its forward gives {y.dtype} for {dtype}"
            expected = {formula: _expected(formula, leaves, dy, epsilon) for formula in formulas}
            formulas = [formula for formula in formulas if _agree(out, expected[formula])]
    if not formulas:
        return "its forward computes something else than LayerNorm or RMSNorm of rows"
    # The last trial, in 16 bits, also shows where it rounds.
    return min(formulas, key=lambda formula: int((out[0] != expected[formula][0]).sum()))


def _expected(formula: Formula, leaves: tuple[Tensor, ...], dy: Tensor, eps: float) -> tuple[Tensor, ...]:
    x, weight, *bias = leaves
    if formula.function == "layer_norm":
        y = F.layer_norm(x, weight.shape, weight + formula.weight_offset, bias[0] if bias else None, eps)
    else:
        wide = torch.promote_types(x.dtype, torch.float32)
        x_hat = x.to(wide) * torch.rsqrt(x.to(wide).square().mean(-1, keepdim=True) + eps)
        if formula.cast == "llama":
            x_hat = x_hat.to(x.dtype).to(wide)
        y = (x_hat * (weight.to(wide) + formula.weight_offset)).to(x.dtype)
    return (y, *torch.autograd.grad(y, leaves, dy))


def _agree(out: tuple[Tensor, ...], expected: tuple[Tensor, ...]) -> bool:
    """To the digits of their dtype: in 16 bits, in which formulas round at different places, to a few per cent."""
    return all(
        o.shape == e.shape and bool((o - e).abs().max() <= (1e-4 if e.itemsize > 2 else 0.05) * e.abs().max())
        for o, e in zip(out, expected)
    )
