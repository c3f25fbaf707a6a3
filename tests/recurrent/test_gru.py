"""layer_norm_gru against the fp64 oracle, on the Triton kernels and in ATen."""

import itertools
from typing import Any

import pytest
import torch

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.compiled import spills
from tests.helpers.problems import BF16, F16, F32, F64
from tests.helpers.recurrent import expect, flat, gradients, gru_problem, per_step
from tritonln.ops import library

VARIANTS = {
    "paper": ({}, {}),
    "joint": ({}, {"norm_groups": "joint"}),
    "no biases": ({"bias": False}, {}),
    "no biases, joint": ({"bias": False}, {"norm_groups": "joint"}),
    "sum": ({"summed": True}, {"norm_groups": "joint", "reset": "candidate"}),
    "sum by the paper's groups": ({"summed": True, "bias": False}, {"reset": "candidate"}),
    "sum by gates": ({"summed": True}, {"norm_groups": "gates", "reset": "candidate"}),
    "sum, reset inside": ({"summed": True}, {"reset": "recurrent"}),
    "sum, reset inside, no biases": ({"summed": True, "bias": False}, {"reset": "recurrent"}),
    "sum by gates, reset inside": ({"summed": True}, {"norm_groups": "gates", "update_bias": -1.0}),
}
OF_ATEN = {
    "update bias": ({"bias": False}, {"update_bias": -1.0}),
    "update bias of a sum": ({"summed": True}, {"norm_groups": "joint", "reset": "candidate", "update_bias": -1.0}),
}


# ---- the kernels -------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("variant", [v for v in VARIANTS if "sum" not in v])
@pytest.mark.parametrize("reverse", [True, *thorough(False)])
def test_variants(variant: str, reverse: bool, device: torch.device) -> None:
    arguments, options = VARIANTS[variant]
    lengths = torch.tensor([3, 1], device=device) if reverse else None
    args = gru_problem(3, 2, 4, 7, F32, device, **arguments)
    expect("layer_norm_gru", args, reverse=reverse, lengths=lengths, **options)


@pytest.mark.interpreted
@pytest.mark.usefixtures("at_once")
@pytest.mark.thorough
@pytest.mark.parametrize("H", [1, 48, 64])
def test_hidden_sizes(H: int, device: torch.device) -> None:
    expect("layer_norm_gru", gru_problem(3, 2, 5, H, F32, device))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("H", [1, 7, 64, *thorough(48)])
def test_many_steps(H: int, device: torch.device) -> None:
    expect("layer_norm_gru", gru_problem(40, 2, 5, H, F32, device), lengths=torch.tensor([40, 23], device=device))


@pytest.mark.parametrize(
    ("H", "dtype"),
    [(100, BF16), (256, F32), *thorough((100, F32), (128, F16), (256, BF16))],
    ids=str,
)
def test_many_steps_of_many_units(H: int, dtype: torch.dtype, device: torch.device) -> None:
    """On both sides of what fits on the chip, which is more in 16 bits."""
    expect("layer_norm_gru", gru_problem(40, 2, 5, H, dtype, device), lengths=torch.tensor([40, 23], device=device))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("joint", [False, True])
@pytest.mark.parametrize(("dtype", "parameters"), [*thorough((BF16, BF16)), (F16, F32)], ids=str)
def test_16_bit(dtype: torch.dtype, parameters: torch.dtype, joint: bool, device: torch.device) -> None:
    args = gru_problem(3, 2, 5, 48, dtype, device, parameters=parameters)
    expect("layer_norm_gru", args, norm_groups="joint" if joint else "paper")


@pytest.mark.parametrize("joint", [False, True])
def test_fp64(joint: bool, device: torch.device) -> None:
    expect("layer_norm_gru", gru_problem(3, 2, 5, 48, F64, device), norm_groups="joint" if joint else "paper")


@pytest.mark.usefixtures("at_once")
def test_more_rows_than_a_program_takes(device: torch.device) -> None:
    expect("layer_norm_gru", gru_problem(2, 70, 3, 8, F32, device))


@pytest.mark.usefixtures("at_once")
def test_strided_arguments(device: torch.device) -> None:
    """Every second value of tensors that hold something else between."""
    args = {k: torch.stack([t, t + 1], -1)[..., 0] for k, t in gru_problem(3, 2, 4, 7, F32, device).items()}
    expect("layer_norm_gru", args, lengths=torch.tensor([3, 0, 1, 0], device=device)[::2])


# ---- ATen --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("variant", [*VARIANTS, *OF_ATEN])
@pytest.mark.parametrize(("reverse", "masked"), list(itertools.product([False, True], repeat=2)))
def test_aten_variants(variant: str, reverse: bool, masked: bool, device: torch.device) -> None:
    arguments, options = {**VARIANTS, **OF_ATEN}[variant]
    args = gru_problem(5, 3, 4, 7, F32, device, **arguments)
    lengths = torch.tensor([5, 4, 1], device=device) if masked else None
    expect("layer_norm_gru", args, reverse=reverse, lengths=lengths, **options)


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
@pytest.mark.parametrize("H", [1, 7, 48, 64, 100, 256])
def test_aten_sizes(H: int, dtype: torch.dtype, device: torch.device) -> None:
    expect("layer_norm_gru", gru_problem(40, 3, 5, H, dtype, device))


