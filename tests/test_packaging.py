"""What a wheel and an sdist hold, and that an installed wheel works from anywhere."""

import os
import pathlib
import subprocess
import sys
import tarfile
import zipfile

import pytest
from filelock import FileLock

ROOT = pathlib.Path(__file__).parents[1]
KERNELS = {str(f.relative_to(ROOT / "kernels")) for f in (ROOT / "kernels").rglob("*.py")}
TABLES = {str(f.relative_to(ROOT)) for f in (ROOT / "autotune_cache").rglob("*.json")}


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> pathlib.Path:
    out = tmp_path_factory.mktemp("dist")
    # The environment's own setuptools: a test needs no network.
    command = [sys.executable, "-m", "build", "--no-isolation", "--outdir", str(out), str(ROOT)]
    with FileLock(tmp_path_factory.getbasetemp().parent / "build.lock"):  # workers would build in one folder at once
        done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
    return out


def test_wheel(built: pathlib.Path) -> None:
    names = set(zipfile.ZipFile(next(built.glob("*.whl"))).namelist())
    assert {f"tritonln/kernels/{name}" for name in KERNELS} <= names
    assert {f"tritonln/{name}" for name in TABLES} <= names
    assert "tritonln/py.typed" in names
    top = {name.split("/")[0] for name in names}
    assert {t for t in top if not t.endswith(".dist-info")} == {"tritonln"}


def test_sdist(built: pathlib.Path) -> None:
    with tarfile.open(next(built.glob("*.tar.gz"))) as archive:
        names = {name.split("/", 1)[1] for name in archive.getnames() if "/" in name}
    assert {f"kernels/{name}" for name in KERNELS} <= names
    assert names >= TABLES
    assert {"pyproject.toml", "README.md", "LICENSE"} <= names


def test_an_installed_wheel_from_elsewhere(built: pathlib.Path, tmp_path: pathlib.Path) -> None:
    """Unpacked as pip would, beside a top-level package that is also called `kernels`."""
    site = tmp_path / "site"
    zipfile.ZipFile(next(built.glob("*.whl"))).extractall(site)
    (site / "kernels").mkdir()
    (site / "kernels" / "__init__.py").write_text("somebody = 'else'")
    code = (
        "import kernels, tritonln, tritonln.kernels.row, torch;"
        "assert kernels.somebody == 'else';"
        f"assert tritonln.__file__.startswith({str(site)!r}), tritonln.__file__;"
        f"assert tritonln.kernels.row.__file__.startswith({str(site)!r});"
        "print(tritonln.layer_norm(torch.ones(2, 8), 8).sum().item())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code],
        cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": str(site), "TRITON_INTERPRET": "1"},
        capture_output=True,
        text=True,
    )
    assert done.stdout.strip() == "0.0", done.stderr


@pytest.mark.parametrize("where", [ROOT, ROOT / "tests", pathlib.Path("/")])
def test_importable_from(where: pathlib.Path) -> None:
    done = subprocess.run(
        [
            sys.executable,
            "-c",
            "from tritonln.kernels.row import row_sum; import tritonln; print(tritonln.__version__)",
        ],
        cwd=where,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr
