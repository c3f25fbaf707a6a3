"""Warps and CTAs that wait for each other: barriers, atomics, flags, and those that never come."""

import numpy as np
import pytest

from tests.emulator.programs import launch
from tritonln.emulator import EmulationError

F32, I32, U32 = np.float32, np.int32, np.uint32
OWN = "mov.u32 %r0, smem; mad.lo.u32 %r1, %t, 4, %r0; "


# ---- barriers of a CTA ----------------------------------------------------------------------------


def test_a_barrier_that_some_warps_never_reach() -> None:
    text = "setp.lt.u32 %p0, %t, 32; @%p0 bra $a; bar.sync 0; bra $end; $a: bar.sync 1; $end:"
    with pytest.raises(
        EmulationError, match="deadlock: 4 warps of 4 .* wait at barriers that others never reach; CTA 0"
    ):
        launch(text, np.zeros(1, U32), threads=128)


def test_a_barrier_waits_for_those_only_that_are_there() -> None:
    x = np.zeros(64, U32)
    launch(
        "setp.lt.u32 %p0, %t, 32; @%p0 ret; bar.sync 0; mad.wide.u32 %d1, %t, 4, %a0; st.global.b32 [%d1], %t;",
        x,
        threads=64,
    )
    assert x.tolist() == [0] * 32 + list(range(32, 64))


def test_warps_that_come_by_different_ways() -> None:
    """Each warp takes as many turns as its number, and all meet at the barrier behind."""
    x = np.zeros(128, U32)
    launch(
        OWN + """
        shr.u32 %r2, %t, 5;
        mov.u32 %r3, 0;
    $turn:
        setp.ge.u32 %p0, %r3, %r2;
        @%p0 bra $done;
        add.u32 %r3, %r3, 1;
        bra $turn;
    $done:
        st.shared.b32 [%r1], %r3;
        bar.sync 0;
        xor.b32 %r4, %t, 96;
        mad.lo.u32 %r4, %r4, 4, %r0;
        ld.shared.b32 %r5, [%r4];
        mad.wide.u32 %d1, %t, 4, %a0;
        st.global.b32 [%d1], %r5;
        """,
        x, threads=128, shared=512,
    )  # fmt: skip
    assert x.reshape(4, 32)[:, 0].tolist() == [3, 2, 1, 0]


# Warps 0 and 1 hand over to warps 2 and 3 through barriers 1 (full) and 2 (empty), three times.
HANDED = """
shr.u32 %r2, %t, 6;
setp.eq.u32 %p1, %r2, 1;
and.b32 %r3, %t, 63;
mad.lo.u32 %r1, %r3, 4, %r0;
mov.u32 %r4, 0;
mov.u32 %r7, 0;
@%p1 bra $reader;
$writer:
    mad.lo.u32 %r5, %r4, 100, %r3;
    st.shared.b32 [%r1], %r5;
    {arrive}
    add.u32 %r4, %r4, 1;
    {empty}
    setp.lt.u32 %p2, %r4, 3;
    @%p2 bra $writer;
bra $end;
$reader:
    {full}
    xor.b32 %r6, %r3, 32;
    mad.lo.u32 %r6, %r6, 4, %r0;
    ld.shared.b32 %r5, [%r6];
    add.u32 %r7, %r7, %r5;
    {free}
    add.u32 %r4, %r4, 1;
    setp.lt.u32 %p2, %r4, 3;
    @%p2 bra $reader;
$end:
mad.wide.u32 %d1, %t, 4, %a0;
st.global.b32 [%d1], %r7;
"""
PARTS = {
    "arrive": "bar.arrive 1, 128;",
    "full": "bar.sync 1, 128;",
    "empty": "bar.sync 2, 128;",
    "free": "bar.arrive 2, 128;",
}


def test_barriers_of_some_warps() -> None:
    x = np.zeros(128, U32)
    launch(OWN + HANDED.format(**PARTS), x, threads=128, shared=256)
    assert x[64:].tolist() == [300 + 3 * (i ^ 32) for i in range(64)]
    # Four warps of 6; the others have a barrier of their own.
    rest = (
        "setp.ge.u32 %p3, %t, 128; @!%p3 bra $some; bar.sync 3, 64; bra $out; $some:" + HANDED.format(**PARTS) + "$out:"
    )
    launch(OWN + rest, x := np.zeros(128, U32), threads=192, shared=256)
    assert x[64:].tolist() == [300 + 3 * (i ^ 32) for i in range(64)]


