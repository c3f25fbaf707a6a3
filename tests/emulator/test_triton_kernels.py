"""Kernels that Triton compiles: the landed ones with barriers taken out, and programs that wait for each other."""

import dataclasses
import re

import pytest
import torch
import triton
import triton.language as tl

from tritonln.device import TARGETS, interpreting
from tritonln.emulator import EmulatedGPU, EmulationError, emulated_gpu
from tritonln.emulator.ptx import Kernel, parse
from tritonln.ops.layer_norm import LAYER_NORM
from tritonln.ops.operands import dtypes_of
from tritonln.ops.rows import BackwardCall, Settings

pytestmark = pytest.mark.skipif(interpreting(), reason="an emulated GPU runs compiled kernels")


@pytest.fixture(params=["sm_80", "sm_90", "sm_100"])
def emulated(request: pytest.FixtureRequest):  # type: ignore[no-untyped-def]
    with emulated_gpu(request.param, count=False) as gpu:
        yield gpu


# ---- mutants --------------------------------------------------------------------------------------

BROKEN = [(r"bar\.sync\s+0;", ""), (r"cp\.async\.wait_group\s+\w+;", "cp.async.wait_group 9;")]


@pytest.mark.parametrize(("name", "M", "N"), [("layer_norm_bwd", 64, 1024), ("layer_norm_fwd", 16, 12_288)])
def test_barriers_of_the_kernels_are_needed(name: str, M: int, N: int, monkeypatch: pytest.MonkeyPatch) -> None:
    """All but a few of them, such as one before the first tile, which has nothing to guard yet."""
    texts: list[str] = []
    few = dataclasses.replace(TARGETS["sm_90"], multiprocessors=4)  # several tiles to a program
    x, dy = torch.randn(2, M, N).bfloat16()
    w = torch.randn(N)

    def run(gpu: EmulatedGPU) -> None:
        gpu.machines.clear()
        s, tensors = Settings(N, 1e-5, x.dtype), (x, w, w)
        _, _, stats = LAYER_NORM.forward(tensors, s, True, few)
        if name == "layer_norm_fwd":
            return
        assert stats is not None
        call = BackwardCall(dy, None, None, tensors, dtypes_of(tensors), stats, s, (True, True, True))
        LAYER_NORM.backward(call, few)

    def kept(text: str) -> Kernel:
        texts.append(text)
        return parse(text)

    monkeypatch.setattr("tritonln.emulator.driver.parse", kept)
    with emulated_gpu("sm_90", count=False) as gpu:
        run(gpu)
        original = next(text for text in texts if name in text)
        sites = [(m.start(), m.end(), new) for old, new in BROKEN for m in re.finditer(old, original)]
        sites = sites[:: -(-len(sites) // 16)]
        survived, said = [], []
        for i, (start, end, new) in enumerate(sites):
            broken = original[:start] + new + original[end:]
            monkeypatch.setattr(
                "tritonln.emulator.driver.parse",
                lambda text, broken=broken: parse(broken if text == original else text),
            )
            try:
                run(gpu)
            except EmulationError as error:
                said.append(str(error))
            else:
                survived.append(i)
    assert len(sites) > 5
    assert len(survived) <= 3
    line = re.compile(name + r": (race: |reads |writes ).*; CTA \d+ thread \d+, .* at .*\[pc \d+, \w+\.py:\d+\]")
    assert all(line.match(message) for message in said)


# ---- programs that wait for each other ------------------------------------------------------------


@triton.jit
def reversed_in_place(x_ptr, copy_ptr, count_ptr, arrivals, BLOCK: tl.constexpr):
    """Every program copies its row, waits for all, and takes that of its opposite."""
    program, programs, cols = tl.program_id(0), tl.num_programs(0), tl.arange(0, BLOCK)
    tl.store(copy_ptr + program * BLOCK + cols, tl.load(x_ptr + program * BLOCK + cols))
    tl.debug_barrier()
    if program < arrivals:
        tl.atomic_add(count_ptr, 1, sem="release")
    while tl.atomic_add(count_ptr, 0, sem="acquire") < programs:
        pass
    tl.store(x_ptr + program * BLOCK + cols, tl.load(copy_ptr + (programs - 1 - program) * BLOCK + cols))


def test_a_barrier_of_all_programs(emulated: EmulatedGPU) -> None:
    x, copy, count = torch.randn(12, 128), torch.empty(12, 128), torch.zeros(1, dtype=torch.int32)
    before = x.clone()
    reversed_in_place[(12,)](x, copy, count, 12, 128)
    assert x.equal(before.flip(0))
    with pytest.raises(EmulationError, match="reversed_in_place: deadlock: waits for memory that nothing changes"):
        reversed_in_place[(12,)](x, copy, count.zero_(), 11, 128)


@triton.jit
def atomics(x_ptr, add_ptr, high_ptr, low_ptr, old_ptr, N, BLOCK: tl.constexpr):
    i = tl.program_id(0) * BLOCK + tl.arange(0, BLOCK)
    x = tl.load(x_ptr + i, mask=i < N)
    tl.store(old_ptr + i, tl.atomic_add(add_ptr + i % 7, x, mask=i < N), mask=i < N)
    tl.atomic_max(high_ptr + i % 7, x, mask=i < N)
    tl.atomic_min(low_ptr + i % 7, x, mask=i < N)


@pytest.mark.parametrize("dtype", [torch.int32, torch.float32, torch.int64, torch.float64], ids=str)
def test_atomics(dtype: torch.dtype, emulated: EmulatedGPU) -> None:
    x = torch.randint(-100, 100, (500,)).to(dtype)
    add, high, low = (
        torch.zeros(7, dtype=dtype),
        torch.full((7,), -999, dtype=dtype),
        torch.full((7,), 999, dtype=dtype),
    )
    old = torch.empty(500, dtype=dtype)
    atomics[(4,)](x, add, high, low, old, 500, 128)
    for place in range(7):
        part = x[place::7]
        assert (add[place], high[place], low[place]) == (part.sum(), part.max(), part.min())
        assert sorted(old[place::7].tolist()) == sorted((part.cumsum(0) - part).tolist())


@triton.jit
def half_atomics(x_ptr, y_ptr, BLOCK: tl.constexpr):
    i = tl.arange(0, BLOCK)
    tl.atomic_add(y_ptr + i % 8, tl.load(x_ptr + i))


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16], ids=str)
def test_atomics_of_halves(dtype: torch.dtype, emulated: EmulatedGPU) -> None:
    """bf16 on sm_80 is a loop of compare-and-swap on pairs."""
    x, y = torch.randint(0, 4, (64,)).to(dtype), torch.zeros(8, dtype=dtype)
    half_atomics[(1,)](x, y, 64)
    assert y.equal(x.reshape(8, 8).sum(0))
