"""Floating-point arithmetic: rounded once, subnormal numbers, NaN and infinities, approximate instructions."""

import math
from collections.abc import Callable
from fractions import Fraction

import numpy as np
import pytest
import torch

from tests.emulator.programs import Array, apply, bits
from tritonln.emulator.floats import Approximation

F16, F32, F64, U16, U32 = np.float16, np.float32, np.float64, np.uint16, np.uint32
DIGITS = {F16: 11, F32: 24, F64: 53}
LEAST = {F16: -24, F32: -149, F64: -1074}  # exponent of the least subnormal number
TINY = np.float32(2.0**-126)


def nearest(x: Fraction, dtype: type) -> float:
    """Rounded to nearest even, by the definition."""
    if x == 0:
        return 0.0
    n, d = abs(x.numerator), x.denominator
    exponent = n.bit_length() - d.bit_length()
    exponent -= Fraction(2) ** exponent > abs(x)
    unit = Fraction(2) ** max(exponent + 1 - DIGITS[dtype], LEAST[dtype])
    low, rest = divmod(abs(x), unit)
    whole = int(low) + (rest > unit / 2 or (rest == unit / 2 and int(low) % 2 == 1))
    return math.copysign(float(whole * unit), x)


def operands(dtype: type, n: int = 900) -> tuple[Array, Array, Array]:
    rng = np.random.default_rng(0)
    a, b, c = (rng.standard_normal(n).astype(dtype) for _ in range(3))
    c[::3] = (-a[::3].astype(F64) * b[::3]).astype(dtype)  # cancels
    if dtype != F16:
        c[1::3] *= dtype(2.0) ** rng.integers(-60, 60, c[1::3].shape).astype(dtype)  # far apart
    few = rng.integers(-(2**12), 2**12, (2, len(a[2::3]))).astype(F64)
    a[2::3], b[2::3] = (few * 2.0**-12).astype(dtype)  # products of few digits
    c[2::3] = (rng.integers(-(2**24), 2**24, len(c[2::3])) * 2.0**-20).astype(dtype)  # and sums that are ties
    return a, b, c


def test_ties_by_a_hair() -> None:
    """(1 + 2^-12)^2 is a tie of fp32; the last operand tips it, far below what fp64 can hold beside 1."""
    a, c = np.full(3, 1 + 2.0**-12, F32), np.array([0.0, 2.0**-80, -(2.0**-80)], F32)
    even = 1 + 2.0**-11
    assert apply("fma.rn.f32 D, A, A, B;", F32, a, c).tolist() == [even, even + 2.0**-23, even]
    # A product of 2^-150 - 2^-196 leaves a subnormal number just short of the middle of two others.
    a, b = np.array([1 + 2.0**-23], F32) * F32(2.0**-75), np.array([1 - 2.0**-23], F32) * F32(2.0**-75)
    odd = np.array([2.0**-127 + 2.0**-149], F32)
    assert apply("fma.rn.f32 D, A, B, C;", F32, a, b, odd).tolist() == odd.tolist()


@pytest.mark.parametrize(("kind", "dtype"), [("f16", F16), ("f32", F32), ("f64", F64)])
def test_fma_rounds_once(kind: str, dtype: type) -> None:
    a, b, c = operands(dtype)
    found = apply(f"fma.rn.{kind} D, A, B, C;", dtype, a, b, c)
    for x, y, z, f in zip(a.tolist(), b.tolist(), c.tolist(), found.tolist()):
        assert f == nearest(Fraction(x) * Fraction(y) + Fraction(z), dtype), (x, y, z)


def test_fma_of_subnormal_numbers() -> None:
    rng = np.random.default_rng(1)
    a, b = (rng.standard_normal(500).astype(F32) * F32(2.0**-70) for _ in range(2))
    c = (rng.integers(-9, 9, 500) * 2.0**-149).astype(F32)
    found = apply("fma.rn.f32 D, A, B, C;", F32, a, b, c)
    for x, y, z, f in zip(a.tolist(), b.tolist(), c.tolist(), found.tolist()):
        assert f == nearest(Fraction(x) * Fraction(y) + Fraction(z), F32), (x, y, z)


@pytest.mark.parametrize("name", ["add", "sub", "mul"])
@pytest.mark.parametrize(("kind", "dtype"), [("f16", F16), ("f32", F32), ("f64", F64)])
def test_arithmetic(name: str, kind: str, dtype: type) -> None:
    a, b, _ = operands(dtype)
    function = {"add": np.add, "sub": np.subtract, "mul": np.multiply}[name]
    assert (apply(f"{name}.rn.{kind} D, A, B;", dtype, a, b) == function(a, b)).all()