@pytest.mark.parametrize(
    ("without", "what"),
    [
        (("empty", "free"), "arrives twice at a barrier"),
        (("arrive", "full"), "race: reads what another warp wrote|nothing has written"),
        (("arrive",), "deadlock"),
        (("free",), "deadlock"),
    ],
)
def test_barriers_left_out(without: tuple[str, ...], what: str) -> None:
    parts = {**PARTS, **dict.fromkeys(without, "")}
    with pytest.raises(EmulationError, match=what):
        launch(OWN + HANDED.format(**parts), np.zeros(128, U32), threads=128, shared=256)


# ---- atomics --------------------------------------------------------------------------------------

INTEGERS = {
    "add": lambda a, b: a + b, "min": min, "max": max, "and": lambda a, b: a & b, "or": lambda a, b: a | b,
    "xor": lambda a, b: a ^ b, "exch": lambda a, b: b,
}  # fmt: skip


@pytest.mark.parametrize("name", INTEGERS)
@pytest.mark.parametrize("kind", ["u32", "s32"])
def test_atomics(name: str, kind: str) -> None:
    """All threads of two CTAs on one of three places, one after the other."""
    kind = kind if name in ("add", "min", "max") else "b32"
    if (name, kind) == ("add", "s32"):
        kind = "u32"
    signed = kind == "s32"
    values = np.random.default_rng(0).integers(-50, 50, 128).astype(I32)
    places, old = np.array([5, -7, 100], I32), np.zeros(128, I32)
    launch(
        f"""
        mad.lo.u32 %r1, %c, 64, %t;
        mad.wide.u32 %d1, %r1, 4, %a1;
        ld.global.b32 %r2, [%d1];
        rem.u32 %r3, %r1, 3;
        mad.wide.u32 %d2, %r3, 4, %a0;
        atom.global.gpu.acq_rel.{name}.{kind} %r4, [%d2], %r2;
        mad.wide.u32 %d3, %r1, 4, %a2;
        st.global.b32 [%d3], %r4;
        """,
        places, values, old, threads=64, grid=2,
    )  # fmt: skip
    held = [5, -7, 100] if signed else [5, 2**32 - 7, 100]
    expected = []
    for i, v in enumerate(values.tolist()):
        expected.append(held[i % 3])
        held[i % 3] = INTEGERS[name](held[i % 3], v if signed else v % 2**32) % (2**40 if signed else 2**32)
        if signed and held[i % 3] >= 2**31:
            held[i % 3] -= 2**40
    assert [v % 2**32 for v in old.tolist()] == [v % 2**32 for v in expected]
    assert [v % 2**32 for v in places.tolist()] == [v % 2**32 for v in held]


def test_atomics_of_floats_and_guards() -> None:
    x, y = np.zeros(1, F32), np.zeros(1, np.float64)
    text = "cvt.rn.f32.u32 %f1, %t; cvt.f64.f32 %d1, %f1; setp.lt.u32 %p0, %t, 10; "
    text += "@%p0 atom.global.add.f32 %f2, [%a0], %f1; @%p0 red.global.gpu.relaxed.add.f64 [%a1], %d1;"
    launch(text, x, y, threads=64)
    assert (x[0], y[0]) == (45.0, 45.0)


def test_compare_and_swap() -> None:
    """Of 64 threads that would set 0 to their number + 1, one does; the others are told of it."""
    x, old = np.zeros(1, U32), np.zeros(64, U32)
    text = "add.u32 %r1, %t, 1; atom.global.acq_rel.gpu.cas.b32 %r2, [%a0], 0, %r1; "
    text += "mad.wide.u32 %d1, %t, 4, %a1; st.global.b32 [%d1], %r2;"
    launch(text, x, old, threads=64)
    assert x[0] == 1
    assert old.tolist() == [0] + [1] * 63


def test_a_lock() -> None:
    """Each CTA adds one, in turn, by plain loads and stores under a lock."""
    text = """
    setp.ne.u32 %p0, %t, 0;
    @%p0 bra $end;
    $try:
    atom.global.acq_rel.gpu.cas.b32 %r1, [%a0], 0, 1;
    setp.ne.u32 %p1, %r1, 0;
    @%p1 bra $try;
    ld.global.b32 %r2, [%a1];
    add.u32 %r2, %r2, 1;
    st.global.b32 [%a1], %r2;
    {}
    $end:
    """
    total = np.zeros(1, U32)
    launch(text.format("atom.global.release.gpu.exch.b32 %r3, [%a0], 0;"), np.zeros(1, U32), total, grid=20)
    assert total[0] == 20
    launch(text.format("st.release.gpu.global.b32 [%a0], 0;"), np.zeros(1, U32), total, grid=20)
    assert total[0] == 40
    launch(text.format("fence.acq_rel.gpu; st.relaxed.gpu.global.b32 [%a0], 0;"), np.zeros(1, U32), total, grid=3)
    assert total[0] == 43
    with pytest.raises(EmulationError, match="reads what another CTA has written in array1"):
        launch(text.format("st.relaxed.gpu.global.b32 [%a0], 0;"), np.zeros(1, U32), total, grid=3)
    with pytest.raises(EmulationError, match="deadlock: waits for memory that nothing changes"):
        launch(text.format(""), np.zeros(1, U32), total, grid=3)


