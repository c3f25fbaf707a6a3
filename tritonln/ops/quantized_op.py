"""The quantized norms as custom ops, and their formula in torch."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from tritonln.device import kernels_on
from tritonln.ops import library, row_formula
from tritonln.ops.contract import refuse_tangents
from tritonln.ops.quantized_plans import BLOCK, ENTERING, LARGEST, Arguments, Quantized, QuantizedNorm, allocated
from tritonln.ops.rows import Settings


def computed(operator: QuantizedNorm, a: Arguments) -> Quantized:
    device = kernels_on(a.x.device)
    return formula(operator, a) if device is None else operator.forward(a, device)


def formula(operator: QuantizedNorm, a: Arguments) -> Quantized:
    """In torch's operations, in fp32."""
    s = Settings(a.N, a.eps, torch.float32)
    values = row_formula.values(ENTERING, (a.x, a.residual), 0, s)
    x, residual = values
    assert isinstance(x, Tensor)
    out = None
    if a.residual is not None:
        x = x + residual
        out = x.to(a.residual.dtype)
        x = out.float()
    y = row_formula.finished(operator.norm, x, a.parameters, s)
    largest = LARGEST[a.dtype]
    scale = None
    if a.given is not None:
        y = y * (1.0 / a.given)
    elif a.blocks:
        blocks = y.reshape(-1, a.N // BLOCK, BLOCK)
        most = blocks.abs().amax(-1, keepdim=True)
        biased = most.view(torch.int32) >> 23
        exponents = (biased - (8 if a.dtype == torch.float8_e4m3fn else 15)).clamp(min=0)
        y = (blocks * ((254 - exponents) << 23).view(torch.float32)).reshape(y.shape)
        stored = torch.where(biased == 255, 255, exponents)
        scale = stored.to(torch.uint8).view(torch.float8_e8m0fnu).reshape(-1, a.N // BLOCK)
    else:
        most = y.abs().amax(1, keepdim=True) if a.N else y.new_zeros((y.shape[0], 1))
        scale = (most / largest).clamp(min=2.0**-126)
        y = y * (1.0 / scale)
    y = y.clamp(-128.0 if a.dtype == torch.int8 else -largest, largest)
    q = (y.nan_to_num().round() if a.dtype == torch.int8 else y).to(a.dtype)
    return Quantized(q.reshape(a.x.shape), scale, None if out is None else out.reshape(a.x.shape))


# ---- the ops -----------------------------------------------------------------------------------------


def define(operator: QuantizedNorm) -> None:
    parameters = ", ".join(f"Tensor? {name}" for name in operator.norm.finishing)
    n = len(operator.norm.finishing)

    def read(x: Tensor, residual: Tensor | None, N: int, *rest: Any) -> Arguments:
        given, eps, dtype, blocks = rest[n:]
        return Arguments(x, residual, rest[:n], given, eps, dtype, blocks, N)

    def results(a: Arguments, found: Quantized) -> tuple[Tensor, ...]:
        """Empty tensors for what is not there."""
        none = a.x.new_empty(0)
        return tuple(none.clone() if t is None else t for t in found)

    def forward(*arguments: Any) -> tuple[Tensor, ...]:
        refuse_tangents(operator.name)
        a = read(*arguments)
        return results(a, computed(operator, a))

    def fake(*arguments: Any) -> tuple[Tensor, ...]:
        a = read(*arguments)
        return results(a, allocated(a))

    library.define(
        operator.name,
        f"(Tensor x, Tensor? residual, SymInt N, {parameters}, Tensor? scale, float eps, ScalarType dtype, bool blocks)"
        " -> (Tensor, Tensor, Tensor)",
        forward,
        fake,
    )


def by_op(operator: QuantizedNorm, a: Arguments) -> Quantized:
    q, scale, x = library.op(operator.name)(a.x, a.residual, a.N, *a.parameters, a.given, a.eps, a.dtype, a.blocks)
    return Quantized(q, None if a.given is not None else scale, None if a.residual is None else x)