def test_bf16_arithmetic() -> None:
    a, b, c = (torch.from_numpy(v).bfloat16() for v in operands(F32))
    raw = [v.view(torch.uint16).numpy() for v in (a, b, c)]
    for name, expected in (("add", a + b), ("sub", a - b), ("mul", a * b)):
        assert (apply(f"{name}.bf16 D, A, B;", U16, *raw[:2]) == expected.view(torch.uint16).numpy()).all()
    exact = (a.double() * b.double() + c.double()).tolist()
    found = torch.from_numpy(apply("fma.rn.bf16 D, A, B, C;", U16, *raw)).view(torch.bfloat16)
    expected = torch.tensor(exact, dtype=torch.float64).float().bfloat16()
    assert float(((found.double() - expected.double()) / expected.double().abs().clamp_min(1e-30)).abs().max()) <= 2**-8


def test_mixed_precision() -> None:
    """The sum of a bf16 and an fp32 number is an fp32 number."""
    a, b, c = operands(F32)
    half = torch.from_numpy(a).bfloat16()
    raw = half.view(torch.uint16).numpy()
    assert (apply("add.f32.bf16 D, A, B;", F32, raw, b) == half.float().numpy() + b).all()
    found = apply("fma.rn.f32.bf16 D, A, B, C;", F32, raw, raw, c)
    for x, z, f in zip(half.tolist(), c.tolist(), found.tolist()):
        assert f == nearest(Fraction(x) ** 2 + Fraction(z), F32)


def test_two_numbers_in_a_register() -> None:
    a, b, c = (v[:800] for v in operands(F32))
    pairs = [bits(v, np.uint64) for v in (a, b, c)]
    assert (bits(apply("add.rn.f32x2 D, A, B;", np.uint64, *pairs[:2]), F32) == a + b).all()
    assert (bits(apply("mul.rn.f32x2 D, A, B;", np.uint64, *pairs[:2]), F32) == a * b).all()
    found = bits(apply("fma.rn.f32x2 D, A, B, C;", np.uint64, *pairs), F32)
    assert (found == apply("fma.rn.f32 D, A, B, C;", F32, a, b, c)).all()
    halves = [v.astype(F16) for v in (a, b)]
    found = bits(apply("add.f16x2 D, A, B;", U32, *(bits(v, U32) for v in halves)), F16)
    assert (found == halves[0] + halves[1]).all()


def test_flushing() -> None:
    """.ftz: subnormal operands and results are zeros of their sign; without it they stay."""
    a = np.array([TINY / 2, -TINY / 2, TINY, -TINY, 1.5 * TINY], F32)
    b = np.array([0, 0, -TINY / 2, TINY / 2, -TINY], F32)
    assert (apply("add.f32 D, A, B;", F32, a, b) == a + b).all()
    flushed = apply("add.ftz.f32 D, A, B;", F32, a, b)
    assert flushed.tolist() == [0.0, 0.0, float(TINY), float(-TINY), 0.0]
    negative = apply("mul.ftz.f32 D, A, B;", F32, np.array([-TINY], F32), np.array([0.5], F32))
    assert bits(negative, U32).tolist() == [0x80000000]
    assert apply("abs.ftz.f32 D, A;", F32, a[:2]).tolist() == [0.0, 0.0]


@pytest.mark.parametrize("kind", ["f32", "f64", "f16", "bf16"])
def test_minimum_and_maximum(kind: str) -> None:
    """Of a number and NaN the number; with .NaN NaN; the canonical NaN; -0 below +0."""
    dtype, canonical = {"f32": (F32, 0x7FFFFFFF), "f64": (F64, 2**63 - 1), "f16": (F16, 0x7FFF), "bf16": (F32, 0x7FFF)}[
        kind
    ]
    a = np.array([1, np.nan, np.nan, -0.0, 0.0, -np.inf, 2], dtype)
    b = np.array([2, 1, np.nan, 0.0, -0.0, 1, np.nan], dtype)
    a, b = (
        torch.from_numpy(v).bfloat16().view(torch.uint16).numpy() if kind == "bf16" else v for v in (a, b)
    )  # fmt: skip
    unsigned = {2: U16, 4: U32, 8: np.uint64}[a.itemsize]
    one, two, zero = (bits(a[:1], unsigned)[0], bits(b[:1], unsigned)[0], 0)
    minus, infinite = bits(a[3:4], unsigned)[0], bits(a[5:6], unsigned)[0]
    low = bits(apply(f"min.{kind} D, A, B;", a.dtype, a, b), unsigned).tolist()
    high = bits(apply(f"max.{kind} D, A, B;", a.dtype, a, b), unsigned).tolist()
    assert low == [one, one, canonical, minus, minus, infinite, two]
    assert high == [two, one, canonical, zero, zero, one, two]
    low = bits(apply(f"min.NaN.{kind} D, A, B;", a.dtype, a, b), unsigned).tolist()
    assert low == [one, canonical, canonical, minus, minus, infinite, canonical]


