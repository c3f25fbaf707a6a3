"""A GPU of NVIDIA's, emulated: Triton's compiler makes the kernels as ever, and their PTX is executed on CPU tensors.

    import torch, tritonln
    from tritonln.emulator import emulated_gpu

    with emulated_gpu("sm_90") as gpu:
        y = tritonln.layer_norm(torch.randn(64, 256), 256)  # or any kernel[grid](...) of your own
    print(gpu.runs[-1].counters.by_opcode())

From a shell: ``python -m tritonln run --emulate sm_90 script.py``; for a test suite:
``pytest -p tritonln.emulator.pytest --emulate sm_90``.  The kernels must be compiled ones: TRITON_INTERPRET, which
makes @triton.jit give interpreted ones, must not be set when Triton is imported.

What is checked, at every access of every thread (:class:`EmulationError` names the kernel, the thread and the line):

* global memory: inside a tensor that the launch was given, aligned, not between the rows of a strided one; the
  tensor still lives; no two programs store to one place, none reads what another has written;
* shared memory: inside what the kernel asked for, written before it is read, no race between two barriers, no
  asynchronous copy read before it was waited for;
* barriers that some warps never reach; a launch on another device or stream than the current one.

What is counted (:class:`Counters`, of each launch): executed warp instructions, and for each load and store the
requests, bytes, 32-byte sectors of global memory or wavefronts of shared memory, beside the fewest possible.

What is not modelled: ptxas, which is not run (registers, spills, the order and the choice of machine instructions;
``asm["cubin"]`` of a kernel is empty), caches, time, the order in which programs run, streams side by side (work runs
when it is launched), memory of a device's own (tensors are the CPU's).  A result that is right here can still be wrong
on a GPU by what these do.  There is no AMD ISA.
Floating point is rounded as PTX says; where it allows an error (rsqrt.approx and its like) the nearest value is taken,
or with ``perturbed=True`` one anywhere within that error, another for every ``seed``.

NotImplementedError is raised, with the kernel and the place, where going on would give a wrong result: at instructions
and types of parameters that Triton does not make of these kernels, at kernels that ask for scratch memory, where more
than 4,096 programs wait for each other, and where a graph captures an operator of torch that both writes an argument
and returns something new.  Launchers in C are not built: launches are carried out in Python.
"""

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tritonln.emulator.counters import Counters, Traffic
    from tritonln.emulator.driver import EmulatedGPU, Run, emulated_gpu
    from tritonln.emulator.faults import EmulationError

__all__ = ["Counters", "EmulatedGPU", "EmulationError", "Run", "Traffic", "emulated_gpu"]


def __getattr__(name: str) -> Any:
    """Loads Triton when something is asked for: the pytest plugin is imported where nothing may be emulated."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    from tritonln.emulator import driver

    return getattr(driver, name)
