"""Kernels that do wrong, and that it is said: what, by which thread, in which line."""

import numpy as np
import pytest

from tests.emulator.programs import apply, launch, machine
from tritonln.emulator import EmulationError
from tritonln.emulator.memory import GlobalMemory

F32, U32 = np.float32, np.uint32
STORE = "mad.wide.u32 %d1, %t, 4, %a0; st.global.b32 [%d1], %t;"


# ---- global memory --------------------------------------------------------------------------------


@pytest.mark.parametrize("instruction", ["ld.global.b32 %r1, [%d1]", "st.global.b32 [%d1], %t"])
def test_outside(instruction: str) -> None:
    """The two lanes past the end of 30 numbers; it is said where the nearest tensor is."""
    with pytest.raises(EmulationError) as error:
        launch(f".loc 1 12 0\nmad.wide.u32 %d1, %t, 4, %a0; {instruction};", np.zeros(30, U32))
    assert "kernel: access outside every tensor: 4 bytes at array0 + 120 (it has 120 bytes)" in str(error.value)
    assert "CTA 0 thread 30, 2 threads in all" in str(error.value)
    assert f"at {instruction}" in str(error.value)
    assert "1:12]" in str(error.value)


def test_inside_by_a_guard() -> None:
    x = np.zeros(30, U32)
    launch("setp.lt.u32 %p0, %t, 30; mad.wide.u32 %d1, %t, 4, %a0; @%p0 st.global.b32 [%d1], %t;", x)
    assert x.tolist() == list(range(30))


def test_before_a_tensor_and_across_its_end() -> None:
    with pytest.raises(EmulationError, match="array0 \\+ -4"):
        launch("ld.global.b32 %r1, [%a0 + -4];".replace("+ -4", "+-4"), np.zeros(4, U32))
    with pytest.raises(EmulationError, match="outside every tensor: 16 bytes at array0 \\+ 16"):
        launch("ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%a0+16];", np.zeros(7, U32))


def test_misaligned() -> None:
    with pytest.raises(EmulationError, match="misaligned 16-byte access; CTA 0 thread 0, 32 threads"):
        launch("ld.global.v4.b32 {%r1, %r2, %r3, %r4}, [%a0+8];", np.zeros(16, U32))


def test_between_rows() -> None:
    """Rows of 6 numbers, 8 apart: the tensor's memory, but not the tensor's."""
    wide, memory = np.zeros((4, 8), F32), GlobalMemory()
    legal = np.repeat((np.arange(32) % 8 < 6)[:-2], 4)
    memory.add_bytes("rows", wide.ctypes.data, 120, legal)
    params = [int(wide.ctypes.data).to_bytes(8, "little")]
    text = "setp.lt.u32 %p0, %t, {}; mad.wide.u32 %d1, %t, 4, %a0; @%p0 st.global.b32 [%d1], %t;"
    machine(text.format(6), 1).launch((1, 1, 1), params, memory)
    with pytest.raises(EmulationError, match="between the rows of rows, at byte 24; CTA 0 thread 6, 2 threads"):
        machine(text.format(14), 1).launch((1, 1, 1), params, memory)


def test_one_memory_of_two_names() -> None:
    x, memory = np.zeros(8, U32), GlobalMemory()
    memory.add_bytes("low", x.ctypes.data, 20)
    memory.add_bytes("high", x.ctypes.data + 12, 20)
    assert [(a.name, a.end - a.start) for a in memory.allocations] == [("low|high", 32)]


def test_two_ctas_store_to_one_place() -> None:
    with pytest.raises(EmulationError, match="two CTAs store to one place in array0"):
        launch(STORE, np.zeros(32, U32), grid=2)
    launch(
        "mad.lo.u32 %r1, %c, 32, %t; mad.wide.u32 %d1, %r1, 4, %a0; st.global.b32 [%d1], %t;", np.zeros(64, U32), grid=2
    )


def test_ctas_of_different_batches_store_to_one_place() -> None:
    """Whether they run together or not."""
    with pytest.raises(EmulationError, match="two CTAs store to one place in array0; CTA 1"):
        launch(STORE, np.zeros(32, U32), grid=2, lanes=32)


def test_a_cta_reads_what_another_has_written() -> None:
    text = """
    setp.eq.u32 %p0, %c, 0;
    mad.wide.u32 %d1, %t, 4, %a0;
    @%p0 st.global.b32 [%d1], %t;
    @%p0 bra $end;
    ld.global.b32 %r1, [%d1];
    $end:
    """
    with pytest.raises(EmulationError, match="reads what another CTA has written in array0; CTA 1 thread 0, 32"):
        launch(text, np.zeros(32, U32), grid=2, lanes=32)


def test_two_threads_store_different_values_to_one_place() -> None:
    counters = launch("st.global.b32 [%a0], %t;", np.zeros(1, U32))
    assert [note.split(" at ")[0] for note in counters.notes] == ["two threads store different values to one place"]
    assert not launch("st.global.b32 [%a0], 5;", np.zeros(1, U32)).notes


