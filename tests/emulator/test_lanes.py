"""Between the lanes of a warp: shuffles, votes, and lanes that go different ways or leave."""

import numpy as np
import pytest

from tests.emulator.programs import apply, launch
from tritonln.emulator import EmulationError

U32 = np.uint32
LANES = np.arange(64, dtype=U32)


@pytest.mark.parametrize("width", [32, 16, 8, 4])
@pytest.mark.parametrize("mode", ["up", "down", "bfly", "idx"])
def test_shuffles(mode: str, width: int) -> None:
    """Within segments; who asks beyond his own gets what he has, and false."""
    for by in (0, 1, 3, 7, 8, 16, 31):
        clamp = (32 - width) << 8 | (0 if mode == "up" else 31)
        text = (
            f"shfl.sync.{mode}.b32 %r20|%p1, A, {by}, {clamp}, -1; selp.u32 %r21, 1000, 0, %p1; add.u32 D, %r20, %r21;"
        )
        found = apply(text, U32, LANES)
        for i in range(64):
            lane, first = i % 32, i % 32 // width * width
            source = {"up": lane - by, "down": lane + by, "bfly": lane ^ by, "idx": first + by % width}[mode]
            ok = first <= source < first + width
            if mode == "bfly":  # a clamp has no lower end
                ok = source < first + width
            assert found[i] == (i - lane + source + 1000 if ok else i), (i, by)


