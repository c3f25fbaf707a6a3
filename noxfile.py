"""The suite on other versions than constraints.txt's: `nox -s next`, `nox -s lowest`."""

import nox

nox.options.sessions = ["next"]


def install(session: nox.Session, torch: str, triton: str, *extra: str) -> None:
    """torch first; its wheel's pin of triton is passed over, as the point is another one."""
    session.install("--quiet", f"torch=={torch}")
    session.install("--quiet", "--constraint", "constraints.txt", "--editable", ".[test]")
    session.install("--quiet", "--no-deps", f"triton=={triton}", *extra)


@nox.session
def next(session: nox.Session) -> None:
    """The triton that torch 2.15 will pin: everything compiled, and a short part of what is interpreted."""
    install(session, "2.13.0", "3.9.0")
    session.run("python", "-m", "pytest", "-n", "auto", "-q", "-m", "compiles or smoke", *session.posargs)


@nox.session
def lowest(session: nox.Session) -> None:
    """The oldest versions allowed.  Triton 3.6's interpreter needs numpy below 2.4."""
    install(session, "2.11.0", "3.6.0", "numpy<2.4")
    # Its interpreter uses what numpy has deprecated since.
    session.run("python", "-m", "pytest", "-n", "auto", "-q", "-W", "default::DeprecationWarning", *session.posargs)
