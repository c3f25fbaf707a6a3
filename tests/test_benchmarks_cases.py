"""What is measured, against whom, and that a wrong result is not timed."""

import dataclasses
import importlib.util
from typing import Any

import pytest
import torch
import torch.nn.functional as F

from benchmarks import timing
from benchmarks.cases import HIDDEN, PASSES, ROWS, Case, Shape, cases, hidden, rows
from benchmarks.operators import FUSED, OPERATORS
from benchmarks.problem import GRADIENTS, check, problem
from benchmarks.provider import EPS, Provider
from benchmarks.providers import PROVIDERS
from benchmarks.sweep import Bench, measure

CPU = torch.device("cpu")
SMALL = Shape("hidden", "layer_norm", 12, 40, "a test")


def bench() -> Bench:
    return Bench(CPU, timing.Host(), copy_bandwidth=1e9, l2_bytes=0, samples=5)


def test_the_sweeps_that_were_promised() -> None:
    assert (HIDDEN[0], HIDDEN[-1], ROWS[0], ROWS[-1]) == (64, 262_144, 1, 1 << 20)
    for itemsize in (2, 4):
        sizes = {s.M * s.N * itemsize for s in hidden(itemsize)}
        assert min(sizes) > 0.99 * max(sizes)
    assert len({s.N for s in rows()}) == 1
    found = cases()
    assert len({c.id for c in found}) == len(found)
    assert {c.dtype for c in found} == {"bf16", "fp16", "fp32"}
    assert {c.direction for c in found} == set(PASSES)
    assert all(c.shape.source for c in found)


def test_least_bytes() -> None:
    """x and y and both parameters; x, dy, dx, the weight, dw and db."""
    by = {d: Case(SMALL, "bf16", d).least_bytes for d in PASSES}
    assert by["forward"] == by["no_grad"] == 2 * (2 * 12 * 40 + 2 * 40)
    assert by["backward"] == 2 * (3 * 12 * 40 + 3 * 40)
    assert by["both"] == by["forward"] + by["backward"]


