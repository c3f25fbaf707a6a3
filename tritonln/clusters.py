"""Whether the Triton that is installed can spread a row over a cluster of thread blocks.

Triton reduces across thread blocks (`num_ctas` > 1) from 3.9 on; on earlier ones the compiler
aborts the process.  So it is tried, once, in a process of its own, and the answer is kept in
Triton's own cache beside what it compiled.
"""

from __future__ import annotations

import functools
import hashlib
import subprocess
import sys

from tritonln.device import Device, interpreting, triton_version

# Larger clusters than 16 exist on no GPU; 16 needs a launch attribute that Triton sets.
LARGEST = 16
CANNOT = 3  # what the trial's process exits with


def largest_cluster(device: Device, wanted: int) -> int:
    """`wanted` thread blocks to a row if the device and Triton can; else 1."""
    # Hopper brought clusters (compute capability 9.0).  What 12.x makes of these kernels was not looked at.
    able = device.backend == "cuda" and device.arch in (90, 100, 103)
    return wanted if able and 1 < wanted <= LARGEST and _triton_clusters(int(device.arch)) else 1


@functools.cache
def _triton_clusters(arch: int) -> bool:
    import triton
    from triton.runtime.cache import get_cache_manager

    if interpreting() or triton_version() < (3, 9):
        return False
    cache = get_cache_manager(hashlib.sha256(f"tritonln clusters {triton.__version__} {arch}".encode()).hexdigest())
    known = cache.get_file("clusters.txt")
    if known is not None:
        with open(known) as file:
            return file.read() == "yes"
    trial = f"from tritonln.clusters import probe; probe({arch})"
    code = subprocess.run([sys.executable, "-c", trial], capture_output=True).returncode
    answer = code == 0
    if answer or code == CANNOT or code < 0:  # else it is the probe that failed, which says nothing about Triton
        cache.put("yes" if answer else "no", "clusters.txt", binary=False)
    return answer


def probe(arch: int) -> None:
    """Compiles the forward kernel with a row over two thread blocks; dies or exits with CANNOT where Triton cannot."""
    import torch

    from tritonln.compile import compile_launch
    from tritonln.device import of_arch
    from tritonln.kernels.layer_norm import affine
    from tritonln.kernels.one_tile import one_tile_fwd
    from tritonln.launch import Launch, Recorded

    device = of_arch("cuda", arch)
    x = torch.empty(1, 4096, dtype=torch.bfloat16, device="meta")
    operands = ("M N",), ("N", "N"), (0.0,), (1.0, 0.0)
    constants = (4096, 1, 4096, 1, 8, None, affine, *operands, False, True, "probe")
    launch = Launch(one_tile_fwd, constants, device, num_warps=4, num_ctas=2)
    call = Recorded(launch, 1, (((x,),), ((), ()), x, None, None, 1, 1, 1e-5, 0.0))
    try:
        able = "shared::cluster" in compile_launch(call, device).asm["ptx"]
    except RuntimeError:  # of Triton's compiler
        able = False
    if not able:
        sys.exit(CANNOT)
