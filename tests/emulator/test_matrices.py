"""mma, ldmatrix and stmatrix, whose layouts are those of the PTX ISA's tables."""

import numpy as np
import pytest
import torch

from tests.emulator.programs import Array, bits, launch
from tritonln.emulator import EmulationError

F16, F32, U16, U32 = np.float16, np.float32, np.uint16, np.uint32


def lanes():  # type: ignore[no-untyped-def]
    for lane in range(32):
        yield lane, lane >> 2, lane % 4


@pytest.mark.parametrize("kind", ["f16", "bf16", "tf32"])
@pytest.mark.parametrize("long", [False, True])
def test_products(kind: str, long: bool) -> None:
    k = {False: 8, True: 16}[long] if kind != "tf32" else {False: 4, True: 8}[long]
    rng = np.random.default_rng(0)
    A, B, C = (rng.standard_normal(shape).astype(F32) for shape in ((16, k), (k, 8), (16, 8)))
    if kind == "tf32":
        A, B = (bits(bits(m, U32) & U32(0xFFFFE000), F32) for m in (A, B))
        code = [bits(m, U32) for m in (A, B)]
    else:
        half = torch.float16 if kind == "f16" else torch.bfloat16
        A, B = (torch.from_numpy(m).to(half) for m in (A, B))
        code = [m.view(torch.uint16).numpy() for m in (A, B)]
        A, B = A.float().numpy(), B.float().numpy()
    a, b = fragments(*code, k, 1 if kind == "tf32" else 2)
    c = np.zeros((32, 4), F32)
    for lane, g, t in lanes():
        c[lane] = [C[g, 2 * t], C[g, 2 * t + 1], C[g + 8, 2 * t], C[g + 8, 2 * t + 1]]
    d = np.zeros((32, 4), F32)
    load = [
        f"mad.wide.u32 %d{n}, %t, {4 * width}, %a{i}; " + " ".join(
            f"ld.global.b32 %r{n + j}, [%d{n} + {4 * j}];" for j in range(width)
        )
        for i, n, width in ((1, 10, a.shape[1]), (2, 20, b.shape[1]), (3, 30, 4))
    ]  # fmt: skip
    names = [", ".join(f"%r{n + j}" for j in range(w)) for n, w in ((10, a.shape[1]), (20, b.shape[1]), (30, 4))]
    sources = ", ".join(f"{{{name}}}" for name in names)
    text = f"mma.sync.aligned.m16n8k{k}.row.col.f32.{kind}.{kind}.f32 {{%r0, %r1, %r2, %r3}}, {sources};"
    store = "mad.wide.u32 %d1, %t, 16, %a0; st.global.v4.b32 [%d1], {%r0, %r1, %r2, %r3};"
    launch("\n".join([*load, text, store]), d, a, b, c)
    expected = (A.astype(np.float64) @ B.astype(np.float64) + C).astype(F32)
    for lane, g, t in lanes():
        assert d[lane].tolist() == [
            expected[g, 2 * t], expected[g, 2 * t + 1], expected[g + 8, 2 * t], expected[g + 8, 2 * t + 1]
        ]  # fmt: skip


def fragments(A: Array, B: Array, k: int, width: int) -> tuple[Array, Array]:
    """The registers of A and B; `width` numbers in each."""
    a, b = [], []
    for _, g, t in lanes():
        block = 4 * width  # columns that a group of four lanes covers
        for first in range(0, k, block):
            column = first + t * width
            a += [A[g, column : column + width], A[g + 8, column : column + width]]
            b += [B[column : column + width, g]]
    registers = [np.ascontiguousarray(np.stack(m)).view(U32).reshape(32, -1) for m in (a, b)]
    return registers[0], registers[1]


@pytest.mark.parametrize("n", [1, 2, 4])
@pytest.mark.parametrize("transposed", [False, True])
@pytest.mark.parametrize("shift", [16, 80])
def test_tiles(n: int, transposed: bool, shift: int) -> None:
    """Rows of 8 halves, `shift` bytes apart; a lane's register holds two neighbours of a row, or of a column."""
    tiles = np.arange(n * 64, dtype=U16).reshape(n, 8, 8)
    out, out_rows = np.zeros((32, n), U32), np.zeros((n, 8, 8), U16)
    trans = ".trans" if transposed else ""
    registers = ", ".join(f"%r{10 + i}" for i in range(n))
    stores = " ".join(f"st.global.b32 [%d2 + {4 * i}], %r{10 + i};" for i in range(n))
    launch(
        f"""
        mov.u32 %r1, smem;
        mad.lo.u32 %r2, %t, {shift}, %r1;
        mad.wide.u32 %d1, %t, 16, %a0;
        setp.lt.u32 %p0, %t, {8 * n};
        @%p0 ld.global.v4.b32 {{%r3, %r4, %r5, %r6}}, [%d1];
        @%p0 st.shared.v4.b32 [%r2], {{%r3, %r4, %r5, %r6}};
        bar.sync 0;
        ldmatrix.sync.aligned.m8n8.x{n}{trans}.shared.b16 {{{registers}}}, [%r2];
        mad.wide.u32 %d2, %t, {4 * n}, %a1;
        {stores}
        bar.sync 0;
        stmatrix.sync.aligned.m8n8.x{n}{trans}.shared.b16 [%r2], {{{registers}}};
        bar.sync 0;
        mad.wide.u32 %d3, %t, 16, %a2;
        @%p0 ld.shared.v4.b32 {{%r3, %r4, %r5, %r6}}, [%r2];
        @%p0 st.global.v4.b32 [%d3], {{%r3, %r4, %r5, %r6}};
        """,
        tiles, out, out_rows, shared=shift * 32 + 16,
    )  # fmt: skip
    held = bits(out, U16).reshape(32, n, 2)
    for lane, row, place in lanes():
        for i in range(n):
            tile = tiles[i].T if transposed else tiles[i]
            assert held[lane, i].tolist() == tile[row, 2 * place : 2 * place + 2].tolist()
    assert (out_rows == tiles).all()


def test_a_race_with_the_rows_that_lanes_point_at() -> None:
    text = """
    mov.u32 %r1, smem;
    and.b32 %r2, %t, 31;
    mad.lo.u32 %r2, %r2, 16, %r1;
    setp.lt.u32 %p0, %t, 32;
    @%p0 st.shared.v4.b32 [%r2], {%t, %t, %t, %t};
    {}
    ldmatrix.sync.aligned.m8n8.x1.shared.b16 {%r3}, [%r2];
    """
    launch(text.replace("{}", "bar.sync 0;"), np.zeros(1, U32), shared=512, threads=64)
    with pytest.raises(EmulationError, match=r"race: reads what another warp wrote .*; CTA 0 thread 32, 8 threads"):
        launch(text.replace("{}", ""), np.zeros(1, U32), shared=512, threads=64)
