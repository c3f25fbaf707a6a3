"""Clusters: CTAs that read each other's shared memory, and the barrier between them."""

import numpy as np
import pytest

from tests.emulator.programs import launch
from tritonln.emulator import EmulationError

U32 = np.uint32
# Each CTA writes its row; then each reads that of the next CTA in its cluster.
TEXT = """
mov.u32 %r0, %cluster_ctarank;
mov.u32 %r10, %cluster_nctarank;
mov.u32 %r1, smem;
mad.lo.u32 %r1, %t, 4, %r1;
mad.lo.u32 %r2, %c, 1000, %t;
st.shared.b32 [%r1], %r2;
{first}
add.u32 %r3, %r0, 1;
rem.u32 %r3, %r3, %r10;
mapa.shared::cluster.u32 %r4, %r1, %r3;
ld.shared::cluster.b32 %r5, [%r4];
{second}
{third}
mad.lo.u32 %r6, %c, 64, %t;
mad.wide.u32 %d1, %r6, 4, %a0;
st.global.b32 [%d1], %r5;
"""
BARRIER = "barrier.cluster.arrive.aligned; barrier.cluster.wait.aligned;"


def cluster(first: str = BARRIER, second: str = BARRIER, third: str = "st.shared.b32 [%r1], 0;", programs: int = 3):  # type: ignore[no-untyped-def]
    out = np.zeros((programs, 4, 64), U32)
    text = TEXT.format(first=first, second=second, third=third)
    launch(text, out, threads=64, grid=programs, cluster=4, shared=256)
    expected = [[[1000 * (4 * p + (r + 1) % 4) + t for t in range(64)] for r in range(4)] for p in range(programs)]
    assert out.tolist() == expected


def test_shared_memory_of_others() -> None:
    cluster()
    cluster(programs=200)  # more than run together


def test_arrival_and_waiting_apart() -> None:
    """Between them a barrier of the CTA alone."""
    cluster(first="barrier.cluster.arrive; bar.sync 0; barrier.cluster.wait;")


@pytest.mark.parametrize(
    ("changed", "what"),
    [
        ({"first": ""}, "race: reads what another warp wrote|nothing has written"),
        ({"first": "bar.sync 0;"}, "race: reads what another warp wrote|nothing has written"),
        ({"second": ""}, "race: writes what another warp read"),
        ({"second": "bar.sync 0;"}, "race: writes what another warp read"),
        ({"first": "barrier.cluster.arrive;"}, "race: reads what another warp wrote|nothing has written"),
        ({"first": "barrier.cluster.wait;"}, "without having arrived"),
        ({"first": "barrier.cluster.arrive; barrier.cluster.arrive;"}, "arrives twice"),
        ({"first": "setp.eq.u32 %p0, %r0, 2; @%p0 bra $over; " + BARRIER + "$over:"}, "deadlock|race"),
    ],
)
def test_what_goes_wrong_between_ctas(changed: dict[str, str], what: str) -> None:
    with pytest.raises(EmulationError, match=what):
        cluster(**changed)


def test_a_cta_that_does_not_come() -> None:
    text = "mov.u32 %r0, %cluster_ctarank; setp.eq.u32 %p0, %r0, 1; @%p0 bra $b;" + BARRIER
    text += "bra $end; $b: bar.sync 1, 128; $end:"
    with pytest.raises(EmulationError, match="deadlock: 8 warps of 8"):
        launch(text, np.zeros(1, U32), threads=64, cluster=4, grid=1)


def test_special_registers() -> None:
    own = ["ctaid.x", "nctaid.x", "clusterid.x", "nclusterid.x", "cluster_ctaid.x", "cluster_nctaid.x"]
    names = [*own, "cluster_ctarank", "cluster_nctarank", "ntid.x", "laneid", "tid.y", "ctaid.y"]
    out = np.zeros((6, len(names)), U32)
    reads = "\n".join(f"mov.u32 %r1, %{name}; st.global.b32 [%d1 + {4 * i}], %r1;" for i, name in enumerate(names))
    text = f"setp.ne.u32 %p0, %t, 40; @%p0 ret; mad.wide.u32 %d1, %c, {4 * len(names)}, %a0;"
    launch(text + reads, out, threads=64, grid=3, cluster=2)
    assert out.tolist() == [[c, 6, c // 2, 3, c % 2, 2, c % 2, 2, 64, 8, 0, 0] for c in range(6)]
