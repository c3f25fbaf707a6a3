"""tritonln.nn.LayerNorm is torch.nn.LayerNorm but for its forward."""

import copy
import io
import pickle

import pytest
import torch

import tritonln
from tests.helpers.tolerance import assert_close
from tritonln import reference


@pytest.mark.parametrize(
    ("args", "kwargs"),
    [
        ((24,), {}),
        (([3, 8],), {"eps": 1e-3}),
        ((24,), {"bias": False}),
        ((24,), {"elementwise_affine": False}),
        ((24,), {"dtype": torch.bfloat16}),
        ((24,), {"device": "meta", "dtype": torch.float64}),
    ],
)
def test_constructor_state_and_repr(args, kwargs) -> None:  # type: ignore[no-untyped-def]
    ours, theirs = tritonln.nn.LayerNorm(*args, **kwargs), torch.nn.LayerNorm(*args, **kwargs)
    assert isinstance(ours, torch.nn.LayerNorm)
    assert repr(ours) == repr(theirs)
    assert ours.extra_repr() == theirs.extra_repr()
    assert ours.state_dict().keys() == theirs.state_dict().keys()
    for name, t in theirs.state_dict().items():
        assert ours.state_dict()[name].dtype == t.dtype
        assert ours.state_dict()[name].device == t.device
    if "device" not in kwargs:
        ours.load_state_dict(theirs.state_dict())
        theirs.load_state_dict(ours.state_dict())


def test_forward_and_gradients(device: torch.device) -> None:
    torch.manual_seed(0)
    norm = tritonln.nn.LayerNorm((3, 8), eps=1e-3).to(device)
    torch.nn.init.normal_(norm.weight)
    torch.nn.init.normal_(norm.bias)
    x, dy = torch.randn(2, 5, 3, 8, device=device), torch.randn(2, 5, 3, 8, device=device)
    y = norm(x)
    y.backward(dy)
    ref = reference.layer_norm_gradients(x, (3, 8), norm.weight, norm.bias, 1e-3, dy)
    assert norm.weight.grad is not None
    assert norm.bias.grad is not None
    assert_close("y", y.detach(), ref["y"])
    assert_close("dw", norm.weight.grad, ref["dw"], 10)
    assert_close("db", norm.bias.grad, ref["db"], 10)


def test_copies_and_pickles(device: torch.device, tmp_path) -> None:  # type: ignore[no-untyped-def]
    norm = tritonln.nn.LayerNorm(8).to(device)
    x = torch.randn(2, 8, device=device)
    torch.save(norm, tmp_path / "norm.pt")
    for other in (copy.deepcopy(norm), torch.load(tmp_path / "norm.pt", weights_only=False)):
        assert other(x).equal(norm(x))


@pytest.mark.filterwarnings("ignore::DeprecationWarning")  # of TorchScript
def test_torchscript(device: torch.device) -> None:
    norm = tritonln.nn.LayerNorm((3, 8)).to(device)
    torch.nn.init.normal_(norm.weight)
    file = io.BytesIO()
    torch.jit.save(torch.jit.script(torch.nn.Sequential(norm)), file)
    file.seek(0)
    x = torch.randn(2, 3, 8, device=device)
    torch.testing.assert_close(torch.jit.load(file)(x), norm(x))


def test_fx(device: torch.device) -> None:
    net = torch.nn.Sequential(torch.nn.Linear(8, 8), tritonln.nn.LayerNorm(8)).to(device)
    graph = torch.fx.symbolic_trace(net)
    assert tritonln.layer_norm in [n.target for n in graph.graph.nodes]
    x = torch.randn(2, 8, device=device)
    assert graph(x).equal(net(x))
    assert pickle.loads(pickle.dumps(graph))(x).equal(net(x))
