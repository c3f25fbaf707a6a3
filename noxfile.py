"""The suite on versions that constraints.txt does not have (`next`, `lowest`, `newest`) and other GPUs (`emulated`)."""

import pathlib
import sys

import nox

nox.options.sessions = ["next"]


@nox.session(venv_backend="none")
def next(session: nox.Session) -> None:
    """The triton that torch 2.15 will pin, before the one that is installed beside nox: everything compiled, and
    layer_norm, rows over clusters among it."""
    newer = pathlib.Path(session.create_tmp(), "triton-3.9.0")
    install = "-m", "pip", "install", "--quiet", "--no-deps", "--upgrade", "--target", str(newer), "triton==3.9.0"
    session.run(sys.executable, *install, external=True)
    pytest = (sys.executable, "-m", "pytest", "-n", "auto", "-q", *session.posargs)
    environment = {"PYTHONPATH": str(newer)}
    session.run(*pytest, "-m", "compiles and not thorough", env=environment, external=True)
    cases = "tests/test_layer_norm.py", "-k", "clusters or hidden_sizes", "-m", "not thorough"
    session.run(*pytest, *cases, env=environment, external=True)


def whole(session: nox.Session, *versions: str) -> None:
    """All that `make test` runs, in an environment of its own."""
    session.install("--quiet", *versions, "--editable", ".[test]")
    pytest = ("python", "-m", "pytest", "-n", "auto", "-q", *session.posargs)
    session.run(*pytest, "-m", "interpreted", env={"TRITON_INTERPRET": "1"})
    session.run(*pytest, "-m", "not thorough")


@nox.session
def lowest(session: nox.Session) -> None:
    """The oldest versions allowed.  Triton 3.6's interpreter needs numpy below 2.4."""
    whole(session, "torch==2.11.0", "triton==3.6.0", "numpy<2.4")


@nox.session
def newest(session: nox.Session) -> None:
    whole(session, "torch==2.15.0", "triton==3.9.0")


@nox.session(venv_backend="none")
@nox.parametrize("target", ["sm_80", "sm_100", "sm_120"])
def emulated(session: nox.Session, target: str) -> None:
    """What runs kernels, on other GPUs than the emulated H100, with what is installed beside nox."""
    pytest = (sys.executable, "-m", "pytest", "-n", "auto", "-q", "--emulate", target, *session.posargs)
    session.run(*pytest, "-m", "kernels and not thorough", external=True)
