"""Normalization modules: torch's own, but for the forward."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonln.ops.layer_norm import layer_norm
from tritonln.ops.of_y import check_save
from tritonln.ops.rms_norm import rms_norm


class _Keeps(torch.nn.Module):
    """What a norm keeps for backward."""

    save = "x"

    def extra_repr(self) -> str:
        return super().extra_repr() + ("" if self.save == "x" else f", save={self.save!r}")


def _save_of(module: Any) -> str:
    return module.save if isinstance(module, _Keeps) else "x"  # replace_norms gives others the forward of these


class LayerNorm(_Keeps, torch.nn.LayerNorm):
    """:class:`torch.nn.LayerNorm` with its constructor, parameters and state, on tritonln's kernels.

    ``save``, ``"x"`` or ``"y"``, is that of :func:`tritonln.layer_norm`.  TorchScript, which knows ATen's operators
    only, compiles the module to them.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        save: str = "x",
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self.save = check_save(save)

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return torch.nn.functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
        else:  # what is_scripting leaves out must be a branch
            save = _save_of(self)
            return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps, save=save)


class RMSNorm(_Keeps, torch.nn.RMSNorm):
    """:class:`torch.nn.RMSNorm` with its constructor, parameter and state, on tritonln's kernels.

    ``save``, ``"x"`` or ``"y"``, is that of :func:`tritonln.rms_norm`.  TorchScript, which knows ATen's operators
    only, compiles the module to them.
    """

    def __init__(
        self,
        normalized_shape: int | Sequence[int],
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        save: str = "x",
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.save = check_save(save)

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return torch.nn.functional.rms_norm(x, self.normalized_shape, self.weight, self.eps)
        else:  # what is_scripting leaves out must be a branch
            return rms_norm(x, self.normalized_shape, self.weight, self.eps, save=_save_of(self))