# ---- the rest ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("stepwise")
def test_launches_and_allocations_of_a_step(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    forward, backward = per_step("layer_norm_gru", lambda T: gru_problem(T, 2, 3, 7, F32, device), monkeypatch)
    assert forward == backward == (2, 0)


def test_a_step_costs_nothing_at_once(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    found = per_step("layer_norm_gru", lambda T: gru_problem(T, 2, 3, 7, F32, device), monkeypatch)
    assert found == ((0, 0), (0, 0))


@pytest.mark.usefixtures("at_once")
def test_small_updates_of_a_16_bit_state_add_up(device: torch.device) -> None:
    """The state is carried in fp32: a gate that keeps 511 parts in 512 moves it all the same."""
    H, T = 8, 24
    args = {k: None if t is None else torch.zeros_like(t) for k, t in gru_problem(T, 1, 3, H, BF16, device).items()}
    bias = torch.zeros(3 * H, device=device)
    bias[H : 2 * H], bias[2 * H :] = 6.2362, 9.0  # sigmoid, tanh: z = 1 - 1/512, n = 1
    args |= {"h0": torch.ones(1, H, device=device).bfloat16() / 2, "bias_ih": bias, "bias_hh": torch.zeros_like(bias)}
    args |= {"ln_ih_weight": torch.zeros_like(bias), "ln_hh_weight": torch.zeros_like(bias)}
    _, h_n = tritonln.layer_norm_gru(**args)
    expected = 1 - 0.5 * (1 - 1 / 512) ** T
    assert float((h_n.float() - expected).abs().max()) <= 2**-8


@pytest.mark.usefixtures("aten")
def test_gradcheck(device: torch.device) -> None:
    args = gru_problem(3, 2, 2, 3, F64, device)
    leaves = [t.requires_grad_() for t in args.values() if t is not None]
    assert torch.autograd.gradcheck(lambda *a: flat(tritonln.layer_norm_gru(**dict(zip(args, a)))), leaves)


def refused(**changed: Any) -> pytest.ExceptionInfo[RuntimeError]:
    args = {**gru_problem(2, 3, 4, 7, F32, torch.device("cpu")), **changed}
    with pytest.raises(RuntimeError) as raised:
        tritonln.layer_norm_gru(**args)
    return raised


def test_refused() -> None:
    t = torch.randn
    assert refused(x=t(3, 4)).match("input must have 3 dimensions, got 2")
    assert refused(h0=t(2, 7)).match(r"Expected h0 size \(3, 7\), got \[2, 7\]")
    assert refused(weight_hh=t(28, 7)).match(r"Expected weight_hh size \(21, 7\), got \[28, 7\]")
    assert refused(ln_hh_weight=t(21).double()).match("expected ln_hh_weight of dtype torch.float32, got torch.float64")
    assert refused(bias_hh=None).match("both or neither of bias_ih and bias_hh")
    assert refused(ln_ih_weight=None, ln_hh_weight=None).match("expected ln_ih_weight and ln_hh_weight, or ln_weight")
    of_sum = {"ln_ih_weight": None, "ln_hh_weight": None, "ln_weight": t(21)}
    assert refused(**of_sum, norm_groups="joint").match("expected reset 'candidate' where the sum has one norm")
    assert refused(norm_groups="gates").match("expected ln_weight where norm_groups is 'gates'")
    assert refused(reset="candidate").match("expected ln_weight where reset is 'candidate'")


def test_no_rows(device: torch.device) -> None:
    results = gradients(tritonln.layer_norm_gru, gru_problem(2, 0, 4, 7, F32, device))
    assert results["0"].shape == (2, 0, 7)
    assert results["weight_hh"].equal(torch.zeros(21, 7, device=device))


@pytest.mark.usefixtures("aten")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize("groups", ["paper", "joint", "joint sum", "gates sum inside"])
@pytest.mark.parametrize("dtype", [F32, BF16], ids=str)
def test_opcheck(groups: str, dtype: torch.dtype, device: torch.device) -> None:
    torch.use_deterministic_algorithms(False)
    args = gru_problem(3, 2, 4, 5, dtype, device, summed="sum" in groups)
    tensors = [t if t is None else t.requires_grad_() for t in ({"ln_weight": None, "ln_bias": None} | args).values()]
    tensors = [*tensors[2:], *tensors[:2]]
    masks = torch.tensor([3, 1], device=device), None
    constants = (False, groups.split()[0], "recurrent" if "inside" in groups else "candidate", 1e-5, True)
    torch.library.opcheck(library.op("layer_norm_gru"), (*tensors, *masks, *constants, True))


@pytest.mark.compiles
@pytest.mark.parametrize("target", ["sm_90", *thorough("sm_80", "sm_100", "gfx942")])
def test_nothing_spills(target: str) -> None:
    found = spills("gru", target, (128, 2048))
    assert len(found) == 2 * 2 * 2
    assert not any(found.values()), found
