"""tritonln.gated_rms_norm: what only it has.  Its values are in test_family.py, too."""

import pytest
import torch
import torch.nn.functional as F

import tritonln
from tests.helpers.family import call, check, operands, results, upstream_of
from tests.helpers.problems import BF16, F32, F64

both = pytest.mark.parametrize("name", ["gated_rms_norm", "gate_first"])


@both
@pytest.mark.parametrize("dtype", [F32, BF16, F64], ids=str)
def test_gates_of_any_size(name: str, dtype: torch.dtype, device: torch.device) -> None:
    """Closed, open, and past what exp can hold."""
    given = operands(name, (8, 64), dtype, device, F32 if dtype == BF16 else None, F32 if dtype == BF16 else None)
    sizes = torch.tensor([0.0, 1e-6, 1.0, 20.0, -20.0, 90.0, -90.0, -600.0], device=device).to(given["gate"].dtype)
    given["gate"] = given["gate"] + sizes.unsqueeze(1)
    check(name, given)
    # Each by its own size, but for gates that are all but closed; the oracle's own fp64 is no better than fp64.
    for row in (0, 1, 2, 3, 5) if dtype != F64 else ():
        one = {word: t if word == "weight" else t[row : row + 1] for word, t in given.items()}
        check(name, one, ["x", "gate"], eps=1e-5)


def test_in_torch_s_words(device: torch.device) -> None:
    given = operands("gated_rms_norm", (2, 3, 64), F32, device)
    x, gate, w = given.values()
    torch.testing.assert_close(call("gated_rms_norm", given, 64)[0], F.rms_norm(x, (64,), w, 1e-5) * F.silu(gate))
    torch.testing.assert_close(call("gate_first", given, 64)[0], F.rms_norm(x * F.silu(gate), (64,), w, 1e-5))


@both
def test_offset_eps_and_several_dimensions(name: str, device: torch.device) -> None:
    given = operands(name, (6, 100), F32, device)
    upstream = upstream_of(name, given["x"])
    found = results(name, given, upstream, weight_offset=1.0)
    shifted = results(name, {**given, "weight": given["weight"] + 1.0}, upstream)
    assert all(t.equal(shifted[word]) for word, t in found.items())
    check(name, {**given, "x": given["x"] * 1e-4}, eps=None)
    shaped = {word: t.reshape(*t.shape[:-1], 4, 25) for word, t in given.items()}
    assert call(name, shaped, (4, 25))[0].reshape(6, 100).equal(call(name, given, 100)[0])


X = torch.zeros(2, 3, 8)
REFUSED = {
    "gate of another shape": ({"gate": torch.zeros(2, 8)}, r"Expected gate size \[2, 3, 8\], got \[2, 8\]"),
    "gate absent": ({"gate": None}, "argument 'gate' must be Tensor, not NoneType"),
    "gate of integers": ({"gate": X.int()}, "expected gate of dtype float32, .*got torch.int32"),
    "gate of fp64": ({"gate": X.double()}, "expected gate of dtype float32, .*got torch.float64"),
    "gate elsewhere": ({"gate": X.to("meta")}, "same device, but got gate is on meta"),
    "weight of another shape": ({"weight": torch.ones(7)}, "weight"),
    "another size": ({"normalized_shape": 7}, "expected input with shape|normalized_shape"),
    "offset": ({"weight_offset": "1"}, "argument 'weight_offset' must be float, not str"),
}


@pytest.mark.parametrize("first", [False, True])
@pytest.mark.parametrize("case", REFUSED)
def test_refusals_name_the_argument(case: str, first: bool) -> None:
    changed, message = REFUSED[case]
    given = {"x": X, "gate": X, "normalized_shape": 8, "norm_before_gate": not first, **changed}
    with pytest.raises((RuntimeError, TypeError), match=message):
        tritonln.gated_rms_norm(**given)
