"""Recurrent layers beside their oracle: inputs, both results with all gradients, and what errors are allowed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode

import tritonln
from tests.helpers.problems import rand
from tests.helpers.tolerance import error, tolerance
from tritonln import reference_recurrent
from tritonln.launch import Launch
from tritonln.ops.contract import HALF

Operator = Callable[..., Any]


def lstm_problem(
    T: int,
    B: int,
    I: int,
    H: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    gates: bool = True,
    summed: bool = False,
    cell: bool = True,
    bias: bool = True,
    P: int | None = None,
    parameters: torch.dtype | None = None,
) -> dict[str, Tensor]:
    """Arguments of a layer that forgets: with recurrent gains of 1 random gates are chaotic, and within 40 steps
    the oracle itself, run in fp32, is 70 tolerances away from the oracle.
    """
    weights = _Weights(H, dtype, parameters or dtype, device)
    args = {
        "x": rand(T, B, I, dtype=dtype, device=device),
        "h0": weights.matrix(B, P or H),
        "c0": weights.matrix(B, H),
        "weight_ih": weights.matrix(4 * H, I),
        "weight_hh": weights.matrix(4 * H, P or H),
    }
    if bias:
        args |= {"bias_ih": weights.bias(4 * H), "bias_hh": weights.bias(4 * H)}
    if summed:
        args |= weights.of_sum(4 * H, bias)
    elif gates:
        args |= {"ln_ih_weight": weights.gain(4 * H), "ln_hh_weight": weights.gain(4 * H, 0.3)}
    if cell:
        args["ln_c_weight"] = weights.gain(H)
    if cell and bias:
        args["ln_c_bias"] = weights.bias(H)
    if P:
        args["weight_hr"] = weights.matrix(P, H)
    return args


def gru_problem(
    T: int,
    B: int,
    I: int,
    H: int,
    dtype: torch.dtype,
    device: torch.device,
    *,
    bias: bool = True,
    summed: bool = False,
    parameters: torch.dtype | None = None,
) -> dict[str, Tensor | None]:
    weights = _Weights(H, dtype, parameters or dtype, device)
    return {
        "x": rand(T, B, I, dtype=dtype, device=device),
        "h0": weights.matrix(B, H),
        "weight_ih": weights.matrix(3 * H, I),
        "weight_hh": weights.matrix(3 * H, H),
        "bias_ih": weights.bias(3 * H) if bias else None,
        "bias_hh": weights.bias(3 * H) if bias else None,
        "ln_ih_weight": None if summed else weights.gain(3 * H),
        "ln_hh_weight": None if summed else weights.gain(3 * H, 0.3),
        **(weights.of_sum(3 * H, True) if summed else {}),
    }


class _Weights:
    def __init__(self, H: int, dtype: torch.dtype, parameters: torch.dtype, device: torch.device):
        self.H, self.dtype, self.parameters, self.device, self.seed = H, dtype, parameters, device, 0

    def draw(self, dtype: torch.dtype, *shape: int) -> Tensor:
        self.seed += 1
        return rand(*shape, dtype=torch.float64, device=self.device, seed=self.seed).div(self.H**0.5).to(dtype)

    def matrix(self, *shape: int) -> Tensor:
        return self.draw(self.dtype, *shape)

    def bias(self, size: int) -> Tensor:
        return self.draw(self.parameters, size)

    def of_sum(self, size: int, bias: bool) -> dict[str, Tensor]:
        return {"ln_weight": self.gain(size, 0.3)} | ({"ln_bias": self.bias(size)} if bias else {})

    def gain(self, size: int, around: float = 1.0) -> Tensor:
        return (around + self.draw(torch.float64, size) / 4).to(self.parameters)


def flat(results: Any) -> list[Tensor]:
    return [results] if isinstance(results, Tensor) else [t for r in results for t in flat(r)]


def gradients(operator: Operator, args: dict[str, Tensor | None], **options: Any) -> dict[str, Tensor]:
    """The results by number, and the gradient of a random mixture of all of them by argument."""
    leaves = {name: None if t is None else t.detach().requires_grad_() for name, t in args.items()}
    results = flat(operator(**leaves, **options))
    directions = [rand(*r.shape, dtype=torch.float64, device=r.device, seed=9 + k) for k, r in enumerate(results)]
    wanted = {name: t for name, t in leaves.items() if t is not None}
    found = torch.autograd.grad(results, list(wanted.values()), [d.to(r.dtype) for d, r in zip(directions, results)])
    return {**{str(k): r.detach() for k, r in enumerate(results)}, **dict(zip(wanted, found))}


@contextmanager
def conditions() -> Iterator[list[float]]:
    """Notes |mean| rstd of every row that the oracle normalizes."""
    seen, norm = [1.0], reference_recurrent.layer_norm

    def noting(x: Tensor, shape: tuple[int, ...], w: Tensor | None, b: Tensor | None, eps: float) -> Tensor:
        rows = x.detach()
        seen.append(float((rows.mean(-1).abs() * (rows.var(-1, correction=0) + eps).rsqrt()).max()))
        return norm(x, shape, w, b, eps)

    reference_recurrent.layer_norm = noting  # type: ignore[assignment]
    try:
        yield seen
    finally:
        reference_recurrent.layer_norm = norm


def expect(name: str, args: dict[str, Tensor | None], **options: Any) -> dict[str, Tensor]:
    """Runs tritonln.<name> and holds its results and gradients to the fp64 oracle's.

    The tolerance is every test's.  Eight rounded terms a time step and direction end in a result (products,
    norms, their sum, activations, the cell), and times as many rows in a parameter's gradient.  Where x is
    16-bit, so is the state that the steps hand on, and with it the arithmetic.  Gradients through a norm are
    differences, and vanish for rows of few values: rms(ref) is that of the largest of their kind.
    """
    x = args["x"]
    assert x is not None
    T, B, _ = x.shape
    found = gradients(getattr(tritonln, name), args, **options)
    wide = {k: None if t is None else t.double() for k, t in args.items()}
    with conditions() as seen:
        expected = gradients(getattr(reference_recurrent, name), wide, **options)
    kappa = max(seen) * (torch.finfo(x.dtype).eps / torch.finfo(torch.float32).eps if x.dtype in HALF else 1.0)
    kinds = [{"x", "h0", "c0"} & args.keys(), expected.keys() & args.keys() - {"x", "h0", "c0"}]
    scales = {k: max(float(expected[j].square().mean().sqrt()) for j in kind) for kind in kinds for k in kind}
    for k, ref in expected.items():
        out = found[k]
        assert out.shape == ref.shape, k
        if k in args:
            assert out.dtype == args[k].dtype, k  # type: ignore[union-attr]
        terms = 16 * T * (B if k in kinds[1] else 1)
        off, allowed = error(out, ref), tolerance(out, ref, terms, kappa, scales.get(k, 0.0))
        assert off <= allowed, f"{k}: max error {off:.3e} > {allowed:.3e} ({out.dtype})"
    return found


class _Counted(TorchDispatchMode):
    """Counts launches, that is, ATen's operators but for views, and allocations."""

    VIEWS = ("view", "_unsafe_view", "t", "unbind", "select", "slice", "detach", "alias", "transpose")

    def __init__(self) -> None:
        super().__init__()
        self.launches = self.allocations = 0

    def __torch_dispatch__(self, f: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        name = f.overloadpacket.__name__
        allocates = "empty" in name or "zeros" in name
        self.allocations += allocates
        self.launches += not allocates and name not in self.VIEWS
        return f(*args, **(kwargs or {}))


def per_step(
    operator: str, problem: Callable[[int], dict[str, Any]], monkeypatch: pytest.MonkeyPatch
) -> tuple[tuple[float, float], tuple[float, float]]:
    """(launches, allocations) of a time step forward and backward: of sequences of 3 and of 8, the difference."""
    torch.use_deterministic_algorithms(False)  # which fills what is allocated

    def totals(T: int) -> list[int]:
        args = {k: None if t is None else t.requires_grad_() for k, t in problem(T).items()}
        with _Counted() as counted, monkeypatch.context() as patch:

            def launched(*_: Any) -> None:
                counted.launches += 1

            patch.setattr(Launch, "__call__", launched)
            # Where somebody looks on, there is one operator to see.
            patch.setattr("tritonln.ops.recurrent.operator.traced", lambda *_: False)
            y = getattr(tritonln, operator)(**args)[0]
            found = [counted.launches, counted.allocations]
            y.backward(torch.ones_like(y))
            return [*found, counted.launches - found[0], counted.allocations - found[1]]

    a, b, c, d = ((many - few) / 5 for few, many in zip(totals(3), totals(8)))
    return (a, b), (c, d)
