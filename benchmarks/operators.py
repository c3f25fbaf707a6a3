"""What the operators take, and the composition of a norm and elementwise operations that each is."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

# (x, weight, bias, *others) -> y, or (y, x') of those that add; differentiable.  Weight and bias are None where absent.
Norm = Callable[..., Any]


def _added(norm: Callable[[Tensor], Tensor], x: Tensor, residual: Tensor) -> tuple[Tensor, Tensor]:
    total = residual + x
    return norm(total), total


def _modulated(norm: Callable[[Tensor], Tensor], x: Tensor, scale: Tensor, shift: Tensor) -> Tensor:
    return norm(x) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)


def _gate_added(_: object, x: Tensor, residual: Tensor, gate: Tensor) -> Tensor:
    return residual + gate.unsqueeze(1) * x


def _add_modulated(
    norm: Callable[[Tensor], Tensor], x: Tensor, residual: Tensor, gate: Tensor, scale: Tensor, shift: Tensor
) -> tuple[Tensor, Tensor]:
    total = _gate_added(norm, x, residual, gate)
    return _modulated(norm, total, scale, shift), total


def _quantized(norm: Callable[[Tensor], Tensor], x: Tensor) -> tuple[Tensor, Tensor]:
    """q in float8_e4m3fn, and a scale for each row."""
    y = norm(x).float()
    scale = y.abs().amax(-1, keepdim=True) / 448
    return (y / scale).clamp(-448, 448).to(torch.float8_e4m3fn), scale


def _read_quantized(results: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    q, scale = results
    return (q.float() * scale,)


@dataclasses.dataclass(frozen=True)
class Operator:
    """
    norm:        what is in it, "layer_norm" or "rms_norm"; None: nothing
    parameters:  of the norm
    rows:        tensors of x's shape beside it
    batches:     tensors with a row for each batch
    adds:        whether x' is a result too; backward then needs it in the place of x and of `rows`
    reread:      what backward depends on beside the gradients of the results; None: x, or x', `rows`, weight and scale
    gradients:   tensors of x's shape that backward writes; None: of x and of `rows`, or one for all where `adds`
    results:     of x's shape; None: y, and x' where `adds`
    heads:       whether rows are heads of tokens, one of each
    read:        for inference only: gives y of the results
    composed:    the operator, given the norm as a function of x
    """

    norm: str | None
    parameters: tuple[str, ...] = ()
    rows: tuple[str, ...] = ()
    batches: tuple[str, ...] = ()
    adds: bool = False
    reread: tuple[str, ...] | None = None
    gradients: int | None = None
    results: tuple[str, ...] | None = None
    heads: bool = False
    read: Callable[[tuple[Tensor, ...]], tuple[Tensor, ...]] | None = None
    composed: Callable[..., Any] = lambda norm, x: norm(x)

    def of(self, norm: Norm | None) -> Norm:
        """The operator with this norm(x, weight, bias), the rest as elementwise operations."""
        return lambda x, weight, bias, *others: self.composed(lambda t: norm(t, weight, bias), x, *others)  # type: ignore[misc]

    @property
    def inference(self) -> bool:
        return self.read is not None

    @property
    def names(self) -> tuple[str, ...]:
        """Of the results."""
        return self.results or (("y", "x'") if self.adds else ("y",))

    def least_bytes(self, backward: bool, rows: int, batches: int, N: int, itemsize: int, parameter: int) -> int:
        """That a pass must move: each value once.

        Forward x, what stands beside it, the results; backward the gradients of the results, what they depend on, and
        the gradients.
        """
        if not backward:
            of_rows = 1 + len(self.rows) + (0 if self.inference else len(self.names))
            values = (of_rows * rows + len(self.batches) * batches) * N
            stored = rows * (N + 4) if self.inference else 0  # in 8 bits, with their scales
            return values * itemsize + stored + len(self.parameters) * N * parameter
        default = ("x'",) if self.adds else ("x", *self.rows)
        read = (*default, "weight", "scale") if self.reread is None else self.reread
        gradients = (1 if self.adds else 1 + len(self.rows)) if self.gradients is None else self.gradients
        each = len(self.names) + gradients + sum(name in ("x", "x'", *self.rows) for name in read)
        of_batches = len(self.batches) + sum(name in self.batches for name in read)
        columns = len(self.parameters) + sum(name in self.parameters for name in read)
        return (each * rows + of_batches * batches) * N * itemsize + columns * N * parameter


def _modulations(norm: str) -> dict[str, Operator]:
    """The adaptive norms, without parameters, and those of gated sums."""
    modulations = "scale", "shift"
    return {
        f"adaptive_{norm}": Operator(norm, batches=modulations, composed=_modulated),
        f"add_adaptive_{norm}": Operator(
            *(norm, (), ("residual",), ("gate", *modulations)),
            adds=True, reread=("x'", "x", "gate", "scale"), gradients=2, composed=_add_modulated,
        ),
    }  # fmt: skip


OPERATORS = {
    "layer_norm": Operator("layer_norm", ("weight", "bias")),
    "rms_norm": Operator("rms_norm", ("weight",)),
    "add_layer_norm": Operator("layer_norm", ("weight", "bias"), ("residual",), adds=True, composed=_added),
    "add_rms_norm": Operator("rms_norm", ("weight",), ("residual",), adds=True, composed=_added),
    **_modulations("layer_norm"),
    **_modulations("rms_norm"),
    "gated_residual": Operator(
        None, (), ("residual",), ("gate",), reread=("x", "gate"), gradients=1, composed=_gate_added
    ),
    "gated_rms_norm": Operator(
        "rms_norm", ("weight",), ("gate",), composed=lambda norm, x, gate: norm(x) * F.silu(gate)
    ),
    # Of as many heads of k as of q, with one weight, without rotary embedding.
    "qk_norm": Operator(
        "rms_norm",
        ("weight",),
        ("k",),
        results=("y", "y of k"),
        heads=True,
        composed=lambda norm, q, k: (norm(q), norm(k)),
    ),
    "quantized_layer_norm": Operator("layer_norm", ("weight", "bias"), read=_read_quantized, composed=_quantized),
    "quantized_rms_norm": Operator("rms_norm", ("weight",), read=_read_quantized, composed=_quantized),
}
NORMS = ("layer_norm", "rms_norm")
FUSED = tuple(name for name in OPERATORS if name not in NORMS)
