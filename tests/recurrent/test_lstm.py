"""layer_norm_lstm against the fp64 oracle, on the Triton kernels and in ATen."""

import itertools

import pytest
import torch
from torch import Tensor

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.compiled import spills
from tests.helpers.problems import BF16, F16, F32, F64, rand
from tests.helpers.recurrent import expect, flat, gradients, lstm_problem, per_step
from tritonln.device import triton_version
from tritonln.ops import library

VARIANTS = {
    "paper": ({}, {}),
    "carry": ({}, {"carry": True}),
    "cell not normalized": ({"cell": False}, {}),
    "gates not normalized": ({"gates": False}, {}),
    "plain": ({"gates": False, "cell": False}, {}),
    "no biases": ({"bias": False}, {}),
    "no biases, carry": ({"bias": False}, {"carry": True}),
    "projection": ({"P": 3}, {}),
    "sum": ({"summed": True}, {}),
    "sum, carry, no biases": ({"summed": True, "bias": False}, {"carry": True}),
    "sum by gates, carry": ({"summed": True}, {"norm_groups": "gates", "carry": True}),
}


# ---- the kernels -------------------------------------------------------------------------------


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("variant", [v for v in VARIANTS if v != "projection" and "sum" not in v])
@pytest.mark.parametrize("reverse", [True, *thorough(False)])
def test_variants(variant: str, reverse: bool, device: torch.device) -> None:
    arguments, options = VARIANTS[variant]
    lengths = torch.tensor([3, 1], device=device) if reverse else None
    args = lstm_problem(3, 2, 4, 7, F32, device, **arguments)
    expect("layer_norm_lstm", args, reverse=reverse, lengths=lengths, **options)


@pytest.mark.parametrize("reverse", [False, True])
def test_projection(reverse: bool, device: torch.device) -> None:
    lengths = torch.tensor([3, 1], device=device) if reverse else None
    expect("layer_norm_lstm", lstm_problem(3, 2, 4, 7, F32, device, P=3), reverse=reverse, lengths=lengths)


@pytest.mark.interpreted
@pytest.mark.usefixtures("at_once")
@pytest.mark.thorough
@pytest.mark.parametrize("H", [1, 48, 64])
def test_hidden_sizes(H: int, device: torch.device) -> None:
    expect("layer_norm_lstm", lstm_problem(3, 2, 5, H, F32, device))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("H", [1, 7, 64, *thorough(48)])
def test_many_steps(H: int, device: torch.device) -> None:
    expect("layer_norm_lstm", lstm_problem(40, 2, 5, H, F32, device), lengths=torch.tensor([40, 23], device=device))


@pytest.mark.parametrize(
    ("H", "dtype"),
    [(256, F32), *thorough((100, BF16), (100, F32), (128, F16), (256, BF16))],
    ids=str,
)
def test_many_steps_of_many_units(H: int, dtype: torch.dtype, device: torch.device) -> None:
    """On both sides of what fits on the chip, which is more in 16 bits."""
    expect("layer_norm_lstm", lstm_problem(40, 2, 5, H, dtype, device), lengths=torch.tensor([40, 23], device=device))


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("dtype", "parameters"), [*thorough((BF16, BF16)), (BF16, F32), *thorough((F16, F32))], ids=str
)
def test_16_bit(dtype: torch.dtype, parameters: torch.dtype, device: torch.device) -> None:
    expect("layer_norm_lstm", lstm_problem(3, 2, 5, 48, dtype, device, parameters=parameters))


def test_fp64(device: torch.device) -> None:
    expect("layer_norm_lstm", lstm_problem(3, 2, 5, 48, F64, device))


@pytest.mark.usefixtures("at_once")
def test_more_rows_than_a_program_takes(device: torch.device) -> None:
    """The partial sums of several programs, the last of them with rows to spare."""
    expect("layer_norm_lstm", lstm_problem(2, 70, 3, 8, F32, device))


@pytest.mark.usefixtures("at_once")
def test_lengths_of_nothing_and_of_more_than_there_is(device: torch.device) -> None:
    args = lstm_problem(3, 2, 4, 7, F32, device)
    expect("layer_norm_lstm", args, lengths=torch.tensor([0, 9], device=device))


@pytest.mark.usefixtures("at_once")
def test_strided_arguments(device: torch.device) -> None:
    """Every second value of tensors that hold something else between."""
    args = {k: torch.stack([t, t + 1], -1)[..., 0] for k, t in lstm_problem(3, 2, 4, 7, F32, device).items()}
    expect("layer_norm_lstm", args, lengths=torch.tensor([3, 0, 1, 0], device=device)[::2])


