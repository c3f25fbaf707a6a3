"""The tunables of qk_norm, and its launches by dtypes."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import torch

from tritonln.configurations import heads as rules
from tritonln.configurations.config import Config
from tritonln.configurations.lookup import config_for, current_policy, planned
from tritonln.configurations.tunable import Key, Tunable
from tritonln.device import Device
from tritonln.launch import Launch
from tritonln.ops.column_sums import SUMS, column_sums_plan
from tritonln.ops.contract import arithmetic
from tritonln.ops.operands import Dtypes
from tritonln.plan import Plan

Parameters = tuple[Dtypes, Dtypes]  # weights and biases, of q and of k each
Needs = tuple[bool, ...]  # whether the gradients of q, k, and their weights and biases are wanted


def _kernels() -> tuple[Any, Any]:
    from tritonln.kernels.qk_norm import qk_norm_bwd, qk_norm_fwd

    return qk_norm_fwd, qk_norm_bwd


def _shape(key: Key) -> tuple[int, int, int]:
    return key.N, key.operands["x"].itemsize, 2 if "cos" in key.operands else 1


def _keys(of: Callable[..., Key]) -> Callable[[int, torch.dtype], Iterator[Key]]:
    def keys(N: int, x: torch.dtype) -> Iterator[Key]:
        for rotary in (x, None) if N % 2 == 0 else (None,):
            for parameter in dict.fromkeys((x, arithmetic(x))):
                if N <= rules.MOST:
                    yield of(N, x, ((parameter,), (parameter,)), (rotary, rotary), (True,) * 6)

    return keys


def _either(dtypes: Dtypes) -> torch.dtype | None:
    return next((dtype for dtype in dtypes if dtype is not None), None)


def _everything(parameters: Parameters) -> Needs:
    return True, True, *(dtype is not None for dtypes in parameters for dtype in dtypes)


class HeadPlans:
    """One of both norms, with its tunables.

    A tuned launch has the rows of one tensor, of one head: those of two, and of strided ones, are the same work.
    """

    def __init__(self, name: str, centred: bool):
        self.name, self.centred = name, centred
        parameters = {"weight": "N", "bias": "N"} if centred else {"weight": "N"}
        read = {"x": "M N", **parameters, "cos": "M N", "sin": "M N"}
        sums = {f"d{name[0]}_partial": "P N" for name in parameters}
        self.forward_tunable = Tunable(
            name=f"{name}_fwd",
            operands={**read, "y": "M N"},
            layout=(("x",), ("weight",), ("bias",), ("cos", "sin"), ("y",)),
            results=("y",),
            kernels=lambda: _kernels()[:1],
            plan=lambda key, c, device: self._forward(key, (1,), c, device),
            choice=lambda key, device: rules.forward(*_shape(key)),
            candidates=lambda key, device: rules.forward_candidates(*_shape(key)),
            safe=lambda key: rules.safe(key.N, _shape(key)[2]),
            keys=_keys(self._forward_key),
            scalars=lambda M: (M, M, 1e-6),
        )
        self.backward_tunable = Tunable(
            name=f"{name}_bwd",
            operands={"dy": "M N", **read, "dx": "M N", **sums},
            layout=(("x",), ("dy",), ("weight",), ("cos", "sin"), ("dx",), ("dw_partial",), ("db_partial",)),
            results=("dx", *sums),
            kernels=lambda: _kernels()[1:],
            plan=lambda key, c, device: self._backward(key, (1,), c, device),
            choice=lambda key, device: rules.backward(*_shape(key)),
            candidates=lambda key, device: rules.backward_candidates(*_shape(key)),
            safe=lambda key: rules.safe(key.N, _shape(key)[2], 1),
            keys=_keys(self._backward_key),
            scalars=lambda M: (M, M, 1e-6),
        )
        self.tunables = self.forward_tunable, self.backward_tunable, SUMS

    def _forward(self, key: Key, heads: tuple[int, ...], c: Config, device: Device) -> Plan:
        constants, of = (heads, key.N, c.pieces, c.block_m, c.block_n, self.centred), self.forward_tunable
        return Plan(Launch(_kernels()[0], constants, device, c.num_warps, of=of, name=of.name), c.block_m, 0)

    def _backward(self, key: Key, heads: tuple[int, ...], c: Config, device: Device) -> Plan:
        constants = heads, key.N, c.pieces, c.block_m, c.block_n, c.num_stages, self.centred
        of = self.backward_tunable
        launch = Launch(_kernels()[1], constants, device, c.num_warps, of=of, name=of.name)
        return Plan(launch, c.block_m, c.programs * device.multiprocessors)

    def _forward_key(self, N: int, x: torch.dtype, parameters: Parameters, rotary: Dtypes, _: Needs = ()) -> Key:
        weight, bias = map(_either, parameters)
        return self.forward_tunable.key(N, x=x, weight=weight, bias=bias, cos=rotary[0], sin=rotary[1], y=x)

    def _backward_key(self, N: int, x: torch.dtype, parameters: Parameters, rotary: Dtypes, needs: Needs) -> Key:
        cos, sin = rotary
        dx, dw, db = (
            dtype if any(needs[i : i + 2]) else None for i, dtype in ((0, x), (2, arithmetic(x)), (4, arithmetic(x)))
        )
        weight = _either(parameters[0])
        return self.backward_tunable.key(
            N, dy=x, x=x, weight=weight, cos=cos, sin=sin, dx=dx, dw_partial=dw, db_partial=db
        )

    @planned
    def forward_plan(
        self,
        N: int,
        heads: tuple[int, int],
        x: torch.dtype,
        parameters: Parameters,
        rotary: Dtypes,
        device: Device,
    ) -> Plan:
        """For tensors of these dtypes; None where there is none."""
        if current_policy().name != "lookup":  # a backward pass may not search, nor be the one to fail
            self.backward_plan(N, heads, x, parameters, rotary, _everything(parameters), device)
        key = self._forward_key(N, x, parameters, rotary)
        return self._forward(key, heads, config_for(self.forward_tunable, key, device), device)

    @planned
    def backward_plan(
        self,
        N: int,
        heads: tuple[int, int],
        x: torch.dtype,
        parameters: Parameters,
        rotary: Dtypes,
        needs: Needs,
        device: Device,
    ) -> tuple[Plan, Plan | None]:
        """The launch of the gradients, and that of the sums of partial sums where there are any.

        The configuration is the one for all gradients: one has the same bits whatever else is wanted.
        """
        key = self._backward_key(N, x, parameters, rotary, _everything(parameters))
        totals = tuple([d if needed else None for d, needed in zip((*parameters[0], *parameters[1]), needs[2:])])
        sums = column_sums_plan(N, arithmetic(x), totals, device) if any(needs[2:]) else None
        return self._backward(key, heads, config_for(self.backward_tunable, key, device), device), sums
