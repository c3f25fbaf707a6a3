"""The block of diffusion transformers, with adaLN-Zero."""

from __future__ import annotations

from typing import NamedTuple, overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear

from tritonln.ops.adaptive_norm import adaptive_layer_norm, add_adaptive_layer_norm
from tritonln.ops.gated_residual import gated_residual


class GatedStream(NamedTuple):
    """residual + gate x, not added yet: the adaptive norm that comes next makes the sum in its own pass.

    residual and x are (B, T, E), gate is (B, E); residual alone where x is None.
    """

    residual: Tensor
    x: Tensor | None = None
    gate: Tensor | None = None

    def total(self) -> Tensor:
        """The sum, made."""
        if self.x is None or self.gate is None:
            return self.residual
        return gated_residual(self.residual, self.x, self.gate)

    def modulated(self, scale: Tensor, shift: Tensor, eps: float) -> tuple[Tensor, Tensor]:
        """(LN(r') (1 + scale) + shift, r') of the sum r'."""
        E = self.residual.shape[-1]
        if self.x is None:
            return adaptive_layer_norm(self.residual, scale, shift, E, eps=eps), self.residual
        return add_adaptive_layer_norm(self.x, self.residual, self.gate, scale, shift, E, eps=eps)


class DiTAttention(torch.nn.Module):
    """Self-attention of all tokens to all."""

    def __init__(self, size: int, heads: int, device: torch.types.Device, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.heads = heads
        self.qkv = Linear(size, 3 * size, device=device, dtype=dtype)
        self.proj = Linear(size, size, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        q, k, v = self.qkv(x).unflatten(-1, (3, self.heads, -1)).permute(2, 0, 3, 1, 4)
        return self.proj(F.scaled_dot_product_attention(q, k, v).transpose(1, 2).flatten(2))


class DiTMLP(torch.nn.Module):
    """fc2(gelu(fc1(x))), with gelu's approximation by tanh."""

    def __init__(self, size: int, intermediate: int, device: torch.types.Device, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.fc1 = Linear(size, intermediate, device=device, dtype=dtype)
        self.fc2 = Linear(intermediate, size, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.fc2(F.gelu(self.fc1(x), approximate="tanh"))


class DiTBlock(torch.nn.Module):
    r"""A block of a diffusion transformer, with the ``state_dict`` of the authors' code.

    .. math:: r' = r + g_1 \, \mathrm{attention}(\mathrm{LN}(r) (1 + s_1) + t_1) \qquad
              r'' = r' + g_2 \, \mathrm{mlp}(\mathrm{LN}(r') (1 + s_2) + t_2)

    with shifts, scales and gates as the chunks of one (B, 6 E) table of the condition, which are read where they lie.
    The first sum is one pass with the norm behind it (:func:`tritonln.add_adaptive_layer_norm`), and the second with
    that of the next block where blocks hand a :class:`GatedStream` on, as those of :class:`tritonln.nn.LlamaBlock` do;
    else it is a pass of its own (:func:`tritonln.gated_residual`).  A new block is the identity: the table is zero
    (adaLN-Zero).

    Args:
        size: of a token, E.
        heads: of attention.
        mlp_ratio: size of the hidden layer over E.
        eps: of both norms, which have no parameters.
        device, dtype: of the parameters.

    Raises:
        ValueError: for a size that heads do not divide.

    Source: Peebles and Xie, Scalable Diffusion Models with Transformers (2023, arXiv 2212.09748), section 3.2.
    """

    def __init__(
        self,
        size: int,
        heads: int,
        mlp_ratio: float = 4.0,
        eps: float = 1e-6,
        *,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        if size % heads:
            raise ValueError(f"DiTBlock: expected size to be a multiple of heads, got {size} and {heads}")
        self.eps = eps
        self.attn = DiTAttention(size, heads, device, dtype)
        self.mlp = DiTMLP(size, int(size * mlp_ratio), device, dtype)
        self.adaLN_modulation = torch.nn.Sequential(torch.nn.SiLU(), Linear(size, 6 * size, device=device, dtype=dtype))
        for parameter in self.adaLN_modulation.parameters():
            torch.nn.init.zeros_(parameter)

    @overload
    def forward(self, x: Tensor, condition: Tensor) -> Tensor: ...

    @overload
    def forward(self, x: GatedStream, condition: Tensor) -> GatedStream: ...

    def forward(self, x: Tensor | GatedStream, condition: Tensor) -> Tensor | GatedStream:
        """A tensor of a tensor (B, T, E), a stream whose last sum is open of a stream; condition is (B, E)."""
        stream = x if isinstance(x, GatedStream) else GatedStream(x)
        shift, scale, gate, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, 1)
        y, residual = stream.modulated(scale, shift, self.eps)
        y, residual = GatedStream(residual, self.attn(y), gate).modulated(scale2, shift2, self.eps)
        stream = GatedStream(residual, self.mlp(y), gate2)
        return stream if isinstance(x, GatedStream) else stream.total()