def test_trap() -> None:
    with pytest.raises(EmulationError, match="kernel: trap; CTA 0 thread 5, 27 threads"):
        launch("setp.ge.u32 %p0, %t, 5; @%p0 trap;", np.zeros(1, U32))


# ---- shared memory --------------------------------------------------------------------------------

# Each thread has a word of shared memory at %r1, and that of its neighbour in the next warp at %r2.
OWN = """
mov.u32 %r0, smem;
mad.lo.u32 %r1, %t, 4, %r0;
xor.b32 %r3, %t, 32;
mad.lo.u32 %r2, %r3, 4, %r0;
"""


def shared(text: str, size: int = 256, **options):  # type: ignore[no-untyped-def]
    return launch(OWN + text, np.zeros(64, U32), threads=64, shared=size, **options)


def test_beyond_shared_memory() -> None:
    with pytest.raises(EmulationError, match="outside its 252 bytes.*CTA 0 thread 63, 1 threads"):
        shared("st.shared.b32 [%r1], %t;", 252)
    with pytest.raises(EmulationError, match="misaligned for 8"):
        shared("st.shared.v2.b32 [%r1], {%t, %t};")


def test_shared_memory_that_nothing_has_written() -> None:
    with pytest.raises(EmulationError, match="reads shared memory that nothing has written; CTA 0 thread 0, 64"):
        shared("ld.shared.b32 %r4, [%r1];")
    shared("st.shared.b32 [%r1], %t; ld.shared.b32 %r4, [%r1];")


RACES = {
    "reads what another warp wrote": "st.shared.b32 [%r1], %t; {} ld.shared.b32 %r4, [%r2];",
    "writes what another warp wrote": "st.shared.b32 [%r1], %t; {} st.shared.b32 [%r2], %t;",
    "writes what another warp read": "st.shared.b32 [%r1], %t; ld.shared.b32 %r4, [%r1]; {} st.shared.b32 [%r2], %t;",
}


@pytest.mark.parametrize("race", RACES)
def test_races(race: str) -> None:
    shared(RACES[race].format("bar.sync 0;"))
    what = "wrote|writes" if race == "writes what another warp read" else race  # it wrote there, too
    with pytest.raises(EmulationError, match=f"race: .*{what}.*since the last barrier; CTA 0 thread"):
        shared(RACES[race].format(""))
    shared(RACES[race].format(""), check=False)


def test_a_write_over_what_another_warp_has_only_read() -> None:
    text = "st.shared.b32 [%r1], %t; bar.sync 0; ld.shared.b32 %r4, [%r2]; {} st.shared.b32 [%r1], %r4;"
    shared(text.format("bar.sync 0;"))
    with pytest.raises(EmulationError, match="race: writes what another warp read since the last barrier"):
        shared(text.format(""))


TOGETHER = "ld.shared.b32 %r4, [%r0];"
APART = "setp.lt.u32 %p1, %t, 32; mov.u32 %r4, 0; @%p1 ld.shared.b32 %r4, [%r0]; @!%p1 ld.shared.b32 %r4, [%r0];"


@pytest.mark.parametrize("writer", [0, 32])
@pytest.mark.parametrize("reads", [TOGETHER, APART])
def test_a_write_over_what_several_warps_have_read(reads: str, writer: int) -> None:
    """The writer is one of the readers."""
    text = "st.shared.b32 [%r1], %t; bar.sync 0; " + reads
    text += f" {{}} setp.eq.u32 %p0, %t, {writer}; @%p0 st.shared.b32 [%r0], %r4;"
    shared(text.format("bar.sync 0;"))
    with pytest.raises(EmulationError, match=f"race: writes what another warp read.*CTA 0 thread {writer}, 1 threads"):
        shared(text.format(""))


def test_two_warps_that_write_one_value() -> None:
    assert shared("st.shared.b32 [%r0], 7;").benign == 0  # one instruction, in which it is no race to be seen
    text = "setp.lt.u32 %p0, %t, 32; @%p0 bra $b; st.shared.b32 [%r0], {}; bra $end; $b: st.shared.b32 [%r0], 7; $end:"
    assert shared(text.format(7)).benign > 0
    with pytest.raises(EmulationError, match="race: writes what another warp wrote"):
        shared(text.format(8))


# ---- asynchronous copies --------------------------------------------------------------------------

COPY = "mad.wide.u32 %d1, %t, 4, %a0; cp.async.ca.shared.global [%r1], [%d1], 4; cp.async.commit_group; "


