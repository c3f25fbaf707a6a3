"""The block of Llama, Qwen and their kin: pre-RMSNorm, rotary embedding, grouped queries, SwiGLU."""

from __future__ import annotations

from typing import overload

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import Linear

from tritonln.nn.norm import RMSNorm
from tritonln.nn.stream import Stream
from tritonln.ops.qk_norm import qk_norm


def rotary_table(positions: Tensor, head_dim: int, theta: float = 10_000.0) -> tuple[Tensor, Tensor]:
    """(cos, sin) of ``(T, head_dim)`` in fp32 for positions of ``(T,)``, with the halves of a head as pairs.

    Source: Su et al., RoFormer (2021, arXiv 2104.09864), equation 34.
    """
    exponents = torch.arange(0, head_dim, 2, device=positions.device, dtype=torch.float32) / head_dim
    angles = positions.to(torch.float32).unsqueeze(1) * theta**-exponents
    angles = torch.cat((angles, angles), 1)
    return angles.cos(), angles.sin()


class KVCache:
    """Keys and values of the tokens that one layer has seen, in memory that is allocated once; for inference only.

    Args:
        batch, kv_heads, most, head_dim: sizes; ``most`` tokens fit.
        device, dtype: of the tensors.
    """

    def __init__(
        self,
        batch: int,
        kv_heads: int,
        most: int,
        head_dim: int,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        self.keys, self.values = (
            torch.empty(batch, kv_heads, most, head_dim, device=device, dtype=dtype) for _ in range(2)
        )
        self.length = 0

    def append(self, k: Tensor, v: Tensor) -> tuple[Tensor, Tensor]:
        """All keys and values so far, views of (B, H, length, N), with these of (B, H, T, N) at their end.

        Raises:
            RuntimeError: for more tokens than fit, another batch, and keys that ask for a gradient: none comes through.
        """
        if torch.is_grad_enabled() and (k.requires_grad or v.requires_grad):
            raise RuntimeError("KVCache: expected keys and values without gradients: call the model in torch.no_grad()")
        start, most = self.length, self.keys.shape[2]
        room = (*self.keys.shape[:2], most - start, self.keys.shape[3])
        if k.shape != v.shape or k.shape[2] > room[2] or [*k.shape[:2], k.shape[3]] != [*room[:2], room[3]]:
            raise RuntimeError(f"KVCache: expected keys and values within {list(room)}, got {list(k.shape)}")
        self.length += k.shape[2]
        self.keys[:, :, start : self.length] = k
        self.values[:, :, start : self.length] = v
        return self.keys[:, :, : self.length], self.values[:, :, : self.length]


class LlamaAttention(torch.nn.Module):
    """Attention of grouped queries, with a rotary embedding; see :class:`LlamaBlock`."""

    def __init__(
        self,
        size: int,
        heads: int,
        kv_heads: int,
        head_dim: int,
        eps: float,
        qk_norm: bool,
        device: torch.types.Device,
        dtype: torch.dtype | None,
    ) -> None:
        super().__init__()
        self.head_dim = head_dim
        self.q_proj = Linear(size, heads * head_dim, bias=False, device=device, dtype=dtype)
        self.k_proj, self.v_proj = (
            Linear(size, kv_heads * head_dim, bias=False, device=device, dtype=dtype) for _ in range(2)
        )
        self.o_proj = Linear(heads * head_dim, size, bias=False, device=device, dtype=dtype)
        self.q_norm, self.k_norm = (
            RMSNorm(head_dim, eps, device=device, dtype=dtype) if qk_norm else None for _ in range(2)
        )

    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None = None, attn_mask: Tensor | None = None
    ) -> Tensor:
        """Of x (B, T, size); see :meth:`LlamaBlock.forward`."""
        for name, table in (("cos", cos), ("sin", sin)):
            if table.shape != (x.shape[1], self.head_dim):
                raise RuntimeError(
                    f"LlamaBlock: expected {name} of size {[x.shape[1], self.head_dim]}, got {list(table.shape)}"
                )
        q, k, v = (project(x).unflatten(-1, (-1, self.head_dim)) for project in (self.q_proj, self.k_proj, self.v_proj))
        if self.q_norm is not None and self.k_norm is not None:
            q, k = qk_norm(q, k, self.q_norm.weight, self.k_norm.weight, self.q_norm.eps, cos=cos, sin=sin)
        else:
            q, k = _rotated(q, cos, sin), _rotated(k, cos, sin)
        q, k, v = (t.transpose(1, 2) for t in (q, k, v))
        if cache is not None:
            k, v = cache.append(k, v)
        T, S = q.shape[2], k.shape[2]
        causal = attn_mask is None and T == S
        if attn_mask is None and 1 < T < S:  # a token sees those before it, the last of them all
            attn_mask = torch.ones(T, S, dtype=torch.bool, device=q.device).tril(S - T)
        y = F.scaled_dot_product_attention(q, k, v, attn_mask, is_causal=causal, enable_gqa=q.shape[1] != k.shape[1])
        return self.o_proj(y.transpose(1, 2).flatten(2))


