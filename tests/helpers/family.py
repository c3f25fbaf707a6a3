"""The norms that do more than normalize: a table of them, their operands, and the oracle that they are held to.

Tensors come by name, as the functions take them, and so do gradients: `dNAME`.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, NamedTuple

import torch
from torch import Tensor

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.problems import F32, F64, rand
from tests.helpers.tolerance import assert_close
from tritonln import reference

Tensors = dict[str, Tensor]


class Member(NamedTuple):
    operands: tuple[str, ...]
    enter: Callable[..., Tensor]  # of the tensors that it names, what is normalized
    entering: tuple[str, ...]
    finish: Callable[..., Tensor]  # y of x_hat weight + bias
    finishing: tuple[str, ...] = ()
    norm: bool = True  # whether what is entered is normalized

    @property
    def centred(self) -> bool:
        return "bias" in self.operands

    @property
    def two(self) -> bool:
        """Whether what is normalized is a result too."""
        return "residual" in self.operands


def _family(norm: str, parameters: tuple[str, ...]) -> dict[str, Member]:
    same = lambda x: x  # noqa: E731
    added, gated = ("x", "residual"), ("x", "residual", "gate")
    modulated = reference.modulated, ("scale", "shift")
    return {
        f"add_{norm}": Member((*added, *parameters), reference.added, (*added, "row_scale", "noise"), same),
        f"adaptive_{norm}": Member(("x", "scale", "shift", *parameters), same, ("x",), *modulated),
        f"add_adaptive_{norm}": Member(
            (*gated, "scale", "shift", *parameters), reference.gate_added, gated, *modulated
        ),
    }


ADD = ("add_layer_norm", "add_rms_norm")
ADAPTIVE = ("adaptive_layer_norm", "adaptive_rms_norm", "add_adaptive_layer_norm", "add_adaptive_rms_norm")
FAMILY = {
    **_family("layer_norm", ("weight", "bias")),
    **_family("rms_norm", ("weight",)),
    "gated_rms_norm": Member(("x", "gate", "weight"), lambda x: x, ("x",), reference.silu_gated, ("gate",)),
    "gate_first": Member(("x", "gate", "weight"), reference.silu_gated, ("x", "gate"), lambda x: x),
    "gated_residual": Member(("x", "y", "gate"), reference.gate_added, ("y", "x", "gate"), lambda x: x, norm=False),
}
# Those that share kernels, and all that torch sees of them, with others are left to thorough runs.
TWINS = ("adaptive_layer_norm", "add_rms_norm", "adaptive_rms_norm", "gate_first")
UNLIKE = [*(name for name in FAMILY if name not in TWINS), *thorough(*TWINS)]
BATCHED = (*ADAPTIVE, "gated_residual")  # with rows for batches


def operands(
    name: str,
    shape: tuple[int, ...],
    dtype: torch.dtype,
    device: torch.device,
    other: torch.dtype | None = None,
    parameters: torch.dtype | None = None,
    batches: tuple[int, ...] | None = None,
) -> Tensors:
    """Of rows of shape[-1]; modulations have the shape (*batches, N), that of the first dimension unless given.

    `other` is the dtype of all but x and the parameters.
    """
    found = {}
    for seed, word in enumerate(FAMILY[name].operands):
        kind = parameters or dtype if word in ("weight", "bias") else dtype if word == "x" else other or dtype
        size = shape
        if word in ("weight", "bias"):
            size = shape[-1:]
        elif word in ("scale", "shift", "gate") and name in BATCHED:
            size = (*(shape[:1] if batches is None else batches), shape[-1])
        found[word] = rand(*size, dtype=kind, device=device, seed=seed)
    return found


def call(name: str, tensors: dict[str, Any], shape: int | tuple[int, ...], **settings: Any) -> tuple[Tensor, ...]:
    """(y,), or (y, residual_out); eps is 1e-5 unless given."""
    function = name
    if name == "gate_first":
        function, settings = "gated_rms_norm", {**settings, "norm_before_gate": False}
    missing = {word: None for word in ("residual", "scale", "shift", "gate") if word in FAMILY[name].operands}
    of_norm = {"normalized_shape": shape, "eps": 1e-5} if FAMILY[name].norm else {}
    given = {**missing, **tensors, **of_norm, **settings}
    found = getattr(tritonln, function)(**given)
    return found if FAMILY[name].two else (found,)


def results(
    name: str,
    tensors: Tensors,
    upstream: tuple[Tensor | None, ...],
    needs: Iterable[str] | None = None,
    by: Callable[..., tuple[Tensor, ...]] = call,
    **settings: Any,
) -> Tensors:
    """y, residual_out and the gradients of what is needed, all unless said; of results whose `upstream` is not None."""
    needed = list(tensors) if needs is None else list(needs)
    leaves = {word: t.detach().requires_grad_(word in needed) for word, t in tensors.items()}
    outputs = by(name, leaves, tensors["x"].shape[-1], **settings)
    used = [(out, d) for out, d in zip(outputs, upstream) if d is not None and out.requires_grad]
    wanted = [leaves[word] for word in needed]
    gradients = torch.autograd.grad([out for out, _ in used], wanted, [d for _, d in used])
    found = dict(zip(("y", "residual_out"), (t.detach() for t in outputs)))
    return {**found, **{f"d{word}": g for word, g in zip(needed, gradients)}}


def upstream_of(name: str, x: Tensor, residual_out: torch.dtype | None = None) -> tuple[Tensor, ...]:
    dy = rand(*x.shape, dtype=x.dtype, device=x.device, seed=20)
    if not FAMILY[name].two:
        return (dy,)
    return dy, rand(*x.shape, dtype=residual_out or x.dtype, device=x.device, seed=21)


class Oracle(NamedTuple):
    values: Tensors
    scales: dict[str, float]  # of the terms whose sums the results are
    kappa: float


def oracle(
    name: str,
    tensors: Tensors,
    upstream: tuple[Tensor | None, ...],
    seen: Tensor | None = None,
    drop: Tensor | None = None,
    eps: float = 1e-5,
) -> Oracle:
    """All results in fp64; y is of `seen`, residual_out as it came rounded; `drop` is the noise of dropout."""
    member, leaves = FAMILY[name], {word: t.detach().double().requires_grad_() for word, t in tensors.items()}
    given = {**leaves, **({} if drop is None else {"noise": drop})}
    out = member.enter(*[given.get(word) for word in member.entering])
    source = out if seen is None else out + (seen.double() - out).detach()
    shape, N = source.shape[-1:], source.shape[-1]
    norm = reference.layer_norm if member.centred else reference.rms_norm
    x_hat = norm(source, shape, eps=eps) if member.norm else source
    y = x_hat * given["weight"] if "weight" in given else x_hat
    y = y + given["bias"] if "bias" in given else y
    y = member.finish(y, *[given.get(word) for word in member.finishing])
    dy, dout = (*upstream, None)[:2]
    pairs = [(t, d.double()) for t, d in ((y, dy), (out, dout)) if d is not None]
    gradients = torch.autograd.grad(
        [t for t, _ in pairs], list(leaves.values()), [d for _, d in pairs], retain_graph=True, materialize_grads=True
    )
    through = 0.0
    if dy is not None:
        (dx_hat,) = torch.autograd.grad(y, x_hat, dy.double(), retain_graph=True)
        if member.norm:
            through = reference.dx_scale(source, shape, None, eps, dx_hat, member.centred)
        elif dx_hat.numel():
            through = float(dx_hat.square().mean().sqrt())
    through += 0.0 if dout is None else float(dout.double().square().mean().sqrt())
    scales = {}
    for word in member.entering:
        if word in leaves:
            (slope,) = torch.autograd.grad(out.sum(), leaves[word], retain_graph=True)
            peak = slope if leaves[word].shape == out.shape else leaves["x"]
            scales[f"d{word}"] = through * float(peak.detach().abs().max()) if peak.numel() else 0.0
    for word, g in zip(leaves, gradients):
        if word in member.finishing and g.numel() and g.shape == y.shape:
            scales[f"d{word}"] = float(g.abs().max())  # a product of many factors
    kappa = reference.condition(source, (N,), eps) if member.centred else 1.0
    values = {"y": y.detach(), **({"residual_out": out.detach()} if member.two else {})}
    return Oracle({**values, **{f"d{word}": g for word, g in zip(leaves, gradients)}}, scales, kappa)


def hold(found: Tensors, expected: Oracle, rows: int) -> None:
    """Every result that was found, to the one tolerance."""
    shape = expected.values["y"].shape
    for word, t in found.items():
        terms = 1 if t.shape == shape else rows
        assert_close(word, t, expected.values[word], terms, expected.kappa, expected.scales.get(word, 0.0))


def check(
    name: str,
    tensors: Tensors,
    needs: Iterable[str] | None = None,
    use: tuple[bool, bool] = (True, True),
    drop: Tensor | None = None,
    by: Callable[..., tuple[Tensor, ...]] = call,
    **settings: Any,
) -> Tensors:
    """Runs tritonln, y and gradients, and holds them to the oracle; `use` says which of the results are used."""
    x = tensors["x"]
    residual_out = settings.get("residual_dtype") or tensors.get("residual", x).dtype
    upstream = tuple(d if used else None for d, used in zip(upstream_of(name, x, residual_out), use))
    found = results(name, tensors, upstream, needs, by, **settings)
    eps = settings.get("eps", 1e-5)
    number = torch.finfo(F64 if x.dtype == F64 else F32).eps if eps is None else eps
    expected = oracle(name, tensors, upstream, found.get("residual_out"), drop, number)
    hold(found, expected, x.numel() // max(1, x.shape[-1]))
    assert found["y"].dtype == x.dtype
    assert "residual_out" not in found or found["residual_out"].dtype == residual_out
    assert all(g.dtype == tensors[word[1:]].dtype for word, g in found.items() if word[0] == "d")
    return found
