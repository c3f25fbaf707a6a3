"""The tolerance catches broken kernels: each mutant is the forward kernel with one line changed."""

import functools
import importlib.util
import pathlib
import sys
from collections.abc import Iterator
from types import ModuleType

import pytest
import torch

import tritonln.kernels.layer_norm
import tritonln.kernels.row
from tritonln import reference
from tritonln.device import interpreting
from tritonln.emulator import EmulationError
from tritonln.tolerance import error, tolerance

MUTANTS = {
    "none": ("row.py", "", "", 0.0, False),
    "mean over the padded row": (
        "one_tile.py",
        "normalize(x, in_row, N, eps, CENTRED)",
        "normalize(x, in_row, x.shape[1], eps, CENTRED)",
        3.0,
        True,
    ),
    "E[x^2] - E[x]^2": (
        "row.py",
        "return mean + shift, var, deviation, shift",
        "return mean, row_mean(x * x, N) - mean * mean, deviation, 0.0 * shift",
        30.0,
        True,
    ),
    "deviations past the row": (
        "row.py",
        "deviation = tl.where(inside, x - mean, 0.0)",
        "deviation = x - mean",
        3.0,
        True,
    ),
    "eps left out": ("row.py", "(tl.zeros([1, 1], tl.float64) + eps).to(var.dtype)", "0.0", 0.0, True),
    "unbiased variance": ("row.py", "squares * (1 / N) - shift", "squares * (1 / (N - 1)) - shift", 0.0, True),
    "no mask on the columns": (
        "one_tile.py",
        "inside = in_row & (rows < M - row0)",
        "inside = rows < M - row0",
        0.0,
        True,
    ),
    "no mask on the rows": ("one_tile.py", "inside = in_row & (rows < M - row0)", "inside = in_row", 0.0, True),
    "bias forgotten": ("layer_norm.py", "x_hat * weight + bias", "x_hat * weight", 0.0, True),
}
M, N = 5, 100


@pytest.fixture
def kernels(request: pytest.FixtureRequest, tmp_path: pathlib.Path) -> Iterator[ModuleType]:
    """A copy of kernels/ as a package of its own, with one line of one file changed."""
    file, line, instead, _, _ = MUTANTS[request.param]
    source = pathlib.Path(tritonln.kernels.row.__file__).parent
    package = tmp_path / "mutant"
    package.mkdir()
    for kernel in source.glob("*.py"):
        text = kernel.read_text()
        if kernel.name == file:
            assert line in text, line
            text = text.replace(line, instead, 1) if line else text
        (package / kernel.name).write_text(text)
    (package / "__init__.py").touch()
    spec = importlib.util.spec_from_file_location(
        "mutant", package / "__init__.py", submodule_search_locations=[str(package)]
    )
    assert spec is not None
    sys.modules["mutant"] = importlib.util.module_from_spec(spec)
    yield importlib.import_module("mutant.layer_norm"), importlib.import_module("mutant.one_tile")
    for name in [m for m in sys.modules if m.split(".")[0] == "mutant"]:
        del sys.modules[name]


@pytest.mark.filterwarnings("ignore::RuntimeWarning")  # numpy's, under the interpreter
@pytest.mark.parametrize(("kernels", "mutant"), [(m, m) for m in MUTANTS], indirect=["kernels"], ids=list(MUTANTS))
def test_the_tolerance_catches(kernels: ModuleType, mutant: str, device: torch.device) -> None:
    *_, mean, caught = MUTANTS[mutant]
    torch.manual_seed(0)
    # A tile has 8 rows of 128: what a missing mask reads or writes past the end lies in the guard.
    y = torch.full((8 * 128,), float("nan"), device=device)
    x = (torch.randn(8 * 128, device=device) * 0.1 + mean)[: M * N].reshape(M, N)
    w, b = torch.randn(N, device=device), torch.randn(N, device=device)
    parts, skeleton = kernels
    operator = (None, parts.affine, ("M N",), ("N", "N"), (0.0,), (1.0, -0.0), False, True, "layer_norm")
    arguments = ((x,),), ((w,), (b,)), y, None, None, M, M, 1e-5, 0.0, N, 8, 128, 4, 4, *operator
    launch = functools.partial(skeleton.one_tile_fwd[(1,)], *arguments)
    if device.type == "cpu" and not interpreting() and mutant.startswith("no mask"):
        with pytest.raises(EmulationError, match="access outside every tensor"):
            launch()
        return
    launch()
    ref = reference.layer_norm_gradients(x, (N,), w, b, 1e-5, torch.ones_like(x))["y"]
    out, beyond = y[: M * N].reshape(M, N), y[M * N :]
    allowed = tolerance(out, ref, kappa=reference.condition(x, (N,), 1e-5))
    wrong = error(out, ref) > allowed or not beyond.isnan().all()
    assert wrong == caught
