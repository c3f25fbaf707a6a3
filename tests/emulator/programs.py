"""PTX written by hand, run on numpy arrays."""

from __future__ import annotations

import textwrap
from typing import Any

import numpy as np
import numpy.typing as npt

from tritonln.emulator.counters import Counters
from tritonln.emulator.machine import Machine
from tritonln.emulator.memory import GlobalMemory
from tritonln.emulator.ptx import parse

Array = npt.NDArray[Any]

# %a0, %a1 ... hold the addresses of the arrays, %t the thread, %p0 .., %h0 .., %r0 .., %f0 .., %d0 .. are free.
HEAD = """
.version 8.6
.target sm_90a
.address_size 64
.extern .shared .align 16 .b8 smem[];
.visible .entry kernel({parameters})
.reqntid {threads}
{cluster}
{{
.reg .pred %p<10>;
.reg .b16 %h<40>;
.reg .b32 %t, %c, %r<40>;
.reg .f32 %f<40>;
.reg .b64 %a<10>, %d<40>;
{loads}
mov.u32 %t, %tid.x;
mov.u32 %c, %ctaid.x;
"""


def machine(body: str, arrays: int, threads: int = 32, shared: int = 0, cluster: int = 1, **options: Any) -> Machine:
    head = HEAD.format(
        parameters=", ".join(f".param .u64 kernel_param_{i}" for i in range(arrays)),
        threads=threads,
        cluster=f".reqnctapercluster {cluster}" if cluster > 1 else "",
        loads="\n".join(f"ld.param.b64 %a{i}, [kernel_param_{i}];" for i in range(arrays)),
    )
    return Machine(parse(head + textwrap.dedent(body) + "\nret;\n}\n"), shared, **options)


def launch(body: str, *arrays: Array, threads: int = 32, grid: int = 1, **options: Any) -> Counters:
    """Runs the body with arrays as its tensors, which it may change."""
    memory, params = GlobalMemory(), []
    for i, array in enumerate(arrays):
        memory.add_bytes(f"array{i}", array.ctypes.data, array.nbytes)
        params.append(int(array.ctypes.data).to_bytes(8, "little"))
    return machine(body, len(arrays), threads, **options).launch((grid, 1, 1), params, memory)


REGISTER = {1: "%h", 2: "%h", 4: "%r", 8: "%d"}


def apply(instruction: str, result: Any, *operands: Array, **options: Any) -> Array:
    """Of each element, in a thread of its own.  `instruction` names D, A, B and C; predicates go through %p0."""
    n = len(operands[0])
    threads = -(-n // 32) * 32
    out = np.zeros(threads, result)
    lines, names = [], {}
    for i, operand in enumerate(operands):
        size, register = operand.itemsize, f"{REGISTER[operand.itemsize]}{i + 1}"
        names["ABC"[i]] = register
        lines += [
            f"mad.wide.u32 %d{30 + i}, %t, {size}, %a{i + 1};",
            f"ld.global.b{8 * size} {register}, [%d{30 + i}];",
        ]
    names["D"] = f"{REGISTER[out.itemsize]}0"
    text = "".join(names.get(c, c) if not before.isalnum() and not after.isalnum() else c
                   for before, c, after in zip(" " + instruction, instruction, instruction[1:] + " "))  # fmt: skip
    lines += [
        text,
        f"mad.wide.u32 %d29, %t, {out.itemsize}, %a0;",
        f"st.global.b{8 * out.itemsize} [%d29], {names['D']};",
    ]
    padded = [np.concatenate([o, np.repeat(o[:1], threads - n)]) for o in operands]
    launch("\n".join(lines), out, *padded, threads=threads, **options)
    return out[:n]


def bits(values: Array, dtype: Any) -> Array:
    return np.ascontiguousarray(values).view(dtype)
