"""What torch.nn.MultiheadAttention computes, of its parameters, without copies of q, k, v and the result."""

from __future__ import annotations

import math
from typing import NamedTuple

import torch
import torch.nn.functional as F
from torch import Tensor
from torch.nn import MultiheadAttention
from torch.nn.modules.transformer import _detect_is_causal_mask, _get_seq_len

from tritonln.nn.stream import hooked
from tritonln.ops.sizes import agree


class Masks(NamedTuple):
    """As torch's layers take them: of bools, where True is not attended to, or of numbers that are added to scores."""

    attn_mask: Tensor | None  # (T, S), or (B H, T, S)
    key_padding_mask: Tensor | None  # (B, S), or (S,) of one sequence
    is_causal: bool | None  # a hint that the first mask is causal, which is believed; None: to be found out

    def once(self, x: Tensor, batch_first: bool, *names: str) -> Masks:
        """The same for all layers of a stack: of numbers, and the hint found out, except by compiled code."""
        mask, padding, hint = self.added_to(x, *names)
        if hint is None and not torch.compiler.is_compiling():
            hint = _detect_is_causal_mask(mask, None, _get_seq_len(x, batch_first))
        return Masks(mask, padding, bool(hint))

    def added_to(self, x: Tensor, name: str = "attn_mask", name_of_padding: str = "key_padding_mask") -> Masks:
        """Of numbers, in the dtype of x.  The names are for torch's errors."""
        mask, padding, hint = self
        padding = F._canonical_mask(padding, name_of_padding, F._none_or_dtype(mask), name, x.dtype)
        return Masks(F._canonical_mask(mask, name, None, "", x.dtype, False), padding, hint)

    def fit(self, batch: tuple[int, ...], heads: int, T: int, S: int) -> bool:
        """Scores of T queries and S keys; where not, torch's attention refuses in its words."""
        mask, padding, hint = self
        if mask is None:
            return not hint and (padding is None or agree(padding.shape, (*batch, S)))
        size = (T, S) if mask.dim() == 2 else (math.prod(batch) * heads, T, S)
        return agree(mask.shape, size) and (padding is None or agree(padding.shape, (*batch, S)))

    def merged(self, q: Tensor, S: int) -> tuple[Tensor | None, bool]:
        """One mask for scores of q (B, H, T, D), and whether attention is causal beside it."""
        B, H, T, _ = q.shape
        mask, padding, is_causal = self.added_to(q)
        if is_causal and padding is None:
            return None, True
        if mask is not None and mask.dim() == 3:
            mask = mask.view(B, H, T, S)
        if padding is not None:
            padding = padding.view(B, 1, 1, S)
            mask = padding if mask is None else mask + padding
        return mask, False


def attention(module: MultiheadAttention, query: Tensor, memory: Tensor, masks: Masks) -> Tensor:
    """Of query to memory, which is both key and value.

    A module with more than projections of one size (``bias_k``, ``add_zero_attn``, ``kdim``), one of a subclass, and
    one that somebody hooks into is called as it is; so is any for sizes that do not fit, which it refuses.
    """
    own = type(module).forward is MultiheadAttention.forward and _projects_only(module) and not hooked(module)
    if not own or not _fit(module, query, memory, masks):
        return module(query, memory, memory, need_weights=False, **masks._asdict())[0]
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


def _fit(module: MultiheadAttention, query: Tensor, memory: Tensor, masks: Masks) -> bool:
    if query.dim() not in (2, 3) or memory.dim() != query.dim():
        return False
    lead, others = list(query.shape[:-1]), list(memory.shape[:-1])
    sequence = 1 if module.batch_first and query.dim() == 3 else 0
    T, S = lead.pop(sequence), others.pop(sequence)
    widths = agree((query.shape[-1], memory.shape[-1]), (module.embed_dim, module.embed_dim))
    return widths and agree(lead, others) and masks.fit(tuple(lead), module.num_heads, T, S)


def _projects_only(module: MultiheadAttention) -> bool:
    return module._qkv_same_embed_dim and module.bias_k is None and module.bias_v is None and not module.add_zero_attn
