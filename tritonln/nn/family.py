"""The norms that take more than one tensor, as modules: torch's LayerNorm and RMSNorm in constructor and state.

Each has the parameters of its twin in torch.nn, whose ``state_dict`` loads into it and the other way round.
``torch.jit.script`` does not take them, as TorchScript has no such operators.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from tritonln.nn.norm import LayerNorm, RMSNorm
from tritonln.ops.adaptive_norm import adaptive_layer_norm, adaptive_rms_norm
from tritonln.ops.add_norm import add_layer_norm, add_rms_norm
from tritonln.ops.companions import probability
from tritonln.ops.gated_rms_norm import gated_rms_norm

Shape = int | Sequence[int]


class _Adds(torch.nn.Module):
    """What both norms of a sum have beside a norm."""

    dropout_p: float
    residual_dtype: torch.dtype | None

    def _add(self, dropout_p: float, residual_dtype: torch.dtype | None) -> None:
        self.dropout_p, self.residual_dtype = probability(dropout_p), residual_dtype

    def _options(self, row_scale: Tensor | None) -> dict[str, Any]:
        return {
            "dropout_p": self.dropout_p,
            "training": self.training,
            "row_scale": row_scale,
            "residual_dtype": self.residual_dtype,
        }

    def extra_repr(self) -> str:
        dropout = f", dropout_p={self.dropout_p}" if self.dropout_p else ""
        dtype = "" if self.residual_dtype is None else f", residual_dtype={self.residual_dtype}"
        return super().extra_repr() + dropout + dtype


class AddLayerNorm(_Adds, LayerNorm):
    r"""The residual stream and its layer normalization in one pass, with the state of :class:`torch.nn.LayerNorm`.

    .. math:: r' = r + s \, \mathrm{dropout}_p(x) \qquad y = \mathrm{LN}(r') \, w + b

    :func:`tritonln.add_layer_norm` says what is computed, in which dtypes, and which errors are raised.

    Args:
        normalized_shape, eps, elementwise_affine, bias, device, dtype: as of :class:`torch.nn.LayerNorm`.
        dropout_p: probability with which an element of x becomes 0, while the module is in training mode.
        residual_dtype: of r'.  None: that of the residual, or of x where there is none.

    Raises:
        ValueError: for a dropout_p that is no probability.
    """

    def __init__(
        self,
        normalized_shape: Shape,
        eps: float = 1e-5,
        elementwise_affine: bool = True,
        bias: bool = True,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        dropout_p: float = 0.0,
        residual_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)
        self._add(dropout_p, residual_dtype)

    def forward(  # type: ignore[override]
        self, x: Tensor, residual: Tensor | None = None, row_scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(y, r'): what the next sublayer takes, and the residual of the next call.

        x is ``(*, *normalized_shape)`` and residual of its shape, None before the first layer; row_scale is s, one
        factor for each of the outermost dimensions.
        """
        return add_layer_norm(
            x, residual, self.normalized_shape, self.weight, self.bias, self.eps, **self._options(row_scale)
        )


