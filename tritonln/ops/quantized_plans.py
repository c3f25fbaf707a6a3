"""The quantized norms on tensors: their tunables, what is allocated and what is launched."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from typing import Any, NamedTuple

import torch
from torch import Tensor

from tritonln.configurations import rows as rules
from tritonln.configurations.config import Config
from tritonln.configurations.lookup import config_for, planned
from tritonln.configurations.tunable import Key, Tunable, register_operator
from tritonln.device import Device, interpreting
from tritonln.launch import Launch
from tritonln.ops.contract import arithmetic, empty_like
from tritonln.ops.operands import COLUMNS, ROWS, Operand, Tensors, contiguous, dtypes_of, placed
from tritonln.ops.rows import RowOperator
from tritonln.plan import Plan

E8M0 = torch.float8_e8m0fnu
BLOCK = 32  # columns that share a scale, kernels/quantized.py's
FORMATS = {torch.float8_e4m3fn: "e4m3", torch.float8_e5m2: "e5m2", torch.int8: "int8"}
LARGEST = {torch.float8_e4m3fn: 448.0, torch.float8_e5m2: 57344.0, torch.int8: 127.0}
ENTERING = {"x": Operand(ROWS), "residual": Operand(ROWS, -0.0)}


class Arguments(NamedTuple):
    x: Tensor
    residual: Tensor | None
    parameters: tuple[Tensor | None, ...]  # of the norm
    given: Tensor | None  # the scale of all rows, one fp32
    eps: float
    dtype: torch.dtype  # of q
    blocks: bool  # whether each BLOCK columns have a scale
    N: int


class Quantized(NamedTuple):
    q: Tensor
    scale: Tensor | None  # None where it was given
    x: Tensor | None  # where a residual was added


class Quantizing(NamedTuple):
    """A call on tensors of certain shapes and dtypes: all that does not depend on where they lie."""

    N: int
    dtype: torch.dtype  # of q
    blocks: bool
    scales: tuple[int, ...] | None  # their shape; None where the scale is given
    adjacent: bool  # whether all operands are contiguous
    launch: Any  # None where there are no rows
    programs: int
    scalars: tuple[float, ...]  # that its arguments end in

    def on(self, tensors: Tensors) -> Quantized:
        """Of x, the residual, the parameters and the scale of all rows."""
        N, dtype, blocks, scales, adjacent, launch, programs, scalars = self
        x: Any
        x, residual, *parameters, given = tensors
        q = empty_like(x, dtype)
        out = None if residual is None else empty_like(x, residual.dtype)
        scale = None if scales is None else x.new_empty(*scales, dtype=E8M0 if blocks else torch.float32)
        if launch is not None:
            rows = (x, residual) if adjacent else placed((x, residual), (ROWS,) * 2, N)
            columns = tuple(parameters) if adjacent else placed(tuple(parameters), (COLUMNS,) * len(parameters), N)
            of_rows, of_blocks = (None, scale) if blocks else (scale, None)
            launch(programs, rows, columns, given, q, out, of_rows, of_blocks, *scalars)
        return Quantized(q, scale, out)


class QuantizedNorm:
    """A norm whose result is quantized, with its tunable."""

    def __init__(self, norm: RowOperator):
        self.norm, self.name = norm, f"quantized_{norm.name}"
        finishing = {name: operand.axes for name, operand in norm.finishing.items()}
        results = {"q": "M N", "x_out": "M N", "scale": "M", "exponents": f"M N/{BLOCK}"}
        self.forward_tunable = Tunable(
            name=f"{self.name}_fwd",
            operands={**dict.fromkeys(ENTERING, ROWS), **finishing, "given": "1", **results},
            layout=(tuple(ENTERING), tuple(finishing), "given", *results),
            results=tuple(results),
            kernels=lambda: (*_kernels(), _enter(), norm.parts().finish),
            plan=self._plan,
            choice=lambda key, device: _choice(key, rules.forward(key.N, _work(key), device)),
            candidates=lambda key, device: _candidates(key, rules.forward_candidates(key.N, _work(key), device)),
            safe=lambda key: rules.forward_safe(key.N),
            keys=self._keys,
            scalars=lambda M: (M, 1e-5),
        )
        self.tunables = (self.forward_tunable,)
        register_operator(self)

    def _keys(self, N: int, x: torch.dtype) -> Iterator[Key]:
        if x != torch.float64:
            for parameter in dict.fromkeys((x, arithmetic(x))):
                weights = (parameter,) * len(self.norm.finishing)
                yield self._key(N, x, None, weights, torch.float8_e4m3fn, "scale")

    def _key(
        self,
        N: int,
        x: torch.dtype,
        residual: torch.dtype | None,
        parameters: tuple[torch.dtype | None, ...],
        q: torch.dtype,
        scale: str,
    ) -> Key:
        dtypes: dict[str, torch.dtype | None] = {
            "x": x,
            "residual": residual,
            **dict(zip(self.norm.finishing, parameters)),
        }
        scales = {scale: E8M0 if scale == "exponents" else torch.float32}
        return self.forward_tunable.key(N, **dtypes, q=q, x_out=residual, **scales)

    def _plan(self, key: Key, c: Config, device: Device) -> Plan:
        one_tile, wide = _kernels()
        finishing = self.norm.finishing.values()
        native = device.backend == "cuda" and int(device.arch) >= 89 and not interpreting()
        absent = tuple(0.0 if o.absent is None else o.absent for o in ENTERING.values())
        operator = (
            *(FORMATS[key.operands["q"]], native, _enter() if "residual" in key.operands else None),
            *(self.norm.parts().finish, (ROWS,) * 2, tuple(o.kind for o in finishing)),
            *(absent, tuple(0.0 if o.absent is None else o.absent for o in finishing), self.norm.centred),
        )
        widest = max((key.operands[name].itemsize for name in self.norm.finishing if name in key.operands), default=1)
        at_once, x_bytes = rules.loaded_at_once(key.N, _work(key), widest, c, device), _work(key).x_bytes
        tile: tuple[int, ...]
        if c.block_n >= key.N:
            rows = rules.rows_at_once(key.N, at_once, c, device)
            kernel, name, tile = one_tile, f"{self.name}_fwd", (c.block_m, c.block_n, rows)
        else:
            kernel, name, tile = wide, f"{self.name}_wide_fwd", (c.block_n, *rules.ahead(key.N, x_bytes, c))
        constants = key.N, *tile, at_once, *operator, name
        launch = Launch(kernel, constants, device, c.num_warps, of=self.forward_tunable, name=name)
        return Plan(launch, c.block_m, 0)

    @planned
    def plan(
        self,
        N: int,
        dtypes: tuple[torch.dtype | None, ...],
        q: torch.dtype,
        scale: str,
        device: Device,
    ) -> Plan:
        """For x, residual and parameters of these dtypes."""
        x, residual, *parameters = dtypes
        assert x is not None
        key = self._key(N, x, residual, tuple(parameters), q, scale)
        return self._plan(key, config_for(self.forward_tunable, key, device), device)

    def forward(self, a: Arguments, device: Device) -> Quantized:
        return self.prepared(a, _scales(a), device).on((a.x, a.residual, *a.parameters, a.given))

    def prepared(self, a: Arguments, scales: Sequence[int], device: Device) -> Quantizing:
        """What `forward` does with tensors like these, with scales of this shape."""
        x, M = a.x, a.x.numel() // a.N if a.N else 0
        adjacent = contiguous((x, a.residual, *a.parameters))
        kind = "given" if a.given is not None else "exponents" if a.blocks else "scale"
        of = None if kind == "given" else tuple(scales)
        if not M:
            return Quantizing(a.N, a.dtype, a.blocks, of, adjacent, None, 0, ())
        plan = self.plan(a.N, dtypes_of((x, a.residual, *a.parameters)), a.dtype, kind, device)
        return Quantizing(a.N, a.dtype, a.blocks, of, adjacent, plan.launch, plan.count(M), (M, a.eps))

    def train(
        self, make: Callable[..., Tensor], rows: int, N: int, x: torch.dtype, parameter: torch.dtype, device: Device
    ) -> None:
        """A forward pass: there is no other."""
        parameters = tuple(make(N, dtype=parameter) for _ in self.norm.finishing)
        self.forward(
            Arguments(make(rows, N, dtype=x), None, parameters, None, 1e-5, torch.float8_e4m3fn, False, N), device
        )


def allocated(a: Arguments) -> Quantized:
    """The results, uninitialized."""
    x = a.x
    q = torch.empty(x.shape, dtype=a.dtype, device=x.device)
    out = None if a.residual is None else torch.empty(x.shape, dtype=a.residual.dtype, device=x.device)
    if a.given is not None:
        return Quantized(q, None, out)
    return Quantized(q, torch.empty(_scales(a), dtype=E8M0 if a.blocks else torch.float32, device=x.device), out)


def _scales(a: Arguments) -> tuple[int, int]:
    """The shape of the scales by rows."""
    return a.x.numel() // a.N if a.N else 0, a.N // BLOCK if a.blocks else 1


def _kernels() -> tuple[Any, Any]:
    from tritonln.kernels.quantized import quantized_fwd, quantized_wide_fwd

    return quantized_fwd, quantized_wide_fwd


def _enter() -> Any:
    from tritonln.kernels.quantized import plus

    return plus


def _work(key: Key) -> rules.Work:
    sizes = [key.operands[name].itemsize for name in ENTERING if name in key.operands]
    return rules.Work(max(sizes), sum(sizes), len(sizes))


def _chunk(key: Key) -> Config:
    """Of rows wider than a tile.

    On sm_80 ptxas keeps two values of a thread in memory of 16-bit rows with 8 warps, and of fp32 rows with 4.
    """
    x_bytes = _work(key).x_bytes
    if rules.touched(key.N, x_bytes):  # of more values that come one at a time, those of several chunks would not fit
        return Config(1, 2048, 8, 1, 1 + -(-rules.IN_FLIGHT // (2 * 2048 * x_bytes)))
    return Config(1, 4096, 4) if x_bytes <= 2 else Config(1, 8192, 8)


def _choice(key: Key, c: Config) -> Config:
    return _chunk(key) if c.block_n < key.N or c.num_ctas > 1 else c


def _candidates(key: Key, found: Iterator[Config]) -> Iterator[Config]:
    """Those of one thread block; the choice first, in place of clusters too."""
    for c in found:
        yield _chunk(key) if c.num_ctas > 1 else c
