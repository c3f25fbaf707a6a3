"""A norm with the constructor that Megatron's model specifications call."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor
from torch.nn import Parameter

from tritonln.ops.layer_norm import layer_norm
from tritonln.ops.rms_norm import rms_norm


class MegatronNorm(torch.nn.Module):
    r"""LayerNorm or RMSNorm where a Megatron model specification names a norm.

    :func:`tritonln.layer_norm` or :func:`tritonln.rms_norm` says what is computed.  Parameters carry the attribute
    ``sequence_parallel``, by which Megatron knows that their gradients are to be summed over the tensor-parallel ranks.

    Args:
        config: Megatron's, of which ``normalization`` ("LayerNorm" or "RMSNorm"), ``sequence_parallel``,
            ``layernorm_zero_centered_gamma`` and ``params_dtype`` are read where they are; None: the arguments alone.
        hidden_size: N, the length of a row.
        eps: added to the variance.
        persist_layer_norm: accepted and without effect, as there are kernels for every row length.
        zero_centered_gamma: whether the weight is stored around zero, as the config may say too.
        normalization: which of the two, unless the config says so.
        sequence_parallel: unless the config says so.

    Raises:
        ValueError: for another normalization.
    """

    def __init__(
        self,
        config: Any = None,
        hidden_size: int = 0,
        eps: float = 1e-5,
        persist_layer_norm: bool = True,
        zero_centered_gamma: bool = False,
        normalization: str = "LayerNorm",
        *,
        sequence_parallel: bool = False,
    ) -> None:
        super().__init__()
        self.normalization = getattr(config, "normalization", normalization)
        if self.normalization not in ("LayerNorm", "RMSNorm"):
            raise ValueError(f"expected normalization to be 'LayerNorm' or 'RMSNorm', but got {self.normalization!r}")
        if type(hidden_size) is not int or hidden_size < 1:
            raise ValueError(f"expected hidden_size to be a positive int, but got {hidden_size!r}")
        self.config, self.hidden_size, self.eps = config, hidden_size, eps
        self.zero_centered_gamma = zero_centered_gamma or getattr(config, "layernorm_zero_centered_gamma", False)
        self.sequence_parallel = getattr(config, "sequence_parallel", sequence_parallel)
        dtype = getattr(config, "params_dtype", None)
        self.weight = Parameter(torch.empty(hidden_size, dtype=dtype))
        self.bias: Parameter | None
        centred = self.normalization == "LayerNorm"
        self.register_parameter("bias", Parameter(torch.empty(hidden_size, dtype=dtype)) if centred else None)
        self.reset_parameters()

    def reset_parameters(self) -> None:
        """A weight that is a factor of 1, a bias of 0; both marked for Megatron."""
        torch.nn.init.constant_(self.weight, 0.0 if self.zero_centered_gamma else 1.0)
        if self.bias is not None:
            torch.nn.init.zeros_(self.bias)
        for parameter in self.parameters():
            parameter.sequence_parallel = self.sequence_parallel  # type: ignore[attr-defined]

    def forward(self, x: Tensor) -> Tensor:
        """y; x is ``(*, hidden_size)``."""
        offset = 1.0 if self.zero_centered_gamma else 0.0
        if self.normalization == "LayerNorm":
            return layer_norm(x, self.hidden_size, self.weight, self.bias, self.eps, weight_offset=offset)
        return rms_norm(x, self.hidden_size, self.weight, self.eps, weight_offset=offset)

    def extra_repr(self) -> str:
        return f"{self.hidden_size}, eps={self.eps}, {self.normalization}, sequence_parallel={self.sequence_parallel}"