# ---- ATen --------------------------------------------------------------------------------------


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("variant", VARIANTS)
@pytest.mark.parametrize(("reverse", "masked"), list(itertools.product([False, True], repeat=2)))
def test_aten_variants(variant: str, reverse: bool, masked: bool, device: torch.device) -> None:
    arguments, options = VARIANTS[variant]
    args = lstm_problem(5, 3, 4, 7, F32, device, **arguments)
    lengths = torch.tensor([5, 4, 1], device=device) if masked else None
    expect("layer_norm_lstm", args, reverse=reverse, lengths=lengths, **options)


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
@pytest.mark.parametrize("H", [1, 7, 48, 64, 100, 256])
def test_aten_sizes(H: int, dtype: torch.dtype, device: torch.device) -> None:
    expect("layer_norm_lstm", lstm_problem(40, 3, 5, H, dtype, device))


# ---- what a step costs -------------------------------------------------------------------------


@pytest.mark.usefixtures("stepwise")
@pytest.mark.parametrize("P", [None, 3])
def test_launches_and_allocations_of_a_step(
    P: int | None, monkeypatch: pytest.MonkeyPatch, device: torch.device
) -> None:
    """(launches, allocations): two launches forward and two backward, more with a projection, and no memory."""
    forward, backward = per_step("layer_norm_lstm", lambda T: lstm_problem(T, 2, 3, 7, F32, device, P=P), monkeypatch)
    assert forward == (2 if P is None else 3, 0)
    assert backward == (2 if P is None else 5, 0)