def test_shuffles_by_what_each_lane_asks_for() -> None:
    by = (LANES * 7 % 32).astype(U32)
    found = apply("shfl.sync.idx.b32 D, A, B, 31, -1;", U32, LANES, by)
    assert found.tolist() == [int(i // 32 * 32 + b) for i, b in zip(LANES, by)]


def test_votes() -> None:
    x = np.array([*range(32), *[1] * 32, *[0] * 32], U32)
    head = "setp.ne.u32 %p1, A, 0; "
    found = apply(head + "vote.sync.ballot.b32 D, %p1, -1;", U32, x)
    assert found[::32].tolist() == [0xFFFFFFFE, 0xFFFFFFFF, 0]
    for mode, expected in (("any", [1, 1, 0]), ("all", [0, 1, 0]), ("uni", [0, 1, 1])):
        found = apply(head + f"vote.sync.{mode}.pred %p2, %p1, -1; selp.u32 D, 1, 0, %p2;", U32, x)
        assert found[::32].tolist() == expected


def test_one_number_of_a_warp() -> None:
    x = np.array([*range(-5, 27), *range(32)], np.int32)
    for name, function in (("add", sum), ("min", min), ("max", max)):
        found = apply(f"redux.sync.{name}.s32 D, A, -1;", np.int32, x)
        assert found[::32].tolist() == [function(x[:32].tolist()), function(x[32:].tolist())]
    y = np.array([-0.0, *[0.0] * 31, *np.linspace(-9, 3, 31), np.nan], np.float32)
    for kind, expected in (("min", [-0.0, -9]), ("max", [0, 3]), ("max.abs", [0, 9]), ("max.NaN", [0, np.nan])):
        found = apply(f"redux.sync.{kind}.f32 D, A, -1;", np.float32, y)
        np.testing.assert_array_equal(found[::32], np.array(expected, np.float32))
        assert (np.signbit(found[0]), kind) == (kind == "min", kind)
    found = apply("elect.sync %r20|%p1, -1; selp.u32 D, 1, 0, %p1;", U32, LANES)
    assert found.tolist() == [int(i % 32 == 0) for i in range(64)]


# ---- lanes part -----------------------------------------------------------------------------------


def test_lanes_of_a_warp_go_different_ways_and_meet() -> None:
    """Each lane counts as many turns as its number says, the even ones by 10; then all shuffle together."""
    out = np.zeros(64, U32)
    launch(
        """
        mov.u32 %r1, 0;
        mov.u32 %r2, 0;
        and.b32 %r3, %t, 1;
        setp.eq.u32 %p1, %r3, 0;
    $turn:
        setp.ge.u32 %p0, %r2, %t;
        @%p0 bra $done;
        @%p1 bra $even;
        add.u32 %r1, %r1, 1;
        bra $next;
    $even:
        add.u32 %r1, %r1, 10;
    $next:
        add.u32 %r2, %r2, 1;
        bra $turn;
    $done:
        shfl.sync.bfly.b32 %r4, %r1, 1, 31, -1;
        mad.wide.u32 %d1, %t, 4, %a0;
        st.global.b32 [%d1], %r4;
        """,
        out, threads=64,
    )  # fmt: skip
    turns = [i * (10 if i % 2 == 0 else 1) for i in range(64)]
    assert out.tolist() == [turns[i ^ 1] for i in range(64)]


def test_guards_leave_what_other_lanes_have() -> None:
    x = np.arange(32, dtype=U32)
    found = apply("mov.u32 D, 7; setp.lt.u32 %p1, A, 5; @%p1 add.u32 D, A, 100; @!%p1 add.u32 D, D, 1;", U32, x)
    assert found.tolist() == [i + 100 if i < 5 else 8 for i in range(32)]


@pytest.mark.parametrize("threads", [32, 64])
def test_lanes_that_leave_early(threads: int) -> None:
    """Lanes 3 .. 9 of warp 0 and all of warp 1 leave; the others store and pass a barrier."""
    out = np.full(threads, 99, U32)
    launch(
        """
        setp.ge.u32 %p0, %t, 3;
        setp.lt.and.u32 %p1, %t, 10, %p0;
        setp.ge.or.u32 %p1, %t, 32, %p1;
        @%p1 ret;
        bar.sync 0;
        mad.wide.u32 %d1, %t, 4, %a0;
        st.global.b32 [%d1], %t;
        """,
        out, threads=threads,
    )  # fmt: skip
    assert out.tolist() == [99 if 3 <= i < 10 or i >= 32 else i for i in range(threads)]


def test_some_lanes_leave_from_a_loop() -> None:
    """Lane i leaves in turn i, having stored how many lanes were still there."""
    out = np.zeros(32, U32)
    launch(
        """
        mov.u32 %r1, 0;
        mad.wide.u32 %d1, %t, 4, %a0;
    $turn:
        setp.eq.u32 %p0, %r1, %t;
        vote.sync.ballot.b32 %r2, 1, -1;
        popc.b32 %r3, %r2;
        @%p0 st.global.b32 [%d1], %r3;
        @%p0 exit;
        add.u32 %r1, %r1, 1;
        bra $turn;
        """.replace("1, -1", "%p2, -1").replace("mov.u32 %r1, 0;", "mov.u32 %r1, 0; setp.eq.u32 %p2, %r1, 0;"),
        out,
    )  # fmt: skip
    assert out.tolist() == [32 - i for i in range(32)]


@pytest.mark.parametrize("instruction", ["shfl.sync.bfly.b32 %r2, %t, 1, 31, -1", "bar.sync 0"])
def test_what_needs_all_lanes(instruction: str) -> None:
    text = f"setp.lt.u32 %p0, %t, 4; @%p0 bra $there; bra $end; $there: {instruction}; $end:"
    with pytest.raises(EmulationError, match=r"by some lanes of a warp; CTA 0 thread 4, 28 threads"):
        launch(text, np.zeros(1, U32))


def test_what_nothing_has_set() -> None:
    with pytest.raises(EmulationError, match=r"kernel: reads %r7 that nothing has set; CTA 0 .*at add.u32 %r8, %r7, 1"):
        launch("add.u32 %r8, %r7, 1;", np.zeros(1, U32))


def test_what_is_not_modelled_is_said() -> None:
    for text in ("mbarrier.init.shared.b64 [%r1], 1;", "wgmma.fence.sync.aligned;", "add.rz.f32 %f1, %f2, %f3;"):
        with pytest.raises(NotImplementedError, match=text.split(".")[0]):
            launch(text, np.zeros(1, U32))
