"""layer_norm and rms_norm that keep y for backward in the place of x, and restore x_hat from it."""

import itertools
import weakref
from collections.abc import Callable
from typing import Any

import pytest
import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensorMode

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.problems import BF16, F16, F32, F64, WIDE, rand
from tritonln import reference
from tritonln.kernels.limits import LEAST_WEIGHT, MOST_BIAS
from tritonln.ops import keep_y
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


@pytest.fixture(params=["kernels", "aten"])
def way(request: pytest.FixtureRequest) -> str:
    if request.param == "aten":
        request.getfixturevalue("eager_without_kernels")
    return request.param


@pytest.fixture(params=[*thorough("kernels"), "aten"])
def way_thoroughly(request: pytest.FixtureRequest) -> str:
    if request.param == "aten":
        request.getfixturevalue("eager_without_kernels")
    return request.param


# ---- values ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("name", "N", "dtype", "parameters"),
    [
        ("layer_norm", 64, F32, F32),
        ("layer_norm", 12_288, BF16, F32),
        pytest.param("rms_norm", 64, F32, F32, marks=pytest.mark.interpreted),
        *thorough(
            *itertools.product(NORMS, [1, 2, 7, 100, 768, 1023, 2049, 4096, WIDE], [BF16, F16, F32], [F32]),
            *itertools.product(NORMS, [7, 2049, 4100], [F64], [F64]),
            *itertools.product(NORMS, [64, 1000], [BF16, F16], [None, BF16]),
        ),
    ],
    ids=str,
)
def test_kernels(name: str, N: int, dtype: torch.dtype, parameters: Any, device: torch.device) -> None:
    expect(name, *problem(name, 5, N, dtype, device, parameters))


@pytest.mark.parametrize("dtype", [F32, BF16, F16, F64], ids=str)
@pytest.mark.parametrize("N", [1, 7, 300])
@pytest.mark.parametrize("name", NORMS)
def test_without_kernels(name: str, N: int, dtype: torch.dtype, eager_without_kernels: None) -> None:
    expect(name, *problem(name, 5, N, dtype, torch.device("cpu"), F32 if dtype == BF16 else None))


@pytest.mark.parametrize("words", [("weight",), ("bias",), ()], ids=str)
@pytest.mark.parametrize("name", NORMS)
def test_missing_parameters(name: str, words: tuple[str, ...], way_thoroughly: str, device: torch.device) -> None:
    if name == "layer_norm" or "bias" not in words:
        expect(name, *problem(name, 5, 64, F32, device, words=words))


@pytest.mark.parametrize("name", NORMS)
def test_weight_offset(name: str, way_thoroughly: str, device: torch.device) -> None:
    """What counts is the weight with its offset: one that is stored as 0 is 1."""
    given, dy = problem(name, 5, 64, F32, device)
    given["weight"] = rand(64, dtype=F32, device=device, seed=1) / 10
    if name == "layer_norm":
        given["bias"] = rand(64, dtype=F32, device=device, seed=2)
    expect(name, {**given, "weight": torch.zeros_like(given["weight"])}, dy, offset=1.0)
    expect(name, given, dy, offset=1.0)
    given["weight"][3] = -1.0
    assert not run(name, given, dy, weight_offset=1.0)[1]


@pytest.mark.thorough
def test_rows_that_lie_apart(device: torch.device) -> None:
    given, dy = problem("layer_norm", 5, 64, F32, device)
    wide = torch.stack([given["input"], dy], 1)
    expect("layer_norm", {**given, "input": wide[:, 0]}, wide[:, 1])


@pytest.mark.parametrize("shape", [(0, 64), (3, 0), (1, 64)], ids=str)
def test_few_rows(shape: tuple[int, int], way: str, device: torch.device) -> None:
    given, dy = problem("layer_norm", *shape, F32, device)
    if dy.numel():
        expect("layer_norm", given, dy)
    else:
        found, _ = run("layer_norm", given, dy)
        assert found["dinput"].shape == shape
        assert all(found[word].equal(torch.zeros(shape[1], device=device)) for word in ("dweight", "dbias"))


def test_the_same_bits_again(way: str, device: torch.device) -> None:
    given, dy = problem("layer_norm", 70, 64, F32, device)
    first, second = (run("layer_norm", given, dy)[0] for _ in range(2))
    assert all(first[word].equal(second[word]) for word in first)


# ---- memory ------------------------------------------------------------------------------------


@pytest.mark.parametrize("name", NORMS)
def test_bytes_kept_for_backward(name: str, way: str, device: torch.device) -> None:
    """y in the place of x, which is free once nobody else has it; the statistics and the parameters as ever."""
    given, _ = problem(name, 300, 64, F32, device)
    leaves = {word: t.requires_grad_() for word, t in given.items()}
    norm = getattr(tritonln, name)
    h = leaves.pop("input") + 0
    there, address = weakref.ref(h), h.data_ptr()
    y, kept = kept_by(lambda h=h: norm(h, 64, **leaves, save="y"))  # type: ignore[misc]
    stats = 300 * 4 * (2 if name == "layer_norm" else 1)
    assert sum(kept.values()) == 300 * 64 * 4 + stats + 64 * 4 * len(leaves)
    assert y.data_ptr() in kept
    assert address not in kept
    del h
    assert there() is None
    y.sum().backward()
    assert all(t.grad is not None for t in given.values())


