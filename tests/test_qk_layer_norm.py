"""tritonln.qk_norm where it is centred, and in place."""

from __future__ import annotations

from typing import Any

import pytest
import torch
import torch.nn.functional as F
from torch import Tensor

import tritonln
from tests.helpers.heads import BIASES, NAMES, expect, forward_mode_warns, inputs, run, upstream
from tests.helpers.problems import BF16, F16, F32, F64, rand
from tritonln.launch import recorded

HQ, HK = 6, 2


def centred(
    N: int, dtype: torch.dtype, device: torch.device, parameters: torch.dtype | None = None, rotary: bool = True
) -> dict[str, Any]:
    t = inputs(N, dtype, device, parameters, rotary)
    biases = {name: rand(N, dtype=parameters or dtype, device=device, seed=s) for name, s in zip(BIASES, (11, 12))}
    return {**t, **biases, "centred": True}


@pytest.mark.parametrize(
    ("N", "rotary", "dtype", "parameters"),
    [
        pytest.param(64, True, BF16, F32, marks=pytest.mark.interpreted),
        (7, False, F32, F32),
        pytest.param(128, True, F16, F16, marks=pytest.mark.thorough),
        pytest.param(2, True, F64, F64, marks=pytest.mark.thorough),
        pytest.param(256, True, BF16, BF16, marks=pytest.mark.thorough),
        pytest.param(1000, False, F32, F32, marks=pytest.mark.thorough),
    ],
    ids=str,
)
def test_heads(N: int, rotary: bool, dtype: torch.dtype, parameters: torch.dtype, device: torch.device) -> None:
    t = centred(N, dtype, device, parameters, rotary)
    expect(t, upstream(t))


def test_large_means(device: torch.device) -> None:
    t = centred(64, BF16, device, F32)
    expect({**t, "q": t["q"] + 1e3, "k": t["k"] - 1e3}, upstream(t))


@pytest.mark.thorough
def test_absent_parameters_and_gradients_of_some(device: torch.device) -> None:
    t = centred(96, F32, device)
    dy = upstream(t)
    full = expect(t, dy)
    expect({**t, "q_weight": None, **dict.fromkeys(BIASES)}, dy)
    for name in ("q", "k_bias"):
        leaf = t[name].detach().requires_grad_()
        used = int(name.startswith("k"))
        tritonln.qk_norm(**{**t, name: leaf})[used].backward(dy[used])
        assert leaf.grad is not None
        assert leaf.grad.equal(full[name]), name


@pytest.mark.parametrize("N", [7, 64])
def test_rows_of_one_value_and_of_the_largest(N: int, device: torch.device) -> None:
    t = centred(N, F32, device, rotary=N > 7)
    t |= {"q": torch.full_like(t["q"], 3.7), "k": torch.full_like(t["k"], 3e38)}
    for x in tritonln.qk_norm(**{**t, **dict.fromkeys((*BIASES, "q_weight", "k_weight"))}):
        assert x.equal(torch.zeros_like(x))


@pytest.mark.thorough
def test_more_rows_than_programs_have(device: torch.device) -> None:
    t = {x: rand(1, 2000, count, 8, dtype=BF16, device=device) for x, count in zip("qk", (9, 3))}
    expect({**t, **{name: rand(8, dtype=F32, device=device) for name in BIASES}, "centred": True}, upstream(t))


@forward_mode_warns
@pytest.mark.parametrize("samples", [False, pytest.param(True, marks=pytest.mark.thorough)])
def test_gradcheck_and_samples(samples: bool, device: torch.device) -> None:
    t = {x: rand(2, heads, 4, dtype=F64, device=device) for x, heads in (("q", 2), ("k", 1))}
    t |= {name: rand(4, dtype=F64, device=device, seed=8) for name in (*NAMES[2:], *BIASES)}
    more = {name: rand(2, 4, dtype=F64, device=device, seed=9) for name in ("cos", "sin")}
    f = lambda *leaves: tritonln.qk_norm(**dict(zip(t, leaves)), **more, centred=True)  # noqa: E731
    leaves = [x.requires_grad_() for x in t.values()]
    if not samples:
        assert torch.autograd.gradcheck(f, leaves, check_batched_grad=True, fast_mode=True)
        assert torch.autograd.gradgradcheck(f, leaves, fast_mode=True)
        return
    loss = lambda *leaves: sum(y.pow(3).sum() for y in f(*leaves))  # noqa: E731
    q, k = (torch.stack([x.detach(), x.detach().cos()]) for x in leaves[:2])
    every = tuple(range(6))
    by_sample = torch.func.vmap(torch.func.grad(loss, every), (0, 0, *[None] * 4))(q, k, *leaves[2:])
    for i in range(2):
        one = [q[i].clone().requires_grad_(), k[i].clone().requires_grad_(), *leaves[2:]]
        for found, expected in zip(by_sample, torch.autograd.grad(loss(*one), one)):
            torch.testing.assert_close(found[i], expected)


