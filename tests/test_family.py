"""All norms that do more than normalize, by each of their ways, against the fp64 oracle."""

from collections.abc import Callable, Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

from tests.helpers.cases import thorough
from tests.helpers.family import ADAPTIVE, FAMILY, TWINS, UNLIKE, call, check, operands, oracle, results, upstream_of
from tests.helpers.problems import BF16, F16, F32, F64
from tritonln.launch import Launch

WIDE, CHUNKED = 16_384 + 77, 9500 + 77  # past one tile forward and backward, and backward
TWO = [name for name in FAMILY if FAMILY[name].two and name not in TWINS]

# ---- values ------------------------------------------------------------------------------------

# Row length, and the dtypes of x, of what comes beside it, and of the parameters.  A norm of root mean squares runs on
# the kernels of the one with a mean: the two share the sizes between them.
LAYER_NORMS = [name for name in FAMILY if FAMILY[name].centred]
RMS_NORMS = [name for name in FAMILY if FAMILY[name].norm and not FAMILY[name].centred]
SIZES = [
    (RMS_NORMS, 1, F32, F32, F32),
    (LAYER_NORMS, 2, BF16, F32, F32),
    (RMS_NORMS, 7, F16, F16, F32),
    (LAYER_NORMS, 64, F32, BF16, F32),
    (LAYER_NORMS, 100, F64, F64, F64),
    (RMS_NORMS, 100, F32, F32, F32),
    (LAYER_NORMS, 1000, BF16, BF16, BF16),
    (["add_adaptive_rms_norm", "gated_rms_norm"], 4096, F16, F32, F32),
    (["gated_residual"], 100, BF16, F32, F32),
]
INTERPRETED = (1, 7, 100)


def short_and_long(short: list[str], long: list[str]) -> list[Any]:
    """Operators and row lengths, of one tile and of several backward."""
    found = [*((name, 100) for name in short), *((name, CHUNKED) for name in long)]
    return [case if case[0] not in TWINS else thorough(case)[0] for case in found]


@pytest.mark.parametrize(
    ("name", "N", "x", "other", "parameters"),
    [
        pytest.param(name, N, *dtypes, marks=pytest.mark.interpreted if N in INTERPRETED else ())
        for names, N, *dtypes in SIZES
        for name in names
    ],
    ids=str,
)
def test_hidden_sizes(
    name: str, N: int, x: torch.dtype, other: torch.dtype, parameters: torch.dtype, device: torch.device
) -> None:
    check(name, operands(name, (2, 3, N), x, device, other, parameters))


@pytest.mark.parametrize("name", UNLIKE)
def test_wide_rows(name: str, device: torch.device) -> None:
    check(name, operands(name, (2, 1, WIDE), F32, device))


@pytest.mark.parametrize(("x", "other"), [(BF16, F32), (F64, F64)], ids=str)
@pytest.mark.parametrize("name", ["add_layer_norm", "add_adaptive_rms_norm", "gated_rms_norm"])
def test_wide_rows_of_other_dtypes(name: str, x: torch.dtype, other: torch.dtype, device: torch.device) -> None:
    check(name, operands(name, (2, 1, CHUNKED), x, device, other, other))


@pytest.mark.parametrize("name", UNLIKE)
def test_many_rows_and_one(name: str, device: torch.device) -> None:
    for shape in ((1, 64), (3, 200, 64), (150, 2, 64)):
        check(name, operands(name, shape, F32, device))


@pytest.mark.parametrize("name", UNLIKE)
def test_only_x_and_what_must_be_there(name: str, device: torch.device) -> None:
    given = operands(name, (2, 3, 100), F32, device)
    beside = () if name in ADD_ else ("residual", "gate", "y")
    there = {word: t for word, t in given.items() if word in ("x", *beside)}
    check(name, there)


ADD_ = [name for name in FAMILY if name.startswith("add_") and name not in ADAPTIVE]


