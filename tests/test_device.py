"""What is taken for known of a device, and of what Triton can on it."""

import itertools
import subprocess
import sys
import types

import pytest
import torch

from tritonln import clusters
from tritonln.configurations import rows, rows_backward
from tritonln.configurations.config import Config
from tritonln.configurations.rows import Work, touched
from tritonln.configurations.tunable import Key
from tritonln.device import TARGETS, of_arch
from tritonln.ops.layer_norm import LAYER_NORM

NEAREST = {
    **{("cuda", 90): "sm_90", ("cuda", 103): "sm_100", ("cuda", 87): "sm_86", ("cuda", 121): "sm_120"},
    **{("cuda", 75): "sm_80", ("hip", "gfx942"): "gfx942", ("hip", "gfx1100"): "gfx942", ("xpu", "bmg"): "sm_80"},
}


@pytest.mark.parametrize(("backend", "arch"), list(NEAREST))
def test_architectures_without_a_target_take_the_nearest_older_one(backend: str, arch: int | str) -> None:
    found = of_arch(backend, arch)
    assert found.name == TARGETS[NEAREST[backend, arch]].name
    assert (found.backend, found.arch) == (backend, arch)


@pytest.mark.parametrize("target", list(TARGETS))
def test_no_program_has_more_threads_than_can_be_launched(target: str) -> None:
    device = TARGETS[target]
    for N, tunable in itertools.product(
        (7, 64, 1000, 8192, 20_000, 32_768, 65_536, 131_072), (LAYER_NORM.forward_tunable, LAYER_NORM.backward_tunable)
    ):
        key: Key = next(tunable.keys(N, torch.bfloat16))
        configs: list[Config] = [tunable.choice(key, device), *tunable.candidates(key, device)]
        assert max(c.num_warps for c in configs) * device.warp_size <= 1024


@pytest.fixture
def tried(monkeypatch: pytest.MonkeyPatch):  # type: ignore[no-untyped-def]
    """How the trial of clusters ends, and what is kept of its answers."""
    files: dict[str, str] = {}
    trial = types.SimpleNamespace(code=0, count=0, files=files)

    def run(*args: object, **options: object) -> types.SimpleNamespace:
        trial.count += 1
        return types.SimpleNamespace(returncode=trial.code)

    cache = types.SimpleNamespace(get_file=lambda name: None, put=lambda text, name, binary: files.update({name: text}))
    monkeypatch.setattr(subprocess, "run", run)
    monkeypatch.setattr("triton.runtime.cache.get_cache_manager", lambda key: cache)
    monkeypatch.setattr(clusters, "interpreting", lambda: False)
    monkeypatch.setattr(clusters, "triton_version", lambda: (3, 9))
    clusters._triton_clusters.cache_clear()
    yield trial
    clusters._triton_clusters.cache_clear()


@pytest.mark.parametrize(
    ("code", "kept"),
    [(0, {"clusters.txt": "yes"}), (clusters.CANNOT, {"clusters.txt": "no"}), (-6, {"clusters.txt": "no"}), (1, {})],
)
def test_only_what_triton_answered_is_kept(tried: types.SimpleNamespace, code: int, kept: dict[str, str]) -> None:
    """A trial that failed by itself says nothing of the next process's."""
    tried.code = code
    b300 = of_arch("cuda", 103)
    assert clusters.largest_cluster(b300, 4) == (4 if code == 0 else 1)
    assert tried.files == kept


def test_prefetched_tiles_fit_shared_memory() -> None:
    """All of a tile, what lies past the row too, 64 values for a row of 33; the blocks of a cluster share it."""
    for device, x, N in itertools.product(TARGETS.values(), (2, 4, 8), [*range(1, 300), 1000, 1032, 3080, 5120, 8192]):
        c = rows_backward.backward(N, Work(x, 2 * x, 5), device)
        if touched(N, x):  # tiles ahead are in the cache
            continue
        ahead = (c.num_stages - 1) * c.block_m * (c.block_n * c.pieces + c.rest) * 2 * x // c.num_ctas
        assert c.num_stages <= 2 or ahead <= device.shared_memory * 3 // 4, (device.name, x, N, c)


@pytest.mark.parametrize("target", ["sm_80", "sm_90", "sm_100"])
def test_enough_is_in_flight_whatever_the_row_length(target: str) -> None:
    """Of rows that are aligned and rows that are not: backward, and forward where wide ones are not."""
    device = TARGETS[target]
    for x, N in itertools.product((2, 4), range(33_001, 300_000, 10_000)):
        c = rows.forward(N, Work(x, x, 1), device)
        assert max(1, c.num_stages - 1) * c.block_n * x >= 32 * 1024, (x, N, c)
    for x, N in itertools.product((2, 4, 8), [*range(256, 2100), *range(2100, 20_000, 13)]):
        c = rows_backward.backward(N, Work(x, 2 * x, 5), device)
        values = c.block_m * min(N, c.pieces * c.block_n + c.rest) // c.num_ctas
        assert c.programs * max(1, c.num_stages - 1) * values * 2 * x >= 32 * 1024, (x, N, c)


@pytest.mark.compiles
def test_the_probe_of_clusters_is_of_the_kernel_that_is_launched() -> None:
    """It says yes, or no in its own words, or takes Triton's compiler down; arguments that do not fit say nothing."""
    code = subprocess.run([sys.executable, "-c", "from tritonln.clusters import probe; probe(90)"]).returncode
    assert code in (0, clusters.CANNOT) or code < 0