def test_y_must_stay_as_it_is(way: str, device: torch.device) -> None:
    given, dy = problem("layer_norm", 5, 64, F32, device)
    y = tritonln.layer_norm(given["input"].requires_grad_(), 64, given["weight"], given["bias"], save="y")
    y.mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.backward(dy)


# ---- weights that do not let x_hat be restored -------------------------------------------------


UNFIT = {
    "weight of 0": {"weight": 0.0, "bias": 0.0},
    "tiny weight": {"weight": LEAST_WEIGHT * 0.99},
    "large bias": {"weight": 0.5, "bias": -MOST_BIAS * 0.51},
    "NaN": {"weight": float("nan")},
}


@pytest.mark.parametrize("case", UNFIT)
def test_x_is_kept_where_it_cannot_be_restored(case: str, way: str, device: torch.device) -> None:
    given, dy = problem("layer_norm", 5, 64, F32, device)
    for word, number in UNFIT[case].items():
        given[word][7] = number
    found, kept = run("layer_norm", given, dy)
    assert not kept
    for word, t in run("layer_norm", given, dy, save="x")[0].items():
        torch.testing.assert_close(found[word], t, rtol=0, atol=0, equal_nan=True)


@pytest.mark.parametrize("name", NORMS)
def test_at_the_limits(name: str, way_thoroughly: str, device: torch.device) -> None:
    given, dy = problem(name, 5, 64, F16, device, F32)
    given["weight"][:4] = torch.tensor([LEAST_WEIGHT, -LEAST_WEIGHT, 0.25, -0.25])
    if name == "layer_norm":
        given["bias"][:4] = torch.tensor([0.0, MOST_BIAS * LEAST_WEIGHT, 0.25 * MOST_BIAS, -0.25 * MOST_BIAS])
    expect(name, given, dy)


