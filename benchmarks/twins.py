"""The transformer blocks of tritonln.nn as one writes them in plain torch, with the same parameters."""

from __future__ import annotations

from typing import Any

import torch
import torch.nn.functional as F
from torch import Tensor

import tritonln


class LlamaBlock(tritonln.nn.LlamaBlock):
    """RMSNorms by F.rms_norm, sums and rotations as operators of their own."""

    def forward(self, x: Any, cos: Tensor, sin: Tensor) -> Any:  # type: ignore[override]
        x = x + self._attended(_norm(self.input_layernorm, x), cos, sin)
        m, y = self.mlp, _norm(self.post_attention_layernorm, x)
        return x + m.down_proj(F.silu(m.gate_proj(y)) * m.up_proj(y))

    def _attended(self, x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
        a = self.self_attn
        q, k, v = (t(x).unflatten(-1, (-1, a.head_dim)).transpose(1, 2) for t in (a.q_proj, a.k_proj, a.v_proj))
        if a.q_norm is not None and a.k_norm is not None:
            q, k = _norm(a.q_norm, q), _norm(a.k_norm, k)
        q, k = (t * cos + _half_turned(t) * sin for t in (q, k))
        y = F.scaled_dot_product_attention(q, k, v, is_causal=True, enable_gqa=q.shape[1] != k.shape[1])
        return a.o_proj(y.transpose(1, 2).flatten(2))


def _norm(norm: torch.nn.RMSNorm, x: Tensor) -> Tensor:
    return F.rms_norm(x, norm.normalized_shape, norm.weight, norm.eps)


def _half_turned(x: Tensor) -> Tensor:
    a, b = x.chunk(2, -1)
    return torch.cat((-b, a), -1)


class DiTBlock(tritonln.nn.DiTBlock):
    """The authors' formulas: modulate and gate as operators of their own."""

    def forward(self, x: Any, condition: Tensor) -> Any:
        shift, scale, gate, shift2, scale2, gate2 = self.adaLN_modulation(condition).chunk(6, 1)
        x = x + gate.unsqueeze(1) * self.attn(self._modulated(x, shift, scale))
        return x + gate2.unsqueeze(1) * self.mlp(self._modulated(x, shift2, scale2))

    def _modulated(self, x: Tensor, shift: Tensor, scale: Tensor) -> Tensor:
        return F.layer_norm(x, x.shape[-1:], eps=self.eps) * (1 + scale.unsqueeze(1)) + shift.unsqueeze(1)
