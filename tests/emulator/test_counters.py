"""What is counted, against what can be counted by hand."""

import numpy as np
import pytest

from tests.emulator.programs import Array, launch
from tritonln.emulator import Traffic

U32 = np.uint32


def zeros(n: int) -> Array:
    """Numbers that begin at a sector."""
    held = np.zeros(n + 8, U32)
    return held[-held.ctypes.data % 32 // 4 :][:n]


@pytest.mark.parametrize(
    ("stride", "width", "sectors"),
    [(4, "b32", 4), (8, "b32", 8), (32, "b32", 32), (128, "b32", 32), (0, "b32", 1), (16, "v4.b32", 16), (2, "b16", 2)],
)
def test_sectors(stride: int, width: str, sectors: int) -> None:
    register = {"b32": "%r1", "v4.b32": "{%r1, %r2, %r3, %r4}", "b16": "%h1"}[width]
    counters = launch(f"mad.wide.u32 %d1, %t, {stride}, %a0; ld.global.{width} {register}, [%d1];", zeros(1024))
    nbytes = 32 * {"b32": 4, "v4.b32": 16, "b16": 2}[width]
    assert counters.memory() == {"global_load": Traffic(1, sectors, nbytes // 32, nbytes)}


def test_sectors_of_some_lanes_and_many_warps() -> None:
    """Ten lanes of the first warp of each CTA, 40 bytes that straddle two sectors."""
    text = "setp.lt.u32 %p0, %t, 10; mad.wide.u32 %d1, %t, 4, %a0; @%p0 st.global.b32 [%d1], 1;"
    counters = launch(text, zeros(64), threads=64)
    assert counters.memory() == {"global_store": Traffic(1, 2, 2, 40)}
    counters = launch("ld.global.b32 %r1, [%a0];", zeros(64), threads=64, grid=3)
    assert counters.memory() == {"global_load": Traffic(6, 6, 24, 768)}


@pytest.mark.parametrize(
    ("stride", "words", "wavefronts"),
    [(4, 1, 1), (8, 1, 2), (128, 1, 32), (132, 1, 1), (16, 4, 4), (64, 4, 16), (8, 2, 2)],
)
def test_wavefronts(stride: int, words: int, wavefronts: int) -> None:
    vector = "" if words == 1 else f".v{words}"
    value = "%t" if words == 1 else "{" + ", ".join(["%t"] * words) + "}"
    text = f"mov.u32 %r1, smem; mad.lo.u32 %r2, %t, {stride}, %r1; st.shared{vector}.b32 [%r2], {value};"
    counters = launch(text, np.zeros(1, U32), shared=32 * stride + 16)
    assert counters.memory() == {"shared_store": Traffic(1, wavefronts, words, 128 * words)}


def test_wavefronts_of_some_lanes() -> None:
    """Ten lanes, all at the last bank."""
    text = "mov.u32 %r1, smem; mad.lo.u32 %r2, %t, 128, %r1; setp.lt.u32 %p0, %t, 10; @%p0 st.shared.b32 [%r2+124], %t;"
    counters = launch(text, np.zeros(1, U32), shared=1280)
    assert counters.memory() == {"shared_store": Traffic(1, 10, 1, 40)}


def test_a_word_that_all_read_is_one_wavefront() -> None:
    counters = launch(
        "st.shared.b32 [smem], 1; bar.sync 0; ld.shared.b32 %r1, [smem];", np.zeros(1, U32), shared=16, threads=64
    )
    assert counters.memory()["shared_load"] == Traffic(2, 2, 2, 256)


def test_a_loop_counts_each_turn() -> None:
    """Though addresses are looked at once only."""
    text = "mov.u32 %r1, 0; $turn: "
    text += "st.shared.b32 [smem], %r1; add.u32 %r1, %r1, 1; setp.lt.u32 %p0, %r1, 9; @%p0 bra $turn;"
    counters = launch(text, np.zeros(1, U32), shared=16)
    assert counters.memory()["shared_store"] == Traffic(9, 9, 9, 9 * 128)
    assert counters.by_opcode()["st.shared.b32"] == counters.by_opcode()["bra"] == 9


def test_executed_instructions() -> None:
    """Warps 0 .. 2 take one way, 3 the other; of warp 0 lanes part, which makes it go both ways."""
    text = """
    setp.lt.u32 %p0, %t, 8;
    setp.ge.or.u32 %p0, %t, 96, %p0;
    @%p0 bra $b;
    add.u32 %r1, %t, 1;
    bra $end;
    $b:
    mul.lo.u32 %r1, %t, 3;
    $end:
    sub.u32 %r1, %r1, 1;
    """
    counters = launch(text, np.zeros(1, U32), threads=128, grid=5)
    executed = counters.by_opcode()
    assert (executed["add.u32"], executed["mul.lo.u32"], executed["sub.u32"], executed["ret"]) == (15, 10, 20, 20)
    assert counters.warps == 20
    assert counters.per_warp() == sum(executed.values()) / 20
    assert int(counters.executed.sum()) == sum(executed.values())


def test_nothing_is_counted_where_nothing_shall() -> None:
    assert not launch("ld.global.b32 %r1, [%a0];", np.zeros(1, U32), count=False).traffic
