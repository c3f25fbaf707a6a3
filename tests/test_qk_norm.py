"""tritonln.qk_norm against the fp64 oracle."""

from typing import Any

import pytest
import torch
from torch import Tensor
from torch.func import jacfwd, jacrev, jvp, vmap

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.heads import BIASES, HK, HQ, NAMES, B, T, expect, forward_mode_warns, inputs, oracle, run, upstream
from tests.helpers.problems import BF16, F16, F32, F64, rand
from tritonln.launch import recorded

# ---- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [F32, BF16, *thorough(F16, F64)], ids=str)
@pytest.mark.parametrize(
    ("N", "rotary"),
    [
        *(pytest.param(N, N > 7, marks=pytest.mark.interpreted) for N in (7, 64, 96)),
        *((N, True) for N in (128, 256, 1024)),
        *((N, False) for N in (1, 96, 128, 1000)),
    ],
)
def test_heads(N: int, rotary: bool, dtype: torch.dtype, device: torch.device) -> None:
    t = inputs(N, dtype, device, rotary=rotary)
    expect(t, upstream(t), 1.0 if N == 1 else 1e-6)  # 1 / |x| has no root mean square to hold errors to


@pytest.mark.parametrize("dtype", [F16, BF16], ids=str)
def test_fp32_beside_16_bits(dtype: torch.dtype, device: torch.device) -> None:
    t = inputs(64, dtype, device, parameters=F32)
    expect({**t, "cos": t["cos"].float(), "sin": t["sin"].float()}, upstream(t))


@pytest.mark.parametrize("absent", [("q_weight",), ("k_weight",), ("q_weight", "k_weight")])
@pytest.mark.parametrize("rotary", [True, False])
def test_absent_weights(absent: tuple[str, ...], rotary: bool, device: torch.device) -> None:
    t = inputs(64, F32, device, rotary=rotary)
    expect({**t, **dict.fromkeys(absent)}, upstream(t))


@pytest.mark.parametrize("shape", [(T,), (1, T), (B, T)])
def test_cos_and_sin_of_all_batches_or_of_each(shape: tuple[int, ...], device: torch.device) -> None:
    """Their second half need not repeat the first."""
    t = inputs(64, F32, device)
    cos, sin = (rand(*shape, 64, dtype=F32, device=device, seed=seed) for seed in (6, 7))
    expect({**t, "cos": cos, "sin": sin}, upstream(t))
    wide = {x: rand(3, 1, 2, heads, 8, dtype=F32, device=device) for x, heads in (("q", 3), ("k", 1))}
    cos, sin = (rand(1, 1, 2, 8, dtype=F32, device=device, seed=seed) for seed in (6, 7))
    expect({**wide, "cos": cos, "sin": sin}, upstream(wide))
    expect({**wide, "cos": cos.expand(3, 1, 2, 8), "sin": sin.expand(3, 1, 2, 8)}, upstream(wide))


@pytest.mark.parametrize(("shape", "heads"), [((3, 67, 64), (5, 3)), ((1, 2000, 8), (9, 3))])
def test_more_tokens_than_tiles_or_programs_have(shape: tuple[int, ...], heads: tuple[int, int], device: Any) -> None:
    B, T, N = shape
    t = {x: rand(B, T, count, N, dtype=BF16, device=device) for x, count in zip("qk", heads)}
    t |= {name: rand(T, N, dtype=BF16, device=device, seed=seed) for name, seed in (("cos", 6), ("sin", 7))}
    expect({**t, "q_weight": rand(N, dtype=F32, device=device)}, upstream(t))


@pytest.mark.parametrize("size", [1e18, 1e4, 1e-3, 1e-12])
def test_magnitudes(size: float, device: torch.device) -> None:
    t = inputs(64, F32, device)
    t |= {"q": t["q"] * size, "k": t["k"] * size}
    expect(t, upstream(t))
    expect(t, upstream(t), eps=0.0)


def test_eps_and_offset(device: torch.device) -> None:
    t = inputs(64, BF16, device)
    t |= {"q": t["q"] * 1e-4}
    for found, same in zip(tritonln.qk_norm(**t, eps=None), tritonln.qk_norm(**t, eps=torch.finfo(F32).eps)):
        assert found.equal(same)
    shifted = {**t, "q_weight": t["q_weight"].float() + 1, "k_weight": t["k_weight"].float() + 1}
    for found, same in zip(tritonln.qk_norm(**t, weight_offset=1.0), tritonln.qk_norm(**shifted)):
        assert found.equal(same)


# ---- where tensors lie ---------------------------------------------------------------------------


def test_packed_views_are_read_where_they_lie(device: torch.device) -> None:
    t = inputs(64, F32, device)
    dy = upstream(t)
    leaves = {name: t[name].detach().requires_grad_() for name in NAMES}
    with recorded() as calls:
        y = tritonln.qk_norm(**{**t, **leaves})
        torch.autograd.grad(y, list(leaves.values()), dy)
    assert [call.launch.name for call in calls] == ["qk_norm_fwd", "qk_norm_bwd", "column_sum"]
    for call in calls[:2]:
        for (read, *strides), x in zip(call.args[0], (t["q"], t["k"])):
            assert read.data_ptr() == x.data_ptr()
            assert strides == [(HQ + 2 * HK) * 64, 64]


