"""The tensors of a case, the call that is timed on them, and the check that its results are right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.providers import EPS, Norm, Provider
from tritonln import reference
from tritonln.tolerance import allowed, error

CHUNK = 1 << 22  # values that the oracle takes at a time: in fp64, with their gradients, some 300 MB


@dataclasses.dataclass
class Problem:
    """One set of inputs, on the device."""

    case: Case
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    dy: Tensor

    @property
    def leaves(self) -> list[Tensor]:
        return [t for t in (self.x, self.weight, self.bias) if t is not None]


def problem(case: Case, provider: Provider, device: torch.device, seed: int = 0) -> Problem:
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    M, N, parameters = case.shape.M, case.shape.N, provider.parameter_dtype(case)
    x, dy = (normal(M, N, dtype=case.torch_dtype) for _ in range(2))
    weight = normal(N, dtype=parameters)
    bias = normal(N, dtype=parameters) if case.shape.operator == "layer_norm" else None
    for leaf in (x, weight, bias):
        if leaf is not None:
            leaf.requires_grad_(case.direction != "no_grad")
    return Problem(case, x, weight, bias, dy)


def call(p: Problem, norm: Norm) -> Callable[[], object]:
    """What is timed.  For a backward pass alone the forward has been run when this returns."""
    x, w, b, dy, leaves = p.x, p.weight, p.bias, p.dy, p.leaves
    if p.case.direction == "no_grad":

        def forward() -> object:
            with torch.no_grad():
                return norm(x, w, b)

        return forward
    if p.case.direction == "forward":
        return lambda: norm(x, w, b)
    if p.case.direction == "both":
        return lambda: torch.autograd.grad(norm(x, w, b), leaves, dy)
    y = norm(x, w, b)
    return lambda: torch.autograd.grad(y, leaves, dy, retain_graph=True)


def copy_call(case: Case, device: torch.device) -> Callable[[], object]:
    """A device copy that reads half of the case's least bytes and writes the other half."""
    source = torch.zeros(case.least_bytes // 2, dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return lambda: target.copy_(source)


@dataclasses.dataclass
class Verdict:
    """The worst result of a provider: its error against fp64, and the error that is allowed."""

    result: str
    error: float
    allowed: float

    @property
    def right(self) -> bool:
        return self.error <= self.allowed


def check(p: Problem, norm: Norm) -> Verdict:
    """Holds y, and the gradients where the case has a backward pass, to the fp64 oracle on these inputs."""
    with torch.set_grad_enabled(p.case.direction != "no_grad"):
        y = norm(p.x, p.weight, p.bias)
    names = ["dx", "dw", "db"][: len(p.leaves)]
    found = {"y": y.detach()}
    if p.case.gradients:
        found.update(zip(names, torch.autograd.grad(y, p.leaves, p.dy)))
    for name, t in found.items():
        expected = p.x if name in ("y", "dx") else p.weight
        if t.shape != expected.shape or t.dtype != expected.dtype:
            return Verdict(f"{name} is {tuple(t.shape)} {t.dtype}", float("inf"), 0.0)
    measured = _against_oracle(p, found)
    return max(measured, key=lambda v: v.error / max(v.allowed, 1e-300))


@dataclasses.dataclass
class _Sums:
    """What the tolerance needs of a result, gathered over chunks of rows."""

    error: float = 0.0
    peak: float = 0.0
    squares: float = 0.0
    count: int = 0

    def add(self, out: Tensor, ref: Tensor) -> None:
        self.error = max(self.error, error(out, ref))
        self.peak = max(self.peak, float(ref.abs().max()))
        self.squares += float(ref.square().sum())
        self.count += ref.numel()

    @property
    def rms(self) -> float:
        return (self.squares / self.count) ** 0.5


def _against_oracle(p: Problem, found: dict[str, Tensor]) -> list[Verdict]:
    """Chunk by chunk, as the whole in fp64 need not fit."""
    M, N = p.x.shape
    step = max(1, CHUNK // N)
    sums = {name: _Sums() for name in found}
    terms_of_dx, kappa = _Sums(), 1.0
    columns = {name: torch.zeros(N, dtype=torch.float64, device=p.x.device) for name in ("dw", "db") if name in found}
    for start in range(0, M, step):
        rows = slice(start, start + step)
        x, w, b = (None if t is None else t.detach() for t in (p.x[rows], p.weight, p.bias))
        assert x is not None
        assert w is not None
        if p.case.shape.operator == "layer_norm":
            ref = reference.layer_norm_gradients(x, (N,), w, b, EPS, p.dy[rows])
            kappa = max(kappa, reference.condition(x, (N,), EPS))
            scale = reference.dx_scale(x, (N,), w, EPS, p.dy[rows]) if "dx" in found else 0.0
        else:
            ref = reference.rms_norm_gradients(x, (N,), w, EPS, p.dy[rows])
            scale = reference.dx_scale(x, (N,), w, EPS, p.dy[rows], centred=False) if "dx" in found else 0.0
        for name in ("y", "dx"):
            if name in found:
                sums[name].add(found[name][rows], ref[name])
        terms_of_dx.squares += scale**2 * x.numel()
        terms_of_dx.count += x.numel()
        for name, total in columns.items():
            total += ref[name]
    for name, total in columns.items():
        sums[name].add(found[name], total)
    return [
        Verdict(
            name,
            s.error,
            allowed(
                found[name].dtype,
                s.peak,
                max(s.rms, terms_of_dx.rms) if name == "dx" else s.rms,
                M if name in columns else 1,
                kappa,
            ),
        )
        for name, s in sums.items()
    ]
