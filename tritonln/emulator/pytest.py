"""Runs a test suite on an emulated GPU:  TRITON_INTERPRET=0 EMULATE=sm_90 pytest -p emu.plugin"""

import os

from .driver import emulated_gpu, only_tensors

_gpu = emulated_gpu(os.environ.get("EMULATE", "sm_90"), check=os.environ.get("EMULATE_CHECK", "1") == "1", count=False)


def pytest_configure(config):
    config._emulated = _gpu.__enter__()
    only_tensors()


def pytest_terminal_summary(terminalreporter, config):
    runs, notes = config._emulated.runs, {}
    for run in runs:
        for note, n in run.counters.notes.items():
            notes[run.name, note] = notes.get((run.name, note), 0) + n
    names = {}
    for run in runs:
        k, s = names.get(run.name, (0, 0.0))
        names[run.name] = k + 1, s + run.seconds
    terminalreporter.write_line(
        "emulated launches: " + ", ".join(f"{n} {k} ({s:.1f} s)" for n, (k, s) in names.items())
    )
    for (name, note), n in notes.items():
        terminalreporter.write_line(f"note: {name}: {note}: {n}")
