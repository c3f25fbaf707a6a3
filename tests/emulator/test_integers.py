"""Integer arithmetic and bits, against Python's integers."""

from collections.abc import Callable

import numpy as np
import pytest

from tests.emulator.programs import Array, apply
from tritonln.emulator import EmulationError

DTYPE = {"u16": np.uint16, "s16": np.int16, "u32": np.uint32, "s32": np.int32, "u64": np.uint64, "s64": np.int64}


def width(kind: str) -> int:
    return int(kind[1:])


def edges(kind: str) -> list[int]:
    w = width(kind)
    low, high = (0, 2**w - 1) if kind[0] == "u" else (-(2 ** (w - 1)), 2 ** (w - 1) - 1)
    near = [low, low + 1, high, high - 1, 0, 1, 2, 3, 7, 2 ** (w // 2), 2 ** (w // 2) - 1, 2 ** (w // 2) + 1]
    return near + ([-1, -2, -7, -(2 ** (w // 2))] if kind[0] == "s" else [])


def wrapped(value: int, kind: str) -> int:
    w = width(kind)
    value &= 2**w - 1
    return value - 2**w if kind[0] == "s" and value >> (w - 1) else value


def pairs(kind: str) -> tuple[list[int], list[int]]:
    both = [(a, b) for a in edges(kind) for b in edges(kind)]
    rng = np.random.default_rng(0)
    both += [(wrapped(int(a), kind), wrapped(int(b), kind)) for a, b in rng.integers(0, 2**63, (100, 2))]
    return [a for a, _ in both], [b for _, b in both]


def quotient(a: int, b: int) -> int:
    return abs(a) // abs(b) * (1 if (a < 0) == (b < 0) else -1)


BINARY: dict[str, Callable[[int, int, int], int]] = {
    "add": lambda a, b, w: a + b,
    "sub": lambda a, b, w: a - b,
    "mul.lo": lambda a, b, w: a * b,
    "mul.hi": lambda a, b, w: a * b >> w,
    "min": lambda a, b, w: min(a, b),
    "max": lambda a, b, w: max(a, b),
    "div": lambda a, b, w: quotient(a, b),
    "rem": lambda a, b, w: a - quotient(a, b) * b,
}


@pytest.mark.parametrize("kind", DTYPE)
@pytest.mark.parametrize("name", BINARY)
def test_binary(name: str, kind: str) -> None:
    a, b = pairs(kind)
    if name in ("div", "rem"):
        a, b = zip(*((x, y) for x, y in zip(a, b) if y))  # type: ignore[assignment]
    found = apply(f"{name}.{kind} D, A, B;", DTYPE[kind], np.array(a, DTYPE[kind]), np.array(b, DTYPE[kind]))
    assert found.tolist() == [wrapped(BINARY[name](x, y, width(kind)), kind) for x, y in zip(a, b)]


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
@pytest.mark.parametrize("part", ["lo", "hi"])
def test_mad(part: str, kind: str) -> None:
    a, b = pairs(kind)
    c = b[::-1]
    found = apply(f"mad.{part}.{kind} D, A, B, C;", DTYPE[kind], *(np.array(v, DTYPE[kind]) for v in (a, b, c)))
    shift = width(kind) if part == "hi" else 0
    assert found.tolist() == [wrapped((x * y >> shift) + z, kind) for x, y, z in zip(a, b, c)]


@pytest.mark.parametrize(("kind", "wide"), [("u16", "u32"), ("s16", "s32"), ("u32", "u64"), ("s32", "s64")])
def test_wide_products(kind: str, wide: str) -> None:
    a, b = pairs(kind)
    x, y = (np.array(v, DTYPE[kind]) for v in (a, b))
    assert apply(f"mul.wide.{kind} D, A, B;", DTYPE[wide], x, y).tolist() == [i * j for i, j in zip(a, b)]
    c = np.arange(len(a)).astype(DTYPE[wide])
    found = apply(f"mad.wide.{kind} D, A, B, C;", DTYPE[wide], x, y, c)
    assert found.tolist() == [wrapped(i * j + k, wide) for k, (i, j) in enumerate(zip(a, b))]


@pytest.mark.parametrize("kind", ["s16", "s32", "s64"])
def test_unary(kind: str) -> None:
    a = edges(kind)
    x = np.array(a, DTYPE[kind])
    assert apply(f"neg.{kind} D, A;", DTYPE[kind], x).tolist() == [wrapped(-i, kind) for i in a]
    assert apply(f"abs.{kind} D, A;", DTYPE[kind], x).tolist() == [wrapped(abs(i), kind) for i in a]


def test_division_by_zero_is_said() -> None:
    with pytest.raises(EmulationError, match="integer division by zero; CTA 0 thread 1"):
        apply("div.s32 D, A, B;", np.int32, np.ones(2, np.int32), np.array([1, 0], np.int32))


@pytest.mark.parametrize("kind", DTYPE)
@pytest.mark.parametrize("name", ["shl", "shr"])
def test_shifts(name: str, kind: str) -> None:
    """By the width and more, everything has gone."""
    w = width(kind)
    a, n = zip(
        *((a, n) for a in edges(kind) for n in (0, 1, 5, w - 1, w, w + 1, 31, 32, 33, 64, 255, 2**31, 2**32 - 1))
    )
    mnemonic = f"shl.b{w}" if name == "shl" else f"shr.{kind}"
    found = apply(f"{mnemonic} D, A, B;", DTYPE[kind], np.array(a, DTYPE[kind]), np.array(n, np.uint32))
    expected = [i << min(k, w) if name == "shl" else i >> min(k, w) for i, k in zip(a, n)]
    assert found.tolist() == [wrapped(v, kind) for v in expected]


@pytest.mark.parametrize("kind", ["u32", "s32", "u64", "s64"])
def test_bit_field_extract(kind: str) -> None:
    w = width(kind)
    cases = [
        (a, p, n) for a in edges(kind) for p in (0, 1, 7, 31, 32, 40, 63, 64, 255, 256) for n in (0, 1, 8, 32, 64, 200)
    ]
    a, p, n = zip(*cases)
    found = apply(
        f"bfe.{kind} D, A, B, C;", DTYPE[kind], np.array(a, DTYPE[kind]), np.array(p, np.uint32), np.array(n, np.uint32)
    )

    def field(a: int, p: int, n: int) -> int:
        p, n, result = p & 255, n & 255, 0
        top = min(p + n - 1, w - 1)
        sign = 0 if kind[0] == "u" or n == 0 else (a >> top) & 1
        for i in range(w):
            result |= ((a >> (p + i)) & 1 if i < n and p + i < w else sign) << i
        return wrapped(result, kind)

    assert found.tolist() == [field(*case) for case in cases]


@pytest.mark.parametrize("w", [32, 64])
def test_bit_field_insert(w: int) -> None:
    kind = f"u{w}"
    for p in (0, 1, 7, 31, 32, 63, 64, 255):
        for n in (0, 1, 8, 32, 64, 200):
            a, b = pairs(kind)
            found = apply(f"bfi.b{w} D, A, B, {p}, {n};", DTYPE[kind], *(np.array(v, DTYPE[kind]) for v in (a, b)))
            field = ((2**n - 1) << p) & (2**w - 1)
            assert found.tolist() == [(y & ~field) | ((x << p) & field) for x, y in zip(a, b)]


def test_bytes_permuted() -> None:
    rng = np.random.default_rng(1)
    a, b, s = (rng.integers(0, 2**32, 200).astype(np.uint32) for _ in range(3))

    def permuted(a: int, b: int, s: int) -> int:
        source, result = (a | b << 32).to_bytes(8, "little"), []
        for i in range(4):
            choice = s >> 4 * i & 15
            byte = source[choice & 7]
            result.append((255 if byte & 128 else 0) if choice & 8 else byte)
        return int.from_bytes(bytes(result), "little")

    assert apply("prmt.b32 D, A, B, C;", np.uint32, a, b, s).tolist() == [permuted(*map(int, v)) for v in zip(a, b, s)]


@pytest.mark.parametrize(("name", "sign"), [("add", 1), ("sub", -1)])
def test_two_halves_at_once(name: str, sign: int) -> None:
    rng = np.random.default_rng(4)
    a, b = (rng.integers(0, 2**16, (200, 2)) for _ in range(2))
    expected = (a + sign * b).astype(np.uint16).view(np.uint32)[:, 0]
    packed = (v.astype(np.uint16).view(np.uint32)[:, 0] for v in (a, b))
    assert apply(f"{name}.s16x2 D, A, B;", np.uint32, *packed).tolist() == expected.tolist()


@pytest.mark.parametrize("direction", ["l", "r"])
@pytest.mark.parametrize("mode", ["wrap", "clamp"])
def test_two_words_shifted(direction: str, mode: str) -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.integers(0, 2**32, 80).astype(np.uint32) for _ in range(2))
    by = np.array([0, 1, 5, 31, 32, 33, 40, 2**32 - 1] * 10, np.uint32)

    def shifted(low: int, high: int, n: int) -> int:
        n = n % 32 if mode == "wrap" else min(n, 32)
        both = low | high << 32
        return (both << n >> 32 if direction == "l" else both >> n) & 0xFFFFFFFF

    expected = [shifted(*map(int, v)) for v in zip(a, b, by)]
    assert apply(f"shf.{direction}.{mode}.b32 D, A, B, C;", np.uint32, a, b, by).tolist() == expected


@pytest.mark.parametrize("table", [0x80, 0xE8, 0x96, 0xCA, 0x01, 0xFE])
def test_any_function_of_three_bits(table: int) -> None:
    rng = np.random.default_rng(2)
    a, b, c = (rng.integers(0, 2**32, 64).astype(np.uint32) for _ in range(3))
    # The same table a bit at a time: that of the truth values 0xF0, 0xCC and 0xAA is itself.
    expected = []
    for x, y, z in zip(a.tolist(), b.tolist(), c.tolist()):
        expected.append(
            sum((table >> ((x >> i & 1) * 4 + (y >> i & 1) * 2 + (z >> i & 1)) & 1) << i for i in range(32))
        )
    text = "mov.b32 %r20, A; mov.b32 %r21, B; mov.b32 %r22, C; "
    assert apply(text + f"lop3.b32 D, %r20, %r21, %r22, {table};", np.uint32, a, b, c).tolist() == expected


@pytest.mark.parametrize("w", [32, 64])
def test_counting(w: int) -> None:
    kind = f"u{w}"
    values = [*edges(kind), *(1 << i for i in range(w))]
    x = np.array(values, DTYPE[kind])
    assert apply(f"popc.b{w} D, A;", np.uint32, x).tolist() == [v.bit_count() for v in values]
    assert apply(f"clz.b{w} D, A;", np.uint32, x).tolist() == [w - v.bit_length() for v in values]
    assert apply(f"brev.b{w} D, A;", DTYPE[kind], x).tolist() == [int(f"{v:0{w}b}"[::-1], 2) for v in values]


@pytest.mark.parametrize(
    ("name", "function"),
    [("and", np.bitwise_and), ("or", np.bitwise_or), ("xor", np.bitwise_xor), ("not", lambda a, b: ~a)],
)
@pytest.mark.parametrize("w", [16, 32, 64])
def test_logic(name: str, function: Callable[[Array, Array], Array], w: int) -> None:
    a, b = (np.array(v, DTYPE[f"u{w}"]) for v in pairs(f"u{w}"))
    found = apply(f"{name}.b{w} D, A{', B' if name != 'not' else ''};", a.dtype, a, b)
    assert (found == function(a, b)).all()


@pytest.mark.parametrize("name", ["eq", "ne", "lt", "le", "gt", "ge"])
@pytest.mark.parametrize("kind", ["u16", "s16", "u32", "s32", "u64", "s64"])
def test_comparisons(name: str, kind: str) -> None:
    a, b = pairs(kind)
    found = apply(
        f"setp.{name}.{kind} %p0, A, B; selp.u32 D, 1, 0, %p0;",
        np.uint32, np.array(a, DTYPE[kind]), np.array(b, DTYPE[kind]),
    )  # fmt: skip
    compare = {
        "eq": int.__eq__,
        "ne": int.__ne__,
        "lt": int.__lt__,
        "le": int.__le__,
        "gt": int.__gt__,
        "ge": int.__ge__,
    }
    assert found.tolist() == [int(compare[name](x, y)) for x, y in zip(a, b)]


def test_predicates_joined() -> None:
    a, b = np.arange(8, dtype=np.uint32), np.full(8, 4, np.uint32)
    text = "setp.lt.u32 %p1, A, 2; setp.ge.and.u32 %p2|%p3, A, B, !%p1; "
    text += "selp.u32 %r20, 1, 0, %p2; selp.u32 D, 2, %r20, %p3;"
    assert apply(text, np.uint32, a, b).tolist() == [0, 0, 2, 2, 1, 1, 1, 1]
