"""What each instruction does; a module for each kind.  One that is in none of them raises NotImplementedError.

Not there: wgmma, tcgen05, mbarrier, cp.async.bulk and other TMA, textures, local memory, calls, brx and match.  Triton
3.6 to 3.9 emit none of them for kernels of loads, stores, reductions, tl.dot on mma.sync, atomics and clusters.
"""

from tritonln.emulator.instructions.compiler import TYPES, Compiler, Run

from . import (  # noqa: F401 -- each registers what it handles
    arithmetic,
    atomics,
    bits,
    comparison,
    control,
    conversion,
    copies,
    lanes,
    loads,
    matrix,
    special,
)

__all__ = ["TYPES", "Compiler", "Run"]
