"""What layer_norm refuses, in torch's words; and where it runs."""

import subprocess
import sys
from typing import Any

import numpy as np
import pytest
import torch
import torch.nn.functional as F
from torch._subclasses.fake_tensor import FakeTensorMode

import tritonln
from tests.helpers.tolerance import assert_close
from tritonln import reference
from tritonln.device import runs_triton
from tritonln.ops import contract

X = torch.randn(2, 4)
ONES = torch.ones(4)

REFUSED = {
    "no normalized dimension": (X, []),
    "another size": (X, (5,)),
    "more dimensions than x": (X, (3, 2, 4)),
    "a scalar x": (torch.tensor(1.0), (1,)),
    "weight of another shape": (X, (4,), torch.ones(5)),
    "weight of another rank": (X, (4,), torch.ones(1, 4)),
    "bias of another shape": (X, (4,), None, torch.ones(5)),
    "integers": (X.int(), (4,)),
    "booleans": (X.bool(), (4,)),
    "complex": (X.cfloat(), (4,)),
    "x no tensor": ([1.0], (1,)),
    "weight no tensor": (X, (4,), 3),
    "sizes no integers": (X, (4.0,)),
    "eps a string": (X, (4,), None, None, "a"),
    "eps missing": (X, (4,), None, None, None),
    "16-bit weight of fp32 x": (X, (4,), ONES.bfloat16()),
    "16-bit bias of fp32 x": (X, (4,), None, ONES.half()),
    "fp64 weight of fp32 x": (X, (4,), ONES.double()),
    "fp32 weight of fp64 x": (X.double(), (4,), ONES),
    "fp16 weight of bf16 x": (X.bfloat16(), (4,), ONES.half()),
}


@pytest.mark.parametrize("case", REFUSED)
def test_torch_s_exceptions(case: str) -> None:
    with pytest.raises(Exception, match=".") as theirs:
        F.layer_norm(*REFUSED[case])
    with pytest.raises(type(theirs.value)) as ours:
        tritonln.layer_norm(*REFUSED[case])
    assert type(ours.value) is type(theirs.value)
    assert str(ours.value) == str(theirs.value)


def test_devices_must_agree() -> None:
    with pytest.raises(RuntimeError, match="same device, but got bias is on meta, different from other tensors on cpu"):
        tritonln.layer_norm(X, 4, ONES, ONES.to("meta"))


def test_a_device_nobody_serves() -> None:
    with pytest.raises(RuntimeError, match="no kernels for device type 'mps'.*expected"):
        runs_triton("mps")


def test_meta_tensors() -> None:
    y = tritonln.layer_norm(X.to("meta"), 4)
    assert y.is_meta
    assert y.shape == X.shape


def test_autocast_is_fp32_exactly_where_torch_s_is() -> None:
    """contract.autocasts says: everywhere but on the CPU.  torch keeps a kernel for the ones that cast."""
    for kind, key in (("cpu", "AutocastCPU"), ("cuda", "AutocastCUDA"), ("xpu", "AutocastXPU")):
        registered = torch._C._dispatch_has_kernel_for_dispatch_key("aten::layer_norm", key)
        assert registered == (kind != "cpu"), kind


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float32])
def test_autocast_dtype(dtype: torch.dtype, device: torch.device) -> None:
    x = X.to(device, dtype)
    with torch.autocast(device.type, torch.bfloat16):
        assert tritonln.layer_norm(x, 4).dtype == F.layer_norm(x, (4,)).dtype