def test_a_step_costs_nothing_at_once(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    found = per_step("layer_norm_lstm", lambda T: lstm_problem(T, 2, 3, 7, F32, device), monkeypatch)
    assert found == ((0, 0), (0, 0))


# ---- autograd ----------------------------------------------------------------------------------


@pytest.mark.usefixtures("aten")
def test_gradcheck(device: torch.device) -> None:
    args = lstm_problem(3, 2, 2, 3, F64, device)
    leaves = [t.requires_grad_() for t in args.values()]
    assert torch.autograd.gradcheck(lambda *a: flat(tritonln.layer_norm_lstm(**dict(zip(args, a)))), leaves)


@pytest.mark.parametrize("wanted", ["x", "weight_hh", "bias_hh", "ln_c_bias", "h0"])
def test_gradients_only_of_what_requires_them(wanted: str, device: torch.device) -> None:
    args = lstm_problem(2, 2, 3, 7, F32, device)
    everything = gradients(tritonln.layer_norm_lstm, args)
    leaf = args[wanted].requires_grad_()
    results = flat(tritonln.layer_norm_lstm(**args))
    directions = [rand(*r.shape, dtype=F64, device=device, seed=9 + k).float() for k, r in enumerate(results)]
    (found,) = torch.autograd.grad(results, leaf, directions)
    # Of another kernel: on sm_100 and sm_120 one ulp lies between them.
    torch.testing.assert_close(found, everything[wanted])
    assert all(t.grad is None for t in args.values())


@pytest.mark.usefixtures("at_once")
def test_backward_twice_gives_the_same_bits(device: torch.device) -> None:
    args = lstm_problem(2, 2, 3, 7, F32, device)
    leaves = [t.requires_grad_() for t in args.values()]
    y, _, _ = tritonln.layer_norm_lstm(**args)
    first = torch.autograd.grad(y.sum(), leaves, retain_graph=True)
    again = torch.autograd.grad(y.sum(), leaves)
    assert all(p.equal(q) for p, q in zip(first, again))
    with pytest.raises(RuntimeError, match="second time"):
        torch.autograd.grad(y.sum(), leaves)


def test_gradients_of_both_biases_are_tensors_of_their_own(device: torch.device) -> None:
    args = lstm_problem(2, 2, 3, 7, F32, device)
    biases = args["bias_ih"].requires_grad_(), args["bias_hh"].requires_grad_()
    for _ in range(2):
        tritonln.layer_norm_lstm(**args)[0].sum().backward()
    assert biases[0].grad is not None
    assert biases[1].grad is not None
    assert biases[0].grad.equal(biases[1].grad)
    assert biases[0].grad.data_ptr() != biases[1].grad.data_ptr()


@pytest.mark.usefixtures("aten")
def test_a_changed_weight_is_noticed(device: torch.device) -> None:
    args = lstm_problem(2, 2, 3, 7, F32, device)
    y, _, _ = tritonln.layer_norm_lstm(**{**args, "x": args["x"].requires_grad_()})
    args["weight_hh"].mul_(2)
    with pytest.raises(RuntimeError, match="modified by an inplace operation"):
        y.sum().backward()


@pytest.mark.usefixtures("at_once")
def test_rows_do_not_depend_on_each_other(device: torch.device) -> None:
    args = lstm_problem(2, 3, 4, 7, F32, device)
    y, _, _ = tritonln.layer_norm_lstm(**args)
    args["x"][:, 1] = float("nan")
    other, _, _ = tritonln.layer_norm_lstm(**args)
    assert other[:, 1].isnan().all()
    assert other[:, ::2].equal(y[:, ::2])


# ---- contract ----------------------------------------------------------------------------------


def refused(**changed: Tensor | None) -> pytest.ExceptionInfo[RuntimeError]:
    args = {**lstm_problem(2, 3, 4, 7, F32, torch.device("cpu")), **changed}
    with pytest.raises(RuntimeError) as raised:
        tritonln.layer_norm_lstm(**args)
    return raised


def test_refused() -> None:
    t = torch.randn
    assert refused(x=t(3, 4)).match("input must have 3 dimensions, got 2")
    assert refused(x=t(0, 3, 4)).match("Expected sequence length to be larger than 0 in RNN")
    assert refused(h0=t(2, 7)).match(r"Expected h0 size \(3, 7\), got \[2, 7\]")
    assert refused(h0=t(3, 6)).match(r"Expected h0 size \(3, 7\), got \[3, 6\]")
    assert refused(weight_ih=t(28, 5)).match(r"Expected weight_ih size \(28, 4\), got \[28, 5\]")
    assert refused(ln_c_weight=t(8)).match(r"Expected ln_c_weight size \(7,\), got \[8\]")
    assert refused(weight_hh=t(28, 7).bfloat16()).match("expected weight_hh of dtype torch.float32, got torch.bfloat16")
    assert refused(bias_hh=t(28, device="meta")).match("same device, but got bias_hh is on meta")
    assert refused(ln_ih_weight=None).match("both or neither of ln_ih_weight and ln_hh_weight")
    assert refused(ln_weight=t(28)).match("ln_weight or ln_ih_weight and ln_hh_weight, got all of them")
    assert refused(ln_bias=t(28)).match("expected ln_weight where there is an ln_bias")
    assert refused(ln_c_weight=None).match("expected ln_c_weight")
    args = lstm_problem(2, 3, 4, 7, F32, torch.device("cpu"))
    with pytest.raises(RuntimeError, match=r"expected lengths of shape \(3,\), dtype torch.int64 on cpu, got \(2,\)"):
        tritonln.layer_norm_lstm(**args, lengths=torch.tensor([1, 2]))


def test_no_rows(device: torch.device) -> None:
    results = gradients(tritonln.layer_norm_lstm, lstm_problem(2, 0, 4, 7, F32, device))
    assert results["0"].shape == (2, 0, 7)
    assert results["weight_hh"].equal(torch.zeros(28, 7, device=device))


@pytest.mark.usefixtures("aten")
@pytest.mark.parametrize("dtype", [BF16, F16], ids=str)
def test_autocast(dtype: torch.dtype, device: torch.device) -> None:
    """As a layer whose matrices are in autocast's dtype, with norms and cell in fp32."""
    args = lstm_problem(3, 2, 4, 7, F32, device)
    with torch.autocast(device.type, dtype):
        found = gradients(tritonln.layer_norm_lstm, args)
    assert found["0"].dtype == found["1"].dtype == dtype
    assert found["2"].dtype == F32
    cast = {k: t.to(dtype) if "weight_" in k[:7] or k in ("x", "h0") else t for k, t in args.items()}
    inside = gradients(tritonln.layer_norm_lstm, cast)
    for k, t in found.items():
        assert t.dtype == (dtype if k in "01" else F32)
        assert t.equal(inside[k].to(t.dtype)), k


# ---- traced code -------------------------------------------------------------------------------


@pytest.mark.usefixtures("aten")
@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
@pytest.mark.parametrize("variant", ["paper", "projection", "plain", "sum"])
@pytest.mark.parametrize("save", [True, False])
def test_opcheck(variant: str, save: bool, device: torch.device) -> None:
    torch.use_deterministic_algorithms(False)
    args = lstm_problem(3, 2, 4, 5, F32, device, **VARIANTS[variant][0])
    names = (
        *("x", "h0", "c0", "weight_ih", "weight_hh", "bias_ih", "bias_hh", "ln_ih_weight", "ln_hh_weight"),
        *("ln_c_weight", "ln_c_bias", "weight_hr", "ln_weight", "ln_bias"),
    )
    tensors = [args[n].requires_grad_(save) if n in args else None for n in names]
    lengths = torch.tensor([3, 1], device=device)
    masks = lengths, torch.tensor([[False, False], [True, False], [False, True]], device=device)
    torch.library.opcheck(library.op("layer_norm_lstm"), (*tensors, *masks, False, False, "joint", 1e-5, True, save))


# ---- compiled for GPUs that are not here -----------------------------------------------------------


@pytest.mark.compiles
@pytest.mark.parametrize("target", ["sm_90", *thorough("sm_80", "sm_100", "gfx942")])
def test_nothing_spills(target: str) -> None:
    found = spills("lstm", target, (128, 2048))
    assert len(found) == 2 * 2 * 2
    # A whole sequence backward takes all 255 registers at H = 128, and with lengths and every gradient a few more.
    fullest = found.pop("lstm_persistent_bwd 128 torch.bfloat16 products", 0)
    assert fullest <= (32 if triton_version() >= (3, 7) else 208)
    assert not any(found.values()), found
