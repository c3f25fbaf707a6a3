"""The recurrent kernels compiled for GPUs that are not here, in a process of its own.

    python -m tests.helpers.compiled lstm sm_90 100,2048

prints a JSON object: the bytes that each kernel spills.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys

import torch
from torch import Tensor


def spills(kind: str, target: str, sizes: tuple[int, ...]) -> dict[str, int]:
    command = [sys.executable, "-m", "tests.helpers.compiled", kind, target, ",".join(map(str, sizes))]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def run(kind: str, H: int, dtype: torch.dtype, target: str) -> None:
    """A sequence forward and backward with everything that can be there: lengths, gains, gradients of all results."""
    from tritonln.device import TARGETS
    from tritonln.ops.recurrent import gru_steps as gru
    from tritonln.ops.recurrent import gru_whole_sequence, lstm_whole_sequence
    from tritonln.ops.recurrent import lstm_steps as lstm
    from tritonln.ops.recurrent.shared import GRUSteps, LSTMSteps

    T, B, device, f32 = 1, 32, TARGETS[target], torch.float32
    h0, lengths = empty(B, H, dtype=dtype), empty(B, dtype=torch.int64)
    if kind == "lstm":
        x = empty(T, B, 4 * H, dtype=dtype)
        norms = (empty(4 * H, dtype=f32), empty(H, dtype=f32), empty(H, dtype=f32))
        steps = LSTMSteps(empty(4 * H, H, dtype=dtype), *norms, None, lengths, False, False, 1e-5)
        at_once = lstm_whole_sequence.forward(x, h0, h0, steps, True, device)
        h, c, p, stats, _ = at_once or lstm.forward(x, h0, h0, steps, True, False, device)
        assert p is not None
        dy, dcells = torch.empty_like(h), torch.empty_like(c)
        if not lstm_whole_sequence.backward(dy, dcells, x, p, stats, c, steps, device):
            lstm.backward(dy, dcells, x, p, stats, h, c, steps, False, device)
    else:
        x_rz, x_n = empty(T, B, 2 * H, dtype=dtype), empty(T, B, H, dtype=dtype)
        norms = (empty(3 * H, dtype=f32), empty(3 * H, dtype=f32))
        gru_steps = GRUSteps(empty(3 * H, H, dtype=dtype), *norms, lengths, False, False, 1e-5)
        at_once = gru_whole_sequence.forward(x_rz, x_n, h0, gru_steps, True, device)
        h, state, p, *stats = at_once or gru.forward(x_rz, x_n, h0, gru_steps, True, False, device)
        known = (torch.empty_like(h), x_rz, x_n, p, *stats, h if state is None else state, gru_steps)
        if not gru_whole_sequence.backward(*known, device):
            gru.backward(*known, False, device)


def main(kind: str, target: str, sizes: str) -> None:
    from tritonln.compile import compile_launch
    from tritonln.device import TARGETS
    from tritonln.launch import recorded
    from tritonln.machine_code import read_amdgcn, read_cubin

    device, found = TARGETS[target], {}
    read = read_cubin if device.backend == "cuda" else read_amdgcn
    for H in map(int, sizes.split(",")):
        for dtype in (torch.bfloat16, torch.float32):
            with recorded() as calls:
                run(kind, H, dtype, target)
            for call in calls:
                name = call.launch.name
                if "step" in name or "persistent" in name:
                    code = read(compile_launch(call, device), device)
                    assert code.resident, f"{name} {H} {dtype} asks for more than a multiprocessor of {target} has"
                    found[f"{name} {H} {dtype}"] = code.spills
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
