"""The tensors of a case, the call that is timed on them, and the check that its results are right."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

from benchmarks.cases import Case
from benchmarks.operators import Norm
from benchmarks.provider import EPS
from tritonln import reference
from tritonln.tolerance import allowed, error

CHUNK = 1 << 22  # values that the oracle takes at a time: in fp64, with their gradients, some 300 MB


@dataclasses.dataclass
class Problem:
    """One set of inputs, on the device: x, the parameters and what else the operator takes, and upstream gradients."""

    case: Case
    tensors: dict[str, Tensor]
    upstream: list[Tensor]

    @property
    def x(self) -> Tensor:
        return self.tensors["x"]

    @property
    def leaves(self) -> list[Tensor]:
        return list(self.tensors.values())

    @property
    def arguments(self) -> list[Tensor | None]:
        operator = self.case.operator
        return [self.tensors.get(name) for name in ("x", "weight", "bias", *operator.rows, *operator.batches)]


def problem(case: Case, parameters: torch.dtype, device: torch.device, seed: int = 0) -> Problem:
    """Inputs of a case, with parameters of that dtype."""
    generator = torch.Generator(device).manual_seed(seed)

    def normal(*shape: int, dtype: torch.dtype) -> Tensor:
        return torch.randn(shape, generator=generator, device=device, dtype=torch.float32).to(dtype)

    M, N, B, operator = case.shape.M, case.shape.N, case.shape.batches, case.operator
    rows = (B, M // B, N) if operator.batches else (M, 1, N) if operator.heads else (M, N)
    x, dy = (normal(*rows, dtype=case.torch_dtype) for _ in range(2))
    tensors = {"x": x, **{name: normal(N, dtype=parameters) for name in operator.parameters}}
    tensors |= {name: normal(*rows, dtype=case.torch_dtype) for name in operator.rows}
    tensors |= {name: normal(B, N, dtype=case.torch_dtype) for name in operator.batches}
    for leaf in tensors.values():
        leaf.requires_grad_(case.direction != "no_grad")
    return Problem(case, tensors, [dy, *(normal(*rows, dtype=case.torch_dtype) for _ in operator.names[1:])])


def call(p: Problem, norm: Norm) -> Callable[[], object]:
    """What is timed.  For a backward pass alone the forward has been run when this returns."""
    arguments, upstream, leaves = p.arguments, p.upstream, p.leaves
    if p.case.direction == "no_grad":

        def forward() -> object:
            with torch.no_grad():
                return norm(*arguments)

        return forward
    if p.case.direction == "forward":
        return lambda: norm(*arguments)
    if p.case.direction == "both":
        return lambda: torch.autograd.grad(norm(*arguments), leaves, upstream)
    results = norm(*arguments)
    return lambda: torch.autograd.grad(results, leaves, upstream, retain_graph=True)


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


GRADIENTS = {"x": "dx", "weight": "dw", "bias": "db"}  # others are d and the name


def check(p: Problem, norm: Norm) -> Verdict:
    """Holds the results, and the gradients where the case has a backward pass, to the fp64 oracle on these inputs."""
    with torch.set_grad_enabled(p.case.direction != "no_grad"):
        results = norm(*p.arguments)
    results = results if isinstance(results, tuple) else (results,)
    read = p.case.operator.read
    found = {name: y.detach() for name, y in zip(p.case.operator.names, results if read is None else read(results))}
    expected = dict.fromkeys(found, p.x if read is None else p.x.float())
    if p.case.gradients:
        names = [GRADIENTS.get(name, f"d{name}") for name in p.tensors]
        found.update(zip(names, torch.autograd.grad(results, p.leaves, p.upstream)))
        expected.update(zip(names, p.leaves))
    for name, t in found.items():
        if t.shape != expected[name].shape or t.dtype != expected[name].dtype:
            return Verdict(f"{name} is {tuple(t.shape)} {t.dtype}", float("inf"), 0.0)
    # Numbers that were read from 8 bits have the rounding of those.
    measured = _against_oracle(p, found, None if read is None else results[0].dtype)
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


def _against_oracle(p: Problem, found: dict[str, Tensor], dtype: torch.dtype | None) -> list[Verdict]:
    """Chunk by chunk of x's outermost dimension, as the whole in fp64 need not fit."""
    step = max(1, CHUNK // p.x[0].numel())
    sums = {name: _Sums() for name in found}
    terms_of_dx, kappa = _Sums(), 1.0
    parameters = [GRADIENTS[name] for name in p.case.operator.parameters if GRADIENTS[name] in found]
    columns = {name: torch.zeros_like(found[name], dtype=torch.float64) for name in parameters}
    for start in range(0, len(p.x), step):
        part = slice(start, start + step)
        ref, condition, scale = _oracle(p, part)
        kappa = max(kappa, condition)
        for name in found.keys() - columns.keys():
            sums[name].add(found[name][part], ref[name])
        terms_of_dx.squares += scale**2 * p.x[part].numel()
        terms_of_dx.count += p.x[part].numel()
        for name, total in columns.items():
            total += ref[name]
    for name, total in columns.items():
        sums[name].add(found[name], total)
    verdicts = []
    for name, s in sums.items():
        rms = max(s.rms, terms_of_dx.rms) if name in ("dx", "dresidual", "dk") else s.rms
        terms = p.x.numel() // found[name].numel()
        verdicts.append(Verdict(name, s.error, allowed(dtype or found[name].dtype, s.peak, rms, terms, kappa)))
    return verdicts


def _oracle(p: Problem, part: slice) -> tuple[dict[str, Tensor], float, float]:
    """Results and gradients of a part of x in fp64, the condition of its rows, and the size of dx's terms."""
    operator, parameters = p.case.operator, p.case.operator.parameters
    wide = {
        name: (t.detach() if name in parameters else t.detach()[part]).double().requires_grad_()
        for name, t in p.tensors.items()
    }
    inner: list[Tensor] = []

    def norm(x: Tensor, weight: Tensor | None, bias: Tensor | None) -> Tensor:
        if operator.adds:  # it is normalized as its dtype rounds it
            x = x + (x.detach().to(p.x.dtype).double() - x.detach())
        N = x.shape[-1:]
        y = reference.layer_norm(x, N, weight, bias, EPS) if centred else reference.rms_norm(x, N, weight, EPS)
        inner[:] = x, y
        return y

    centred = operator.norm == "layer_norm"
    others = (wide[name] for name in (*operator.rows, *operator.batches))
    function = norm if operator.inference else operator.of(norm)  # of what is quantized, before it is
    results: Any = function(wide["x"], wide.get("weight"), wide.get("bias"), *others)
    results = results if isinstance(results, tuple) else (results,)
    ref = {name: y.detach() for name, y in zip(operator.names, results)}
    upstream = [dy[part].double() for dy in p.upstream]
    if operator.norm is None:
        gradients = torch.autograd.grad(results, list(wide.values()), upstream)
        condition, scale = 1.0, float(upstream[0].square().mean().sqrt())
    else:
        *gradients, dn = torch.autograd.grad(results, [*wide.values(), inner[1]], upstream)  # type: ignore[assignment]
        x, weight = inner[0].detach(), wide["weight"].detach() if "weight" in wide else None
        condition = reference.condition(x, x.shape[-1:], EPS) if centred else 1.0
        scale = reference.dx_scale(x, x.shape[-1:], weight, EPS, dn, centred=centred)
    ref |= {GRADIENTS.get(name, f"d{name}"): g for name, g in zip(wide, gradients)}
    return ref, condition, scale
