"""Transformer layers and stacks: torch's own, but for the forward.

Every residual sum, the dropout before it and the norm behind it are one pass over memory, forward and backward
(:func:`tritonln.add_layer_norm`); attention is :func:`torch.nn.functional.scaled_dot_product_attention`.
"""

from __future__ import annotations

import torch
from torch import Tensor

from tritonln.nn.attention import Masks, attention
from tritonln.nn.stream import Stream, hooked


class TransformerEncoderLayer(torch.nn.TransformerEncoderLayer):
    """:class:`torch.nn.TransformerEncoderLayer` with its constructor, parameters, state and masks.

    Post-norm (torch's default) adds, drops and normalizes in one pass, twice.  Pre-norm (``norm_first``) does so once
    by itself, and in a :class:`tritonln.nn.TransformerEncoder` everywhere, as the last sum of a layer is then made by
    the first norm of the next.

    Where kernels run, what ``dropout1`` and ``dropout2`` drop is drawn by :func:`tritonln.add_layer_norm`, by other
    numbers than torch's.  Nested tensors take torch's own forward, also those that a
    :class:`torch.nn.TransformerEncoder` makes of padded batches in inference.  ``torch.jit.script`` does not take this
    class.

    A subclass may have a ``_sa_block`` or a ``_ff_block`` of its own (of a decoder layer ``_mha_block`` too), which is
    called as torch's forward calls it and drops by itself, as torch's do; torch's own are not called.
    """

    def forward(
        self,
        src: Tensor,
        src_mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool = False,
    ) -> Tensor:
        """Of src, (T, B, E), (B, T, E) where ``batch_first``, or (T, E); masks as torch has them."""
        if src.is_nested:
            return super().forward(src, src_mask, src_key_padding_mask, is_causal)
        masks = Masks(src_mask, src_key_padding_mask, is_causal).added_to(src, "src_mask", "src_key_padding_mask")
        if self.norm_first:
            return self.added(Stream(src), masks).total()
        x, _ = self._attended(src, src, masks).normed(self.norm1)
        return self._fed_forward(x, x).normed(self.norm2)[0]

    def added(self, stream: Stream, masks: Masks) -> Stream:
        """A pre-norm layer's step of the residual stream, its last sum left open."""
        y, x = stream.normed(self.norm1)
        y, x = self._attended(x, y, masks).normed(self.norm2)
        return self._fed_forward(x, y)

    def _attended(self, x: Tensor, y: Tensor, masks: Masks) -> Stream:
        """x + the self-attention of y."""
        if _overrides(self, torch.nn.TransformerEncoderLayer, "_sa_block"):
            mask, padding, is_causal = masks.added_to(y)
            return Stream(x, self._sa_block(y, mask, padding, is_causal=bool(is_causal)))
        return Stream(x, attention(self.self_attn, y, y, masks), self.dropout1)

    def _fed_forward(self, x: Tensor, y: Tensor) -> Stream:
        if _overrides(self, torch.nn.TransformerEncoderLayer, "_ff_block"):
            return Stream(x, self._ff_block(y))
        return Stream(x, _feed_forward(self, y), self.dropout2)