class AddRMSNorm(_Adds, RMSNorm):
    r"""The residual stream and its RMS normalization in one pass, with the state of :class:`torch.nn.RMSNorm`.

    .. math:: r' = r + s \, \mathrm{dropout}_p(x) \qquad y = \mathrm{RMSNorm}(r') \, w

    :func:`tritonln.add_rms_norm` says what is computed; ``normalized_shape``, ``eps``, ``elementwise_affine``,
    ``device`` and ``dtype`` are those of :class:`torch.nn.RMSNorm`, all else is as in :class:`AddLayerNorm`.
    """

    def __init__(
        self,
        normalized_shape: Shape,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        dropout_p: float = 0.0,
        residual_dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self._add(dropout_p, residual_dtype)

    def forward(  # type: ignore[override]
        self, x: Tensor, residual: Tensor | None = None, row_scale: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """(y, r'), as :meth:`AddLayerNorm.forward`."""
        return add_rms_norm(x, residual, self.normalized_shape, self.weight, self.eps, **self._options(row_scale))


class AdaptiveLayerNorm(LayerNorm):
    r"""Layer normalization with a scale and a shift of each batch, with the state of :class:`torch.nn.LayerNorm`.

    .. math:: y = (\mathrm{LN}(x) \, w + b) (1 + \mathrm{scale}) + \mathrm{shift}

    :func:`tritonln.adaptive_layer_norm` says what is computed and which errors are raised.  The gated sum that stands
    before the second norm of a DiT block is fused by :func:`tritonln.add_adaptive_layer_norm`, a function only: such
    norms have no parameters.

    Args:
        normalized_shape, eps, bias, device, dtype: as of :class:`torch.nn.LayerNorm`.
        elementwise_affine: whether there are w and b; False by default, as scale and shift do what they would.
    """

    def __init__(
        self,
        normalized_shape: Shape,
        eps: float = 1e-5,
        elementwise_affine: bool = False,
        bias: bool = True,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, bias, device, dtype)

    def forward(  # type: ignore[override]
        self, x: Tensor, scale: Tensor | None, shift: Tensor | None
    ) -> Tensor:
        """y, of x's shape ``(B, *, *normalized_shape)``; scale and shift as ``(B, *normalized_shape)``, or wider."""
        return adaptive_layer_norm(x, scale, shift, self.normalized_shape, self.weight, self.bias, self.eps)


class AdaptiveRMSNorm(RMSNorm):
    r"""RMS normalization with a scale and a shift of each batch, with the state of :class:`torch.nn.RMSNorm`.

    .. math:: y = \mathrm{RMSNorm}(x) \, w \, (1 + \mathrm{scale}) + \mathrm{shift}

    :func:`tritonln.adaptive_rms_norm` says what is computed; ``normalized_shape``, ``eps``, ``device`` and ``dtype``
    are those of :class:`torch.nn.RMSNorm`, all else is as in :class:`AdaptiveLayerNorm`.
    """

    def __init__(
        self,
        normalized_shape: Shape,
        eps: float | None = None,
        elementwise_affine: bool = False,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)

    def forward(  # type: ignore[override]
        self, x: Tensor, scale: Tensor | None, shift: Tensor | None
    ) -> Tensor:
        """y, as :meth:`AdaptiveLayerNorm.forward`."""
        return adaptive_rms_norm(x, scale, shift, self.normalized_shape, self.weight, self.eps)


class GatedRMSNorm(RMSNorm):
    r"""RMS normalization with a silu gate, with the state of :class:`torch.nn.RMSNorm`.

    .. math:: y = \mathrm{RMSNorm}(x) \, w \, \mathrm{silu}(g) \qquad \text{or} \qquad
              y = \mathrm{RMSNorm}(x \, \mathrm{silu}(g)) \, w

    :func:`tritonln.gated_rms_norm` says what is computed and which errors are raised.

    Args:
        normalized_shape, eps, elementwise_affine, device, dtype: as of :class:`torch.nn.RMSNorm`.
        norm_before_gate: False: the second formula.
        group_size: values that are normalized together; None: the row.
    """

    def __init__(
        self,
        normalized_shape: Shape,
        eps: float | None = None,
        elementwise_affine: bool = True,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        norm_before_gate: bool = True,
        group_size: int | None = None,
    ) -> None:
        super().__init__(normalized_shape, eps, elementwise_affine, device, dtype)
        self.norm_before_gate, self.group_size = norm_before_gate, group_size

    def forward(self, x: Tensor, gate: Tensor) -> Tensor:  # type: ignore[override]
        """y; x is ``(*, *normalized_shape)`` and gate of its shape."""
        return gated_rms_norm(
            x,
            gate,
            self.normalized_shape,
            self.weight,
            self.eps,
            norm_before_gate=self.norm_before_gate,
            group_size=self.group_size,
        )

    def extra_repr(self) -> str:
        order = "" if self.norm_before_gate else ", norm_before_gate=False"
        return super().extra_repr() + order + ("" if self.group_size is None else f", group_size={self.group_size}")
