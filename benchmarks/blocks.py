"""Launches and bytes of transformer blocks beside their twins in plain torch, counted in Triton's interpreter.

    python -m benchmarks.blocks [--tokens 160] [--size 64]

Of a block in a stack: what a stack of two has more than one of a single block, in training, without dropout (of the
encoder and the decoder also with it).  A pass reads or writes each value of the residual stream once; only tensors of
its size count, so neither the products nor the wider tensors between them, which both have.  An operator of torch's is
a launch that reads its inputs and writes its outputs once; F.rms_norm, which is one on a GPU and many on a CPU, is
counted as tritonln.rms_norm.  Nothing here says how long anything takes.
"""

from __future__ import annotations

import argparse
import dataclasses
import warnings
from collections.abc import Callable, Iterable
from typing import Any
from unittest import mock

import torch
from torch import Tensor, nn

import tritonln
from benchmarks import twins
from benchmarks.traffic import Kernel, counted

HEADS = 2
Model = Callable[[Tensor], Tensor]


@dataclasses.dataclass(frozen=True)
class Count:
    """Of one block, forward or backward."""

    launches: int
    bytes: int
    passes: float  # over the residual stream

    def __sub__(self, other: Count) -> Count:
        return Count(self.launches - other.launches, self.bytes - other.bytes, self.passes - other.passes)


def _encoder(m: Any, blocks: int, size: int, **options: Any) -> Model:
    layer = m.TransformerEncoderLayer(size, HEADS, 4 * size, activation="gelu", batch_first=True, **options)
    return m.TransformerEncoder(layer, blocks, nn.LayerNorm(size), enable_nested_tensor=False)


def _decoder(m: Any, blocks: int, size: int, **options: Any) -> Model:
    layer = m.TransformerDecoderLayer(size, HEADS, 4 * size, activation="gelu", batch_first=True, **options)
    stack = m.TransformerDecoder(layer, blocks, nn.LayerNorm(size))
    memory = torch.ones(2, 8, size)
    return lambda x: stack(x, memory)


def _llama(m: Any, blocks: int, size: int, **options: Any) -> Model:
    stack = [m.LlamaBlock(size, HEADS, 2 * size, **options) for _ in range(blocks)]
    norm = nn.RMSNorm(size)

    def run(x: Tensor) -> Tensor:
        table = tritonln.nn.rotary_table(torch.arange(x.shape[1]), size // HEADS)
        if m is twins:
            return norm(_through(stack, x, *table))
        return _through(stack, tritonln.nn.Stream(x), *table).normed(norm)[0]

    return run


def _dit(m: Any, blocks: int, size: int) -> Model:
    stack = [m.DiTBlock(size, HEADS) for _ in range(blocks)]
    condition = torch.ones(2, size)
    if m is twins:
        return lambda x: _through(stack, x, condition)
    return lambda x: _through(stack, tritonln.nn.GatedStream(x), condition).total()


def _through(blocks: Iterable[Callable[..., Any]], x: Any, *others: Tensor) -> Any:
    for block in blocks:
        x = block(x, *others)
    return x


# Of each: what makes a stack, its options, and where the twin is.
BLOCKS: dict[str, tuple[Callable[..., Model], dict[str, Any], Any]] = {
    "encoder layer, post-norm": (_encoder, {"dropout": 0.0}, nn),
    "encoder layer, pre-norm": (_encoder, {"dropout": 0.0, "norm_first": True}, nn),
    "encoder layer, pre-norm, dropout": (_encoder, {"dropout": 0.1, "norm_first": True}, nn),
    "decoder layer, pre-norm": (_decoder, {"dropout": 0.0, "norm_first": True}, nn),
    "Llama block": (_llama, {}, twins),
    "Llama block, qk_norm": (_llama, {"qk_norm": True}, twins),
    "DiT block": (_dit, {}, twins),
}


def counts(name: str, tokens: int, size: int) -> dict[str, tuple[Count, Count]]:
    """Forward and backward of one block in a stack, by whose it is."""
    make, options, theirs = BLOCKS[name]
    found = {}
    for whose, module in (("tritonln", tritonln.nn), ("plain torch", theirs)):
        one, two = (_of_stack(make(module, n, size, **options), tokens, size) for n in (1, 2))
        found[whose] = two[0] - one[0], two[1] - one[1]
    return found


def _of_stack(model: Model, tokens: int, size: int) -> tuple[Count, Count]:
    x = torch.randn(2, tokens // 2, size, requires_grad=True)
    with counted() as forward, mock.patch("torch.nn.functional.rms_norm", tritonln.rms_norm):
        y = model(x)
    dy = torch.ones_like(y)
    with counted() as backward:
        y.backward(dy)
    return _count(forward, x.nbytes), _count(backward, x.nbytes)


def _count(kernels: list[Kernel], stream: int) -> Count:
    of_stream = sum(b.distinct for k in kernels for b in k.buffers if b.read.size == stream)
    return Count(len(kernels), sum(k.distinct for k in kernels), of_stream / stream)


def main() -> None:
    from rich.console import Console
    from rich.progress import track
    from rich.table import Table

    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tokens", type=int, default=160)
    parser.add_argument("--size", type=int, default=64)
    a = parser.parse_args()
    columns = "block", "whose", "launches", "MB", "passes over the stream", "fewer"
    table = Table(*columns, title=f"A block in a stack, forward + backward, {a.tokens} tokens of {a.size} in fp32")
    warnings.filterwarnings("ignore", "enable_nested_tensor")
    for name in track(BLOCKS, "interpreting", transient=True):
        found = counts(name, a.tokens, a.size)
        twin = sum(count.passes for count in found["plain torch"])
        for whose, (forward, backward) in found.items():
            passes = forward.passes + backward.passes
            fewer = f"{twin - passes:.0f}" if whose == "tritonln" else ""
            table.add_row(
                name if fewer else "", whose, f"{forward.launches} + {backward.launches}",
                f"{(forward.bytes + backward.bytes) / 1e6:.2f}", f"{forward.passes:.0f} + {backward.passes:.0f}", fewer,
            )  # fmt: skip
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
