"""What two ranks, or four, check together; tests/test_distributed.py starts them once, as importing torch takes
seconds."""

from __future__ import annotations

import datetime
import json
import os
import sys
import traceback

import torch
import torch.distributed as dist
from torch.distributed.device_mesh import init_device_mesh

import tests.helpers.two_ranks_models
import tests.helpers.two_ranks_operators  # noqa: F401  which name their checks
from tests.helpers.ranks import CHECKS

if __name__ == "__main__":
    rank, world = int(os.environ["RANK"]), int(os.environ["WORLD_SIZE"])
    dist.init_process_group(
        "gloo",
        init_method=f"file://{sys.argv[1]}",
        rank=rank,
        world_size=world,
        timeout=datetime.timedelta(seconds=120),
    )
    torch.set_num_threads(1)
    said = {}
    for name, function in CHECKS.items():
        try:
            function(init_device_mesh("cpu", (world,)))
            said[name] = ""
        except Exception:
            said[name] = traceback.format_exc()
            if len(sys.argv) > 2:
                print(name, said[name], file=sys.stderr)
            break  # the other rank may be waiting
    print(json.dumps(said))
    os._exit(0)  # not after what a failed check left hanging
