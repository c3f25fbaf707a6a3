"""tritonln.add_layer_norm and add_rms_norm: what only they have.  Their values are in test_family.py, too."""

import pytest
import torch
from torch import Tensor

import tritonln
from tests.helpers.family import ADD, call, check, operands, results, upstream_of
from tests.helpers.problems import BF16, F16, F32, F64, rand

both = pytest.mark.parametrize("name", ADD)


def given_for(name: str, device: torch.device, dtype: torch.dtype = F32, other: torch.dtype | None = None):  # type: ignore[no-untyped-def]
    return operands(name, (2, 3, 100), dtype, device, other)


@pytest.fixture(params=["kernels", "formula"])
def way(request: pytest.FixtureRequest) -> str:
    if request.param == "formula":
        request.getfixturevalue("without_kernels")
    return str(request.param)


# ---- options -----------------------------------------------------------------------------------


@both
@pytest.mark.parametrize("out", [None, F32, BF16], ids=str)
def test_no_residual_yet(name: str, out: torch.dtype | None, way: str, device: torch.device) -> None:
    given = given_for(name, device, BF16)
    del given["residual"]
    found = check(name, given, residual_dtype=out)
    x = given["x"]
    assert found["residual_out"].equal(x.to(out or BF16))
    assert found["residual_out"].data_ptr() != x.data_ptr()


@both
@pytest.mark.parametrize(("x", "other", "out"), [(BF16, BF16, F32), (F32, F32, BF16), (F32, BF16, F16)], ids=str)
def test_residual_dtype(
    name: str, x: torch.dtype, other: torch.dtype, out: torch.dtype, way: str, device: torch.device
) -> None:
    """y is the norm of the residual as it is rounded."""
    given = operands(name, (2, 3, 100), x, device, other, F32 if x != F32 else None)
    check(name, given, residual_dtype=out)


SHAPES = [(2,), (2, 1, 1), (2, 3, 1), (2, 3), (), (1,), (1, 1, 1), (2, 1, 1, 1, 1)]


@both
@pytest.mark.parametrize("shape", SHAPES, ids=str)
def test_row_scale(name: str, shape: tuple[int, ...], way: str, device: torch.device) -> None:
    given = given_for(name, device)
    given["row_scale"] = rand(*shape, dtype=F32, device=device, seed=8)
    without = [word for word in given if word != "row_scale"]
    check(name, given, without)
    check(name, given)  # and its own gradient


@both
def test_row_scale_of_other_dtypes_drops_whole_paths(name: str, device: torch.device) -> None:
    """Stochastic depth: a factor of zero hands the residual on, and no gradient to x."""
    given = given_for(name, device, BF16, F32)
    given["row_scale"] = torch.tensor([[[0.0]], [[1.25]]], device=device)
    found = check(name, given, ["x", "residual"])
    assert found["residual_out"][0].equal(given["residual"][0])
    assert not found["dx"][0].any()
    assert found["dx"][1].any()


@both
def test_offset_and_eps(name: str, way: str, device: torch.device) -> None:
    given = given_for(name, device)
    upstream = upstream_of(name, given["x"])
    found = results(name, given, upstream, weight_offset=1.0)
    shifted = results(name, {**given, "weight": given["weight"] + 1.0}, upstream)
    assert all(t.equal(shifted[word]) for word, t in found.items())
    small = {word: t * 1e-4 if word in ("x", "residual") else t for word, t in given.items()}
    check(name, small, eps=None if name == "add_rms_norm" else 1e-9)


@both
def test_several_dimensions_of_a_row(name: str, device: torch.device) -> None:
    given = given_for(name, device)
    flat = call(name, given, 100)
    shaped = {word: t.reshape(*t.shape[:-1], 4, 25) for word, t in given.items()}
    for out, ref in zip(call(name, shaped, (4, 25)), flat):
        assert out.equal(ref.reshape(2, 3, 4, 25))


@both
def test_autocast_gives_fp32_where_torch_s_norms_do(name: str, device: torch.device) -> None:
    given = given_for(name, device, BF16)
    with torch.autocast(device.type, BF16):
        y, out = call(name, given, 100)
    assert y.dtype == (BF16 if device.type == "cpu" else F32)
    assert out.dtype == BF16


# ---- gradients that are shared -----------------------------------------------------------------


@both
def test_x_is_the_residual(name: str, way: str, device: torch.device) -> None:
    given = given_for(name, device)
    given["residual"] = given["x"]
    apart = check(name, given)
    leaf = given["x"].detach().requires_grad_()
    outputs = call(name, {**given, "x": leaf, "residual": leaf}, 100)
    torch.autograd.backward(outputs, upstream_of(name, leaf))
    assert leaf.grad is not None
    assert leaf.grad.equal(apart["dx"] + apart["dresidual"])


@both
def test_what_is_accumulated_is_not_shared(name: str, way: str, device: torch.device) -> None:
    """The gradients of x and of the residual are one tensor until somebody writes to them."""
    given = given_for(name, device)
    leaves = {word: t.requires_grad_() for word, t in given.items()}
    once = results(name, given, upstream_of(name, given["x"]))
    for turn in (1, 2, 3):
        torch.autograd.backward(call(name, leaves, 100), upstream_of(name, leaves["x"]))
        for word, t in leaves.items():
            assert t.grad is not None
            torch.testing.assert_close(t.grad, turn * once[f"d{word}"])
    assert leaves["x"].grad is not None
    assert leaves["residual"].grad is not None
    assert leaves["x"].grad.data_ptr() != leaves["residual"].grad.data_ptr()
    leaves["x"].grad.zero_()
    assert leaves["residual"].grad.any()


