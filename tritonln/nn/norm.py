"""Normalization modules: torch's own, but for the forward."""

import torch
from torch import Tensor

from tritonln.ops.layer_norm import layer_norm


class LayerNorm(torch.nn.LayerNorm):
    """:class:`torch.nn.LayerNorm` with its constructor, parameters and state, on tritonln's kernels."""

    def forward(self, input: Tensor) -> Tensor:
        return layer_norm(input, self.normalized_shape, self.weight, self.bias, self.eps)