@pytest.fixture
def looks(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """How often weights and biases were looked at."""
    noted: list[torch.device] = []
    look = keep_y._look

    def noting(device: torch.device) -> None:
        noted.append(device)
        look(device)

    monkeypatch.setattr(keep_y, "_look", noting)
    return noted


def test_weights_are_looked_at_together_and_once_a_pass(
    looks: list[torch.device], eager_without_kernels: None, device: torch.device
) -> None:
    norms = torch.nn.Sequential(*(tritonln.nn.LayerNorm(8, device=device, save="y") for _ in range(3)))
    x = rand(4, 8, dtype=F32, device=device).requires_grad_()
    for norm in norms:  # each is new
        norm(x)
    assert len(looks) == 3
    norms(norms(x)).sum().backward()
    assert len(looks) == 3
    optimizer = torch.optim.SGD(norms.parameters(), 0.1)
    for seen in (4, 5):
        optimizer.step()
        loss = norms(x).sum()
        with torch.no_grad():
            norms(x)
        assert len(looks) == seen
        loss.backward()
    with torch.no_grad():
        norms[1].weight[2] = 0.0  # of another version, without a pass
    for seen in (6, 6):
        assert [kept_by(lambda norm=norm: norm(x))[0].grad_fn.name() for norm in norms] == [
            "_KeepingYBackward", "_RowsBackward", "_KeepingYBackward"
        ]  # fmt: skip
        assert len(looks) == seen


def test_weights_that_are_written_behind_autograd(looks: list[torch.device], way: str, device: torch.device) -> None:
    """After a backward pass they are looked at again, whatever their versions say; in between, a gradient is NaN."""
    given, dy = problem("layer_norm", 5, 64, F32, device)
    leaves = [t.requires_grad_() for t in given.values()]
    tritonln.layer_norm(leaves[0], 64, *leaves[1:], save="y").backward(dy)
    leaves[1].data[5] = 0.0
    assert tritonln.layer_norm(leaves[0], 64, *leaves[1:], save="y").grad_fn.name() == "_RowsBackward"
    leaves[1].data[5] = 1.0
    y = tritonln.layer_norm(leaves[0] * 1, 64, *(t * 1 for t in leaves[1:]), save="y")
    weight = y.grad_fn.saved_tensors[1]
    weight.data[5] = 0.0
    y.backward(dy)
    assert len(looks) == 3
    assert leaves[1].grad is not None
    assert leaves[1].grad[5].isnan()


def test_checkpointing(looks: list[torch.device], way: str, device: torch.device) -> None:
    """What is computed again inside of a backward pass keeps what it kept, and nobody looks again."""
    given, dy = problem("layer_norm", 5, 64, F32, device)
    leaves = [t.requires_grad_() for t in given.values()]

    def twice(x: Tensor, w: Tensor, b: Tensor) -> Tensor:
        return tritonln.layer_norm(tritonln.layer_norm(x, 64, w, b, save="y"), 64, w, b, save="y")

    expected = torch.autograd.grad(twice(*leaves), leaves, dy)
    seen = len(looks)
    y = torch.utils.checkpoint.checkpoint(twice, *leaves, use_reentrant=False)
    found = torch.autograd.grad(y, leaves, dy)
    assert len(looks) == seen + 1
    assert all(a.equal(b) for a, b in zip(found, expected))


# ---- what else torch does ----------------------------------------------------------------------


def _derived(y: Tensor, leaves: list[Tensor]) -> tuple[Tensor, ...]:
    return torch.autograd.grad(y.square().sum(), leaves, create_graph=True, materialize_grads=True)


@pytest.mark.parametrize("name", NORMS)
def test_derivatives(name: str, way_thoroughly: str, device: torch.device) -> None:
    """Through y and the statistics autograd reaches an x that nobody kept."""
    given, dy = problem(name, 3, 5, F64, device)
    leaves = [t.requires_grad_() for t in given.values()]
    norm = lambda x, *p: getattr(tritonln, name)(x, 5, *p, eps=EPS, save="y")  # noqa: E731
    assert norm(*leaves).grad_fn.name() == "_KeepingYBackward"
    assert torch.autograd.gradcheck(norm, leaves, check_batched_grad=True)
    assert torch.autograd.gradgradcheck(norm, leaves, check_batched_grad=True)
    found, expected = norm(*leaves), getattr(tritonln, name)(leaves[0], 5, *leaves[1:], eps=EPS)
    for order in (3, 2, 2):
        found, expected = (sum(cubes.pow(order).sum() for cubes in _derived(y, leaves)) for y in (found, expected))
        torch.testing.assert_close(found, expected)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")
@pytest.mark.parametrize("name", ["layer_norm", *thorough("rms_norm")])
def test_x_is_kept_where_values_cannot_be_looked_at(name: str, device: torch.device) -> None:
    given, dy = problem(name, 3, 8, F32, device)
    x, *parameters = given.values()
    keeping = lambda x: getattr(tritonln, name)(x, 8, *parameters, eps=EPS, save="y")  # noqa: E731
    plain = lambda x: getattr(tritonln, name)(x, 8, *parameters, eps=EPS)  # noqa: E731
    for transform in (
        lambda f: torch.compile(f, fullgraph=True, backend="aot_eager"),
        torch.func.vmap,
        torch.func.jacrev,
        lambda f: lambda x: torch.func.jvp(f, (x,), (dy,))[1],
        lambda f: torch.func.grad(lambda x: (f(x) * dy).sum()),
    ):
        assert transform(keeping)(x).equal(transform(plain)(x))
    with FakeTensorMode(allow_non_fake_inputs=True) as mode:
        assert keeping(mode.from_tensor(x).requires_grad_()).requires_grad


def test_jagged_nested_tensors(device: torch.device) -> None:
    given, _ = problem("layer_norm", 6, 64, F32, device)
    x, offsets = given["input"].requires_grad_(), torch.tensor([0, 2, 6], device=device)
    jagged = torch.nested.nested_tensor_from_jagged(x * 1, offsets)
    y = tritonln.layer_norm(jagged, 64, given["weight"], given["bias"], save="y")
    (dx,) = torch.autograd.grad(y.values().square().sum(), x)
    (same,) = torch.autograd.grad(
        tritonln.layer_norm(x, 64, given["weight"], given["bias"], save="y").square().sum(), x
    )
    assert dx.equal(same)


@pytest.mark.thorough
def test_llamas_cast_keeps_x(device: torch.device) -> None:
    given, dy = problem("rms_norm", 5, 64, BF16, device)
    assert not run("rms_norm", given, dy, cast="llama")[1]


def test_modules(device: torch.device) -> None:
    x = rand(4, 8, dtype=F32, device=device).requires_grad_()
    for cls in (tritonln.nn.LayerNorm, tritonln.nn.RMSNorm):
        norm = cls(8, device=device, save="y")
        assert norm(x).grad_fn.name() == "_KeepingYBackward"
        assert "save='y'" in repr(norm)
        assert "save" not in repr(cls(8))
        assert cls(8, device=device)(x).grad_fn.name() == "_RowsBackward"
        torch.jit.script(norm)
        with pytest.raises(ValueError, match="expected save to be one of 'x', 'y', but got 'both'"):
            cls(8, save="both")
    with pytest.raises(ValueError, match="expected save to be one of 'x', 'y', but got None"):
        tritonln.layer_norm(x, 8, save=None)  # type: ignore[arg-type]


def test_a_known_call_keeps_what_it_is_asked_to(device: torch.device) -> None:
    given, _ = problem("layer_norm", 3, 64, F32, device)
    leaves = [t.requires_grad_() for t in given.values()]
    for save in ("x", "y", "x", "y"):
        y = tritonln.layer_norm(leaves[0], 64, *leaves[1:], save=save)
        assert y.grad_fn.name() == ("_RowsBackward" if save == "x" else "_KeepingYBackward")