@pytest.mark.parametrize("parameters", [torch.bfloat16, torch.float32])
def test_autocast_as_on_a_gpu(parameters: torch.dtype, monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    """16-bit x is read as it is and y is fp32, with gradients in the dtypes of the inputs."""
    monkeypatch.setattr("tritonln.ops.layer_norm.output_dtype", lambda x, kind: torch.float32)
    x = X.to(device, torch.bfloat16).requires_grad_()
    w = ONES.to(device, parameters).requires_grad_()
    y = tritonln.layer_norm(x, 4, w)
    dy = torch.randn(2, 4, device=device)
    y.backward(dy)
    ref = reference.layer_norm_gradients(x, (4,), w, None, 1e-5, dy)
    assert y.dtype == torch.float32
    for name, out in (("y", y.detach()), ("dx", x.grad), ("dw", w.grad)):
        assert out is not None
        assert_close(name, out, ref[name], 2 if name == "dw" else 1, scale=float(dy.abs().max()))
    assert x.grad is not None
    assert x.grad.dtype == torch.bfloat16


def test_mixed_dtypes_pass_under_a_gpu_s_autocast(monkeypatch: pytest.MonkeyPatch, device: torch.device) -> None:
    monkeypatch.setattr(contract, "autocasts", lambda x, kind: True)
    x, w = X.to(device), ONES.to(device, torch.bfloat16)
    y = tritonln.layer_norm(x, 4, w)
    assert y.dtype == torch.float32
    torch.testing.assert_close(y, F.layer_norm(x, (4,)))


@pytest.mark.parametrize("eps", [np.float32(1e-3), np.float64(1e-3), np.int64(1), 1, True, torch.tensor(1e-3)])
def test_numbers_that_torch_takes(eps: float, device: torch.device) -> None:
    x = X.to(device)
    for integer in (int, np.int64, np.int32, torch.tensor):
        y = tritonln.nn.LayerNorm([integer(4)], eps, elementwise_affine=False)(x)
        assert y.equal(tritonln.layer_norm(x, 4, eps=float(eps)))


@pytest.mark.parametrize("number", [np.float32, np.float64, torch.tensor])
def test_numbers_of_what_torch_has_not(number: Any, device: torch.device) -> None:
    x, ones = X.to(device), ONES.to(device)
    assert tritonln.rms_norm(x, 4, ones, weight_offset=number(1.0)).equal(2 * tritonln.rms_norm(x, 4, ones))
    assert tritonln.add_rms_norm(x, x, 4, dropout_p=number(1.0))[1].equal(x)
    assert tritonln.qk_norm(x, x, eps=number(1e30))[0].abs().max() < 1e-10
    halves = tritonln.gated_rms_norm(x, x, 4, group_size=np.int64(2))
    assert halves.equal(tritonln.gated_rms_norm(x, x, 4, group_size=2))


@pytest.mark.filterwarnings("ignore:The PyTorch API of nested tensors")
def test_nested_tensors_that_are_not_jagged() -> None:
    x = torch.nested.nested_tensor([X, X[:1]], layout=torch.strided)
    for norm in (tritonln.layer_norm, tritonln.rms_norm):
        with pytest.raises(
            RuntimeError, match=r"expected input to be a dense .* nested tensor of layout torch\.strided"
        ):
            norm(x, 4)


@pytest.mark.parametrize("name", ["input", "weight", "bias", "dy"])
@pytest.mark.parametrize("kind", ["negated", "conjugated", "zero"])
def test_lazy_tensors_are_made_real(kind: str, name: str, device: torch.device) -> None:
    """Whose storage holds other numbers, or none."""
    real = {"input": X.to(device), "weight": X[0].to(device), "bias": X[1].to(device), "dy": X.flip(0).to(device)}
    t = real[name]
    lazy = {
        "negated": torch._neg_view(-t),
        "conjugated": torch.complex(t, -t).conj().imag,
        "zero": torch._efficientzerotensor(t.shape, device=device),
    }[kind]
    if kind == "zero":
        real[name] = torch.zeros_like(t)
    results = []
    for given in ({**real, name: lazy}, real):
        dy = given.pop("dy")
        leaves = [t.detach().requires_grad_() for t in given.values()]
        y = tritonln.layer_norm(leaves[0], 4, *leaves[1:])
        results.append((tritonln.layer_norm(normalized_shape=4, **given), y, *torch.autograd.grad(y, leaves, dy)))
    for out, ref in zip(*results):
        assert torch.equal(out, ref)


def test_fake_parameters_of_a_real_x() -> None:
    with FakeTensorMode():
        w = torch.ones(4)
    with pytest.raises(AssertionError, match="FakeTensor"):
        F.layer_norm(X, (4,), w)
    with pytest.raises(AssertionError, match="FakeTensor"):
        tritonln.layer_norm(X, 4, w)


class Duck:
    """No tensor at all."""

    @classmethod
    def __torch_function__(cls, function, types, args=(), kwargs=None):  # type: ignore[no-untyped-def]
        return function, args, kwargs


class Named(torch.Tensor):
    """A tensor under another name."""


@pytest.mark.parametrize("name", ["input", "weight", "bias"])
def test_torch_functions_of_other_classes(name: str) -> None:
    given = {"input": X, "weight": ONES, "bias": ONES, name: Duck()}
    function, args, kwargs = tritonln.layer_norm(normalized_shape=(4,), **given)
    assert function is tritonln.layer_norm
    theirs = F.layer_norm(normalized_shape=(4,), **given)[1:]
    assert (args, {key: kwargs[key] for key in theirs[1]}) == theirs


@pytest.mark.parametrize("name", ["input", "weight", "bias"])
def test_subclasses_stay_subclasses(name: str, device: torch.device) -> None:
    given = {"input": X.to(device), "weight": ONES.to(device), "bias": ONES.to(device)}
    y = tritonln.layer_norm(normalized_shape=4, **given)
    named = tritonln.layer_norm(normalized_shape=4, **{**given, name: given[name].as_subclass(Named)})
    assert type(named) is Named
    assert named.as_subclass(torch.Tensor).equal(y)


def in_a_process(code: str, interpret: str = "0") -> str:
    result = subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        env={**__import__("os").environ, "TRITON_INTERPRET": interpret},
    )
    assert result.returncode == 0, result.stderr
    return result.stdout.strip()


