"""The launch path on a driver that does nothing: compiled for real, launched through Triton's own launcher."""

import shutil
import subprocess
import sys

import pytest
import torch

from tests.helpers.cases import thorough
from tritonln.compile import compile_launch
from tritonln.device import TARGETS
from tritonln.launch import Launch
from tritonln.launches import training_launches

pytestmark = [
    pytest.mark.compiles,
    pytest.mark.skipif(shutil.which("cc") is None, reason="the stub driver is built with a C compiler"),
]

PREAMBLE = """
from benchmarks import stub
launches = stub.install()
import torch, tritonln
from tritonln.launch import Launch
ordinary = []
real = Launch.ordinary
def noting(self, *args):
    ordinary.append(self.name)
    return real(self, *args)
Launch.ordinary = noting
def run(x, w, b):
    before = launches(), len(ordinary)
    y = tritonln.layer_norm(x, x.shape[-1], w, b)
    torch.autograd.grad(y, (x, w, b), torch.zeros_like(y))
    return launches() - before[0], len(ordinary) - before[1]
x = torch.zeros(512, 256, dtype=torch.bfloat16, requires_grad=True)
w, b = (torch.zeros(256, requires_grad=True) for _ in range(2))
"""


def on_the_stub(code: str) -> list[str]:
    done = subprocess.run(
        [sys.executable, "-W", "error::RuntimeWarning", "-c", PREAMBLE + code], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return done.stdout.splitlines()


def test_a_second_call_goes_straight_to_the_driver() -> None:
    """(launches, of these through Triton's own dispatch)."""
    assert on_the_stub("print(*(run(x, w, b) for _ in range(3)))") == ["(3, 3) (3, 0) (3, 0)"]


def test_another_row_count_compiles_nothing() -> None:
    code = "run(x, w, b); print(run(x[:300], w, b), run(x[:1], w, b), run(x[:2], w, b))"
    # One row takes the kernel that writes the gradients itself: its first launch.
    assert on_the_stub(code) == ["(3, 0) (2, 1) (2, 0)"]


@pytest.mark.parametrize("layer", ["LSTM", *thorough("GRU")])
def test_a_whole_sequence_is_compiled_once_for_both_directions(layer: str) -> None:
    code = f"""
rnn = tritonln.nn.LayerNorm{layer}(8, 64, bidirectional=True, dtype=torch.bfloat16)
for T in (5, 16):
    y = rnn(torch.zeros(T, 20, 8, dtype=torch.bfloat16))[0]
    torch.autograd.grad(y, list(rnn.parameters()), torch.zeros_like(y))
print(*sorted(name for name in ordinary if "persistent" in name))
"""
    assert on_the_stub(code) == [f"{layer.lower()}_persistent_bwd {layer.lower()}_persistent_fwd"]


def test_what_the_direct_launch_does_not_know_takes_the_ordinary_one() -> None:
    code = """
run(x, w, b)
wide, odd = (torch.zeros(512, n, dtype=torch.bfloat16, requires_grad=True) for n in (512, 260))
print(run(wide[:, :256], w, b), run(wide[:, :256], w, b), run(odd[:, :256], w, b), run(odd[:, :256], w, b))
one = torch.zeros(1, 256, dtype=torch.bfloat16, requires_grad=True)
print(run(one.expand(512, 256), w, b), run(x, w, b))
flat = torch.zeros(512 * 256 + 1, dtype=torch.bfloat16, requires_grad=True)
print(run(flat[1:].view(512, 256), w, b)[0], ordinary[-2:])
from triton import knobs
heard = []
knobs.runtime.launch_enter_hook.add(lambda metadata: heard.append(1))
print(run(x, w, b), len(heard))
"""
    strided, expanded, misaligned, hooked = on_the_stub(code)
    # Strides that are multiples of 16 have a kernel, and others have another one.
    assert strided == "(3, 2) (3, 0) (3, 2) (3, 0)"
    # A row stride of 0 is a multiple of 16.
    assert expanded == "(3, 0) (3, 0)"
    assert misaligned == "3 ['layer_norm_fwd', 'layer_norm_bwd']"
    assert hooked == "(3, 3) 3"


def test_both_ways_hand_the_kernel_the_same_parameters() -> None:
    """Of layer_norm's forward kernel, as they reach the driver: pointers and numbers of 64 bits, a stride of 32."""
    code = """
import ctypes, struct
driver = ctypes.CDLL("libcuda.so.1")
rows = torch.zeros(512, 512, dtype=torch.bfloat16)[:, :256]
def parameters(x, w, b):
    driver.stub_note(9 if x is rows else 8)
    y = tritonln.layer_norm(x, 256, w, b, 1e-3)
    found = list((ctypes.c_uint64 * 9).in_dll(driver, "stub_noted"))
    stride = [found.pop(1) % 2**32] if x is rows else []
    names = {t.data_ptr(): name for t, name in ((x, "x"), (w, "w"), (b, "b"), (y, "y"))}
    return stride, [names.get(n, n) for n in found[:6]], struct.unpack("2d", struct.pack("2Q", *found[6:8]))
with torch.no_grad():
    for given in (x, rows):
        first, second = parameters(given, w, b), parameters(given, w, b)
        print(first == second, second)
print(len(ordinary))
"""
    assert on_the_stub(code) == [
        "True ([], ['x', 'w', 'b', 'y', 512, 512], (0.001, 0.0))",
        "True ([512], ['x', 'w', 'b', 'y', 512, 512], (0.001, 0.0))",
        "2",
    ]


def test_dtypes_and_missing_parameters_have_launches_of_their_own() -> None:
    code = """
for dtype in (torch.float16, torch.float32, torch.float64):
    for weight in (True, False):
        z = torch.zeros(512, 256, dtype=dtype, requires_grad=True)
        v = torch.zeros(256, dtype=dtype) if weight else None
        for _ in range(2):
            y = tritonln.layer_norm(z, 256, v)
            torch.autograd.grad(y, z, torch.zeros_like(y))
print(len(ordinary), launches())
"""
    assert on_the_stub(code) == ["12 24"]


def test_rows_over_clusters_are_launched_where_triton_can() -> None:
    code = """
from tritonln.clusters import largest_cluster
from tritonln.device import kernels_on, triton_version
wide = torch.zeros(3, 65536, dtype=torch.bfloat16, requires_grad=True)
v, c = (torch.zeros(65536, requires_grad=True) for _ in range(2))
run(wide, v, c)
able = largest_cluster(kernels_on(wide.device), 4) == 4
print(able == (triton_version() >= (3, 9)))
print(able == ("layer_norm_wide_fwd" not in ordinary))
"""
    assert on_the_stub(code) == ["True", "True"]


def test_tensors_of_2_gb_take_triton_s_own_dispatch_on_amd(monkeypatch: pytest.MonkeyPatch) -> None:
    """The kernel that is kept was compiled for smaller ones, with offsets of 32 bits; repeated launches too."""
    taken: list[str] = []

    class Driver:
        get_current_device = staticmethod(lambda: 0)
        get_current_stream = staticmethod(lambda device: 0)

    def ordinary(self: Launch, *args: object) -> None:
        taken.append("ordinary")

    monkeypatch.setattr("tritonln.launch.active_driver", Driver)
    monkeypatch.setattr("tritonln.launch._direct", lambda *args: lambda *args: taken.append("direct"))
    monkeypatch.setattr(Launch, "ordinary", ordinary)
    small, large = (torch.empty(n, dtype=torch.int8, device="meta") for n in (2**31 - 1, 2**31))
    for target, expected in (("gfx942", "direct ordinary ordinary direct"), ("sm_90", "direct direct direct direct")):
        launch = Launch(None, (), TARGETS[target], num_warps=4)
        launch(1, (small, None), None)
        taken.clear()
        launch(1, (small, None), None)
        launch(1, (large[:1], None), None)  # the whole storage counts, as for Triton
        launch.repeated(1, (large, None), None)()
        launch.repeated(1, (small, None), None)()
        assert " ".join(taken) == expected


def test_products_are_fused_with_sums_whatever_triton_does_by_default() -> None:
    """Triton's default changes with 3.10."""
    from triton import knobs

    call = training_launches("layer_norm", "sm_90", 256, torch.bfloat16, torch.bfloat16, 8)[0]
    counts = []
    with knobs.language.scope():
        for default in (True, False):
            knobs.language.default_fp_fusion = default
            counts.append(compile_launch(call, TARGETS["sm_90"]).asm["ptx"].count("fma.rn.f32"))
    assert counts[0] == counts[1] > 0
