"""The noise of dropout in torch, to the bit that of kernels/noise.py, which says what it is; and its seeds."""

from __future__ import annotations

import torch
from torch import Tensor

WORD = 2**32 - 1
MULTIPLIERS = 0xD2511F53, 0xCD9E8D57
KEYS = 0x9E3779B9, 0xBB67AE85
ROUNDS = 7


def seed_from(generator: torch.Generator | None, device: torch.device) -> Tensor:
    """Drawn on the device, so that a replayed CUDA graph draws anew."""
    return torch.randint(2**63 - 1, (1,), dtype=torch.int64, device=device, generator=generator)


def noise(seed: Tensor, M: int, N: int, p: float) -> Tensor:
    """(M, N) in fp64: 0 with probability p, else 1 / (1 - p)."""
    row = torch.arange(M, device=seed.device).unsqueeze(1)
    col = torch.arange((N + 3) // 4, device=seed.device)
    words = philox(seed, (col.expand(M, -1), row & WORD, row >> 32, torch.zeros_like(row)))
    uniform = (torch.stack(words, 2).flatten(1)[:, :N] >> 8).to(torch.float32) * 2.0**-24
    kept = uniform >= torch.tensor(p, dtype=torch.float32)
    return kept.to(torch.float64) * (1.0 / (1.0 - p) if p < 1.0 else 1.0)


def philox(seed: Tensor, counter: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Four words of 32 bits for each counter, in int64, whose products wrap."""
    a, b, c, d = counter
    low, high = seed & WORD, (seed >> 32) & WORD
    for _ in range(ROUNDS):
        first, second = a * MULTIPLIERS[0], c * MULTIPLIERS[1]
        a, b = ((second >> 32) & WORD) ^ b ^ low, second & WORD
        c, d = ((first >> 32) & WORD) ^ d ^ high, first & WORD
        low, high = (low + KEYS[0]) & WORD, (high + KEYS[1]) & WORD
    return a, b, c, d
