"""mov and cvt: rounding, saturation, and registers wider than what is in them."""

import math

import numpy as np
import pytest
import torch

from tests.emulator.programs import Array, apply, bits

F16, F32, F64, U16, U32 = np.float16, np.float32, np.float64, np.uint16, np.uint32
INTEGERS = {"s8": np.int8, "u8": np.uint8, "s16": np.int16, "u16": np.uint16, "s32": np.int32, "u32": np.uint32,
            "s64": np.int64, "u64": np.uint64}  # fmt: skip
ROUND = {"rni": round, "rzi": math.trunc, "rmi": math.floor, "rpi": math.ceil}


def anything() -> Array:
    """Bits of any fp32 numbers."""
    return np.random.default_rng(0).integers(0, 2**32, (16, 1024), dtype=np.uint64).astype(U32)


@pytest.mark.parametrize("kind", ["s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("mode", ROUND)
def test_floats_to_integers_saturate(mode: str, kind: str) -> None:
    info = np.iinfo(INTEGERS[kind])
    ends = [float(info.min), float(info.max), float(info.max) / 2, float(info.min) / 2]
    values = [
        0.0,
        0.5,
        1.5,
        2.5,
        -0.5,
        -1.5,
        -2.5,
        0.49,
        1e10,
        -1e10,
        1e30,
        -1e30,
        *ends,
        math.inf,
        -math.inf,
        math.nan,
    ]
    found = apply(f"cvt.{mode}.{kind}.f64 D, A;", INTEGERS[kind], np.array(values, F64))
    expected = []
    for v in values:
        if math.isnan(v):
            expected.append(0)
        else:
            whole = ROUND[mode](v) if math.isfinite(v) else int(math.copysign(2**80, v))
            expected.append(min(max(whole, info.min), info.max))
    assert found.tolist() == expected


def test_integers_to_floats() -> None:
    values = [0, 1, -1, 2**24 + 1, 2**31 - 1, -(2**31), 2**24 + 3]
    assert (
        apply("cvt.rn.f32.s32 D, A;", F32, np.array(values, np.int32)) == np.array(values, np.int32).astype(F32)
    ).all()
    big = np.array([2**64 - 1, 2**53 + 1, 2**63], np.uint64)
    assert (apply("cvt.rn.f64.u64 D, A;", F64, big) == big.astype(F64)).all()


def test_to_half() -> None:
    for raw in anything():
        x = torch.from_numpy(raw).view(torch.float32)
        nan = x.isnan().numpy()
        halves = apply("cvt.rn.f16.f32 D, A;", U16, raw)
        assert (halves[~nan] == x.half().view(torch.uint16).numpy()[~nan]).all()
        assert (np.isnan(bits(halves, F16)) == nan).all()
        brains = apply("cvt.rn.bf16.f32 D, A;", U16, raw)
        assert (brains[~nan] == x.bfloat16().view(torch.uint16).numpy()[~nan]).all()
        assert (brains[nan] == 0x7FFF).all()


def test_two_halves_at_once() -> None:
    """The first operand is the upper half."""
    a, b = np.array([1.5, -2.0], F32), np.array([3.0, 1 + 2.0**-9], F32)
    found = bits(apply("cvt.rn.bf16x2.f32 D, A, B;", U32, a, b), U16)
    expected = torch.tensor([[3.0, 1.5], [1 + 2.0**-9, -2.0]]).bfloat16().view(torch.uint16).numpy()
    assert (found == expected.reshape(-1)).all()
    found = bits(apply("cvt.rn.f16x2.f32 D, A, B;", U32, a, b), F16)
    assert found.tolist() == [3.0, 1.5, 1 + 2.0**-9, -2.0]


@pytest.mark.parametrize(
    ("kind", "dtype", "most"), [("e4m3x2", torch.float8_e4m3fn, 448.0), ("e5m2x2", torch.float8_e5m2, 57344.0)]
)
def test_two_bytes_at_once(kind: str, dtype: torch.dtype, most: float) -> None:
    """Ties to even, subnormal numbers, what saturates, and NaN."""
    grid = torch.arange(-300, 301).float()
    x = torch.cat([grid * 2.0**e for e in (-19, -12, -8, 0, 9)] + [torch.tensor([torch.inf, -torch.inf, -0.0, 1e-30])])
    x = torch.cat([x, torch.tensor([torch.nan])])
    wanted = x.clamp(-most, most).to(dtype).view(torch.uint8).numpy().astype(U16)
    found = apply(f"cvt.rn.satfinite.{kind}.f32 D, A, B;", U16, x.flip(0).numpy(), x.numpy())
    np.testing.assert_array_equal(found & 0xFF, wanted)
    np.testing.assert_array_equal(found >> 8, wanted[::-1])


def test_from_half_is_exact() -> None:
    raw = np.arange(2**16).astype(U16)
    for start in range(0, 2**16, 1024):
        part = raw[start : start + 1024]
        wide = torch.from_numpy(part)
        for name, dtype in (("f16", torch.float16), ("bf16", torch.bfloat16)):
            found = apply(f"cvt.f32.{name} D, A;", F32, part)
            np.testing.assert_array_equal(found, wide.view(dtype).float().numpy())


def test_to_double_and_back() -> None:
    x = np.array([1 + 2.0**-24, 1 + 2.0**-24 + 2.0**-50, 1e300, 2.0**-150, 3 * 2.0**-150], F64)
    assert apply("cvt.rn.f32.f64 D, A;", F32, x).tolist() == [1.0, 1 + 2.0**-23, math.inf, 0.0, 2.0**-148]
    assert apply("cvt.f64.f32 D, A;", F64, np.array([0.1], F32)).tolist() == [float(F32(0.1))]
    assert apply("cvt.ftz.f32.f16 D, A;", F32, np.array([2.0**-24], F16)).tolist() == [2.0**-24]  # normal in fp32


def test_tensor_float() -> None:
    """rna: to 10 bits, ties away from zero."""
    ulp = 2.0**-10
    x = np.array([1 + ulp / 2, -(1 + ulp / 2), 1 + ulp / 2 - 2.0**-23, 1 + 1.5 * ulp, np.inf], F32)
    found = bits(apply("cvt.rna.tf32.f32 D, A;", U32, x), F32)
    assert found.tolist() == [1 + ulp, -(1 + ulp), 1.0, 1 + 2 * ulp, math.inf]


def test_rounding_to_integers_in_place() -> None:
    x = np.array([0.5, 1.5, -2.5, 2.7, -0.2], F32)
    assert apply("cvt.rni.f32.f32 D, A;", F32, x).tolist() == [0.0, 2.0, -2.0, 3.0, -0.0]
    assert apply("cvt.rmi.f32.f32 D, A;", F32, x).tolist() == [0.0, 1.0, -3.0, 2.0, -1.0]
    assert apply("cvt.sat.f32.f32 D, A;", F32, x).tolist() == [0.5, 1.0, 0.0, 1.0, 0.0]


@pytest.mark.parametrize("source", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
@pytest.mark.parametrize("to", ["s8", "u8", "s16", "u16", "s32", "u32", "s64", "u64"])
def test_integers_to_integers(source: str, to: str) -> None:
    """Cut off, or extended by the sign of what was read, also in a register that is wider than the type."""
    held, wide = INTEGERS[source], np.dtype(INTEGERS[to])
    values = np.array([0, 1, 127, 128, 255, 256, 32767, 32768, 65535, 2**31 - 1, 2**31, 2**32 - 1, 2**63], np.uint64)
    x = values.astype(held)
    register = np.int64
    read = x.astype(np.uint16) if x.itemsize == 1 else x  # bytes stand in 16-bit registers
    found = apply(f"cvt.{to}.{source} %d20, A; mov.b64 D, %d20;", register, read)
    assert found.tolist() == x.astype(wide).astype(np.int64).tolist()


def test_integer_saturation() -> None:
    x = np.array([-300, -1, 0, 127, 128, 70000], np.int32)
    assert apply("cvt.sat.s8.s32 %r20, A; mov.b32 D, %r20;", np.int32, x).tolist() == [-128, -1, 0, 127, 127, 127]
    assert apply("cvt.sat.u8.s32 %r20, A; mov.b32 D, %r20;", np.int32, x).tolist() == [0, 0, 0, 127, 128, 255]


def test_packing() -> None:
    x = np.array([0x11112222, 0xFFFF0001], U32)
    assert apply("mov.b32 {%h20, %h21}, A; mov.b32 D, {%h21, %h20};", U32, x).tolist() == [0x22221111, 0x0001FFFF]
    assert apply("mov.b32 {_, %h21}, A; cvt.u32.u16 D, %h21;", U32, x).tolist() == [0x1111, 0xFFFF]
    wide = np.array([0x1111222233334444], np.uint64)
    assert apply("mov.b64 {%r20, %r21}, A; mov.b64 D, {%r21, %r20};", np.uint64, wide).tolist() == [0x3333444411112222]
    assert apply("mov.b64 {%h20, %h21, %h22, %h23}, A; cvt.u32.u16 D, %h23;", U32, wide).tolist() == [0x1111]
