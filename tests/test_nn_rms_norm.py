"""tritonln.nn.RMSNorm is torch.nn.RMSNorm but for its forward."""

import copy

import pytest
import torch

import tritonln
from tests.helpers.problems import BF16, F32, rand
from tests.helpers.tolerance import assert_close
from tritonln import reference


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((24,), {}),
        (([3, 8],), {"eps": 1e-3}),
        ((24,), {"elementwise_affine": False}),
        ((24,), {"device": "meta", "dtype": BF16}),
    ],
)
def test_module_is_torch_s_but_for_its_forward(args, kwargs) -> None:  # type: ignore[no-untyped-def]
    ours, theirs = tritonln.nn.RMSNorm(*args, **kwargs), torch.nn.RMSNorm(*args, **kwargs)
    assert isinstance(ours, torch.nn.RMSNorm)
    assert repr(ours) == repr(theirs)
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, t in theirs.state_dict().items():
        assert ours.state_dict()[name].dtype == t.dtype
        assert ours.state_dict()[name].device == t.device


def test_module_values_copies_and_state(device: torch.device, tmp_path) -> None:  # type: ignore[no-untyped-def]
    theirs, norm = torch.nn.RMSNorm((3, 8), eps=1e-3), tritonln.nn.RMSNorm((3, 8), eps=1e-3)
    torch.nn.init.normal_(theirs.weight)
    norm.load_state_dict(theirs.state_dict())
    norm.to(device)
    x = rand(2, 5, 3, 8, dtype=F32, device=device)
    y = norm(x)
    y.backward(torch.ones_like(y))
    ref = reference.rms_norm_gradients(x, (3, 8), norm.weight, 1e-3, torch.ones_like(y))
    assert norm.weight.grad is not None
    assert_close("y", y.detach(), ref["y"])
    assert_close("dw", norm.weight.grad, ref["dw"], 10)
    torch.save(norm, tmp_path / "norm.pt")
    for other in (copy.deepcopy(norm), torch.load(tmp_path / "norm.pt", weights_only=False)):
        assert other(x).equal(y)


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # torch's own
def test_torchscript() -> None:
    norm = tritonln.nn.RMSNorm(8)
    torch.nn.init.normal_(norm.weight)
    x = torch.randn(2, 8)
    torch.testing.assert_close(torch.jit.script(norm)(x), norm(x))
    torch.testing.assert_close(torch.jit.trace(norm, x)(x), norm(x))
