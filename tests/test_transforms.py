"""torch.func over every row operator: vmap and reverse mode run kernels, and all agrees with the formula."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor, nn
from torch.func import functional_call, grad, hessian, jacrev, jvp, stack_module_state, vjp, vmap

import tritonln
from tests.helpers.family import FAMILY, call, operands
from tests.helpers.problems import F32, F64, problem, rand
from tritonln import reference
from tritonln.launch import Launch

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
CPU = torch.device("cpu")
Function = Callable[..., Any]
V, N = 3, 5
# Of each kind of operand, entering and finishing; the others are of the same.
SOME = ["layer_norm", "add_rms_norm", "adaptive_layer_norm", "add_adaptive_rms_norm", "gated_rms_norm", "gate_first"]
SOME += ["gated_residual", "qk_norm"]


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    names: list[str] = []
    carry_out = Launch.__call__

    def noting(launch: Launch, *arguments: Any) -> None:
        names.append(launch.name)
        carry_out(launch, *arguments)

    monkeypatch.setattr(Launch, "__call__", noting)
    return names


def problem_of(name: str, device: torch.device) -> tuple[Function, tuple[Tensor, ...], tuple[bool, ...]]:
    """An operator of its tensors alone; a stack of V of each of them; and which are parameters."""
    if name == "qk_norm":
        sizes = {"q": (2, 2, N - 1), "k": (2, 1, N - 1), "q_weight": (N - 1,), "k_weight": (N - 1,)}
        given = {word: rand(*size, dtype=F64, device=device, seed=i) for i, (word, size) in enumerate(sizes.items())}
        angles = {word: rand(2, N - 1, dtype=F64, device=device, seed=9) for word in ("cos", "sin")}
        f: Function = lambda *t: tritonln.qk_norm(*t, **angles)  # noqa: E731
        words = list(given)
    elif name in FAMILY:
        given = operands(name, (2, 2, N), F64, device)
        f = lambda *t: call(name, dict(zip(given, t)), N)  # noqa: E731
        words = list(given)
    else:
        x, w, b, _ = problem(4, N, F64, device)
        given = {"x": x.view(2, 2, N), "weight": w, "bias": b}
        if name == "rms_norm":
            given.pop("bias")
        words = list(given)
        f = lambda x, *p: (getattr(tritonln, name)(x, N, *p),)  # noqa: E731
    stacks = tuple(rand(V, *t.shape, dtype=F64, device=device, seed=40 + i) for i, t in enumerate(given.values()))
    return f, stacks, tuple("weight" in word or word == "bias" for word in words)


def loss(f: Function) -> Function:
    return lambda *t: torch.stack([y.pow(3).sum() for y in f(*t)]).sum()


def ways(f: Function, stacks: tuple[Tensor, ...], shared: tuple[bool, ...]) -> dict[str, Callable[[], Any]]:
    dims = tuple(None if p else 0 for p in shared)
    single = tuple(t[0] for t in stacks)
    mixed = tuple(t[0] if p else t for p, t in zip(shared, stacks))
    every = tuple(range(len(stacks)))
    tangents = tuple(t.cos() for t in single)
    return {
        "samples": lambda: vmap(f, dims)(*mixed),
        "samples in another dimension": lambda: vmap(f, tuple(d if d is None else 1 for d in dims), 1)(
            *(t if p else t.movedim(0, 1) for p, t in zip(shared, mixed))
        ),
        "x alone": lambda: vmap(f, (0, *[None] * (len(stacks) - 1)))(stacks[0], *single[1:]),
        "an ensemble": lambda: vmap(f)(*stacks),
        "gradients by sample": lambda: vmap(grad(loss(f), every), dims)(*mixed),
        "gradients of an ensemble": lambda: vmap(grad(loss(f), every))(*stacks),
        "a gradient through vmap": lambda: grad(lambda *t: loss(vmap(f, dims))(*t), every)(*mixed),
        "vmap in vmap": lambda: vmap(vmap(f, dims), dims)(*(t if p else t.unsqueeze(0) for p, t in zip(shared, mixed))),
        "rows of a jacobian": lambda: jacrev(lambda *t: f(*t)[0], every)(*single),
        "a gradient of a gradient": lambda: grad(lambda *t: loss(grad(loss(f), every))(*t), every)(*single),
        "hessian by sample": lambda: vmap(hessian(loss(f)), dims)(*mixed),
        "a tangent of a gradient": lambda: jvp(grad(loss(f), every), single, tangents),
        "a gradient of a tangent": lambda: grad(lambda *t: loss(lambda *s: jvp(f, s, tangents)[1])(*t), every)(*single),
    }


@pytest.mark.parametrize("name", SOME)
def test_kernels_agree_with_the_formula(name: str, device: torch.device, monkeypatch: pytest.MonkeyPatch) -> None:
    given = problem_of(name, device)
    found = {way: run() for way, run in ways(*given).items()}
    monkeypatch.setattr("tritonln.ops.row_autograd.by_rules", lambda x: False)
    for way, run in ways(*given).items():
        torch.testing.assert_close(found[way], run(), rtol=1e-9, atol=1e-9, msg=lambda text, way=way: f"{way}: {text}")


@pytest.mark.parametrize("name", ["layer_norm", "add_rms_norm", "adaptive_layer_norm", "qk_norm"])
def test_samples_are_rows_of_one_launch(name: str, device: torch.device, launched: list[str]) -> None:
    f, stacks, shared = problem_of(name, device)
    run = ways(f, stacks, shared)
    run["samples"]()
    assert launched == [f"{name}_fwd"]
    launched.clear()
    run["an ensemble"]()  # the parameters of each member are applied behind x_hat
    assert launched == ([] if name == "qk_norm" else [f"{name}_fwd"])
    launched.clear()
    run["gradients by sample"]()
    assert launched[:2] == [f"{name}_fwd", f"{name}_bwd"]


def test_16_bit_samples_round_once(device: torch.device) -> None:
    """Of an ensemble too, whose weights are applied in torch."""
    x, w, b, _ = problem(6, 64, torch.bfloat16, device)
    x, w, b = x.view(2, 3, 64), torch.stack([w, 2 * w]), torch.stack([b, 3 * b])
    y = vmap(lambda x, w, b: tritonln.layer_norm(x, 64, w, b))(x, w, b)
    singly = torch.stack([tritonln.layer_norm(*t[:1], 64, *t[1:]) for t in zip(x, w, b)])
    assert y.dtype == torch.bfloat16
    assert float((y != singly).float().mean()) < 0.01  # a difference in the last place of fp32 may round away
    torch.testing.assert_close(y, singly)


def test_dropout_of_samples(device: torch.device) -> None:
    x = torch.ones(4, 2, 64, device=device)
    for randomness, alike in (("same", True), ("different", False)):
        f = lambda x: tritonln.add_rms_norm(x, None, 64, dropout_p=0.5)[1]  # noqa: E731
        out = vmap(f, randomness=randomness)(x)
        assert bool(out[0].equal(out[1])) == alike
    with pytest.raises(RuntimeError, match="randomness"):
        vmap(lambda x: tritonln.add_rms_norm(x, None, 64, dropout_p=0.5)[1])(x)


def test_gradients_of_factors_of_rows(device: torch.device) -> None:
    x, scale = torch.randn(2, 3, 2, N, device=device, dtype=F64), torch.randn(2, 3, device=device, dtype=F64)
    f = lambda x, s: tritonln.add_rms_norm(x, x, N, row_scale=s)[0].pow(3).sum()  # noqa: E731
    found = vmap(grad(f, 1))(x, scale)
    for out, t, s in zip(found, x, scale):
        leaf = s.clone().requires_grad_()
        torch.testing.assert_close(out, torch.autograd.grad(f(t, leaf), leaf)[0])


def test_ensemble_by_stacked_module_state(device: torch.device) -> None:
    torch.manual_seed(0)
    nets = [nn.Sequential(nn.Linear(8, 8), tritonln.nn.LayerNorm(8)).to(device) for _ in range(2)]
    for net in nets:
        nn.init.normal_(net[1].weight)
    parameters, buffers = stack_module_state(nets)
    x = torch.randn(3, 8, device=device)
    f = lambda p, b, x: functional_call(nets[0], (p, b), (x,))  # noqa: E731
    torch.testing.assert_close(vmap(f, (0, 0, None))(parameters, buffers, x), torch.stack([net(x) for net in nets]))


def test_vjp_in_fp32_is_the_oracle_s(device: torch.device) -> None:
    x, w, b, dy = problem(37, 64, F32, device)
    y, pull = vjp(lambda *t: tritonln.layer_norm(t[0], 64, *t[1:]), x, w, b)
    ref = reference.layer_norm_gradients(x, (64,), w, b, 1e-5, dy)
    for out, name in zip(pull(dy), ("dx", "dw", "db")):
        torch.testing.assert_close(out.double(), ref[name], rtol=1e-5, atol=1e-5)