def test_without_gradients_one_launch(device: torch.device) -> None:
    with recorded() as calls:
        y = tritonln.qk_norm(**inputs(64, F32, device))
    assert [call.launch.name for call in calls] == ["qk_norm_fwd"]
    assert y[0].grad_fn is None


def test_strides(device: torch.device) -> None:
    """Transposed ones, rows whose values are apart, and gradients of every kind: the bits of contiguous ones."""
    t = inputs(64, F32, device)
    dy = upstream(t)
    plain = expect(t, dy)
    for moved in (
        lambda x: x.transpose(1, 2).contiguous().transpose(1, 2),  # (B, H, T, N)
        lambda x: x.transpose(-1, -2).contiguous().transpose(-1, -2),
        lambda x: torch.cat([x, x], -1)[..., :64],
        lambda x: x.contiguous(),
    ):
        found = run({**t, "q": moved(t["q"]), "k": moved(t["k"])}, tuple(moved(g) for g in dy))
        assert all(found[name].equal(plain[name]) for name in plain)
    ones = torch.ones((), device=device)
    expect(t, (ones.expand(dy[0].shape), ones.expand(dy[1].shape)))


def test_heads_that_lie_apart_by_another_stride(device: torch.device) -> None:
    """A kernel that was compiled for strides between heads that are a multiple of 16 takes no others."""
    plain = rand(2, 16, 64, dtype=F32, device=device)
    expected = tritonln.qk_norm(plain, plain)
    for width in (80, 65, 80):
        room = torch.full((2, 16, width), float("nan"), device=device)
        room[..., :64] = plain
        for found, same in zip(tritonln.qk_norm(room[..., :64], room[..., :64]), expected):
            assert found.equal(same)


@pytest.mark.parametrize(("tokens", "heads"), [(0, (2, 1)), (3, (0, 2)), (3, (2, 0)), (3, (0, 0))])
def test_empty(tokens: int, heads: tuple[int, int], device: torch.device) -> None:
    t = {x: rand(tokens, count, 8, dtype=F32, device=device) for x, count in zip("qk", heads)}
    t |= {name: rand(8, dtype=F32, device=device) for name in NAMES[2:]}
    t |= {name: rand(tokens, 8, dtype=F32, device=device) for name in ("cos", "sin")}
    out = expect(t, upstream(t))
    for x in "qk":
        assert t[x].numel() or out[f"{x}_weight"].equal(torch.zeros(8, device=device))


# ---- gradients ------------------------------------------------------------------------------------