@pytest.mark.parametrize(("name", "N"), short_and_long(LAYER_NORMS, RMS_NORMS))
def test_gradients_only_of_what_requires_them(name: str, N: int, device: torch.device) -> None:
    given = operands(name, (2, 3, N), F32, device)
    for word in given if N == 100 else ("x",):
        found = check(name, given, [word])
        assert f"d{word}" in found
    leaves = {word: t.requires_grad_() for word, t in given.items()}
    with torch.no_grad():
        assert all(out.grad_fn is None for out in call(name, leaves, N))


@pytest.mark.parametrize(("use", "dtype"), [((True, False), F32), ((False, True), BF16)], ids=["y", "residual_out"])
@pytest.mark.parametrize("name", TWO)
def test_one_of_two_results(name: str, use: tuple[bool, bool], dtype: torch.dtype, device: torch.device) -> None:
    given = operands(name, (2, 3, 100), dtype, device)
    words = list(given) if use[0] else [word for word in given if word in FAMILY[name].entering]
    check(name, given, words, use)


@pytest.mark.parametrize("name", TWO)
def test_a_result_without_y_is_the_sum_alone(name: str, way: str, device: torch.device) -> None:
    """No gradient goes through the norm: rows that are not finite have theirs, and what finishes y has none."""
    given = operands(name, (2, 3, 100), BF16, device)
    given["x"][0, 1, 2] = given["weight"][0] = float("inf")
    leaves = {word: t.detach().requires_grad_() for word, t in given.items()}
    upstream = upstream_of(name, given["x"])
    call(name, leaves, 100)[1].backward(upstream[1])
    expected = oracle(name, given, (None, upstream[1])).values
    for word, leaf in leaves.items():
        if word in FAMILY[name].entering:
            assert leaf.grad is not None
            torch.testing.assert_close(leaf.grad.double(), expected[f"d{word}"], rtol=1e-2, atol=1e-2)
        else:
            assert leaf.grad is None
    assert not call(name, {**given, "weight": leaves["weight"]}, 100)[1].requires_grad


@pytest.mark.parametrize("shape", [(0, 3, 8), (3, 0, 8), (2, 3, 0)], ids=str)
@pytest.mark.parametrize("name", FAMILY)
def test_empty(name: str, shape: tuple[int, ...], device: torch.device) -> None:
    given = operands(name, shape, F32, device)
    found = results(name, given, upstream_of(name, given["x"]))
    for word, t in found.items():
        assert t.shape == (shape if word in ("y", "residual_out") else given[word[1:]].shape)
        assert t.equal(torch.zeros_like(t))


@pytest.mark.parametrize("name", UNLIKE)
def test_strided_rows(name: str, device: torch.device) -> None:
    given = operands(name, (2, 3, 100), F32, device)
    far = {}
    for word, t in given.items():
        room = torch.full((*t.shape[:-1], 130), float("nan"), device=device)
        room[..., 20:120] = t
        far[word] = room[..., 20:120]
    upstream = upstream_of(name, given["x"])
    near = results(name, given, upstream)
    for word, t in results(name, far, tuple(d.mT.contiguous().mT for d in upstream)).items():
        assert t.equal(near[word]), word


@pytest.mark.parametrize(("name", "N"), short_and_long(RMS_NORMS, LAYER_NORMS))
def test_the_same_bits_on_every_run_and_in_any_batch(name: str, N: int, device: torch.device) -> None:
    given = operands(name, (7, 5, N) if N == 100 else (3, 2, N), BF16, device, F32, F32)
    upstream = upstream_of(name, given["x"], F32)
    first, again = (results(name, given, upstream) for _ in range(2))
    assert all(t.equal(again[word]) for word, t in first.items())
    part = {word: t if word in ("weight", "bias") else t[2:3] for word, t in given.items()}
    alone = results(name, part, tuple(d[2:3] for d in upstream))
    for word, t in alone.items():
        if word not in ("dweight", "dbias"):
            assert t.equal(first[word][2:3]), word


# ---- other ways --------------------------------------------------------------------------------


