"""The bytes that the kernels move, counted."""

import pytest
import torch

from benchmarks import blocks
from benchmarks.cases import Case, Shape
from benchmarks.operators import FUSED
from benchmarks.traffic import Traffic, beside, counted, traffic
from tritonln.device import interpreting

pytestmark = [
    pytest.mark.interpreted,
    pytest.mark.skipif(not interpreting(), reason="the interpreter counts"),
]


def of_layer_norm(M: int, N: int) -> Traffic:
    shape = Shape("", "layer_norm", M, N, "")
    return traffic(Case(shape, "bf16", "both"), torch.float32, beside("layer_norm")["tritonln"])


def test_short_rows() -> None:
    """At 4,096 rows: every byte once, and 132 programs' partial sums."""
    torch.manual_seed(0)
    found = of_layer_norm(4096, 256)
    forward, backward = found.ratios
    assert forward <= 1.01
    assert backward <= 1.09
    assert [k.name for k in found.forward] == ["layer_norm_fwd"]
    assert [k.name for k in found.backward] == ["layer_norm_bwd", "column_sum"]
    x = next(b for b in found.forward[0].buffers if b.name == "entering")
    assert x.asked == x.distinct == 4096 * 256 * 2


def test_wide_rows() -> None:
    """Two launches backward, each of which reads all once, and the sums of all chunks are as nothing."""
    M, N = 8, 12_288
    found = of_layer_norm(M, N)
    assert found.ratios[0] <= 1.4  # the weights count at 8 rows
    assert [k.name for k in found.backward] == ["layer_norm_wide_sums_bwd", "layer_norm_wide_dx_bwd"]
    for kernel in found.backward:
        x, dy = (next(b for b in kernel.buffers if b.name == name) for name in ("entering", "upstream"))
        assert x.asked == x.distinct == dy.asked == dy.distinct == M * N * 2
    sums = next(b for b in found.backward[0].buffers if b.name == "sums")
    assert sums.asked == sums.distinct <= 0.01 * x.distinct


PASSES = {  # over the rows, forward and backward: fused, and with elementwise operators; and the launches
    "add_layer_norm": ((4, 4), (5, 6), (1, 2), (2, 3)),
    "add_rms_norm": ((4, 4), (5, 6), (1, 2), (2, 3)),
    "adaptive_layer_norm": ((2, 3), (6, 10), (1, 2), (4, 5)),
    "adaptive_rms_norm": ((2, 3), (6, 10), (1, 2), (4, 5)),
    "add_adaptive_layer_norm": ((4, 6), (11, 19), (1, 2), (6, 9)),
    "add_adaptive_rms_norm": ((4, 6), (11, 19), (1, 2), (6, 9)),
    "gated_residual": ((3, 3), (5, 6), (1, 2), (2, 3)),
    "qk_norm": ((4, 6), (4, 6), (1, 3), (2, 5)),
    "quantized_layer_norm": ((1, 0), (3, 0), (1, 0), (8, 0)),
    "quantized_rms_norm": ((1, 0), (3, 0), (1, 0), (8, 0)),
    "gated_rms_norm": ((3, 5), (7, 12), (1, 2), (3, 5)),
}


# Of one kind with others.
ALIKE = "adaptive_rms_norm", "add_adaptive_rms_norm", "quantized_layer_norm"


@pytest.mark.parametrize("operator", [pytest.param(o, marks=pytest.mark.thorough if o in ALIKE else ()) for o in FUSED])
def test_passes_over_rows_of_the_family(operator: str) -> None:
    """As the README has them: what is not as large as the rows is left out."""
    M, N = 1024, 64
    case = Case(Shape("", operator, M, N, "", 2), "bf16", "both")
    for norm, passes, launches in zip(
        beside(operator).values(), PASSES[operator][:2], PASSES[operator][2:], strict=True
    ):
        found = traffic(case, torch.bfloat16, norm)
        assert (len(found.forward), len(found.backward)) == launches
        for kernels, expected in zip((found.forward, found.backward), passes, strict=True):
            buffers = [b for k in kernels for b in k.buffers if b.read.size == M * N * 2]
            assert sum(b.distinct for b in buffers) == expected * M * N * 2


@pytest.mark.parametrize(("block", "fewer"), [("encoder layer, pre-norm", 22), ("DiT block", 40)])
def test_passes_over_the_residual_stream(block: str, fewer: int) -> None:
    """Of a block in a stack, forward and backward, beside plain torch's."""
    found = blocks.counts(block, 80, 32)
    passes, launches = (
        {whose: sum(getattr(count, what) for count in counts) for whose, counts in found.items()}
        for what in ("passes", "launches")
    )
    assert passes["plain torch"] - passes["tritonln"] == fewer
    assert launches["plain torch"] - launches["tritonln"] >= 15


@pytest.mark.parametrize("needs", ["x", "parameters"])
def test_what_is_not_needed_is_not_written(needs: str) -> None:
    import tritonln

    x = torch.randn(300, 64, requires_grad=needs == "x")
    w, b = (torch.randn(64, requires_grad=needs == "parameters") for _ in range(2))
    y = tritonln.layer_norm(x, 64, w, b)
    dy = torch.ones_like(y)
    with counted() as kernels:
        y.backward(dy)
    written = {b.name for k in kernels for b in k.buffers if b.written.any()}
    assert written == ({"d_entering"} if needs == "x" else {"d_finishing", "totals"})


def test_accesses_outside_the_arguments_raise() -> None:
    from tritonln.device import TARGETS
    from tritonln.kernels.column_sum import column_sum
    from tritonln.launch import Launch

    partial, out = torch.zeros(2, 64), torch.zeros(64)
    # Told that there are three partial sums where there are two.
    with counted(), pytest.raises(Exception, match="outside every argument"):
        Launch(column_sum, (64, 4, 64), TARGETS["sm_90"], 4)(1, (partial, None), (out, None), 3)


def test_any_library_is_counted() -> None:
    """Kernels launched without tritonln, and what torch does between them; a view or an allocation is no launch."""
    from tritonln.kernels.column_sum import column_sum

    partial = torch.ones(4, 64)
    with counted() as kernels:
        out = torch.empty(64)
        column_sum[(1,)](((partial,), ()), ((out,), ()), 4, 64, 4, 64)
        partial.view(2, 2, 64).sum(1)
        partial.add_(1)
    row = 64 * 4
    assert [(k.name, k.programs, k.distinct, k.asked) for k in kernels] == [
        ("column_sum", 1, 5 * row, 5 * row),
        ("aten::sum", None, 6 * row, 6 * row),
        ("aten::add_", None, 8 * row, 8 * row),
    ]
