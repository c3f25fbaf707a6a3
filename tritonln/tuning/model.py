"""A roofline with latencies: what a compiled kernel would take on a GPU that is not here.

It ranks configurations of one kernel against each other; its seconds are modelled, never measured.
"""

from __future__ import annotations

import math
from typing import NamedTuple

from tritonln.device import LATENCY, Device
from tritonln.inspect import Report

ISSUED = 4  # warp instructions a cycle on a multiprocessor: one of each of its four schedulers
# Warps that keep the schedulers issuing: two for each, as arithmetic takes four cycles and the code of a
# tile has two or more independent instructions at any place.
WARPS = 8
BARRIER = 30  # cycles that a thread block idles at a barrier, the order of a shared-memory round trip
# Last-level cache over DRAM bandwidth, for what is read twice and fits; microbenchmarks of A100 and
# H100 (Luo et al. 2024, arXiv 2402.13499) give 2 to 3.
CACHE_SPEED = 2.0
L1 = 128  # bytes a cycle that spilled values take of a multiprocessor's first cache; CUDA programming guide
# From the end of a kernel to the work of the next in its stream: of kernels that run for 2.9 us on a V100, one ends
# every 3.8 us (A. Gray, Getting Started with CUDA Graphs, NVIDIA 2019; replayed from a graph every 3.4).
LAUNCH = 0.9e-6


class Terms(NamedTuple):
    """Of a launch, in seconds.  The first four overlap, the others do not."""

    memory: float  # of DRAM
    cache: float  # the last level
    pipe: float  # the first caches, shared memory being in them
    issue: float  # of instructions, with the barriers and spilled values between them
    tail: float  # the last loads' latency, and tiles that some programs have more than others
    launch: float

    @property
    def seconds(self) -> float:
        return max(self[:4]) + self.tail + self.launch

    @property
    def binds(self) -> str:
        """The name of the longest."""
        return self._fields[self.index(max(self))]


def terms(report: Report, device: Device) -> Terms:
    """The modelled time of a launch, by what it is spent on."""
    height, width = report.tile
    elements = report.rows * report.hidden
    slots = device.multiprocessors * report.resident / report.num_ctas
    busy = min(1.0, report.programs * report.num_ctas / device.multiprocessors)

    moved = elements * report.bytes_per_element
    read_again = cached = 0.0
    # Rows walked in chunks are read again, from the cache if those of all resident programs fit.
    chunked = width < report.hidden and not {"BLOCK_P", "PIECES", "CHUNKS"} & report.constants.keys()
    if chunked:
        read_again = elements * report.streamed
        if slots * height * report.hidden * report.streamed <= device.l2:
            cached = read_again
    if report.again:
        # What the last launch had: this one begins with what came last there, and its stores pass the cache.
        cached = min(elements * report.again, device.l2)
    # Little's law: fewer bytes in flight than bandwidth x latency leave that share of it unused.
    reached = device.bandwidth * min(1.0, busy * report.in_flight / report.needed)

    rate = device.multiprocessors * busy * device.clock
    pipe = elements * report.pipe / rate

    # Spilled bytes are those of all lanes.
    issue = elements * report.local / (L1 * rate)
    if report.instructions_per_element is not None:
        issued = ISSUED * rate * min(1.0, report.resident * report.num_warps / WARPS)
        instructions = report.instructions_per_element * elements * (2 if chunked else 1) / device.warp_size
        instructions += report.outside * report.num_warps * report.num_ctas * report.programs
        issue += instructions / issued
    tiles = math.ceil(report.rows / height) * math.ceil(report.hidden / width)
    waiting = tiles * report.barriers * BARRIER / (min(slots, report.programs) * device.clock)

    # At the end half of the programs, on average over batch sizes, have a tile more than the others.
    tile = height * width / report.num_ctas * report.streamed
    last = max(LATENCY, tile * device.multiprocessors / device.bandwidth) / 2
    everything = moved + read_again
    memory, cache = (everything - cached) / reached, everything / (CACHE_SPEED * reached)
    return Terms(memory, cache, pipe, issue + waiting, last, LAUNCH)


def seconds(report: Report, device: Device) -> float:
    """The modelled time of a launch."""
    return terms(report, device).seconds


def bound(moved: int, device: Device) -> float:
    """What no configuration can beat: its bytes moved once at full bandwidth in one launch, the last loads' latency."""
    return moved / device.bandwidth + LATENCY / 2 + LAUNCH