@both
@pytest.mark.parametrize("order", [("x", "residual"), ("residual", "x")])
def test_hooks_that_write(name: str, order: tuple[str, str], device: torch.device) -> None:
    """Of a stream that goes on: its gradient is added to and hooked, and the other one is not changed by that."""
    given = given_for(name, device)
    upstream = upstream_of(name, given["x"])
    plain = results(name, given, upstream)
    leaves = {word: t.detach().requires_grad_() for word, t in given.items()}
    streams = {word: leaves[word] * 1.0 for word in order}
    for word in order:
        streams[word].register_hook(lambda g: g * 3.0)
        leaves[word].register_hook(lambda g: g + 1.0)
    outputs = call(name, {**leaves, **streams}, 100)
    more = [streams[word].sum() for word in order]
    torch.autograd.backward([*outputs, *more], [*upstream, None, None])
    for word in order:
        torch.testing.assert_close(leaves[word].grad, (plain[f"d{word}"] + 1.0) * 3.0 + 1.0)


@both
def test_a_chain_of_blocks(name: str, device: torch.device) -> None:
    """Each block's residual goes into the next, in fp32 beside a bf16 stream."""
    norm = getattr(tritonln, name)

    def run(x: Tensor, residual: Tensor | None, weights: list[Tensor], **settings: object) -> list[Tensor]:
        for w in weights:
            x, residual = norm(x, residual, 100, w, **settings)
            x = torch.tanh(x)
        assert residual is not None
        return [x, residual]

    x = rand(2, 3, 100, dtype=F64, device=device).requires_grad_()
    weights = [rand(100, dtype=F64, device=device, seed=s).requires_grad_() for s in (1, 2, 3)]
    ours = run(x, None, weights)
    theirs: list[Tensor | None] = [x, None]
    function = torch.nn.functional.rms_norm if name == "add_rms_norm" else torch.nn.functional.layer_norm
    eps = torch.finfo(F64).eps if name == "add_rms_norm" else 1e-5
    for w in weights:
        residual = theirs[0] if theirs[1] is None else theirs[0] + theirs[1]  # type: ignore[operator]
        theirs = [torch.tanh(function(residual, (100,), w, eps=eps)), residual]  # type: ignore[arg-type]
    found, expected = (
        torch.autograd.grad([t.sum() + t.square().sum() for t in outs], [x, *weights])
        for outs in (ours, theirs)  # type: ignore[union-attr]
    )
    for out, ref in zip([*ours, *found], [*theirs, *expected]):
        torch.testing.assert_close(out, ref)
    y, residual = run(x.to(BF16), x.float(), [w.to(BF16) for w in weights], residual_dtype=F32)
    assert (y.dtype, residual.dtype) == (BF16, F32)


# ---- what is refused ---------------------------------------------------------------------------

X = torch.zeros(2, 3, 8)
REFUSED = {
    "residual of another shape": ({"residual": torch.zeros(2, 3, 7)}, r"Expected residual size \[2, 3, 8\], got \["),
    "residual that broadcasts": ({"residual": torch.zeros(8)}, "Expected residual size"),
    "residual no tensor": ({"residual": 3}, "argument 'residual' must be Tensor, not int"),
    "residual of integers": ({"residual": X.int()}, "expected residual of dtype float32, .*got torch.int32"),
    "residual of fp64": ({"residual": X.double()}, "expected residual of dtype float32, .*got torch.float64"),
    "x alone of fp64": ({"x": X.double(), "residual": X}, "expected residual of dtype float64 beside x"),
    "residual elsewhere": ({"residual": X.to("meta")}, "same device, but got residual is on meta"),
    "residual_dtype": ({"residual_dtype": torch.int8}, "expected residual_dtype of dtype .*got torch.int8"),
    "residual_dtype of fp64": ({"residual_dtype": F64}, "expected residual_dtype of dtype .*got torch.float64"),
    "residual_dtype no dtype": ({"residual_dtype": "bf16"}, "expected residual_dtype of dtype .*got bf16"),
    "row_scale of another size": ({"row_scale": torch.ones(3)}, r"row_scale to have one value .* got \[3\]"),
    "row_scale of columns": ({"row_scale": torch.ones(2, 3, 8)}, r"row_scale to have one value .* got \[2, 3, 8\]"),
    "row_scale of many dimensions": ({"row_scale": torch.ones(2, 1, 1, 2)}, "row_scale to have one value"),
    "row_scale from the right": ({"row_scale": torch.ones(1, 3, 1)}, "row_scale to have one value"),
    "row_scale no tensor": ({"row_scale": 0.5}, "argument 'row_scale' must be Tensor, not float"),
    "row_scale of integers": ({"row_scale": torch.ones(2).int()}, "expected row_scale of dtype"),
    "row_scale elsewhere": ({"row_scale": torch.ones(2, device="meta")}, "got row_scale is on meta"),
    "weight of another shape": ({"weight": torch.ones(7)}, "weight"),
    "weight elsewhere": ({"weight": torch.ones(8, device="meta")}, "weight is on meta"),
    "another size": ({"normalized_shape": 7}, "expected input with shape|normalized_shape"),
    "offset": ({"weight_offset": "1"}, "argument 'weight_offset' must be float, not str"),
}


@both
@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_argument(name: str, case: str) -> None:
    changed, message = REFUSED[case]
    given = {
        "x": X,
        "residual": X,
        "normalized_shape": 8,
        "weight": torch.ones(8).to(changed.get("x", X).dtype),
        **changed,
    }
    with pytest.raises((RuntimeError, TypeError), match=message):
        getattr(tritonln, name)(**given)
