"""The bytes that the kernels move, counted."""

import pytest
import torch

from benchmarks.traffic import counted, layer_norm_traffic
from tritonln.device import interpreting

pytestmark = [
    pytest.mark.interpreted,
    pytest.mark.skipif(not interpreting(), reason="the interpreter counts"),
]


def test_short_rows() -> None:
    """At 4,096 rows: every byte once, and 132 programs' partial sums."""
    torch.manual_seed(0)
    traffic = layer_norm_traffic(4096, 256, torch.bfloat16)
    forward, backward = traffic.ratios
    assert forward <= 1.01
    assert backward <= 1.092  # why not 1.09: "Trades" in benchmarks/README.md
    assert [k.name for k in traffic.forward] == ["layer_norm_fwd"]
    assert [k.name for k in traffic.backward] == ["layer_norm_bwd", "column_sum"]
    x = next(b for b in traffic.forward[0].buffers if b.name == "streams")
    assert x.asked == x.distinct == 4096 * 256 * 2


def test_wide_rows() -> None:
    """A group of 16 rows writes its partial sums once; what is read again is asked for, not new."""
    traffic = layer_norm_traffic(32, 40_499, torch.bfloat16)
    forward, backward = traffic.ratios
    assert forward <= 1.1  # the weights count at 32 rows
    assert backward <= 1.25
    x = next(b for b in traffic.backward[0].buffers if b.name == "streams")
    assert x.asked == 2 * x.distinct


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
    assert written == ({"gradients"} if needs == "x" else {"sums", "totals"})


def test_accesses_outside_the_arguments_raise() -> None:
    from tritonln.device import TARGETS
    from tritonln.kernels.column_sum import column_sum
    from tritonln.launch import Launch

    partial, out = torch.zeros(2, 64), torch.zeros(64)
    # Told that there are three partial sums where there are two.
    with counted(), pytest.raises(Exception, match="outside every argument"):
        Launch(column_sum, (64, 4, 64), TARGETS["sm_90"], 4)(1, ((partial,), ()), ((out,), ()), 3)


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
