"""The backward of rows that are split over programs, as every row operator has it."""

import pytest
import torch

from tests.helpers.family import UNLIKE, check, operands
from tests.helpers.problems import BF16, F32, expect, problem, run
from tritonln.device import TARGETS
from tritonln.launch import recorded
from tritonln.launches import training_launches
from tritonln.ops.layer_norm import LAYER_NORM

N = 8192 + 8  # a piece more than eight chunks of 1,024


@pytest.mark.parametrize("name", UNLIKE)
def test_batches(name: str, device: torch.device) -> None:
    """Of 20 rows, of which a program has some tiles."""
    check(name, operands(name, (2, 20, N), BF16, device, F32, F32))


@pytest.mark.parametrize("name", ["add_layer_norm", "gated_rms_norm"])
def test_strided_rows_and_one_gradient(name: str, device: torch.device) -> None:
    given = operands(name, (2, 3, N), BF16, device, F32, F32)
    check(name, {word: t[..., :1, :] if t.dim() > 2 else t for word, t in given.items()}, ["x"])


@pytest.mark.parametrize("dtype", [BF16, F32], ids=str)
def test_a_row_knows_no_other(dtype: torch.dtype, device: torch.device) -> None:
    """Bits of dx, at 243 rows, several tiles a program, some one fewer, the last not full, and at 40, 5 and 1."""
    x, w, b, dy = problem(243, N, dtype, device)
    expect(x, (N,), w, b, dy)
    found, again = (run(x, (N,), w, b, dy) for _ in range(2))
    assert all(t.equal(again[k]) for k, t in found.items())
    for M in (40, 5, 1):
        few = run(x[-M:], (N,), w, b, dy[-M:])
        assert few["dx"].equal(found["dx"][-M:])


@pytest.mark.parametrize("name", ["layer_norm", "add_adaptive_rms_norm"])
def test_launches(name: str) -> None:
    """At few rows as at many, of which the second adds up partial sums; where nothing needs the sums of rows, they are
    not written and there is no second one.
    """
    for target in ("sm_80", "gfx942"):
        for rows in (3, 1 << 16):
            calls = training_launches(name, target, 12_288, BF16, F32, rows)
            assert [c.launch.name for c in calls[1:3]] == [f"{name}_wide_sums_bwd", f"{name}_wide_dx_bwd"]
            assert [c.launch.name for c in calls[3:]] == []
            *_, partials, totals, _, _, P, adding, _ = calls[2].args
            assert all(partial.shape[0] % P == 0 for (partial,) in partials)
            assert (adding > 0) == bool(totals) == (rows > 3)
    dtypes, needs = (BF16, F32, F32), (False, True, True)
    plan = LAYER_NORM.backward_plan(12_288, (BF16, None, None), F32, dtypes, needs, TARGETS["sm_80"]).kernels[2]
    x, w = torch.empty(5, 12_288, dtype=BF16, device="meta"), torch.empty(12_288, device="meta")
    stats = torch.empty(5, 2, device="meta")
    with recorded() as calls:
        plan.launch(1, (x, None, None), (x,), (w, None), stats, (None,), (w, w), 5, 5, 0.0)
    (call,) = calls
    assert call.launch.name == "layer_norm_wide_sums_bwd"
    assert call.args[6] is None
