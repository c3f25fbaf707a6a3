"""Decoding with a KV cache: a sequence's token has the same bits alone and in a batch of 64, forward and backward."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor

import tritonln
from tests.helpers.problems import BF16, F32, rand

HEADS, N = 4, 64


def qk_norm(x: Tensor, q: Tensor, weight: Tensor) -> tuple[Tensor, ...]:
    heads = [t.unflatten(-1, (-1, N))[:, :, :HEADS] for t in (x, q)]
    return tritonln.qk_norm(*heads, weight[:N], weight[:N])


# Of a token x and others of its shape for each sequence, and a weight.
NORMS: dict[str, tuple[int, Callable[..., Tensor | tuple[Tensor, ...]]]] = {
    "layer_norm": (1, lambda x, w: tritonln.layer_norm(x, x.shape[-1], w, w)),
    "rms_norm": (1, lambda x, w: tritonln.rms_norm(x, x.shape[-1], w)),
    "rms_norm of Llama": (1, lambda x, w: tritonln.rms_norm(x, x.shape[-1], w, cast="llama")),
    "add_layer_norm": (2, lambda x, r, w: tritonln.add_layer_norm(x, r, x.shape[-1], w, w)),
    "add_rms_norm": (2, lambda x, r, w: tritonln.add_rms_norm(x, r, x.shape[-1], w)),
    "adaptive_layer_norm": (3, lambda x, a, b, w: tritonln.adaptive_layer_norm(x, a[:, 0], b[:, 0], x.shape[-1])),
    "add_adaptive_rms_norm": (
        4,
        lambda x, r, a, b, w: tritonln.add_adaptive_rms_norm(x, r, a[:, 0], b[:, 0], b[:, 0], x.shape[-1], w),
    ),
    "gated_rms_norm": (2, lambda x, g, w: tritonln.gated_rms_norm(x, g, x.shape[-1], w)),
    "qk_norm": (2, qk_norm),
}


@pytest.mark.parametrize(
    ("name", "size"), [*((name, 4096) for name in NORMS), ("layer_norm", 12_288), ("add_rms_norm", 16_461)]
)
def test_a_token_does_not_know_its_batch(name: str, size: int, device: torch.device) -> None:
    count, norm = NORMS[name]
    given = [rand(64, 1, size, dtype=BF16, device=device, seed=s) for s in range(count)]
    weight = rand(size, dtype=F32, device=device, seed=9)

    def run(rows: slice) -> list[Tensor]:
        leaves = [t[rows].clone().requires_grad_() for t in given]
        results = norm(*leaves, weight)
        results = results if isinstance(results, tuple) else (results,)
        upstream = [
            rand(64, *y.shape[1:], dtype=y.dtype, device=device, seed=20 + i)[rows] for i, y in enumerate(results)
        ]
        return [*(y.detach() for y in results), *torch.autograd.grad(results, leaves, upstream)]

    batch = run(slice(0, 64))
    for row in (0, 37, 63):
        for alone, among in zip(run(slice(row, row + 1)), batch, strict=True):
            assert alone.equal(among[row : row + 1])


@pytest.mark.parametrize("norm", ["layer_norm", "rms_norm"])
@pytest.mark.parametrize("of", ["rows", "given", "blocks"])
def test_a_quantized_token_does_not_know_its_batch(norm: str, of: str, device: torch.device) -> None:
    x, residual = (rand(64, 1, N, dtype=BF16, device=device, seed=s) for s in (0, 1))
    weight = rand(N, dtype=F32, device=device, seed=9)
    scales: dict[str, dict[str, Any]] = {"rows": {}, "given": {"scale": weight[:1].abs()}, "blocks": {"block_size": 32}}

    def run(rows: slice) -> tuple[Tensor, ...]:
        """The 8 bits, their scales, and the sum."""
        quantize = getattr(tritonln, f"quantized_{norm}")
        found = quantize(x[rows], N, weight, residual=residual[rows], **scales[of])
        return tuple(t.view(torch.uint8) if t.element_size() == 1 else t for t in found)

    batch = run(slice(0, 64))
    for row in (0, 37, 63):
        for alone, among in zip(run(slice(row, row + 1)), batch, strict=True):
            assert alone.equal(among if among.numel() == 1 else among[row : row + 1])
