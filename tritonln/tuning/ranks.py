"""The processes of a torch.distributed group with one configuration for each key."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable
from typing import Any, TypeVar

import torch.distributed as dist

from tritonln.configurations.lookup import fixed

T = TypeVar("T")


def distributed(group: Any = None) -> bool:
    return dist.is_available() and dist.is_initialized() and dist.get_world_size(group) > 1


def from_first(search: Callable[[], T], asked: str, group: Any = None) -> T:
    """What the first rank of the group finds, on all of its ranks.  An error there is raised everywhere.

    `asked` says what is searched for; ranks that ask for different things at a time get an error
    instead of each other's answers.
    """
    if not distributed(group):
        return search()
    message: list[Any] = [None]
    if dist.get_rank(group) == 0:
        try:
            message = [(asked, search(), None)]
        except Exception as failure:  # the others wait: they must hear of it
            message = [(asked, None, f"{type(failure).__name__}: {failure}")]
    dist.broadcast_object_list(message, group=group, group_src=0)
    answered, found, failed = message[0]
    if answered != asked:
        raise RuntimeError(f"ranks tune different keys: expected {answered} as on rank 0 of the group, but got {asked}")
    if failed is not None:
        raise RuntimeError(f"tuning {asked} failed on rank 0 of the group: {failed}")
    return found


def assert_same_across_ranks(group: Any = None) -> None:
    """Raises RuntimeError if processes of the group have fixed different configurations for a key.

    Digests are compared first; what differs is gathered only where they do.  Keys that only some
    ranks have used, as in pipelines, do not count.  A collective call: every rank of the group makes it.
    """
    if not distributed(group):
        return
    mine = {key: repr(config) for key, config in fixed().items()}
    digest = hashlib.sha256(json.dumps(mine, sort_keys=True).encode()).hexdigest()
    if len(set(_gathered(digest, group))) == 1:
        return
    for rank, theirs in enumerate(tables := _gathered(mine, group)):
        for key, config in theirs.items():
            first = next(other for other, table in enumerate(tables) if key in table)
            if tables[first][key] != config:
                raise RuntimeError(
                    f"ranks {first} and {rank} of the group have different configurations for {key}: "
                    f"{tables[first][key]} and {config}"
                )


def _gathered(value: T, group: Any) -> list[T]:
    everyone: list[Any] = [None] * dist.get_world_size(group)
    dist.all_gather_object(everyone, value, group=group)
    return everyone
