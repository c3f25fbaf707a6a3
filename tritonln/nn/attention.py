"""What torch.nn.MultiheadAttention computes, of its parameters, without copies of q, k, v and the result."""

from __future__ import annotations

from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import MultiheadAttention
from torch.nn.modules.transformer import _detect_is_causal_mask, _get_seq_len

from tritonln.nn.stream import hooked


class Masks(NamedTuple):
    """As torch's layers take them: of bools, where True is not attended to, or of numbers that are added to scores."""

    attn_mask: Tensor | None  # (T, S), or (B H, T, S)
    key_padding_mask: Tensor | None  # (B, S), or (S,) of one sequence
    is_causal: bool | None  # a hint that the first mask is causal, which is believed; None: to be found out

    def once(self, x: Tensor, batch_first: bool) -> Masks:
        """The same for all layers of a stack: of numbers, and the hint found out, except by compiled code."""
        mask, padding, hint = self.added_to(x)
        if hint is None and not torch.compiler.is_compiling():
            hint = _detect_is_causal_mask(mask, None, _get_seq_len(x, batch_first))
        return Masks(mask, padding, bool(hint))

    def added_to(self, x: Tensor) -> Masks:
        """Of numbers, in the dtype of x."""
        mask, padding, hint = self
        padding = F._canonical_mask(padding, "key_padding_mask", F._none_or_dtype(mask), "attn_mask", x.dtype)
        return Masks(F._canonical_mask(mask, "attn_mask", None, "", x.dtype, False), padding, hint)

    def merged(self, q: Tensor, S: int) -> tuple[Tensor | None, bool]:
        """One mask for scores of q (B, H, T, D), and whether attention is causal beside it."""
        B, H, T, _ = q.shape
        if self.is_causal and self.attn_mask is None:
            raise RuntimeError(
                "Need attn_mask if specifying the is_causal hint. You may use the Transformer module method "
                "`generate_square_subsequent_mask` to create this mask."
            )
        mask, padding, is_causal = self.added_to(q)
        if is_causal and padding is None:
            return None, True
        if mask is not None and mask.shape != (T, S):
            if mask.shape != (B * H, T, S):
                raise RuntimeError(
                    f"expected attn_mask of size {[T, S]} or {[B * H, T, S]}, but got {list(mask.shape)}"
                )
            mask = mask.view(B, H, T, S)
        if padding is not None:
            if padding.shape != (B, S):
                raise RuntimeError(f"expected key_padding_mask of size {[B, S]}, but got {list(padding.shape)}")
            padding = padding.view(B, 1, 1, S)
            mask = padding if mask is None else mask + padding
        return mask, False


def attention(module: MultiheadAttention, query: Tensor, memory: Tensor, masks: Masks) -> Tensor:
    """Of query to memory, which is both key and value.

    A module with more than projections of one size (``bias_k``, ``add_zero_attn``, ``kdim``), one of a subclass, and
    one that somebody hooks into is called as it is.
    """
    if type(module).forward is not MultiheadAttention.forward or not _projects_only(module) or hooked(module):
        return module(query, memory, memory, need_weights=False, **masks._asdict())[0]
    if query.dim() not in (2, 3) or memory.dim() != query.dim():
        raise RuntimeError(f"expected query and memory of 2 or 3 dimensions, got {query.dim()} and {memory.dim()}")
    batch = 0 if module.batch_first else 1
    if query.dim() == 2:
        x = query.unsqueeze(batch)
        padding = None if masks.key_padding_mask is None else masks.key_padding_mask.unsqueeze(0)
        other = x if memory is query else memory.unsqueeze(batch)
        return attention(module, x, other, masks._replace(key_padding_mask=padding)).squeeze(batch)
    E, H = module.embed_dim, module.num_heads
    weight, bias = module.in_proj_weight, module.in_proj_bias
    if memory is query:
        q, k, v = F.linear(query, weight, bias).chunk(3, -1)
    else:
        q = F.linear(query, weight[:E], None if bias is None else bias[:E])
        k, v = F.linear(memory, weight[E:], None if bias is None else bias[E:]).chunk(2, -1)
    q, k, v = (t.unflatten(-1, (H, -1)).permute(batch, 2, 1 - batch, 3) for t in (q, k, v))
    mask, is_causal = masks.merged(q, k.shape[2])
    y = F.scaled_dot_product_attention(q, k, v, mask, module.dropout if module.training else 0.0, is_causal)
    return module.out_proj(y.permute((0, 2, 1, 3) if module.batch_first else (2, 0, 1, 3)).flatten(2))


def _projects_only(module: MultiheadAttention) -> bool:
    return module._qkv_same_embed_dim and module.bias_k is None and module.bias_v is None and not module.add_zero_attn
