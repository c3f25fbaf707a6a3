"""The recurrent kernels compiled for GPUs that are not here, in a process of its own.

    python -m tests.helpers.compiled lstm sm_90 16,32,64,128 products,sum,gates,gates+resets

prints a JSON object: the bytes that each kernel spills, in bf16 and fp32.  Variants are what is normalized: each
product, their sum, or each gate of it, of a GRU also with the reset inside; `+resets` where rows start anew within the
sequence.
"""

from __future__ import annotations

import itertools
import json
import os
import subprocess
import sys

import torch
from torch import Tensor

GROUPS = {
    "products": {"lstm": 0, "gru": 0},
    "sum": {"lstm": 4, "gru": 3},
    "gates": {"lstm": 1, "gru": 1},
    "inside": {"gru": 1},
}


def spills(kind: str, target: str, sizes: tuple[int, ...], *variants: str) -> dict[str, int]:
    listed = ",".join(map(str, sizes)), ",".join(variants or ["products"])
    command = [sys.executable, "-m", "tests.helpers.compiled", kind, target, *listed]
    environment = {**os.environ, "TRITON_INTERPRET": "0"}
    done = subprocess.run(command, capture_output=True, text=True, env=environment)
    assert done.returncode == 0, done.stderr
    return dict(json.loads(done.stdout))


def empty(*shape: int, dtype: torch.dtype) -> Tensor:
    return torch.empty(shape, dtype=dtype, device="meta")


def run(kind: str, H: int, dtype: torch.dtype, target: str, group: int, resets: bool, inner: bool) -> None:
    """A sequence forward and backward with everything that can be there: lengths, gains, gradients of all results.

    `group` gates of the sum of the products are normalized together; 0: the products are.  An LSTM whose sum is
    normalized carries LN(c), as published ones do.  `inner`: a GRU's reset is inside of the norm.
    """
    from tritonln.device import TARGETS
    from tritonln.ops.recurrent import gru_sequence, lstm_sequence
    from tritonln.ops.recurrent.shared import GRUSteps, LSTMSteps

    T, B, device, f32 = 1, 32, TARGETS[target], torch.float32
    h0, lengths = empty(B, H, dtype=dtype), empty(B, dtype=torch.int64)
    starts = empty(T + 1, B, dtype=torch.bool) if resets else None
    if kind == "lstm":
        x = empty(T, B, 4 * H, dtype=dtype)
        cell = (empty(H, dtype=f32), empty(H, dtype=f32))
        weight, gain = empty(4 * H, H, dtype=dtype), empty(4 * H, dtype=f32)
        bias = empty(4 * H, dtype=f32) if group else None
        variant = (False, bool(group), group or 4, bool(group))
        steps = LSTMSteps(weight, gain, bias, *cell, None, lengths, starts, *variant, 1e-5)
        h, c, p, stats, _ = lstm_sequence.walk(x, h0, h0, steps, True, False, device)
        dy, dcells = torch.empty_like(h), torch.empty_like(c)
        lstm_sequence.walk_back(dy, dcells, (x, p, stats), (h, c), steps, False, device)
    else:
        x_rz, x_n = empty(T, B, 2 * H, dtype=dtype), empty(T, B, H, dtype=dtype)
        norms = (empty((3 + inner) * H, dtype=f32), empty(3 * H, dtype=f32))
        variant = (False, group or 2, bool(group) and not inner, inner)
        gru_steps = GRUSteps(empty(3 * H, H, dtype=dtype), *norms, lengths, starts, *variant, 1e-5)
        if group:
            x_rz = empty(T, B, 3 * H, dtype=dtype)
            x_n = x_rz[..., 2 * H :]
        h, state, p, stats = gru_sequence.walk(x_rz, x_n, h0, gru_steps, True, False, device)
        assert stats is not None
        known = (x_rz, x_n, p, stats, h if state is None else state)
        gru_sequence.walk_back(torch.empty_like(h), known, gru_steps, False, device)


def main(kind: str, target: str, sizes: str, variants: str) -> None:
    from tritonln.compile import compile_launch
    from tritonln.device import TARGETS
    from tritonln.launch import recorded
    from tritonln.machine_code import read_amdgcn, read_cubin

    device, found = TARGETS[target], {}
    read = read_cubin if device.backend == "cuda" else read_amdgcn
    for variant, H, dtype in itertools.product(variants.split(","), sizes.split(","), (torch.bfloat16, torch.float32)):
        normalized, *resets = variant.split("+")
        with recorded() as calls:
            run(kind, int(H), dtype, target, GROUPS[normalized][kind], bool(resets), normalized == "inside")
        for call in calls:
            name = f"{call.launch.name} {H} {dtype} {variant}"
            if "step" in name or "persistent" in name:
                code = read(compile_launch(call, device), device)
                assert code.resident, f"{name} asks for more than a multiprocessor of {target} has"
                found[name] = code.spills
    print(json.dumps(found))


if __name__ == "__main__":
    main(*sys.argv[1:])
