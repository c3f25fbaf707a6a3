"""Normalization modules: torch's own, but for the forward."""

import torch
from torch import Tensor

from tritonln.ops.layer_norm import layer_norm


class LayerNorm(torch.nn.LayerNorm):
    """:class:`torch.nn.LayerNorm` with its constructor, parameters and state, on tritonln's kernels.

    TorchScript, which knows ATen's operators only, compiles it to them.
    """

    def forward(self, input: Tensor) -> Tensor:
        if torch.jit.is_scripting():  # type: ignore[attr-defined]
            return torch.nn.functional.layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
        else:  # what is_scripting leaves out must be a branch
            return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