def _rotated(x: Tensor, cos: Tensor, sin: Tensor) -> Tensor:
    """x (B, T, H, N) in its own dtype."""
    a, b = x.chunk(2, -1)
    y = x * cos.unsqueeze(-2) + torch.cat((-b, a), -1) * sin.unsqueeze(-2)
    return y.to(x.dtype)


class LlamaMLP(torch.nn.Module):
    """down(silu(gate(x)) up(x)).  Source: Shazeer, GLU Variants Improve Transformer (2020, arXiv 2002.05202)."""

    def __init__(self, size: int, intermediate: int, device: torch.types.Device, dtype: torch.dtype | None) -> None:
        super().__init__()
        self.gate_proj, self.up_proj = (
            Linear(size, intermediate, bias=False, device=device, dtype=dtype) for _ in range(2)
        )
        self.down_proj = Linear(intermediate, size, bias=False, device=device, dtype=dtype)

    def forward(self, x: Tensor) -> Tensor:
        return self.down_proj(F.silu(self.gate_proj(x)) * self.up_proj(x))


class LlamaBlock(torch.nn.Module):
    r"""A block of Llama, or of Qwen3 where ``qk_norm``, with the ``state_dict`` of transformers' decoder layers.

    .. math:: r' = r + \mathrm{attention}(\mathrm{RMSNorm}(r)) \qquad r'' = r' + \mathrm{mlp}(\mathrm{RMSNorm}(r'))

    Each sum is one pass with the norm behind it (:func:`tritonln.add_rms_norm`), the last one with that of the next
    block where blocks hand a :class:`tritonln.nn.Stream` on::

        stream = tritonln.nn.Stream(embedding(tokens))
        for block in blocks:
            stream = block(stream, cos, sin)
        y, _ = stream.normed(final_norm)

    Args:
        size: of a token, E.
        heads, kv_heads: of queries, and of keys and values, which ``heads`` is a multiple of.  None: as many.
        intermediate_size: of the SwiGLU.
        head_dim: N.  None: size / heads.
        eps: of all norms.
        qk_norm: whether heads of q and k are normalized before they are rotated, all of it one launch
            (:func:`tritonln.qk_norm`); without it the rotation is plain torch.
        device, dtype: of the parameters.

    Raises:
        ValueError: for numbers of heads that do not fit.
    """

    def __init__(
        self,
        size: int,
        heads: int,
        intermediate_size: int,
        kv_heads: int | None = None,
        head_dim: int | None = None,
        eps: float = 1e-6,
        *,
        qk_norm: bool = False,
        device: torch.types.Device = None,
        dtype: torch.dtype | None = None,
    ) -> None:
        super().__init__()
        kv_heads = heads if kv_heads is None else kv_heads
        if heads % kv_heads:
            raise ValueError(f"LlamaBlock: expected heads to be a multiple of kv_heads, got {heads} and {kv_heads}")
        if head_dim is None and size % heads:
            raise ValueError(f"LlamaBlock: expected size to be a multiple of heads, got {size} and {heads}")
        head_dim = size // heads if head_dim is None else head_dim
        self.self_attn = LlamaAttention(size, heads, kv_heads, head_dim, eps, qk_norm, device, dtype)
        self.mlp = LlamaMLP(size, intermediate_size, device, dtype)
        self.input_layernorm = RMSNorm(size, eps, device=device, dtype=dtype)
        self.post_attention_layernorm = RMSNorm(size, eps, device=device, dtype=dtype)

    @overload
    def forward(
        self, x: Tensor, cos: Tensor, sin: Tensor, cache: KVCache | None = None, attn_mask: Tensor | None = None
    ) -> Tensor: ...

    @overload
    def forward(
        self, x: Stream, cos: Tensor, sin: Tensor, cache: KVCache | None = None, attn_mask: Tensor | None = None
    ) -> Stream: ...

    def forward(
        self,
        x: Tensor | Stream,
        cos: Tensor,
        sin: Tensor,
        cache: KVCache | None = None,
        attn_mask: Tensor | None = None,
    ) -> Tensor | Stream:
        """A tensor of a tensor (B, T, size), a stream whose last sum is open of a stream.

        Args:
            x: the residual stream.
            cos, sin: (T, N) for the positions of x, as :func:`rotary_table` makes them.
            cache: of the tokens before x, which x is appended to; in inference.
            attn_mask: as of :func:`torch.nn.functional.scaled_dot_product_attention`.  None: causal.
        """
        stream = x if isinstance(x, Stream) else Stream(x)
        y, residual = stream.normed(self.input_layernorm)
        attended = self.self_attn(y, cos, sin, cache, attn_mask)
        y, residual = Stream(residual, attended).normed(self.post_attention_layernorm)
        stream = Stream(residual, self.mlp(y))
        return stream if isinstance(x, Stream) else stream.total()
