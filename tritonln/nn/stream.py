"""A residual stream whose last sum is still open, so that the norm that comes next makes it in its own pass."""

from __future__ import annotations

from typing import NamedTuple

import torch
from torch import Tensor
from torch.nn import Module

from tritonln.nn import norm as norms
from tritonln.ops.add_norm import add_layer_norm, add_rms_norm
from tritonln.ops.contract import autocasts, traced
from tritonln.ops.layer_norm import layer_norm
from tritonln.ops.rms_norm import rms_norm
from tritonln.ops.row_autograd import only_formula

LAYER_NORMS = torch.nn.LayerNorm.forward, norms.LayerNorm.forward
RMS_NORMS = torch.nn.RMSNorm.forward, norms.RMSNorm.forward
DROPOUTS = (torch.nn.Dropout.forward,)


class Stream(NamedTuple):
    """residual + dropout(x), not added yet; residual alone where x is None.

    The sum is fused with a norm that is LayerNorm or RMSNorm (torch's or tritonln's) and with a dropout that is torch's
    where kernels serve the tensors.  Everywhere else, and where somebody hooks into either module, the modules are
    called as they are.
    """

    residual: Tensor
    x: Tensor | None = None
    dropout: Module | None = None

    def total(self) -> Tensor:
        """The sum, made."""
        if self.x is None:
            return self.residual
        return self.residual + (self.x if self.dropout is None else self.dropout(self.x))

    def normed(self, norm: Module) -> tuple[Tensor, Tensor]:
        """(norm(r'), r') of the sum r'."""
        residual, x, dropout = self
        served = x is not None and not only_formula("add_layer_norm", (residual, x), traced(residual, x))
        if not served or not _plain(norm, (*LAYER_NORMS, *RMS_NORMS)):
            total = self.total()
            return _alone(norm, total), total
        assert x is not None
        p = 0.0
        if dropout is not None and _plain(dropout, DROPOUTS):
            p = float(dropout.p) if dropout.training else 0.0  # type: ignore[arg-type]
        elif dropout is not None:
            x = dropout(x)
        dtype = torch.promote_types(residual.dtype, x.dtype)
        if residual.dtype != x.dtype and not autocasts(dtype, x.device.type):
            residual, x = residual.to(dtype), x.to(dtype)  # the norm's result then has the dtype of the sum
        shape, weight, eps = norm.normalized_shape, norm.weight, norm.eps
        if type(norm).forward in RMS_NORMS:
            return add_rms_norm(x, residual, shape, weight, eps, dropout_p=p, residual_dtype=dtype)  # type: ignore[arg-type]
        return add_layer_norm(x, residual, shape, weight, norm.bias, eps, dropout_p=p, residual_dtype=dtype)  # type: ignore[arg-type]


def _alone(norm: Module, x: Tensor) -> Tensor:
    if _plain(norm, LAYER_NORMS):
        return layer_norm(x, norm.normalized_shape, norm.weight, norm.bias, norm.eps)  # type: ignore[arg-type]
    if _plain(norm, RMS_NORMS):
        return rms_norm(x, norm.normalized_shape, norm.weight, norm.eps)  # type: ignore[arg-type]
    return norm(x)


def _plain(module: Module, forwards: tuple[object, ...]) -> bool:
    return type(module).forward in forwards and "forward" not in vars(module) and not hooked(module)


def hooked(module: Module) -> bool:
    """Whether calling the module does more than its forward: hooks, a forward of the instance's, a compiled one."""
    return bool(
        module._forward_hooks
        or module._forward_pre_hooks
        or module._backward_hooks
        or module._backward_pre_hooks
        or module._compiled_call_impl is not None
    )
