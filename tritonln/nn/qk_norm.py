"""The norm of queries and keys as a module."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import Parameter

from tritonln.ops.qk_norm import qk_norm


class QKNorm(torch.nn.Module):
    r"""RMS or layer normalization of every head of q and k, and the rotary embedding of both, in one launch.

    :func:`tritonln.qk_norm` says what is computed and which errors are raised.  In place of the two norms and the
    rotation in an attention layer, before q and k are transposed.

    Args:
        head_dim: N, the length of a head.
        eps, weight_offset, centred: as of :func:`tritonln.qk_norm`.
        elementwise_affine: whether there are weights, the parameters ``q_weight`` and ``k_weight`` of ``(N,)``.
        bias: whether beside the weights of a centred norm there are biases, ``q_bias`` and ``k_bias``.
        device, dtype: of the parameters.
    """

    def __init__(
        self,
        head_dim: int,
        eps: float | None = 1e-6,
        elementwise_affine: bool = True,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
        *,
        weight_offset: float = 0.0,
        centred: bool = False,
        bias: bool = True,
    ) -> None:
        super().__init__()
        self.head_dim, self.eps, self.elementwise_affine = head_dim, eps, elementwise_affine
        self.weight_offset, self.centred = weight_offset, centred
        self.q_weight: Parameter | None
        self.k_weight: Parameter | None
        self.q_bias: Parameter | None
        self.k_bias: Parameter | None
        for kind, there in (("weight", elementwise_affine), ("bias", elementwise_affine and centred and bias)):
            for x in "qk":
                parameter = Parameter(torch.empty(head_dim, device=device, dtype=dtype)) if there else None
                self.register_parameter(f"{x}_{kind}", parameter)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """Weights that with their offset are factors of 1, biases of 0."""
        for name, parameter in self.named_parameters():
            torch.nn.init.constant_(parameter, 0.0 if "bias" in name else 1.0 - self.weight_offset)

    def forward(
        self, q: Tensor, k: Tensor, cos: Tensor | None = None, sin: Tensor | None = None
    ) -> tuple[Tensor, Tensor]:
        """q is ``(*, T, Hq, N)`` and k ``(*, T, Hk, N)``; new tensors of their shapes."""
        return qk_norm(
            q, k, self.q_weight, self.k_weight, self.eps, cos=cos, sin=sin, weight_offset=self.weight_offset,
            centred=self.centred, q_bias=self.q_bias, k_bias=self.k_bias,
        )  # fmt: skip

    def extra_repr(self) -> str:
        offset = f", weight_offset={self.weight_offset}" if self.weight_offset else ""
        centred = f", centred=True, bias={self.q_bias is not None}" if self.centred else ""
        return f"{self.head_dim}, eps={self.eps}, elementwise_affine={self.elementwise_affine}{offset}{centred}"
