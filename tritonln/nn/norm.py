"""Normalization modules: torch's own, but for the forward."""

import torch
from torch import Tensor

from tritonln.ops.layer_norm import layer_norm
from tritonln.ops.rms_norm import rms_norm


class LayerNorm(torch.nn.LayerNorm):
    """:class:`torch.nn.LayerNorm` with its constructor, parameters and state, on tritonln's kernels.

    TorchScript, which knows ATen's operators only, compiles it to them.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return torch.nn.functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
        else:  # what is_scripting leaves out must be a branch
            return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)


class RMSNorm(torch.nn.RMSNorm):
    """:class:`torch.nn.RMSNorm` with its constructor, parameter and state, on tritonln's kernels.

    TorchScript, which knows ATen's operators only, compiles it to them.
    """

    def forward(self, x: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return torch.nn.functional.rms_norm(x, self.normalized_shape, self.weight, self.eps)
        else:  # what is_scripting leaves out must be a branch
            return rms_norm(x, self.normalized_shape, self.weight, self.eps)