@pytest.mark.parametrize("needed", [*((name,) for name in NAMES), ("q", "k"), NAMES[2:], ("q", "k_weight")])
def test_gradients_only_of_what_requires_them(needed: tuple[str, ...], device: torch.device) -> None:
    t = inputs(64, F32, device)
    dy = upstream(t)
    full = expect(t, dy)
    leaves = {name: t[name].detach().requires_grad_(name in needed) for name in NAMES}

    def differentiable() -> tuple[list[Tensor], list[Tensor]]:
        """The results that depend on what requires a gradient, and the gradients of these."""
        pairs = [(y, d) for y, d in zip(tritonln.qk_norm(**{**t, **leaves}), dy) if y.requires_grad]
        return [y for y, _ in pairs], [d for _, d in pairs]

    torch.autograd.backward(*differentiable())
    for name, leaf in leaves.items():
        assert (leaf.grad is not None) == (name in needed)
        assert leaf.grad is None or leaf.grad.equal(full[name]), name
    results, given = differentiable()
    assert len(results) == len({name[0] for name in needed})  # q and its weight, or k and its
    found = torch.autograd.grad(results, [leaves[name] for name in needed], given, create_graph=True)
    for name, grad in zip(needed, found):
        torch.testing.assert_close(grad, full[name], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("used", [0, 1])
def test_one_result_used(used: int, device: torch.device) -> None:
    t = inputs(64, F32, device)
    dy = upstream(t)
    full = expect(t, dy)
    leaves = {name: t[name].detach().requires_grad_() for name in NAMES}
    tritonln.qk_norm(**{**t, **leaves})[used].backward(dy[used])
    for i, name in enumerate(NAMES):
        grad = leaves[name].grad
        assert grad is None if i % 2 != used else grad is not None and grad.equal(full[name]), name
    other = NAMES[3 - used]
    assert not tritonln.qk_norm(**{**t, other: leaves[other]})[used].requires_grad


def test_one_weight_for_both(device: torch.device) -> None:
    """Each place has a gradient of its own, with a graph too."""
    t = inputs(64, F32, device)
    dy = upstream(t)
    weight = t["q_weight"].detach().requires_grad_()
    y = tritonln.qk_norm(**{**t, "q_weight": weight, "k_weight": weight})
    found = [torch.autograd.grad(y, weight, dy, create_graph=graph, retain_graph=True)[0] for graph in (False, True)]
    torch.testing.assert_close(found[1], found[0], rtol=1e-4, atol=1e-4)


def test_repeats_to_the_bit_and_tokens_do_not_depend_on_each_other(device: torch.device) -> None:
    q, k = (rand(1, 90, heads, 64, dtype=BF16, device=device) for heads in (6, 2))
    t = inputs(64, BF16, device) | {"q": q, "k": k}
    t |= {name: rand(90, 64, dtype=BF16, device=device, seed=seed) for name, seed in (("cos", 6), ("sin", 7))}
    dy = upstream(t)
    first, again = (run(t, dy) for _ in range(2))
    assert all(first[name].equal(again[name]) for name in first)
    one = {**t, **{x: t[x][:, 33:34] for x in "qk"}, **{x: t[x][33:34] for x in ("cos", "sin")}}
    alone = run(one, tuple(g[:, 33:34] for g in dy))
    assert all(alone[name].equal(first[name][:, 33:34]) for name in ("y_q", "y_k", "q", "k"))


def by_the_op(*, eps: float = 1e-6, **t: Any) -> Any:
    tensors = [t.get(name) for name in (*NAMES, *BIASES, "cos", "sin")]
    return torch.ops.tritonln.qk_norm.default(*tensors, eps, t.get("centred", False))


@pytest.fixture(params=["kernels", "formula", "op", "op without kernels"])
def norm(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Any:
    """qk_norm by each of its ways."""
    if request.param == "formula":
        request.getfixturevalue("without_kernels")
    if request.param == "op without kernels":
        monkeypatch.setattr("tritonln.ops.qk_norm_op.kernels_on", lambda device: None)
    return by_the_op if request.param.startswith("op") else tritonln.qk_norm


@forward_mode_warns
@pytest.mark.parametrize("rotary", [True, False])
def test_gradcheck(norm: Any, rotary: bool, device: torch.device) -> None:
    t = {x: rand(2, heads, 4, dtype=F64, device=device) for x, heads in (("q", 2), ("k", 1))}
    t |= {name: rand(4, dtype=F64, device=device, seed=8) for name in NAMES[2:]}
    more = {n: rand(2, 4, dtype=F64, device=device, seed=9) for n in ("cos", "sin")} if rotary else {}
    f = lambda *leaves: norm(**dict(zip(NAMES, leaves)), **more)  # noqa: E731
    leaves = [t[name].requires_grad_() for name in NAMES]
    assert torch.autograd.gradcheck(f, leaves, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(f, leaves)


@forward_mode_warns
def test_transforms_and_gradients_of_cos(device: torch.device) -> None:
    t = {name: x.double() for name, x in inputs(4, F64, device).items()}
    ours, theirs = (
        (lambda q, k, cos, f=f: f(**{**t, "q": q, "k": k, "cos": cos}, eps=1e-6)) for f in (tritonln.qk_norm, oracle)
    )
    q, k, cos = t["q"], t["k"], t["cos"]
    for f in (
        lambda g: vmap(g, (0, 0, None))(q[:, None], k[:, None], cos)[0],
        lambda g: jvp(g, (q, k, cos), (q.sin(), k.sin(), cos.sin()))[1][0],
        lambda g: jacfwd(jacrev(lambda q: g(q, k, cos)[0].sum(0)[0, 0]))(q),
        lambda g: torch.autograd.grad(g(q, k, c := cos.clone().requires_grad_()), c, upstream(t))[0],
    ):
        torch.testing.assert_close(f(ours), f(theirs), rtol=1e-10, atol=1e-10)


# ---- traced --------------------------------------------------------------------------------------


@pytest.mark.interpreted
@forward_mode_warns
@pytest.mark.parametrize("backend", ["aot_eager", "inductor"])
def test_compiled_gives_the_bits_of_eager(backend: str) -> None:
    t = inputs(8, F32, torch.device("cpu"))
    compiled = torch.compile(tritonln.qk_norm, fullgraph=True, backend=backend)
    found, eager = run(t, upstream(t), norm=compiled), run(t, upstream(t))
    assert all(found[name].equal(eager[name]) for name in eager)


@forward_mode_warns
@pytest.mark.parametrize("rotary", [True, False])
def test_opcheck(rotary: bool) -> None:
    t = inputs(8, BF16, torch.device("cpu"), F32, rotary)
    tensors = [*(t[name].requires_grad_() for name in NAMES), None, None, t.get("cos"), t.get("sin")]
    torch.library.opcheck(torch.ops.tritonln.qk_norm.default, (*tensors, 1e-6, False))
    arguments = (upstream(t)[0], None, *tensors, 1e-6, False, [True, True, False, True, False, False])
    backward = torch.ops.tritonln.qk_norm_backward.default
    torch.library.opcheck(backward, arguments, test_utils=("test_schema", "test_faketensor"))