@pytest.mark.parametrize(
    ("text", "what"),
    [
        ("ld.shared.b32 %r4, [%r1];", "reads shared memory that an asynchronous copy may still write"),
        ("cp.async.wait_group 1; ld.shared.b32 %r4, [%r1];", "reads shared memory that an asynchronous copy may"),
        ("st.shared.b32 [%r1], %t;", "writes shared memory that an asynchronous copy may still write"),
        ("cp.async.wait_group 0; ld.shared.b32 %r4, [%r2];", "race: reads what another warp wrote"),
    ],
)
def test_early_reads_of_copies(text: str, what: str) -> None:
    with pytest.raises(EmulationError, match=what):
        shared(COPY + text)


@pytest.mark.parametrize(("hint", "policy"), [("", ""), (".L2::cache_hint", ", %d3")], ids=["plain", "hinted"])
def test_copies(hint: str, policy: str) -> None:
    """Two stages; the second with a size of 0 for half of the threads, which stands for zeros."""
    x, y = np.arange(128, dtype=U32), np.zeros(128, U32)
    launch(
        OWN + f"""
        createpolicy.fractional.L2::evict_last.b64 %d3, 1.0;
        mad.wide.u32 %d1, %t, 4, %a0;
        mad.wide.u32 %d2, %t, 4, %a1;
        cp.async.ca.shared.global{hint} [%r1], [%d1], 4{policy};
        cp.async.commit_group;
        setp.lt.u32 %p0, %t, 16;
        selp.u32 %r5, 0, 4, %p0;
        cp.async.ca.shared.global{hint} [%r1+256], [%d1+256], 4, %r5{policy};
        cp.async.commit_group;
        cp.async.wait_group 1;
        bar.sync 0;
        ld.shared.b32 %r4, [%r2];
        st.global.b32 [%d2], %r4;
        cp.async.wait_all;
        ld.shared.b32 %r4, [%r1+256];
        st.global.b32 [%d2+256], %r4;
        """,
        x, y, threads=64, shared=512,
    )  # fmt: skip
    assert y.tolist() == [i ^ 32 for i in range(64)] + [0] * 16 + list(range(80, 128))


def test_a_copy_from_outside() -> None:
    with pytest.raises(EmulationError, match="outside every tensor"):
        launch(OWN + COPY, np.zeros(63, U32), threads=64, shared=256)


# ---- loads ----------------------------------------------------------------------------------------


def test_signs_of_narrow_loads() -> None:
    x, y = np.array([-1, 1, -128, 127] * 8, np.int8), np.zeros((32, 2), np.int32)
    text = """
    cvt.u64.u32 %d1, %t; add.s64 %d1, %d1, %a0;
    ld.global.s8 %r1, [%d1]; ld.global.u8 %r2, [%d1];
    mad.wide.u32 %d2, %t, 8, %a1; st.global.v2.b32 [%d2], {%r1, %r2};
    """
    launch(text, x, y)
    assert y[:4].tolist() == [[-1, 255], [1, 1], [-128, 128], [127, 127]]


def test_vectors() -> None:
    x, y = np.arange(128, dtype=U32), np.zeros(128, U32)
    text = """
    mad.wide.u32 %d1, %t, 16, %a0; mad.wide.u32 %d2, %t, 16, %a1;
    ld.global.v4.b32 {%r1, _, %r3, %r4}, [%d1];
    st.global.v4.b32 [%d2], {%r4, %r3, 7, %r1};
    """
    launch(text, x, y)
    assert y.reshape(-1, 4)[3].tolist() == [15, 14, 7, 12]


def test_results_do_not_depend_on_what_runs_together() -> None:
    x = np.arange(2048, dtype=U32)
    found = [apply("mad.lo.u32 D, A, A, A;", U32, x[:1024], lanes=lanes) for lanes in (32, 256, 16384)]
    assert all((f == x[:1024] * x[:1024] + x[:1024]).all() for f in found)


def test_addresses_and_guards_that_change_from_turn_to_turn() -> None:
    """In turn i lanes from i on add 1 to word i of each, two turns to a row of shared memory."""
    x = np.zeros((4, 32), U32)
    launch(
        """
        mov.u32 %r0, smem;
        mad.lo.u32 %r1, %t, 4, %r0;
        mov.u32 %r2, 0;
        st.shared.b32 [%r1], 0;
        st.shared.b32 [%r1+128], 0;
    $turn:
        setp.ge.u32 %p0, %t, %r2;
        and.b32 %r3, %r2, 1;
        mad.lo.u32 %r4, %r3, 128, %r1;
        @%p0 ld.shared.b32 %r5, [%r4];
        add.u32 %r5, %r5, 1;
        @%p0 st.shared.b32 [%r4], %r5;
        mad.wide.u32 %d1, %r2, 128, %a0;
        mad.wide.u32 %d1, %t, 4, %d1;
        @%p0 st.global.b32 [%d1], %r5;
        add.u32 %r2, %r2, 1;
        setp.lt.u32 %p1, %r2, 4;
        @%p1 bra $turn;
        """,
        x, shared=256,
    )  # fmt: skip
    assert x.tolist() == [[0 if lane < turn else 1 + turn // 2 for lane in range(32)] for turn in range(4)]