def test_importing_loads_no_triton_and_asks_no_device() -> None:
    code = (
        "import torch, sys; import tritonln; heavy = [m for m in sys.modules if m.split('.')[0] == 'triton'];"
        "print(heavy, torch.cuda.is_initialized(), 'tritonln.emulator' in sys.modules)"
    )
    assert in_a_process(code) == "[] False False"


@pytest.mark.skipif(torch.accelerator.is_available(), reason="the CPU is not the device of last resort here")
def test_cpu_tensors_take_aten_without_the_interpreter() -> None:
    code = """
import torch, tritonln
import torch.nn.functional as F
leaves = [torch.randn(*shape, requires_grad=True) for shape in ((3, 8), (8,), (8,))]
x, w, b = leaves
ours, theirs = tritonln.layer_norm(x, 8, w, b), F.layer_norm(x, (8,), w, b)
dy = torch.randn(3, 8)
print(ours.equal(theirs), *(p.equal(q) for p, q in zip(*(torch.autograd.grad(y, leaves, dy) for y in (ours, theirs)))))
print(tritonln.layer_norm(x.bfloat16(), 8, w, b.bfloat16()).dtype)
"""
    assert in_a_process(code).split() == ["True"] * 4 + ["torch.bfloat16"]


PRETENDED_GPU = """
import torch, tritonln
from triton.backends import backends
from tritonln.device import runs_triton

def begin(driver):
    print("begun")
    raise RuntimeError("Failed to find C compiler. Please specify via CC environment variable.")

for name, backend in backends.items():
    backend.driver.is_active = staticmethod(lambda there=name == "nvidia": there)
backends["nvidia"].driver.__init__ = begin
torch.accelerator.is_available = lambda: True
"""


def test_without_a_c_compiler_the_error_says_so() -> None:
    code = """
try:
    runs_triton("cuda")
except RuntimeError as error:
    print(error.__cause__)
"""
    begun, cause = in_a_process(PRETENDED_GPU + code).splitlines()
    assert begun == "begun"
    assert cause.startswith("Failed to find C compiler")


def test_a_cpu_call_begins_with_no_gpu() -> None:
    code = "print(tritonln.layer_norm(torch.randn(3, 8), 8).shape)"
    assert in_a_process(PRETENDED_GPU + code) == "torch.Size([3, 8])"
