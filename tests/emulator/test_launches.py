"""Launches on an emulated GPU: addresses, devices, streams and graphs, by the code that a GPU's launches take."""

import dataclasses
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import pytest
import torch
import triton
import triton.language as tl
from torch import Tensor
from triton import knobs

import tritonln
from tests.helpers.cases import thorough
from tests.helpers.problems import expect, problem
from tritonln.device import interpreting, kernels_on
from tritonln.emulator import EmulatedGPU, EmulationError, emulated_gpu
from tritonln.launch import Launch
from tritonln.ops.recurrent.step_graphs import GRAPHS

pytestmark = pytest.mark.skipif(interpreting(), reason="an emulated GPU runs compiled kernels")

CPU = torch.device("cpu")


@triton.jit
def doubled(x_ptr, y_ptr, row_stride, N, BLOCK_N: tl.constexpr):
    row, cols = tl.program_id(0), tl.arange(0, BLOCK_N)
    x = tl.load(x_ptr + row * row_stride + cols, mask=cols < N)
    tl.store(y_ptr + row * N + cols, 2 * x, mask=cols < N)


@pytest.fixture
def emulated():  # type: ignore[no-untyped-def]
    with emulated_gpu("sm_90", devices=2) as gpu:
        yield gpu


def ordinary(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """The kernels that go through Triton's own dispatch from now on."""
    names: list[str] = []
    dispatch = Launch.ordinary

    def noting(launch: Launch, *arguments):  # type: ignore[no-untyped-def]
        names.append(launch.name)
        return dispatch(launch, *arguments)

    monkeypatch.setattr(Launch, "ordinary", noting)
    return names


# ---- addresses ------------------------------------------------------------------------------------


def test_second_launches_are_given_addresses_and_right(emulated: EmulatedGPU, monkeypatch: pytest.MonkeyPatch) -> None:
    names = ordinary(monkeypatch)
    for M in (70, 70, 65, 80):
        x, w, b, dy = problem(M, 256, torch.bfloat16, CPU)
        expect(x, (256,), w, b, dy)
    assert names == ["layer_norm_fwd", "layer_norm_bwd", "column_sum"]
    assert len(emulated.runs) == 4 * 3


def launch(x: object, y: object, rows: int = 3, stride: int = 8, N: int = 8) -> None:
    """Once in the ordinary way, to have a compiled kernel; then with what is given, addresses too."""
    a, b = torch.randn(3, 16), torch.empty(3, 8)
    compiled = doubled[(3,)](a, b, 16, 8, BLOCK_N=8)
    assert b.equal(2 * a[:, :8])
    compiled[(rows, 1, 1)](x, y, stride, N, 8)


def test_an_address_is_worth_its_tensor(emulated: EmulatedGPU) -> None:
    x, y = torch.randn(3, 8), torch.empty(3, 8)
    launch(x.data_ptr(), y.data_ptr())
    assert y.equal(2 * x)


def test_an_address_within_a_tensor_is_known(emulated: EmulatedGPU) -> None:
    x, y = torch.randn(4, 8), torch.empty(3, 8)
    launch(x.data_ptr() + 32, y.data_ptr())
    assert y.equal(2 * x[1:])


def test_an_address_does_not_reach_past_its_tensor(emulated: EmulatedGPU) -> None:
    x, y = torch.randn(2, 8), torch.empty(3, 8)
    with pytest.raises(EmulationError, match=r"access outside every tensor.*x_ptr \+ 64 \(it has 64 bytes\)"):
        launch(x.data_ptr(), y.data_ptr())


def test_nothing_between_the_rows_of_a_strided_tensor_is_touched(emulated: EmulatedGPU) -> None:
    x, y = torch.randn(3, 16), torch.empty(3, 8)
    launch(x[:, :8], y, stride=16)
    with pytest.raises(EmulationError, match="between the rows of x_ptr"):
        launch(x[:, :4], y, rows=2, stride=16)


def test_a_tensor_that_is_gone_is_not_touched(emulated: EmulatedGPU) -> None:
    address = torch.empty(1 << 24).data_ptr()  # so large that nothing small comes to lie there
    with pytest.raises(EmulationError, match=r"x_ptr: address .* shape \[16777216\] that is gone"):
        launch(address, torch.empty(3, 8))


def test_an_address_that_nobody_asked_torch_for_is_refused(emulated: EmulatedGPU) -> None:
    with pytest.raises(EmulationError, match="x_ptr: address 0x1000 is in no tensor"):
        launch(0x1000, torch.empty(3, 8))


def test_noted_tensors_are_not_kept(emulated: EmulatedGPU) -> None:
    x = torch.randn(3, 8)
    x.data_ptr()
    storage = torch.multiprocessing.reductions.StorageWeakRef(x.untyped_storage())
    del x
    assert storage.expired()


# ---- what Triton's own launcher would refuse ---------------------------------------------------------


def test_arguments_are_held_to_the_signature(emulated: EmulatedGPU) -> None:
    x, y = torch.randn(3, 8), torch.empty(3, 8)
    compiled = doubled[(3,)](x, y, 8, 8, BLOCK_N=8)
    with pytest.raises(TypeError, match="doubled takes 5 arguments, but got 4"):
        compiled[(3, 1, 1)](x, y, 8, 8)
    with pytest.raises(TypeError, match="row_stride: expected a value of type i32, but got 2.5"):
        compiled[(3, 1, 1)](x, y, 2.5, 8, 8)
    with pytest.raises(TypeError, match="row_stride: expected a value of type i32"):
        compiled[(3, 1, 1)](x, y, 1 << 40, 8, 8)


def test_hooks_hear_of_launches(emulated: EmulatedGPU) -> None:
    heard: list[str] = []
    hooks = [
        (knobs.runtime.launch_enter_hook, lambda about: heard.append(about.get()["name"])),
        (knobs.runtime.launch_exit_hook, lambda about: heard.append("done")),
    ]
    for hook, listener in hooks:
        hook.add(listener)
    try:
        launch(torch.randn(3, 8), torch.empty(3, 8))
    finally:
        for hook, listener in hooks:
            hook.remove(listener)
    assert heard == ["doubled", "done"] * 2


# ---- devices and streams ------------------------------------------------------------------------------


def test_the_tensors_device_is_made_current(emulated: EmulatedGPU) -> None:
    """And its kernels are loaded on it; those of the other device go on as before."""
    x, w, b, _ = problem(5, 64, torch.float32, CPU)
    known = kernels_on(CPU)
    assert known is not None
    from tritonln.ops.layer_norm import LAYER_NORM
    from tritonln.ops.rows import Settings

    for number in (*emulated.numbers, *emulated.numbers):
        s = Settings(64, 1e-5, x.dtype)
        y, *_ = LAYER_NORM.forward((x, w, b), s, False, dataclasses.replace(known, index=number))
        torch.testing.assert_close(y, torch.nn.functional.layer_norm(x, (64,), w, b))
        assert emulated.runs[-1].device == number
        assert emulated.current == emulated.numbers[0]


def test_a_kernel_of_another_device_is_refused(emulated: EmulatedGPU) -> None:
    x, y = torch.randn(3, 8), torch.empty(3, 8)
    compiled = doubled[(3,)](x, y, 8, 8, BLOCK_N=8)
    with emulated.device(emulated.numbers[1]), pytest.raises(EmulationError, match="was loaded on device"):
        compiled[(3, 1, 1)](x, y, 8, 8, 8)


def test_launches_are_on_the_current_stream(emulated: EmulatedGPU) -> None:
    x, w, b, _ = problem(5, 64, torch.float32, CPU)
    for _ in range(2):
        tritonln.layer_norm(x, 64, w, b)
        with torch.cuda.stream(torch.cuda.Stream()) as side:
            tritonln.layer_norm(x, 64, w, b)
        main, other = (run.stream for run in emulated.runs[-2:])
        assert (main, other) == (torch.cuda.current_stream().cuda_stream, side.cuda_stream)


def test_a_stream_that_is_not_the_current_one_is_refused(emulated: EmulatedGPU) -> None:
    x, y = torch.randn(3, 8), torch.empty(3, 8)
    compiled = doubled[(3,)](x, y, 8, 8, BLOCK_N=8)
    with pytest.raises(EmulationError, match="stream"):
        compiled[(3, 1, 1)](x, y, 8, 8, 8, stream=torch.cuda.Stream().cuda_stream)


def test_launches_of_several_threads(emulated: EmulatedGPU) -> None:
    """Of one kernel, whose threads pass barriers."""
    x = torch.randn(6, 1024)
    expected = tritonln.rms_norm(x, 1024)
    with ThreadPoolExecutor(4) as threads:
        for y in threads.map(lambda _: tritonln.rms_norm(x, 1024), range(24)):
            assert y.equal(expected)


def test_one_target_after_another(emulated: EmulatedGPU) -> None:
    """Kernels, plans and direct launches are those of the GPU that is active."""
    x, w, b, dy = problem(33, 256, torch.bfloat16, CPU)
    for _ in range(2):
        for target in ("sm_80", "sm_100"):
            with emulated_gpu(target) as gpu:
                known = kernels_on(CPU)
                assert known is not None
                assert known.target == target
                expect(x, (256,), w, b, dy)
                assert {run.metadata.target.arch for run in gpu.runs} == {known.arch}
    assert not emulated.runs


# ---- graphs -------------------------------------------------------------------------------------------


def test_a_graph_is_carried_out_when_it_is_replayed(emulated: EmulatedGPU) -> None:
    x, total = torch.randn(5, 64), torch.zeros(5, 64)
    tritonln.layer_norm(x, 64)
    graph, before = torch.cuda.CUDAGraph(), len(emulated.runs)
    with torch.cuda.graph(graph):
        y = tritonln.layer_norm(x, 64) + 1
        total += y
        assert torch.cuda.is_current_stream_capturing()
    assert len(emulated.runs) == before
    assert not total.any()
    for _ in range(2):
        x.normal_()
        total.zero_()
        graph.replay()
        expected = torch.nn.functional.layer_norm(x, (64,)) + 1
        torch.testing.assert_close(y, expected)
        assert total.equal(y)
    assert len(emulated.runs) == before + 2


def test_a_first_call_in_a_graph(emulated: EmulatedGPU) -> None:
    """Forward and backward are compiled there, nothing is tuned, and nothing waits for the device."""
    x, residual, gate = torch.randn(2, 3, 76), torch.randn(2, 3, 76), torch.randn(2, 76)
    leaves = [t.requires_grad_() for t in (x, residual, gate)]

    def derived() -> list[Tensor]:
        outputs = tritonln.add_adaptive_layer_norm(*leaves, gate, None, 76)
        return [*outputs, *torch.autograd.grad(outputs, leaves, [torch.ones(2, 3, 76)] * 2)]

    graph = torch.cuda.CUDAGraph()
    with torch.cuda.graph(graph):
        found = derived()
    assert not emulated.runs
    with torch.no_grad():
        x.normal_()
    graph.replay()
    assert all(out.equal(ref) for out, ref in zip(found, derived(), strict=True))


def test_a_capture_does_not_tell_the_host_values(emulated: EmulatedGPU) -> None:
    with torch.cuda.graph(torch.cuda.CUDAGraph()), pytest.raises(RuntimeError, match="stream is capturing"):
        torch.ones(1).item()


def icefall_gru(*sizes: int, **options: Any) -> tritonln.nn.LayerNormGRU:
    """Its steps also write where they read."""
    return tritonln.nn.LayerNormGRU(*sizes, gate_norm="sum", norm_groups="gates", **options)


@pytest.mark.parametrize("layer", [tritonln.nn.LayerNormLSTM, tritonln.nn.LayerNormGRU, *thorough(icefall_gru)])
@pytest.mark.parametrize("lengths", [False, True])
def test_step_graphs(layer, lengths: bool, emulated: EmulatedGPU, stepwise: None) -> None:  # type: ignore[no-untyped-def]
    """Captured by the second call and replayed from then on, a loop of steps gives the bits of one without a graph."""
    torch.manual_seed(0)
    GRAPHS.graphs.clear()
    graphed, plain = layer(8, 24, cuda_graph=True), layer(8, 24, cuda_graph=False)
    plain.load_state_dict(graphed.state_dict())
    for call in range(4):
        x = torch.randn(4, 3, 8)
        of = torch.tensor([4, 2, 1]) if lengths else None
        given = x if of is None else torch.nn.utils.rnn.pack_padded_sequence(x, of)
        results = []
        for rnn in (graphed, plain):
            y = rnn(given)[0]
            y = y if of is None else y.data
            results.append([y, *torch.autograd.grad(y.square().sum(), list(rnn.parameters()))])
        for ours, theirs in zip(*results):
            assert ours.equal(theirs)
        captured = [graph for graph in GRAPHS.graphs.values() if graph is not None]
        assert len(captured) == (2 if call else 0)
    replayed = captured[0].graph.recorded
    assert any(step.__qualname__.startswith("EmulatedGPU") for step in replayed)


# ---- errors -------------------------------------------------------------------------------------------


def test_what_is_asked_of_an_emulated_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ValueError, match="one of sm_80, .*, sm_120, but got 'gfx942'"), emulated_gpu("gfx942"):
        pass
    with pytest.raises(ValueError, match="devices to be at least 1, but got 0"), emulated_gpu(devices=0):
        pass
    monkeypatch.setenv("TRITON_INTERPRET", "1")
    with pytest.raises(RuntimeError, match="TRITON_INTERPRET"), emulated_gpu("sm_90"):
        pass
