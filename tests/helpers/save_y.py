"""Calls of norms that keep y for backward, and the oracle that they are held to."""

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

import tritonln
from tests.helpers.problems import F64, rand
from tritonln import reference
from tritonln.tolerance import tolerance

EPS = 1e-5
NORMS = "layer_norm", "rms_norm"
Given = dict[str, Tensor]


def problem(
    name: str,
    M: int,
    N: int,
    dtype: torch.dtype,
    device: torch.device,
    parameters: torch.dtype | None = None,
    words: tuple[str, ...] = ("weight", "bias"),
) -> tuple[Given, Tensor]:
    """Operands by name, |weight| from a half on and |bias| up to three times as much, and dy."""
    given = {"input": rand(M, N, dtype=dtype, device=device)}
    if "weight" in words:
        w = rand(N, dtype=F64, device=device, seed=1)
        given["weight"] = (w + w.sign() / 2).to(parameters or dtype)
    if "bias" in words and name == "layer_norm":
        size = given["weight"].double().abs() if "weight" in given else torch.ones(N, device=device)
        given["bias"] = (rand(N, dtype=F64, device=device, seed=2).clamp(-3, 3) * size).to(parameters or dtype)
    return given, rand(M, N, dtype=dtype, device=device, seed=3)


def kept_by(call: Callable[[], Tensor]) -> tuple[Tensor, dict[int, int]]:
    """The result of a call, and the bytes that are kept for backward by address."""
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        kept[t.data_ptr()] = t.untyped_storage().nbytes()
        return t

    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        return call(), kept


def run(name: str, given: Given, dy: Tensor, save: str = "y", **settings: Any) -> tuple[dict[str, Tensor], bool]:
    """y and all gradients, and whether y was kept, and x not."""
    leaves = {word: t.detach().requires_grad_() for word, t in given.items()}
    norm = getattr(tritonln, name)
    y, kept = kept_by(lambda: norm(**leaves, normalized_shape=dy.shape[-1], eps=EPS, save=save, **settings))
    gradients = torch.autograd.grad(y, list(leaves.values()), dy)
    found = {"y": y.detach(), **{f"d{word}": g for word, g in zip(leaves, gradients)}}
    assert (y.data_ptr() in kept) != (given["input"].data_ptr() in kept) or not y.numel()
    return found, y.data_ptr() in kept


def expect(name: str, given: Given, dy: Tensor, offset: float = 0.0) -> None:
    """Holds a call to the oracle: the one tolerance, and what the rounding of y does to x_hat and so to gradients.

    x_hat is wrong by d <= eps(y) |y| / |weight|, half of it by the rounding of y and half by restoring it from that,
    and where y is less than the smallest normal number, by eps(y) of that number; dx by rstd rms(g) (d + |x_hat|
    rms(d)) with g = weight dy, as |mean(g a)| <= rms(g) rms(a); dw by the sum of |dy| d.
    """
    found, kept = run(name, given, dy, **({"weight_offset": offset} if offset else {}))
    assert kept
    wide = {word: t.double() + (offset if word == "weight" else 0.0) for word, t in given.items()}
    N, centred = dy.shape[-1:], name == "layer_norm"
    x, weight, bias = (wide.get(word) for word in ("input", "weight", "bias"))
    gradients = reference.layer_norm_gradients(x, N, weight, bias, EPS, dy) if centred else None
    expected = gradients or reference.rms_norm_gradients(x, N, weight, EPS, dy)
    expected = {{"dx": "dinput", "dw": "dweight", "db": "dbias"}.get(word, word): t for word, t in expected.items()}
    deviation = x - x.mean(1, keepdim=True) if centred else x
    rstd = (deviation.square().mean(1, keepdim=True) + EPS).rsqrt()
    weight, x_hat, y = torch.ones(N) if weight is None else weight, deviation * rstd, torch.finfo(dy.dtype)
    d = y.eps * expected["y"].abs().clamp(min=y.smallest_normal) / weight.abs()
    g = (weight * dy.double()).square().mean(1, keepdim=True).sqrt()
    more = {
        "dinput": rstd * g * (d + x_hat.abs() * d.square().mean(1, keepdim=True).sqrt()),
        "dweight": (dy.double().abs() * d).sum(0),
    }
    kappa = reference.condition(x, tuple(N), EPS) if centred else 1.0
    scale = reference.dx_scale(x, tuple(N), weight, EPS, dy, centred)
    for word, out in found.items():
        allowed = tolerance(
            out, expected[word], 1 if out.dim() > 1 else len(x), kappa, scale if word == "dinput" else 0.0
        )
        wrong = (out.double() - expected[word]).abs() - more.get(word, 0.0)
        assert float(wrong.nan_to_num(nan=float("inf")).max()) <= allowed, word
        assert out.dtype == (dy if word == "y" else given[word[1:]]).dtype