@forward_mode_warns
def test_compiled_and_opcheck() -> None:
    t = centred(8, F32, torch.device("cpu"))
    compiled = torch.compile(tritonln.qk_norm, fullgraph=True, backend="aot_eager")
    found, eager = run(t, upstream(t), norm=compiled), run(t, upstream(t))
    assert all(found[name].equal(eager[name]) for name in eager)
    tensors = [*(t[name].requires_grad_() for name in (*NAMES, *BIASES)), t["cos"], t["sin"]]
    torch.library.opcheck(torch.ops.tritonln.qk_norm.default, (*tensors, 1e-6, True), test_utils="test_faketensor")


@pytest.mark.usefixtures("without_kernels")
def test_without_kernels() -> None:
    for dtype, parameters in ((F32, F32), (BF16, F32), (F64, F64)):
        t = centred(64, dtype, torch.device("cpu"), parameters)
        expect(t, upstream(t))


def test_a_bias_is_of_layer_normalization_only() -> None:
    q = torch.zeros(2, 1, 8)
    with pytest.raises(RuntimeError, match="expected k_bias with centred=True only"):
        tritonln.qk_norm(q, q, k_bias=torch.zeros(8))
    with pytest.raises(RuntimeError, match=r"Expected q_bias size \[8\], got \[7\]"):
        tritonln.qk_norm(q, q, q_bias=torch.zeros(7), centred=True)


def test_module(device: torch.device) -> None:
    module = tritonln.nn.QKNorm(8, 1e-5, centred=True, device=device)
    assert list(module.state_dict()) == ["q_weight", "k_weight", "q_bias", "k_bias"]
    assert repr(module).endswith("centred=True, bias=True)")
    q = rand(2, 3, 4, 8, dtype=F32, device=device)
    torch.testing.assert_close(module(q, q)[0], F.layer_norm(q, (8,)))
    assert list(tritonln.nn.QKNorm(8, centred=True, bias=False).state_dict()) == ["q_weight", "k_weight"]


# ---- in place ------------------------------------------------------------------------------------


def packed(N: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """A packed tensor, and q and k in it."""
    whole = rand(2, 5, (HQ + 2 * HK) * N, dtype=BF16, device=device, seed=30)
    q, k, _ = whole.view(2, 5, -1, N).split([HQ, HK, HK], -2)
    return whole, q, k


@pytest.mark.parametrize(("of", "rotary"), [(True, True), (False, False)], ids=["centred", "rms"])
def test_in_place_in_the_packed_tensor(of: bool, rotary: bool, device: torch.device) -> None:
    whole, q, k = packed(64, device)
    t = centred(64, BF16, device, F32, rotary)
    if not of:
        t = {name: x for name, x in t.items() if name not in BIASES} | {"centred": False}
    t |= {"q": q, "k": k}
    before, expected, version = whole.clone(), tritonln.qk_norm(**t), whole._version
    with recorded() as calls:
        tritonln.qk_norm(**t, inplace=True)
    assert len(calls) == 1
    found = tritonln.qk_norm(**t, inplace=True)
    assert found[0] is q
    assert found[1] is k
    assert q.equal(expected[0])
    assert k.equal(expected[1])
    values = (HQ + HK) * 64
    assert whole[..., values:].equal(before[..., values:])  # v
    assert whole._version > version


@pytest.mark.parametrize("way", ["transposed", "formula", "compiled", "inference"])
def test_in_place_by_other_ways(way: str, device: torch.device, request: pytest.FixtureRequest) -> None:
    q, k = (rand(2, 3, heads, 8, dtype=F32, device=device) for heads in (4, 2))
    expected = tritonln.qk_norm(q, k)
    function: Any = tritonln.qk_norm
    if way == "transposed":
        q, k = (x.transpose(1, 2).contiguous().transpose(1, 2) for x in (q, k))
    if way == "formula":
        request.getfixturevalue("without_kernels")
    if way == "compiled":
        function = torch.compile(tritonln.qk_norm, fullgraph=True, backend="aot_eager")
    with torch.inference_mode(way == "inference"):
        q, k = (q.clone(), k.clone()) if way == "inference" else (q, k)
        function(q, k, inplace=True)
        torch.testing.assert_close((q, k), expected)


@pytest.mark.parametrize("start", [0, 1, 3])
def test_in_place_where_q_and_k_share_heads(start: int, device: torch.device) -> None:
    """As one after the other: k's results stay."""
    whole = rand(3, 6, 8, dtype=F32, device=device)
    q, k = whole[:, :3], whole[:, start : start + 3]
    expected = whole.clone()
    expected[:, :3], expected[:, start : start + 3] = tritonln.qk_norm(q, k)
    tritonln.qk_norm(q, k, inplace=True)
    torch.testing.assert_close(whole, expected)


def test_in_place_is_refused_where_it_cannot_be(device: torch.device) -> None:
    q = torch.ones(2, 3, 4, 8, device=device)
    with pytest.raises(RuntimeError, match=r"qk_norm\(inplace=True\) is for inference: its gradients are made of q"):
        tritonln.qk_norm(q, q.clone().requires_grad_(), inplace=True)
    with torch.no_grad():
        tritonln.qk_norm(q.clone(), q.clone().requires_grad_(), inplace=True)
    with pytest.raises(RuntimeError, match="single memory location"):
        tritonln.qk_norm(q[:, :, :1].expand(2, 3, 4, 8), q.clone(), inplace=True)