class TransformerDecoderLayer(torch.nn.TransformerDecoderLayer):
    """:class:`torch.nn.TransformerDecoderLayer` with its constructor, parameters, state and masks.

    What :class:`TransformerEncoderLayer` says of norms and dropout holds for its three sublayers.
    """

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool = False,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """Of tgt and memory, (T, B, E) and (S, B, E), batches first where ``batch_first``; masks as torch has them."""
        own = Masks(tgt_mask, tgt_key_padding_mask, tgt_is_causal)
        other = Masks(memory_mask, memory_key_padding_mask, memory_is_causal)
        if self.norm_first:
            return self.added(Stream(tgt), memory, own, other).total()
        x, _ = self._attended(tgt, tgt, own).normed(self.norm1)
        x, _ = self._attended_to(memory, x, x, other).normed(self.norm2)
        return self._fed_forward(x, x).normed(self.norm3)[0]

    def added(self, stream: Stream, memory: Tensor, own: Masks, other: Masks) -> Stream:
        """A pre-norm layer's step of the residual stream, its last sum left open."""
        y, x = stream.normed(self.norm1)
        y, x = self._attended(x, y, own).normed(self.norm2)
        y, x = self._attended_to(memory, x, y, other).normed(self.norm3)
        return self._fed_forward(x, y)

    def _attended(self, x: Tensor, y: Tensor, masks: Masks) -> Stream:
        """x + the self-attention of y."""
        if _overrides(self, torch.nn.TransformerDecoderLayer, "_sa_block"):
            mask, padding, is_causal = masks.added_to(y)
            return Stream(x, self._sa_block(y, mask, padding, bool(is_causal)))
        return Stream(x, attention(self.self_attn, y, y, masks), self.dropout1)

    def _attended_to(self, memory: Tensor, x: Tensor, y: Tensor, masks: Masks) -> Stream:
        """x + the attention of y to memory."""
        if _overrides(self, torch.nn.TransformerDecoderLayer, "_mha_block"):
            mask, padding, is_causal = masks.added_to(y)
            return Stream(x, self._mha_block(y, memory, mask, padding, bool(is_causal)))
        return Stream(x, attention(self.multihead_attn, y, memory, masks), self.dropout2)

    def _fed_forward(self, x: Tensor, y: Tensor) -> Stream:
        if _overrides(self, torch.nn.TransformerDecoderLayer, "_ff_block"):
            return Stream(x, self._ff_block(y))
        return Stream(x, _feed_forward(self, y), self.dropout3)


class TransformerEncoder(torch.nn.TransformerEncoder):
    """:class:`torch.nn.TransformerEncoder` with its constructor, parameters, state and masks.

    Between pre-norm layers of tritonln's, and before the final norm, sums are made by the norms behind them.  Of other
    layers, and of those that somebody hooks into, it is torch's.
    """

    def forward(
        self,
        src: Tensor,
        mask: Tensor | None = None,
        src_key_padding_mask: Tensor | None = None,
        is_causal: bool | None = None,
    ) -> Tensor:
        """As torch's."""
        if src.is_nested or not _chained(self.layers, TransformerEncoderLayer):
            return super().forward(src, mask, src_key_padding_mask, is_causal)
        batch_first = self.layers[0].self_attn.batch_first
        masks = Masks(mask, src_key_padding_mask, is_causal).once(src, batch_first, "mask", "src_key_padding_mask")
        stream = Stream(src)
        for layer in self.layers:
            stream = layer.added(stream, masks)
        return stream.total() if self.norm is None else stream.normed(self.norm)[0]


class TransformerDecoder(torch.nn.TransformerDecoder):
    """:class:`torch.nn.TransformerDecoder` with its constructor, parameters, state and masks.

    What :class:`TransformerEncoder` says of sums holds here.
    """

    def forward(
        self,
        tgt: Tensor,
        memory: Tensor,
        tgt_mask: Tensor | None = None,
        memory_mask: Tensor | None = None,
        tgt_key_padding_mask: Tensor | None = None,
        memory_key_padding_mask: Tensor | None = None,
        tgt_is_causal: bool | None = None,
        memory_is_causal: bool = False,
    ) -> Tensor:
        """As torch's."""
        if not _chained(self.layers, TransformerDecoderLayer):
            return super().forward(
                tgt, memory, tgt_mask, memory_mask, tgt_key_padding_mask, memory_key_padding_mask, tgt_is_causal,
                memory_is_causal,
            )  # fmt: skip
        own = Masks(tgt_mask, tgt_key_padding_mask, tgt_is_causal).once(tgt, self.layers[0].self_attn.batch_first)
        other = Masks(memory_mask, memory_key_padding_mask, memory_is_causal).added_to(tgt)
        stream = Stream(tgt)
        for layer in self.layers:
            stream = layer.added(stream, memory, own, other)
        return stream.total() if self.norm is None else stream.normed(self.norm)[0]


def _feed_forward(layer: TransformerEncoderLayer | TransformerDecoderLayer, x: Tensor) -> Tensor:
    return layer.linear2(layer.dropout(layer.activation(layer.linear1(x))))


def _overrides(layer: torch.nn.Module, theirs: type[torch.nn.Module], block: str) -> bool:
    """Whether a subclass, or the instance, has a block of its own."""
    return getattr(type(layer), block) is not getattr(theirs, block) or block in vars(layer)


def _chained(layers: torch.nn.ModuleList, kind: type[torch.nn.Module]) -> bool:
    return all(type(layer).forward is kind.forward and layer.norm_first and not hooked(layer) for layer in layers)