@pytest.mark.usefixtures("without_kernels")
@pytest.mark.parametrize(
    ("x", "other", "parameters"), [(F32, F32, F32), (BF16, BF16, BF16), (F16, F32, F32), (F32, BF16, F32), (F64,) * 3]
)
@pytest.mark.parametrize("name", UNLIKE)
def test_without_kernels(name: str, x: torch.dtype, other: torch.dtype, parameters: torch.dtype) -> None:
    given = operands(name, (2, 3, 100), x, torch.device("cpu"), other, parameters)
    check(name, given)
    for word in given:
        check(name, given, [word])
    if FAMILY[name].two:
        check(name, given, use=(True, False))
        check(name, given, ["x", "residual"], use=(False, True))


@pytest.mark.parametrize("name", UNLIKE)
def test_one_tensor_in_two_places(name: str, way: str, device: torch.device) -> None:
    """Each place has a gradient of its own, and the tensor's is their sum."""
    given = operands(name, (2, 1, 40), F32, device)
    beside = next(word for word in ("residual", "y", "gate", "scale") if word in given)
    pairs = [("scale", "shift")] if beside == "scale" else [("x", beside)]
    for one, other in pairs:
        both = {**given, other: given[one]}
        upstream = upstream_of(name, given["x"])
        apart = results(name, both, upstream)
        leaf = given[one].detach().requires_grad_()
        outputs = call(name, {**both, one: leaf, other: leaf}, 40)
        (total,) = torch.autograd.grad(outputs, leaf, upstream)
        torch.testing.assert_close(total, apart[f"d{one}"] + apart[f"d{other}"])


@pytest.fixture(params=["kernels", "formula"])
def way(request: pytest.FixtureRequest) -> str:
    if request.param == "formula":
        request.getfixturevalue("without_kernels")
    return str(request.param)


# ---- what is kept and launched -----------------------------------------------------------------


@pytest.fixture
def launched(monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The names of the kernels, as they are launched."""
    names: list[str] = []
    carry_out: Callable[..., None] = Launch.__call__

    def noting(launch: Launch, *arguments: object) -> None:
        names.append(launch.name)
        carry_out(launch, *arguments)

    monkeypatch.setattr(Launch, "__call__", noting)
    return names


@pytest.mark.parametrize("name", UNLIKE)
def test_launches(name: str, launched: list[str], device: torch.device) -> None:
    given = operands(name, (2, 150, 64), BF16, device, F32, F32)
    upstream = upstream_of(name, given["x"], F32)
    streams = [word for word in given if given[word].shape == given["x"].shape]
    results(name, given, upstream, streams)
    assert [n.rsplit("_", 1)[1] for n in launched] == ["fwd", "bwd"]
    launched.clear()
    results(name, given, upstream)
    sums = 2 if name in ADAPTIVE else 1  # of parameters, and of what each batch has
    assert [n.rsplit("_", 1)[1] for n in launched] == ["fwd", "bwd"] + ["sum"] * sums
    launched.clear()
    with torch.no_grad():
        call(name, given, 64)
    assert [n.rsplit("_", 1)[1] for n in launched] == ["fwd"]


@pytest.mark.parametrize("name", UNLIKE)
def test_bytes_kept_for_backward(name: str, device: torch.device) -> None:
    kept: dict[int, int] = {}

    def note(t: Tensor) -> Tensor:
        kept[t.data_ptr()] = t.numel() * t.element_size()
        return t

    given = operands(name, (2, 150, 64), BF16, device, F32, F32)
    leaves = {word: t.requires_grad_() for word, t in given.items()}
    with torch.autograd.graph.saved_tensors_hooks(note, lambda t: t):
        outputs = call(name, leaves, 64)
    stats = 300 * 4 * (1 + FAMILY[name].centred) * FAMILY[name].norm
    freed = ("x", "residual") if name in ADD_ or not FAMILY[name].norm else ("residual",)
    words = [word for word in given if word not in freed]
    known = [leaves[word] for word in words] + ([outputs[1]] if FAMILY[name].two else [])
    assert sum(kept.values()) == stats + sum(t.numel() * t.element_size() for t in known)
    assert {t.data_ptr() for t in known} <= kept.keys()
    assert not {leaves[word].data_ptr() for word in freed if word in leaves} & kept.keys()