def test_maximum_of_three() -> None:
    a, b, c = (np.array(v, F32) for v in ([1, 2, 3, -0.0, 1], [2, 3, 1, 0.0, np.nan], [3, 1, 2, -0.0, 2]))
    assert apply("max.f32 D, A, B, C;", F32, a, b, c).tolist() == [3, 3, 3, 0, 2]
    assert apply("min.f32 D, A, B, C;", F32, a, b, c).tolist() == [1, 1, 1, 0, 1]
    assert np.isnan(apply("max.NaN.f32 D, A, B, C;", F32, a, b, c)).tolist() == [False] * 4 + [True]


COMPARISONS: dict[str, Callable[[float, float], bool]] = {
    "eq": lambda a, b: a == b, "ne": lambda a, b: a < b or a > b, "lt": lambda a, b: a < b, "ge": lambda a, b: a >= b,
    "equ": lambda a, b: not a < b and not a > b, "neu": lambda a, b: a != b, "ltu": lambda a, b: not a >= b,
    "geu": lambda a, b: not a < b, "num": lambda a, b: a == a and b == b, "nan": lambda a, b: a != a or b != b,
}  # fmt: skip


@pytest.mark.parametrize("name", COMPARISONS)
def test_comparisons(name: str) -> None:
    values = [0.0, -0.0, 1.0, -1.0, math.inf, -math.inf, math.nan]
    a, b = zip(*((x, y) for x in values for y in values))
    text = f"setp.{name}.f32 %p0, A, B; selp.u32 D, 1, 0, %p0;"
    found = apply(text, U32, np.array(a, F32), np.array(b, F32))
    assert found.tolist() == [int(COMPARISONS[name](x, y)) for x, y in zip(a, b)]


def test_signs_of_nan_and_zero() -> None:
    raw = np.array([0x7FC00001, 0xFFC00001, 0x80000000, 0x3F800000], U32)
    assert apply("neg.f32 D, A;", U32, raw).tolist() == [0xFFC00001, 0x7FC00001, 0, 0xBF800000]
    assert apply("abs.f32 D, A;", U32, raw).tolist() == [0x7FC00001, 0x7FC00001, 0, 0x3F800000]


def test_saturation() -> None:
    a = np.array([-1, 0.25, 2, np.nan, np.inf], F32)
    assert apply("add.sat.f32 D, A, B;", F32, a, 0 * np.ones(5, F32)).tolist() == [0.0, 0.25, 1.0, 0.0, 1.0]


# ---- approximate instructions ---------------------------------------------------------------------

APPROXIMATE: dict[str, tuple[str, Callable[[Array], Array], float]] = {
    "rsqrt.approx.ftz.f32": ("positive", lambda x: 1 / np.sqrt(x), 2**-22.9),
    "rcp.approx.f32": ("all", lambda x: 1 / x, 2**-23),
    "sqrt.approx.f32": ("positive", np.sqrt, 2**-23),
    "ex2.approx.f32": ("all", np.exp2, 2**-22),
    "tanh.approx.f32": ("all", np.tanh, 2**-10.987),
}


@pytest.mark.parametrize("name", APPROXIMATE)
@pytest.mark.parametrize("seed", [None, 0, 1])
def test_approximate_instructions_keep_their_bound(name: str, seed: int | None) -> None:
    domain, function, bound = APPROXIMATE[name]
    x = np.random.default_rng(3).standard_normal(1000).astype(F32)
    x = np.abs(x) if domain == "positive" else x
    exact = function(x.astype(F64))
    approximate = Approximation(seed is not None, seed or 0)
    found = apply(f"{name} D, A;", F32, x, approximate=approximate).astype(F64)
    error = np.abs(found / exact - 1).max()
    assert error <= bound
    if seed is None:
        assert (found == exact.astype(F32)).all()
    else:
        assert error > bound / 3  # the bound is made use of


def test_quotients() -> None:
    a, b, _ = operands(F32)
    assert (apply("div.rn.f32 D, A, B;", F32, a, b) == a / b).all()
    exact = a.astype(F64) / b
    found = apply("div.full.f32 D, A, B;", F32, a, b, approximate=Approximation(True, 5)).astype(F64)
    assert 2**-24 < np.abs(found / exact - 1).max() <= 2**-22


def test_perturbation_is_a_function_of_value_and_seed() -> None:
    x = np.full(64, 3.0, F32)
    found = [apply("rsqrt.approx.f32 D, A;", F32, x, approximate=Approximation(True, seed)) for seed in range(20)]
    assert all((f == f[0]).all() for f in found)  # equal operands, equal results
    assert len({float(f[0]) for f in found}) > 1


def test_special_values() -> None:
    x = np.array([0.0, -0.0, np.inf, np.nan, -1.0, TINY / 2], F32)
    for seed in (None, 0):
        found = apply("rsqrt.approx.ftz.f32 D, A;", F32, x, approximate=Approximation(seed is not None, seed or 0))
        assert found[:3].tolist() == [math.inf, -math.inf, 0.0]
        assert np.isnan(found[3:5]).all()
        assert found[5] == math.inf  # flushed
        assert apply("ex2.approx.f32 D, A;", F32, np.array([-200, 200, -np.inf], F32)).tolist() == [0.0, math.inf, 0.0]
