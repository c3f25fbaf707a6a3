"""Norms of the sum of both products, as torchaudio's, icefall's and Dreamer's nets have them, with all that a row can
be: over, begun anew, walked backward.
"""

from __future__ import annotations

from typing import Any

import pytest
import torch

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.compiled import spills
from tests.helpers.problems import BF16, F32
from tests.helpers.recurrent import expect, gradients, gru_problem, lstm_problem, per_step
from tritonln import reference_recurrent
from tritonln.device import triton_version

PROBLEMS: dict[str, Any] = {"layer_norm_lstm": lstm_problem, "layer_norm_gru": gru_problem}
OPTIONS: dict[str, dict[str, Any]] = {"layer_norm_lstm": {"carry": True}, "layer_norm_gru": {"reset": "candidate"}}


@pytest.mark.interpreted
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("reverse", [True, *thorough(False)])
@pytest.mark.parametrize(("norm_groups", "dtype", "H"), [("joint", BF16, 48), ("gates", F32, 7)], ids=str)
@pytest.mark.parametrize("name", PROBLEMS)
def test_on_kernels(
    name: str, norm_groups: str, dtype: torch.dtype, H: int, reverse: bool, device: torch.device
) -> None:
    resets = torch.tensor([[1, 0], [1, 0], [0, 1], [1, 1]], dtype=torch.bool, device=device)
    lengths = torch.tensor([4, 3], device=device)
    args = PROBLEMS[name](4, 2, 4, H, dtype, device, summed=True, parameters=F32)
    expect(name, args, norm_groups=norm_groups, resets=resets, lengths=lengths, reverse=reverse, **OPTIONS[name])


@pytest.mark.interpreted
@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(("norm_groups", "dtype", "H"), [("gates", F32, 7), *thorough(("paper", BF16, 48))], ids=str)
@pytest.mark.parametrize("reverse", [True, *thorough(False)])
def test_reset_inside_of_the_norm_on_kernels(
    norm_groups: str, dtype: torch.dtype, H: int, reverse: bool, device: torch.device
) -> None:
    """icefall's GRU."""
    resets = torch.tensor([[1, 0], [1, 0], [0, 1], [1, 1]], dtype=torch.bool, device=device)
    lengths = torch.tensor([4, 3], device=device)
    args = gru_problem(4, 2, 4, H, dtype, device, summed=True, parameters=F32)
    expect("layer_norm_gru", args, norm_groups=norm_groups, resets=resets, lengths=lengths, reverse=reverse)


@pytest.mark.interpreted
@pytest.mark.usefixtures("stepwise")
def test_norms_of_single_values(device: torch.device) -> None:
    """LN(c) of one unit is constant, and carried: what reaches the weights is nothing, not the rounding of it."""
    expect("layer_norm_lstm", lstm_problem(4, 2, 4, 1, F32, device, summed=True), norm_groups="gates", carry=True)


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("norm_groups", ["joint", "gates"])
@pytest.mark.parametrize("H", [1, 48, 100])
@pytest.mark.parametrize("name", PROBLEMS)
def test_many_steps_in_aten(name: str, H: int, norm_groups: str, device: torch.device) -> None:
    resets = torch.rand(40, 3, generator=torch.Generator().manual_seed(1)) < 0.1
    args = PROBLEMS[name](40, 3, 5, H, F32, device, summed=True)
    expect(name, args, norm_groups=norm_groups, resets=resets.to(device), **OPTIONS[name])


@pytest.mark.usefixtures("stepwise")
@pytest.mark.parametrize(("name", "options"), [*OPTIONS.items(), ("layer_norm_gru", {"norm_groups": "gates"})], ids=str)
def test_launches_and_allocations_of_a_step(
    name: str, options: dict[str, Any], monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    options = {"norm_groups": "joint", **options}
    operator = getattr(tritonln, name)
    monkeypatch.setattr(tritonln, name, lambda **args: operator(**args, **options))
    found = per_step(name, lambda T: PROBLEMS[name](T, 2, 3, 7, F32, device, summed=True), monkeypatch)
    assert found == ((2, 0), (2, 0))


@pytest.mark.compiles
def test_the_fullest_kernel_does_not_spill() -> None:
    """An LSTM backward with norms of each gate, resets, lengths and every gradient takes the most registers."""
    found = spills("lstm", "sm_90", (128,), "gates+resets")
    assert "lstm_persistent_bwd 128 torch.bfloat16 gates+resets" in found
    # Bytes of a thread that a version keeps in memory.
    most = 72 if triton_version() >= (3, 9) else 0 if triton_version() >= (3, 7) else 144
    assert max(found.values()) <= most, found


@pytest.mark.thorough
@pytest.mark.compiles
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
@pytest.mark.parametrize("kind", ["lstm", "gru"])
def test_nothing_spills(kind: str, target: str) -> None:
    variants = ["sum", "gates", "products+resets", "sum+resets", "gates+resets"]
    found = spills(kind, target, (16, 32, 64, 128), *variants, *(["inside", "inside+resets"] if kind == "gru" else []))
    fullest = {k for k in found if "_persistent_bwd" in k and k.endswith("+resets") and "float32" in k}
    # In 16 bits a few registers more than there are, all outside of the loop over steps.
    of_lstm = [f"lstm_persistent_bwd 128 torch.bfloat16 {variant}+resets" for variant in ("gates", "products")]
    of_gru = "gru_persistent_bwd 128 torch.bfloat16 products+resets"
    fullest |= {"sm_80": {of_lstm[0]}, "sm_100": {*of_lstm, of_gru}}.get(target, set())
    most = 120 if (kind, target) == ("lstm", "sm_100") else 32
    assert all(found.pop(name, 0) <= most for name in fullest)
    assert not any(found.values()), found


@pytest.mark.thorough
@pytest.mark.compiles
@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_steps_of_wide_rows_hardly_spill(target: str) -> None:
    """Those of an LSTM kept up to 400 bytes of a thread in memory when all operands were loaded at once."""
    found = spills("lstm", target, (4096,), "products", "sum", "gates+resets")
    assert max(found.values()) <= (0 if target == "sm_90" else 24), found


@pytest.mark.interpreted
@pytest.mark.usefixtures("stepwise")
@pytest.mark.parametrize("groups", [None, *thorough("joint", "gates")])
def test_a_step_of_a_wide_row(groups: str | None, device: torch.device) -> None:
    """Past H = 2,048 the LSTM's step makes a gate at a time, and its backward reads p and its gain again.  In fp64: one
    row of so many values hides a wrong p in what its products are allowed in fp32.
    """
    args = lstm_problem(1, 1, 2, 2050, torch.float64, device, summed=groups is not None)
    options = {"norm_groups": groups or "joint"}
    expected = gradients(reference_recurrent.layer_norm_lstm, args, **options)
    torch.testing.assert_close(gradients(tritonln.layer_norm_lstm, args, **options), expected)
