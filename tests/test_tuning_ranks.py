"""Four processes with clocks that disagree, over gloo on the CPU; started once, as importing torch takes seconds."""

import json
import os
import pathlib
import subprocess
import sys
from typing import Any

import pytest
import torch.distributed as dist

pytestmark = pytest.mark.skipif(not dist.is_available(), reason="this torch has no torch.distributed")

RANK = """
import dataclasses, datetime, json, os, pathlib, sys, torch, tritonln
import torch.distributed as dist
from tritonln import tuning
from tritonln.configurations import lookup

rank = int(os.environ["RANK"])
dist.init_process_group(
    "gloo", init_method="file://" + sys.argv[1], rank=rank, world_size=4, timeout=datetime.timedelta(seconds=60)
)
asked, said = [], {}


def clock(config, launches):
    asked.append(config)
    return 1 / (1 + (hash((config.block_m, config.num_warps)) * (rank + 1)) % 7)  # each rank has a favourite


def failing(config, launches):
    raise ZeroDivisionError("no time")


def tune(hidden, limit, clock):
    tuning.tune(hidden, torch.float32, rows=4, limit=limit, clock=clock, kernels=["column_sum"])


def error_of(call, *arguments):
    try:
        call(*arguments)
    except RuntimeError as error:
        return str(error)


x = torch.ones(2, 32)
with tuning.policy("search", rows=4, clock=clock):
    tritonln.layer_norm(x, 32)
tune(64, 4, clock)
tuning.assert_same_across_ranks()
said["fixed"] = sorted((key, repr(config)) for key, config in lookup.fixed().items())
said["timed"] = len(asked)
said["files"] = len(list(pathlib.Path(os.environ["TRITONLN_CACHE_DIR"]).rglob("*.json")))

if rank == 1:
    tritonln.layer_norm(torch.ones(2, 48), 48)
said["a key of one rank only"] = error_of(tuning.assert_same_across_ranks)
identity, entry = next((i, e) for i, e in lookup._fixed.items() if "N=32" in i[3])
if rank == 2:
    other = dataclasses.replace(entry.config, num_warps=32)
    lookup._fixed[identity] = dataclasses.replace(entry, config=other)
said["a difference"] = error_of(tuning.assert_same_across_ranks)

said["a failure"] = error_of(tune, 64, 1, failing)
said["another key"] = error_of(tune, 128 if rank == 3 else 64, 1, clock)
dist.destroy_process_group()
print(json.dumps(said))
"""


@pytest.fixture(scope="module")
def ranks(tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What each says.  Every rank has a user's cache of its own, as on four machines."""
    folder = tmp_path_factory.mktemp("ranks")
    processes = [
        subprocess.Popen(
            [sys.executable, "-c", RANK, str(folder / "store")],
            env={
                **os.environ,
                **{"RANK": str(rank), "TRITON_INTERPRET": "1", "OMP_NUM_THREADS": "1"},
                "TRITONLN_CACHE_DIR": str(folder / f"cache {rank}"),
            },
            cwd=pathlib.Path(__file__).parents[1],
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
        )
        for rank in range(4)
    ]
    outputs = [p.communicate(timeout=240) for p in processes]
    assert [p.returncode for p in processes] == [0] * 4, "\n".join(errors for _, errors in outputs)
    return [json.loads(out) for out, _ in outputs]


def test_only_the_first_measures_and_all_agree(ranks: list[dict[str, Any]]) -> None:
    assert [said["timed"] for said in ranks] == [12, 0, 0, 0]
    assert [said["files"] for said in ranks] == [2, 0, 0, 0]
    assert all(said["fixed"] == ranks[0]["fixed"] for said in ranks)
    assert len(ranks[0]["fixed"]) == 2


def test_a_difference_is_named(ranks: list[dict[str, Any]]) -> None:
    for said in ranks:
        assert said["a key of one rank only"] is None  # as in pipelines
        assert "ranks 0 and 2 of the group have different configurations" in said["a difference"]
        assert "num_warps=32" in said["a difference"]


def test_an_error_on_the_first_is_raised_on_all(ranks: list[dict[str, Any]]) -> None:
    assert all("ZeroDivisionError: no time" in said["a failure"] for said in ranks)


def test_another_key_is_not_answered(ranks: list[dict[str, Any]]) -> None:
    assert [said["another key"] for said in ranks[:3]] == [None] * 3
    assert "ranks tune different keys: expected column_sum N=64" in ranks[3]["another key"]
