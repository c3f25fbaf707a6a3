"""quantized_layer_norm and quantized_rms_norm: 8 bits and their scales."""

from collections.abc import Iterator
from typing import Any

import pytest
import torch
from torch import Tensor

import tritonln
from tests.helpers.problems import BF16, F16, F32, F64, rand
from tritonln.device import interpreting
from tritonln.emulator import emulated_gpu

E4M3, E5M2, I8, E8M0 = torch.float8_e4m3fn, torch.float8_e5m2, torch.int8, torch.float8_e8m0fnu
LARGEST = {E4M3: 448.0, E5M2: 57344.0, I8: 127.0}
NORMS = ("layer_norm", "rms_norm")
WIDE = 16_384 + 64  # past one tile
CPU = torch.device("cpu")


def quantized(norm: str, *args: Any, **options: Any) -> tuple[Tensor, ...]:
    return getattr(tritonln, f"quantized_{norm}")(*args, **options)


def bits(t: Tensor) -> Tensor:
    return t.view(torch.uint8)


def expected(y: Tensor, dtype: torch.dtype, scale: Tensor | None, blocks: bool) -> tuple[Tensor, Tensor]:
    """q and s of fp32 rows y, as the specifications have them."""
    M, N = y.shape
    if blocks:
        grouped = y.reshape(M, N // 32, 32)
        shift = grouped.abs().amax(-1).log2().floor() - (8 if dtype == E4M3 else 15)
        s = torch.ldexp(torch.ones(()), shift.clamp(min=-127).nan_to_num(nan=0)).double()
        quotient = (grouped.double() / s[..., None]).float().reshape(M, N)
        s = s.to(F32).to(E8M0)
    else:
        s = (y.abs().amax(1, keepdim=True) / LARGEST[dtype]).clamp(min=2.0**-126) if scale is None else scale
        quotient = y * (1 / s)
    if dtype == I8:
        return quotient.round().clamp(-128, 127).to(I8), s
    return quotient.clamp(-LARGEST[dtype], LARGEST[dtype]).to(dtype), s


MODES = {
    "rows": ({}, (E4M3, E5M2, I8)),
    "given": ({"scale": torch.tensor(0.0123)}, (E4M3, E5M2, I8)),
    "blocks": ({"block_size": 32}, (E4M3, E5M2)),
}


def cases() -> Iterator[tuple[str, torch.dtype, dict[str, Any]]]:
    for mode, (options, dtypes) in MODES.items():
        for dtype in dtypes:
            yield mode, dtype, options


def every_bit(norm: str, N: int, device: torch.device) -> None:
    """Rows of -1 and 1 are their own x_hat, so y is -weight or weight to the bit: of all magnitudes, and ties."""
    sign = torch.tensor([1.0, -1.0]).repeat(5, N // 2)
    weight = torch.ldexp(rand(N, dtype=F32, device=CPU), torch.linspace(-20, 12, N).round())
    ties = torch.tensor([0.0, 17.0, 19.0, 232.0, 240.0, 448.0, 2.0**-7, 3 * 2.0**-10, 5.0 * 2.0**-17])
    weight[: len(ties)] = ties
    x, w = sign.to(device), weight.to(device)
    for mode, dtype, options in cases():
        given = {k: v.to(device) if isinstance(v, Tensor) else v for k, v in options.items()}
        q, s = quantized(norm, x, N, w, eps=1e-30, dtype=dtype, **given)
        expected_q, expected_s = expected(sign * weight, dtype, options.get("scale"), mode == "blocks")
        assert q.dtype == dtype
        assert q.shape == x.shape
        assert torch.equal(bits(q).cpu(), bits(expected_q)), (mode, dtype)
        assert torch.equal(s.float().cpu(), expected_s.float()), (mode, dtype)
    q, _ = quantized(norm, x, N, w, eps=1e-30, dtype=E4M3, scale=torch.ones((), device=device))
    assert torch.equal(bits(q).cpu(), bits(expected(sign * weight, E4M3, torch.ones(()), False)[0]))  # ties as they are


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("N", [pytest.param(64, marks=pytest.mark.interpreted), WIDE])
def test_every_bit(norm: str, N: int, device: torch.device) -> None:
    every_bit(norm, N, device)


@pytest.mark.skipif(interpreting(), reason="an emulated GPU runs compiled kernels")
def test_every_bit_where_the_gpu_does_not_convert() -> None:
    with emulated_gpu("sm_80"):
        every_bit("rms_norm", 64, CPU)


@pytest.mark.parametrize("norm", NORMS)
def test_every_bit_without_kernels(norm: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tritonln.ops.quantized_op.kernels_on", lambda device: None)
    every_bit(norm, 64, CPU)


def hold(
    norm: str, x: Tensor, shape: Any, parameters: list[Tensor | None], found: tuple[Tensor, ...], x64: Tensor
) -> None:
    """q s is the norm, but for half the distance between numbers of q's dtype there."""
    function = getattr(torch.nn.functional, norm)
    eps = 1e-5
    y = function(x64, shape, *(None if p is None else p.to(F64) for p in parameters), eps)
    q, s = found[:2]
    quotients = q.to(F64) if q.dtype == I8 else q.float().to(F64)
    s = s.to(F64)
    if s.shape[-1] > 1:
        s = s.repeat_interleave(32, -1)
    apart = torch.ones_like(quotients)
    if q.dtype != I8:
        mantissa, least = (3, -6) if q.dtype == E4M3 else (2, -14)
        apart = torch.ldexp(apart, (y / s).abs().clamp(min=2.0**least).log2().floor() - mantissa)
    inside = (y / s).abs() <= LARGEST[q.dtype]
    off = (quotients - y / s).abs() - 0.5 * apart
    assert (off[inside] <= 1e-4 * apart[inside]).all()
    assert (quotients.abs()[~inside] == LARGEST[q.dtype]).all()


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize(("N", "dtype"), [(1, F32), (7, BF16), (33, F16), (96, BF16), (1000, F32), (WIDE, F32)])
def test_values(norm: str, N: int, dtype: torch.dtype, device: torch.device) -> None:
    x, residual = (rand(5, N, dtype=dtype, device=device, seed=seed) for seed in (0, 1))
    parameters: list[Tensor | None] = [rand(N, dtype=F32, device=device, seed=2)]
    parameters += [rand(N, dtype=F32, device=device, seed=3)] if norm == "layer_norm" else []
    q = quantized(norm, x, N, *parameters, eps=1e-5)
    hold(norm, x, (N,), parameters, q, x.to(F64))
    q = quantized(norm, x, (N,), *parameters, eps=1e-5, residual=residual.float(), dtype=I8)
    assert torch.equal(q[2], x.float() + residual.float())
    hold(norm, x, (N,), parameters, q, q[2].to(F64))
    if N % 32 == 0:
        hold(norm, x, (N,), parameters, quantized(norm, x, N, *parameters, eps=1e-5, block_size=32), x.to(F64))


@pytest.mark.parametrize("norm", NORMS)
def test_rows_that_are_no_numbers(norm: str, device: torch.device) -> None:
    x = rand(4, 64, dtype=F32, device=device)
    x[0, 3] = torch.nan
    x[1, 5] = torch.inf
    x[2] = 0.0
    for dtype in (E4M3, E5M2, I8):
        q, s = quantized(norm, x, 64, eps=1e-6, dtype=dtype)
        nan = [True, norm == "layer_norm", False, False]
        assert s.isnan().flatten().tolist()[::3] == nan[::3]
        assert s[2] == 2.0**-126
        assert (q[2].float() == 0).all()
        if dtype != I8:
            assert q[0].float().isnan().all()
    q, s = quantized(norm, x, 64, eps=1e-6, block_size=32)
    assert (bits(s)[0] == 255).all()
    assert q[0].float().isnan().all()
    assert (bits(s)[2] == 0).all()
    assert (q[2].float() == 0).all()


def test_strides_shapes_and_few_rows(device: torch.device) -> None:
    x = rand(3, 4, 128, dtype=BF16, device=device)[:, 1:3, :64]
    w = rand(64, dtype=BF16, device=device, seed=1)
    q, s = tritonln.quantized_rms_norm(x, 64, w)
    again = tritonln.quantized_rms_norm(x.contiguous(), 64, w)
    assert torch.equal(bits(q), bits(again[0]))
    assert torch.equal(s, again[1])
    assert q.shape == x.shape
    assert s.shape == (3, 2, 1)
    one = tritonln.quantized_rms_norm(x[1, 1], 64, w)
    assert torch.equal(bits(one[0]), bits(q[1, 1]))
    assert one[1].shape == (1,)
    assert one[1] == s[1, 1]
    q, s = tritonln.quantized_layer_norm(x, (2, 64), block_size=32)
    assert q.shape == x.shape
    assert s.shape == (3, 2, 2)
    q, s = tritonln.quantized_layer_norm(x, (2, 64))
    assert s.shape == (3, 1, 1)
    q, s, out = tritonln.quantized_layer_norm(x[:0], 64, residual=x[:0])
    assert q.shape == out.shape == (0, 2, 64)
    assert s.shape == (0, 2, 1)
    for options, size in (({}, 1), ({"block_size": 32}, 0)):
        with torch.device("meta"):  # nothing is made by the defaults of torch
            torch.set_default_dtype(F64)
            q, s = tritonln.quantized_rms_norm(x[..., :0], 0, **options)
            torch.set_default_dtype(F32)
        assert s.dtype == (E8M0 if options else F32)
        assert q.shape == (3, 2, 0)
        assert s.shape == (3, 2, size)
        assert (s.float() == 2.0**-126).all()
    given = torch.ones(1, device=device)
    assert tritonln.quantized_layer_norm(x, 64, scale=given)[1] is given
    shifted = tritonln.quantized_rms_norm(x, 64, w, weight_offset=1.0)
    assert torch.equal(bits(shifted[0]), bits(tritonln.quantized_rms_norm(x, 64, w.float() + 1)[0]))


@pytest.mark.parametrize("norm", NORMS)
def test_compiled(norm: str, device: torch.device) -> None:
    x, r = (rand(4, 64, dtype=F32, device=device, seed=seed) for seed in (0, 1))

    def both(x: Tensor, r: Tensor) -> tuple[Tensor, ...]:
        q, s = quantized(norm, x, 64, block_size=32)
        return q.float(), s.float(), *quantized(norm, x, 64, residual=r, dtype=I8)

    for found, eager in zip(torch.compile(both, fullgraph=True, backend="aot_eager")(x, r), both(x, r)):
        assert torch.equal(found, eager)
    op = getattr(torch.ops.tritonln, f"quantized_{norm}").default
    parameters = (None,) * (2 if norm == "layer_norm" else 1)
    torch.library.opcheck(op, (x, r, 64, *parameters, None, 1e-5, I8, False))


X = torch.ones(2, 64)
REFUSED: dict[str, tuple[dict[str, Any], type[Exception], str]] = {
    "gradient": (
        {"weight": torch.ones(64, requires_grad=True)},
        RuntimeError,
        "for inference: rounding has no gradient",
    ),
    "dtype": ({"dtype": torch.uint8}, RuntimeError, "expected dtype to be one of torch.float8_e4m3fn.*got torch.uint8"),
    "doubles": ({"input": X.double()}, RuntimeError, "expected x of dtype float32.*got torch.float64"),
    "block": ({"block_size": 16}, ValueError, "expected block_size to be 32 or None, but got 16"),
    "block of int8": ({"block_size": 32, "dtype": I8}, ValueError, "expected a float for dtype beside block_size"),
    "two scales": ({"block_size": 32, "scale": torch.ones(1)}, ValueError, "one of scale and block_size, but got both"),
    "scales": ({"scale": torch.ones(2)}, RuntimeError, r"scale to be one value of torch.float32, but got \[2\]"),
    "scale's dtype": ({"scale": torch.ones(1).half()}, RuntimeError, r"one value .*got \[1\] of torch.float16"),
    "scale no tensor": ({"scale": 1.0}, TypeError, "argument 'scale' must be Tensor, not float"),
    "part of a block": (
        {"input": X[:, :33], "normalized_shape": 33, "block_size": 32},
        RuntimeError,
        r"multiple of block_size=32, but got \[33\]",
    ),
    "residual": ({"residual": X[:1]}, RuntimeError, r"Expected residual size \[2, 64\], got \[1, 64\]"),
    "shape": ({"normalized_shape": 8}, RuntimeError, r"normalized_shape=\[8\]"),
}


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("case", REFUSED)
def test_refused(norm: str, case: str) -> None:
    given, error, words = REFUSED[case]
    with pytest.raises(error, match=words):
        quantized(norm, **{"input": X, "normalized_shape": 64, **given})
