"""CPU milliseconds that `import tritonln` takes where torch is imported already: no GPU needed.

    python -m benchmarks.imports [--runs 9]

Each run is a process of its own, with the bytecode of earlier ones; the fastest counts.
"""

from __future__ import annotations

import argparse
import os
import statistics
import subprocess
import sys
import tempfile

CHILD = "import time, torch; start = time.process_time(); import tritonln; print(1e3 * (time.process_time() - start))"


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=9)
    a = parser.parse_args()
    with tempfile.TemporaryDirectory() as bytecode:
        environment = {**os.environ, "PYTHONPYCACHEPREFIX": bytecode, "OMP_NUM_THREADS": "1"}
        environment.pop("PYTHONDONTWRITEBYTECODE", None)
        command = [sys.executable, "-c", CHILD]
        runs = [subprocess.run(command, env=environment, capture_output=True, check=True) for _ in range(a.runs + 1)]
    found = [float(run.stdout) for run in runs[1:]]
    print(f"import tritonln: {min(found):.0f} ms of CPU over import torch (median {statistics.median(found):.0f})")


if __name__ == "__main__":
    main()
