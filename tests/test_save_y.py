"""layer_norm and rms_norm that keep y for backward in the place of x, and restore x_hat from it."""

import itertools
import weakref
from typing import Any

import pytest
import torch

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.problems import BF16, F16, F32, F64, WIDE, rand
from tests.helpers.save_y import NORMS, expect, kept_by, problem, run
from tritonln.kernels.limits import LEAST_WEIGHT, MOST_BIAS

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
            *itertools.product(NORMS, [64, 1000], [BF16, F16], [None]),
            *itertools.product(["rms_norm"], [64, 1000], [F32, F16], [BF16]),
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
