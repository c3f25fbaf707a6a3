"""A roofline with latencies: what a compiled kernel would take on a GPU that is not here.

It ranks configurations of one kernel against each other; its seconds are modelled, never measured.
"""

from __future__ import annotations

import math

from tritonln.device import Device
from tritonln.inspect import LATENCY, Report

ISSUED = 4  # warp instructions a cycle on a multiprocessor: one of each of its four schedulers
# Warps that keep the schedulers issuing: two for each, as arithmetic takes four cycles and the code of a
# tile has two or more independent instructions at any place.
WARPS = 8
BARRIER = 30  # cycles that a thread block idles at a barrier, the order of a shared-memory round trip
# Last-level cache over DRAM bandwidth, for what is read twice and fits; microbenchmarks of A100 and
# H100 (Luo et al. 2024, arXiv 2402.13499) give 2 to 3.
CACHE_SPEED = 2.0


def seconds(report: Report, rows: int, device: Device) -> float:
    """The modelled time of a launch on `rows` rows."""
    height, width = report.tile
    elements = rows * report.hidden
    slots = device.multiprocessors * report.resident / report.num_ctas
    busy = min(1.0, report.programs * report.num_ctas / device.multiprocessors)

    moved = elements * report.bytes_per_element
    # Rows walked in chunks are read again, from the cache if those of all resident programs fit.
    chunked = width < report.hidden and "BLOCK_P" not in report.constants
    if chunked:
        fits = slots * height * report.hidden * report.streamed <= device.l2
        moved += elements * report.streamed / (CACHE_SPEED if fits else 1.0)
    # Little's law: fewer bytes in flight than bandwidth x latency leave that share of it unused.
    memory = moved / device.bandwidth / min(1.0, busy * report.in_flight / report.needed)

    issue = 0.0
    if report.instructions_per_element is not None:
        rate = ISSUED * device.multiprocessors * busy * min(1.0, report.resident * report.num_warps / WARPS)
        instructions = report.instructions_per_element * elements * (2 if chunked else 1) / device.warp_size
        issue = instructions / (rate * device.clock)
    tiles = math.ceil(rows / height) * math.ceil(report.hidden / width)
    waiting = tiles * report.barriers * BARRIER / (min(slots, report.programs) * device.clock)

    # At the end half of the programs, on average over batch sizes, have a tile more than the others.
    tile = height * width / report.num_ctas * report.streamed
    last = max(LATENCY, tile * device.multiprocessors / device.bandwidth) / 2
    return max(memory, issue + waiting) + last


def bound(report: Report, rows: int, device: Device) -> float:
    """What no configuration can beat: its bytes moved once at the full bandwidth, and the last loads' latency."""
    return rows * report.hidden * report.bytes_per_element / device.bandwidth + LATENCY / 2
