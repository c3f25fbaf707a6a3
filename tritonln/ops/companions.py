"""What the norms ask of the tensors that come beside x: residuals, gates, modulations, factors of rows.

Their dtypes may differ from that of x and from one another, as each is upcast by itself; fp64 mixes with nothing else.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from tritonln.ops.contract import DTYPES, check_device, number
from tritonln.ops.noise import seed_from
from tritonln.ops.sizes import agree, equal, holds


def check_companion(function: str, word: str, t: Any, x: Tensor) -> None:
    if not isinstance(t, Tensor):
        raise TypeError(f"{function}(): argument '{word}' must be Tensor, not {type(t).__name__}")
    check_device(function, word, t, x.device)
    check_dtype(function, word, t.dtype, x)


def check_dtype(function: str, word: str, dtype: Any, x: Tensor) -> None:
    if dtype not in DTYPES or (dtype == torch.float64) != (x.dtype == torch.float64):
        known = "float64" if x.dtype == torch.float64 else "float32, bfloat16 or float16"
        raise RuntimeError(f"{function}: expected {word} of dtype {known} beside x of {x.dtype}, but got {dtype}")


def check_shape(function: str, word: str, t: Tensor, shape: tuple[int, ...]) -> None:
    if not agree(t.shape, shape):
        raise RuntimeError(f"{function}: Expected {word} size {list(shape)}, got {list(t.shape)}")


def row_factors(function: str, word: str, t: Tensor, x: Tensor, dims: int) -> Tensor:
    """(B,) from a tensor with one value for each of the outermost dimensions of x, such as (B,) or (B, 1, 1)."""
    check_companion(function, word, t, x)
    lead, outer = x.shape[: x.dim() - dims], list(t.shape)
    while outer and holds(outer[-1] == 1):
        outer.pop()
    if not agree(outer, lead[: len(outer)]):
        expected = f"the outermost dimensions of {list(lead)}, such as {[*lead[:1], *[1] * (x.dim() - 1)]}"
        raise RuntimeError(f"{function}: expected {word} to have one value for each of {expected}, got {list(t.shape)}")
    return t.reshape(math.prod(outer))


def modulations(
    function: str, given: Mapping[str, Tensor | None], x: Tensor, dims: int, N: int
) -> tuple[list[Tensor | None], bool]:
    """Tensors of rows that x is modulated with: (B, N), a row for each batch, or all of them of the shape of x.

    Returns them, and whether they are of the shape of x.  Each may be given as (B, N), (B, 1, N) or (B, T, N) beside x
    of (B, T, N), or as any other shape that broadcasts to that of x.
    """
    lead, row = tuple(x.shape[: x.dim() - dims]), tuple(x.shape[x.dim() - dims :])
    if dims == 1 and len(lead) > 1 and holds(lead[1] > 1):  # (B, N) beside (B, T, N), nearly always: faster
        plain = True
        for word, t in given.items():
            if t is not None:
                check_companion(function, word, t, x)
                plain = plain and t.dim() == 2 and holds(t.shape[0] == lead[0]) and holds(t.shape[1] == N)
        if plain:
            return list(given.values()), False
    outermost: dict[str, tuple[int, ...]] = {}
    shared: dict[str, int] = {}  # by how many rows each of its rows is shared
    for word, t in given.items():
        if t is None:
            continue
        check_companion(function, word, t, x)
        outer = tuple(t.shape[: max(0, t.dim() - dims)])
        outer += (1,) * (len(lead) - len(outer))
        fits = len(outer) == len(lead) and all(holds(a == 1) or equal(a, b) for a, b in zip(outer, lead))
        if t.dim() < dims or not agree(t.shape[t.dim() - dims :], row) or not fits:
            sizes = [list(size) for size in ((*lead[:1], *row), (*lead[:1], *[1] * (len(lead) - 1), *row), x.shape)]
            raise RuntimeError(
                f"{function}: Expected {word} size {', '.join(map(str, sizes[:-1]))} or {sizes[-1]} beside x of "
                f"{list(x.shape)}, got {list(t.shape)}"
            )
        known = len(lead)
        while known and holds(outer[known - 1] == 1):
            known -= 1
        whole = all(holds(a == b) for a, b in zip(outer[:known], lead))
        outermost[word], shared[word] = outer, math.prod(lead[known:]) if whole else 1
    rows = list(shared.values())
    by_row = bool(rows) and (holds(rows[0] == 1) or not all(holds(n == rows[0]) for n in rows))

    def prepared(word: str, t: Tensor) -> Tensor:
        # Not flattened where it is a row for each of x: before torch 2.13 DTensors that are sharded inside cannot be.
        if not by_row:
            return t.reshape(math.prod(outermost[word]), N)
        full = t.dim() == x.dim() and all(holds(a == b) for a, b in zip(t.shape, x.shape))
        return t if full else t.reshape(*outermost[word], *row).expand(x.shape).contiguous()

    return [None if t is None else prepared(word, t) for word, t in given.items()], by_row


def probability(p: Any) -> float:
    """float(p); raises torch's words for a p that is none."""
    found = number("argument 'dropout_p'", p)
    if not 0.0 <= found <= 1.0:
        raise ValueError(f"dropout probability has to be between 0 and 1, but got {p}")
    return found


def dropout_seed(p: float, training: bool, generator: torch.Generator | None, device: torch.device) -> Tensor | None:
    """None where nothing is dropped."""
    return seed_from(generator, device) if training and p > 0.0 else None