# ---- all CTAs of a grid ---------------------------------------------------------------------------

# Each CTA stores its row, waits for all, and reads that of the next one.
GRID = """
mad.lo.u32 %r1, %c, 64, %t;
mad.wide.u32 %d1, %r1, 4, %a0;
st.global.b32 [%d1], %r1;
{before}
setp.eq.u32 %p0, %t, 0;
mov.pred %p4, %p0;
{skip}
@%p4 {arrive}
$spin:
    mov.u32 %r2, 0;
    @%p0 {poll}
    @%p0 st.shared.b32 [smem], %r2;
    bar.sync 0;
    ld.shared.b32 %r3, [smem];
    bar.sync 0;
    mov.u32 %r8, %nctaid.x;
    setp.lt.u32 %p1, %r3, %r8;
    @%p1 bra $spin;
add.u32 %r4, %c, 1;
rem.u32 %r4, %r4, %r8;
mad.lo.u32 %r4, %r4, 64, %t;
mad.wide.u32 %d2, %r4, 4, %a0;
{after}
ld.global.b32 %r5, [%d2];
mad.wide.u32 %d3, %r1, 4, %a2;
st.global.b32 [%d3], %r5;
"""
ORDERED = {
    "before": "bar.sync 0;",
    "skip": "",
    "arrive": "red.global.gpu.release.add.u32 [%a1], 1;",
    "poll": "ld.global.gpu.acquire.b32 %r2, [%a1];",
    "after": "",
}


def grid(ctas: int = 5, **changed):  # type: ignore[no-untyped-def]
    options = {name: changed.pop(name) for name in ("resident", "lanes", "check") if name in changed}
    x, y = np.zeros(64 * ctas, U32), np.zeros(64 * ctas, U32)
    launch(GRID.format(**{**ORDERED, **changed}), x, np.zeros(1, U32), y, threads=64, grid=ctas, shared=16, **options)
    return y.tolist() == np.roll(np.arange(64 * ctas), -64).tolist()


def test_a_barrier_of_the_grid() -> None:
    assert grid()
    assert grid(poll="atom.global.gpu.acquire.add.u32 %r2, [%a1], 0;")
    assert grid(arrive="red.relaxed.gpu.global.add.u32 [%a1], 1;", before="bar.sync 0; membar.gl;")
    assert grid(poll="ld.volatile.global.b32 %r2, [%a1];", after="fence.acq_rel.gpu;")
    assert grid(lanes=64)  # however few run together otherwise


def test_an_arrival_that_is_missing_is_no_hang() -> None:
    with pytest.raises(EmulationError, match="deadlock: waits for memory that nothing changes any more; CTA"):
        grid(skip="setp.ne.and.u32 %p4, %c, 2, %p4;", ctas=4)


def test_more_ctas_than_the_chip_holds() -> None:
    assert grid(resident=5)
    with pytest.raises(EmulationError, match="deadlock: waits for memory that nothing changes any more"):
        grid(resident=4)


@pytest.mark.parametrize(
    "changed",
    [
        {"arrive": "red.relaxed.gpu.global.add.u32 [%a1], 1;"},
        {"poll": "ld.relaxed.gpu.global.b32 %r2, [%a1];"},
        {"poll": "ld.volatile.global.b32 %r2, [%a1];"},
    ],
)
def test_signals_without_an_order(changed: dict[str, str]) -> None:
    """They arrive, but what they should tell of need not have."""
    with pytest.raises(EmulationError, match="reads what another CTA has written in array0"):
        grid(**changed)


def test_waiting_by_plain_loads_is_no_hang_either(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tritonln.emulator.batch.LOOK", 50)
    text = "$spin: ld.global.b32 %r1, [%a0]; setp.eq.u32 %p0, %r1, 0; @%p0 bra $spin;"
    with pytest.raises(EmulationError, match="deadlock"):
        launch(text, np.zeros(1, U32))
