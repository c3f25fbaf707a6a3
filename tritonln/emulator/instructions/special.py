"""div, rcp, sqrt, rsqrt, ex2, lg2, tanh, sin, cos: correctly rounded with .rn, else as Approximation gives them."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from tritonln.emulator import floats
from tritonln.emulator.faults import Array
from tritonln.emulator.instructions.arithmetic import divided, flushed
from tritonln.emulator.instructions.compiler import Compiler, F, Run, elementwise, handles, kind_of, only
from tritonln.emulator.ptx import Instruction

EXACT: dict[str, Callable[..., Array]] = {
    "div": lambda a, b: a / b, "rcp": lambda a: 1 / a, "sqrt": np.sqrt, "rsqrt": lambda a: 1 / np.sqrt(a),
    "ex2": np.exp2, "lg2": np.log2, "tanh": np.tanh, "sin": np.sin, "cos": np.cos,
}  # fmt: skip


@handles(*EXACT)
def _special(c: Compiler, ins: Instruction) -> Run:
    name, (kind, width) = ins.op[0], kind_of(ins)
    if kind in "us":
        only(ins)
        return elementwise(c, ins, divided, kind, width, 2)
    only(ins, "rn", "ftz", "approx", "full")
    exact, count = EXACT[name], 2 if name == "div" else 1
    if "rn" in ins.op:
        return elementwise(c, ins, flushed(exact, ins), kind, width, count)
    approximate = c.approximate
    label = f"{name}{width}" if name in ("div", "rcp", "sqrt", "rsqrt") else name
    through_fp32 = kind == "bf" or width == 16
    dtype = np.float32 if through_fp32 else F[width]

    def function(*a: Array) -> Array:
        return approximate(label.replace("16", "32"), exact(*(x.astype(np.float64) for x in a)), dtype)

    if kind == "bf":
        return elementwise(c, ins, lambda *a: floats.to_bf16(function(*map(floats.from_bf16, a))), "u", 16, count)
    if through_fp32:
        return elementwise(c, ins, lambda *a: function(*a).astype(np.float16), kind, width, count)
    return elementwise(c, ins, flushed(function, ins), kind, width, count)
