"""The backward pass of a norm that is given its result y in the place of x, and restores x_hat from that.

dx, and the gradients of weight and bias, are made of x_hat and rstd alone.
"""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from tritonln.configurations.tunable import Tunable, register_operator
from tritonln.device import Device
from tritonln.kernels.limits import LEAST_WEIGHT, MOST_BIAS
from tritonln.ops.column_sums import SUMS
from tritonln.ops.contract import arithmetic
from tritonln.ops.operands import COLUMNS, Operand
from tritonln.ops.row_declaration import Parts
from tritonln.ops.row_formula import by_autograd, finish, rows, values
from tritonln.ops.rows import BackwardCall, Forward, RowOperator, Settings

SAVES = "x", "y"


class OfY(RowOperator):
    """Of a call, y stands where others have the x that is a result; `tensors` has None for the operand x."""

    norm: RowOperator  # whose y it is

    @property
    def tunables(self) -> tuple[Tunable, ...]:
        return self.backward_tunable, SUMS

    def train(
        self, make: Callable[..., Tensor], rows: int, N: int, x: torch.dtype, parameter: torch.dtype, device: Device
    ) -> None:
        if x == torch.float64:
            parameter = x
        dtypes = self.usual_dtypes(x, parameter)
        columns = tuple(make(N, dtype=parameter) for _ in self.finishing)
        y, _, stats = self.norm.forward((make(rows, N, dtype=x), *columns), Settings(N, 1e-5, x), True, device)
        assert stats is not None
        s, needs = Settings(N, 1e-5, x), (True,) * len(dtypes)
        self.backward(BackwardCall(make(rows, N, dtype=x), None, y, (None, *columns), dtypes, stats, s, needs), device)

    def prepare(self, forward: Forward) -> None:
        """Finds the configuration of the backward pass: that may neither search, nor be the one to fail."""
        if forward.launch is not None and forward.device is not None:
            dtypes, s = forward.dtypes, forward.s
            upstream, stats = self._upstream(s.dtype, s.dtype), arithmetic(s.dtype)
            self.backward_plan(s.N, upstream, stats, dtypes, self.all_gradients(dtypes), forward.device)


def of_y(norm: RowOperator, parts: Callable[[], Parts], restore: Callable[..., Tensor]) -> OfY:
    """`parts` are those of the norm and restore; `restore` is that in torch."""
    operator = OfY(
        f"{norm.name}_of_y",
        parts,
        {name: operand._replace(reread=True) for name, operand in norm.finishing.items()},
        {"x": Operand(reread=False)},
        norm.centred,
        formula=norm.formula,
        restore=restore,
        held=1,  # 1 / weight
    )
    assert all(operand.kind == COLUMNS for operand in operator.finishing.values())
    object.__setattr__(operator, "norm", norm)
    register_operator(operator)
    return operator


def check_save(save: str) -> str:
    if save not in SAVES:
        raise ValueError(f"expected save to be one of {', '.join(map(repr, SAVES))}, but got {save!r}")
    return save


def keeping(save: str, operator: OfY, tensors: tuple[Tensor | None, ...], weight_offset: float) -> OfY | None:
    """The operator where y is to be kept, and may be kept of a norm of these tensors."""
    if check_save(save) == "x" or torch.compiler.is_compiling():
        return None
    from tritonln.ops import keep_y  # whose autograd Function takes time to make

    return operator if keep_y.possible(weight_offset, *tensors) else None


def gradients(operator: OfY, call: BackwardCall, dstats: Tensor | None) -> list[Tensor | None]:
    """The gradients of the operands in torch, each None unless needed; in grad mode with a graph of their own, which
    reaches x through y and the statistics.  `dstats` is the gradient of these.
    """
    dy, _, y, tensors, dtypes, stats, s, needs = call
    assert y is not None
    assert operator.restore is not None
    M, finishing = stats.shape[0], tensors[1:]
    x_hat = operator.restore(rows(y, s.N).to(stats.dtype), *values(operator.finishing, finishing, M, s))

    def of_y(x_hat: Tensor, *finishing: Tensor | None) -> Tensor:
        return finish(operator, x_hat, finishing, s)

    dx_hat, *rest = by_autograd(of_y, (x_hat, *finishing), (True, *needs[1:]), dy.reshape(M, s.N))
    if not needs[0]:
        return [None, *rest]
    assert dx_hat is not None
    rstd = stats[:, -1:]
    dx = dx_hat - x_hat * (dx_hat * x_hat).mean(1, keepdim=True)
    if operator.centred:
        dx = dx - dx_hat.mean(1, keepdim=True)
    dx = dx * rstd
    if dstats is not None:
        dx = dx - x_hat * (rstd.square() * dstats[:, -1:] / s.N)
        if operator.centred:
            dx = dx + dstats[:, :1] / s.N
    return [dx.reshape(y.shape).to(dtypes[0]), *rest]


def restored(y: Tensor, weight: Any, bias: Any = 0.0) -> Tensor:
    """x_hat of y = x_hat weight + bias, as kernels/restore.py has it."""
    fits = (abs(weight) >= LEAST_WEIGHT / 2) & (abs(bias) <= MOST_BIAS * 2 * abs(weight))
    x_hat = (y - bias) / weight
    return x_hat if fits is True else torch.where(fits, x_hat, math.nan)