@pytest.mark.parametrize("name", [n for n, p in PROVIDERS.items() if p.package not in ("torch", "triton")])
def test_a_missing_package_is_named_with_its_command(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(importlib.util, "find_spec", lambda package: None)
    found = measure(Case(SMALL, "bf16", "forward"), PROVIDERS[name], bench())
    assert found["status"] == "missing"
    assert "install" in found["reason"]


def test_what_is_unsupported_says_so() -> None:
    wide = Case(Shape("hidden", "layer_norm", 1, 65_536, ""), "bf16", "forward")
    assert "64 KiB" in str(PROVIDERS["fla"].unsupported(wide))
    assert "backward" in str(PROVIDERS["quack"].unsupported(Case(SMALL, "bf16", "both")))
    fused = dataclasses.replace(SMALL, operator="gated_rms_norm")
    assert PROVIDERS["liger"].unsupported(Case(fused, "bf16", "both")) == "it has no gated_rms_norm"
    assert PROVIDERS["fla"].unsupported(Case(fused, "bf16", "both")) is None
    quantized = Case(dataclasses.replace(SMALL, operator="quantized_rms_norm"), "bf16", "both")
    assert PROVIDERS["eager"].unsupported(quantized) == "quantized_rms_norm is for inference"


def test_least_bytes_of_the_family() -> None:
    """add: x, r, r', y; dy, dr', r' and one gradient.  adaptive: x, y; x, dy, dx.  gated: x, g, y; x, g, dy, dx, dg.

    add_adaptive: x, r, r', y; dy, dr', r', x, dx, dr.  gated_residual: x, r, y; x, dy, dx.
    """
    for operator, forward, backward in (
        ("add_rms_norm", 4 * 480 + 40, 4 * 480 + 2 * 40),
        ("add_layer_norm", 4 * 480 + 2 * 40, 4 * 480 + 3 * 40),
        ("adaptive_layer_norm", 2 * 480 + 2 * 120, 3 * 480 + 3 * 120),
        ("add_adaptive_rms_norm", 4 * 480 + 3 * 120, 6 * 480 + 5 * 120),
        ("gated_residual", 3 * 480 + 120, 3 * 480 + 2 * 120),
        ("gated_rms_norm", 3 * 480 + 40, 5 * 480 + 2 * 40),
        ("qk_norm", 4 * 480 + 40, 6 * 480 + 2 * 40),
    ):
        shape = dataclasses.replace(SMALL, operator=operator, batches=3)
        assert Case(shape, "bf16", "forward").least_bytes == 2 * forward
        assert Case(shape, "bf16", "backward").least_bytes == 2 * backward
    quantized = dataclasses.replace(SMALL, operator="quantized_rms_norm")
    assert Case(quantized, "bf16", "no_grad").least_bytes == 2 * (480 + 40) + 480 + 12 * 4


@pytest.mark.parametrize(
    ("operator", "direction"),
    [(name, d) for name, o in OPERATORS.items() for d in (("no_grad",) if o.inference else PASSES)],
)
@pytest.mark.parametrize("dtype", ["fp32", "bf16"])
def test_eager_is_right_and_timed(operator: str, direction: str, dtype: str) -> None:
    case = Case(Shape("hidden", operator, 12, 40, "", 3), dtype, direction)
    found = measure(case, PROVIDERS["eager"], bench())
    assert found["status"] == "ok", found
    assert found["error"] <= found["allowed"]
    assert len(found["samples"]) == 5
    assert found["GB/s"] == pytest.approx(case.least_bytes / found["seconds"] / 1e9)
    assert found["of_copy"] == pytest.approx(found["GB/s"])


# Of one kind with others.
ALIKE = "adaptive_rms_norm", "add_adaptive_layer_norm", "quantized_rms_norm"


@pytest.mark.parametrize(
    "operator", [pytest.param(o, marks=pytest.mark.thorough if o in ALIKE else ()) for o in OPERATORS]
)
def test_tritonln_is_right_and_names_its_configuration(operator: str) -> None:
    shape = dataclasses.replace(SMALL, operator=operator, batches=3)
    direction = "no_grad" if OPERATORS[operator].inference else "both"
    found = measure(Case(shape, "fp32", direction), PROVIDERS["tritonln"], bench())
    assert found["status"] == "ok", found
    if found["configuration"] is None:  # of what is no row operator
        assert operator.startswith(("quantized", "qk"))
        return
    assert found["configuration"][f"{operator}_fwd"]["num_warps"] > 0
    assert found["configuration"][f"{operator}_bwd"]["num_warps"] > 0


class Off(torch.autograd.Function):
    """Right but for one gradient."""

    @staticmethod
    def forward(ctx: Any, w: torch.Tensor) -> torch.Tensor:
        return w.clone()

    @staticmethod
    def backward(ctx: Any, dw: torch.Tensor) -> torch.Tensor:
        return dw * 1.01


WRONG = {
    "y": lambda x, w, b: F.layer_norm(x, w.shape, w, b, EPS) + 0.01,
    "dw": lambda x, w, b: F.layer_norm(x, w.shape, Off.apply(w), b, EPS),
    "dx": lambda x, w, b: F.layer_norm(Off.apply(x), w.shape, w, b, EPS),
    "nan": lambda x, w, b: F.layer_norm(x, w.shape, w, b, EPS) + float("nan"),
    "dtype": lambda x, w, b: F.layer_norm(x, w.shape, w, b, EPS).double(),
}


@pytest.mark.parametrize("what", WRONG)
def test_a_wrong_provider_is_shown_and_not_timed(what: str) -> None:
    class Wrong(Provider):
        name = "wrong"

        def norm(self, operator: str) -> Any:
            return WRONG[what]

    found = measure(Case(SMALL, "fp32", "both"), Wrong(), bench())
    assert found["status"] == "wrong"
    assert found["error"] > found["allowed"]
    assert "seconds" not in found
    assert found["result"] == what or what in ("nan", "dtype")


@pytest.mark.parametrize("operator", ["layer_norm", "add_layer_norm", "adaptive_layer_norm"])
def test_the_oracle_in_chunks_is_the_oracle(operator: str, monkeypatch: pytest.MonkeyPatch) -> None:
    case = Case(dataclasses.replace(SMALL, operator=operator, batches=3), "fp32", "both")
    p, norm = problem(case, torch.float32, CPU), PROVIDERS["eager"].norm(operator)
    whole = check(p, norm)
    monkeypatch.setattr("benchmarks.problem.CHUNK", 5 * 40)
    parts = check(p, norm)
    assert parts.result == whole.result
    assert parts.error == pytest.approx(whole.error, rel=1e-6)
    assert parts.allowed == pytest.approx(whole.allowed, rel=1e-6)


@pytest.mark.parametrize("operator", [name for name in FUSED if not OPERATORS[name].inference])
def test_each_wrong_gradient_of_the_family_is_seen(operator: str) -> None:
    case = Case(dataclasses.replace(SMALL, operator=operator, batches=3), "fp32", "both")
    p, norm = problem(case, torch.float32, CPU), PROVIDERS["eager"].norm(operator)
    for i, name in enumerate(p.tensors):
        place = i if i < 1 + len(case.operator.parameters) else 3 + i - 1 - len(case.operator.parameters)

        def off(*arguments: Any, place: int = place) -> Any:
            return norm(*(Off.apply(t) if j == place else t for j, t in enumerate(arguments)))

        found = check(p, off)
        assert not found.right, name
        assert found.result == GRADIENTS.get(name, f"d{name}")


def test_a_provider_that_raises_fails_alone() -> None:
    class Broken(Provider):
        name = "broken"

        def norm(self, operator: str) -> Any:
            raise RuntimeError("no kernel image")

    found = measure(Case(SMALL, "fp32", "forward"), Broken(), bench())
    assert found == {"status": "failed", "reason": "RuntimeError: no kernel image"}


def test_cudnn_as_far_as_it_goes_without_a_gpu() -> None:
    """Its shapes and dtypes on fake CUDA tensors; and that it wants real ones on a GPU."""
    pytest.importorskip("cudnn.ops.norm", reason="pip install 'nvidia-cudnn-frontend>=1.32'")
    from torch._subclasses.fake_tensor import FakeTensorMode

    assert PROVIDERS["cudnn"].missing() is None
    for operator in ("layer_norm", "rms_norm"):
        norm = PROVIDERS["cudnn"].norm(operator)
        with FakeTensorMode(), torch.no_grad():
            x = torch.empty(8, 64, dtype=torch.bfloat16, device="cuda")
            w, b = (torch.empty(64, dtype=torch.bfloat16, device="cuda") for _ in range(2))
            y = norm(x, w, b if operator == "layer_norm" else None)
            assert (y.shape, y.dtype) == (x.shape, x.dtype)
    found = measure(Case(SMALL, "bf16", "forward"), PROVIDERS["cudnn"], bench())
    assert found["status"] == "failed"
    assert "CUDA" in found["reason"]
