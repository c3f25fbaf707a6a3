"""Sequences as recurrent layers get them (batched, unbatched, batch first, packed) and as the operators want them."""

from __future__ import annotations

from typing import Any, NamedTuple

from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pack_padded_sequence, pad_packed_sequence

from tritonln.ops.contract import owned


class Layout(NamedTuple):
    """The way back from (T, B, features) to what the caller gave."""

    packed: PackedSequence | None
    lengths: Tensor | None  # of a packed sequence, on the CPU as torch wants them there
    batched: bool
    batch_first: bool

    def running(self, x: Tensor) -> Tensor | None:
        """The lengths on x's device; None where all rows are as long as x."""
        if self.lengths is None or int(self.lengths.min()) == len(x):
            return None
        return self.lengths.to(x.device)

    def resets(self, given: Any) -> Tensor | None:
        """Those of the caller as (T, B)."""
        if given is None:
            return None
        if self.packed is not None:
            return pad_packed_sequence(PackedSequence(given.data, given.batch_sizes))[0]
        if not self.batched:
            return given.unsqueeze(1)
        return given.transpose(0, 1) if self.batch_first else given

    def output(self, y: Tensor) -> Any:
        if self.packed is not None:
            data = pack_padded_sequence(y, self.lengths).data  # type: ignore[arg-type]
            return PackedSequence(data, *self.packed[1:])
        if not self.batched:
            return owned(y.squeeze(1))
        return owned(y.transpose(0, 1)) if self.batch_first else y

    def state(self, given: Tensor) -> Tensor:
        """A state of the caller's as (layers, B, features), in the order of the packed rows."""
        if self.packed is not None and self.packed.sorted_indices is not None:
            return given.index_select(1, self.packed.sorted_indices)
        return given if self.batched else given.unsqueeze(1)

    def final(self, state: Tensor) -> Tensor:
        """The way back of a state."""
        if self.packed is not None and self.packed.unsorted_indices is not None:
            return state.index_select(1, self.packed.unsorted_indices)
        return state if self.batched else owned(state.squeeze(1))


def laid_out(input: Tensor | PackedSequence, batch_first: bool) -> tuple[Tensor, Layout]:
    """The input as (T, B, features), rows past their length filled with zeros."""
    if isinstance(input, PackedSequence):
        x, lengths = pad_packed_sequence(PackedSequence(input.data, input.batch_sizes))
        return x, Layout(input, lengths, True, False)
    if input.dim() == 2:
        return input.unsqueeze(1), Layout(None, None, False, False)
    return input.transpose(0, 1) if batch_first else input, Layout(None, None, True, batch_first)
