"""A kernel's time on a GPU that is not there: a roofline, not a measurement."""

from __future__ import annotations

from tritonln.device import Device

# Instructions that a multiprocessor issues a cycle, times the threads of each; and cycles a second under
# load.  Both are assumptions of this model: 4 schedulers of 32 threads, and about what an H100 holds.
ISSUED = 128
CLOCK = 1.6e9


def modelled_seconds(
    device: Device, moved: float, in_flight: float, needed: float, programs: int, instructions: float | None
) -> float:
    """The slower of memory and issue.

    Memory moves `moved` bytes at the bandwidth times min(1, in_flight / needed), both in bytes a
    multiprocessor (Little's law), where too few programs leave multiprocessors idle.  `instructions`
    are those of all threads, None where they were not counted.
    """
    busy = min(1.0, programs / device.multiprocessors)
    memory = moved / (device.bandwidth * min(1.0, in_flight * busy / needed))
    issue = (instructions or 0.0) / (device.multiprocessors * busy * ISSUED * CLOCK)
    return max(memory, issue)
