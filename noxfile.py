"""The suite on other versions than constraints.txt's (`nox -s next`, `nox -s lowest`) and other GPUs (`emulated`)."""

import pathlib
import sys

import nox

nox.options.sessions = ["next"]


def install(session: nox.Session, torch: str, triton: str, *extra: str) -> None:
    """The extras first: their constraints would put torch back.  torch's pin of triton is passed over at the end, as
    the point is another one."""
    session.install("--quiet", "--constraint", "constraints.txt", "--editable", ".[test]")
    session.install("--quiet", f"torch=={torch}")
    session.install("--quiet", "--no-deps", f"triton=={triton}", *extra)


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


@nox.session
def lowest(session: nox.Session) -> None:
    """The oldest versions allowed.  Triton 3.6's interpreter needs numpy below 2.4."""
    install(session, "2.11.0", "3.6.0", "numpy<2.4")
    # Its interpreter uses what numpy has deprecated since.
    pytest = ("python", "-m", "pytest", "-n", "auto", "-q", "-W", "default::DeprecationWarning", *session.posargs)
    session.run(*pytest, "-m", "interpreted", env={"TRITON_INTERPRET": "1"})
    session.run(*pytest)


@nox.session
@nox.parametrize("target", ["sm_80", "sm_100", "sm_120"])
def emulated(session: nox.Session, target: str) -> None:
    """What runs kernels, on other GPUs than the emulated H100."""
    install(session, "2.13.0", "3.7.1")
    session.run("python", "-m", "pytest", "-n", "auto", "-q", "--emulate", target, "-m", "kernels", *session.posargs)
