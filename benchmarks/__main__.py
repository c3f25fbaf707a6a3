"""python -m benchmarks: measure, report, compare.

    python -m benchmarks run                              every case, every provider, on the GPU here
    python -m benchmarks run --offline --target sm_90     what can be known without one
    python -m benchmarks bench                            the one of the two that fits this machine, and its report
    python -m benchmarks report RESULTS.jsonl             one HTML page and its plots
    python -m benchmarks compare OLD.jsonl NEW.jsonl      regressions first
    python -m benchmarks recurrent                        LSTM and GRU layers of real nets beside their alternatives
    python -m benchmarks claims                           what layer normalization is said to do, tried on real data

A run that was stopped continues where it was when the same command is given again.
"""

from __future__ import annotations

import argparse
import pathlib
import re
import sys
from collections.abc import Callable, Sequence

from benchmarks.cases import GROUPS, PASSES, SWEPT_DTYPES, cases, chosen
from benchmarks.providers import PROVIDERS
from benchmarks.recurrent import options as recurrent_options
from benchmarks.results_file import RESULTS, Record, Results, continues, environment
from tritonln.device import TARGETS


def names(known: Sequence[str]) -> Callable[[str], list[str]]:
    """An argparse type: a comma-separated list of these."""

    def parse(text: str) -> list[str]:
        try:
            return chosen(text, known)
        except ValueError as error:
            raise argparse.ArgumentTypeError(str(error)) from error

    return parse


def parser() -> argparse.ArgumentParser:
    top = argparse.ArgumentParser(
        prog="python -m benchmarks", description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    commands = top.add_subparsers(dest="command", required=True)
    run = commands.add_parser("run", help="sweep, and write results.jsonl")
    run.add_argument("--offline", action="store_true", help="compile, count and model instead of measuring")
    run.add_argument("--target", choices=TARGETS, default="sm_90", help="of --offline (default: %(default)s)")
    run.add_argument(
        "--rehearse", action="store_true", help="take the CPU for a GPU: to try the harness, not to measure"
    )
    run.add_argument("--cases", type=names(GROUPS), help=f"of {','.join(GROUPS)} (default: all; offline hidden,rows)")
    run.add_argument(
        "--dtypes", type=names(SWEPT_DTYPES), help=f"of {','.join(SWEPT_DTYPES)} (default: all; offline bf16)"
    )
    run.add_argument("--passes", type=names(PASSES), help=f"of {','.join(PASSES)} (default: all; offline no no_grad)")
    run.add_argument(
        "--providers", type=names(list(PROVIDERS)), help="default: all; offline those whose kernels are Triton's"
    )
    run.add_argument("--most-values", type=int, metavar="N", help="leave out cases with more values in x")
    run.add_argument(
        "--mode", choices=("events", "graph", "wall"), default="events", help="of timing (default: %(default)s)"
    )
    run.add_argument("--samples", type=int, default=50, help="of each cell (default: %(default)s)")
    run.add_argument("--seconds", type=float, default=float("inf"), help="stop after so long; a later run goes on")
    run.add_argument("--out", type=pathlib.Path, help="folder (default: benchmarks/results/<device>)")
    run.add_argument("--fresh", action="store_true", help="start over")
    report = commands.add_parser("report", help="report.html and PNG plots beside the results")
    report.add_argument("results", type=pathlib.Path, help="a results.jsonl")
    report.add_argument("--out", type=pathlib.Path, help="folder (default: that of the results)")
    bench = commands.add_parser("bench", help="run, as fits this machine, and report")
    bench.add_argument("--fresh", action="store_true", help="start over even where the last run was stopped")
    compare = commands.add_parser("compare", help="two results files: ratio and interval of each cell")
    compare.add_argument("old", type=pathlib.Path)
    compare.add_argument("new", type=pathlib.Path)
    compare.add_argument("--all", action="store_true", help="also cells that did not change")
    recurrent_options(commands.add_parser("recurrent", help="LSTM and GRU layers of real nets beside alternatives"))
    claims = commands.add_parser("claims", help="the claims of layer normalization on real data: a page and its plots")
    claims.add_argument("--seeds", type=int, default=5, help="of each run (default: %(default)s)")
    claims.add_argument("--out", type=pathlib.Path, default=RESULTS / "claims", help="folder (default: %(default)s)")
    return top


def folder_name(device: str) -> str:
    return re.sub(r"[^a-z0-9]+", "-", device.lower()).strip("-")


def run(a: argparse.Namespace, again: bool = False) -> pathlib.Path:
    """The sweep that was asked for; `again` starts over what is finished or of another machine or commit."""
    swept = cases(
        a.cases or (("hidden", "rows") if a.offline else GROUPS),
        a.dtypes or (("bf16",) if a.offline else SWEPT_DTYPES),
        a.passes or (("forward", "backward", "both") if a.offline else PASSES),
    )
    swept = [c for c in swept if a.most_values is None or a.most_values >= c.shape.M * c.shape.N]
    providers = a.providers or [name for name, p in PROVIDERS.items() if p.compiles or not a.offline]

    def results(folder: pathlib.Path, header: Record) -> Results:
        path = (a.out or RESULTS / folder) / "results.jsonl"
        return Results(path, header, a.fresh or (again and not continues(path, header)))

    if a.offline:
        from benchmarks import offline

        header = environment(None, "modelled", mode="offline", **offline.header(a.target))
        file = results(pathlib.Path(f"offline-{a.target}"), header)
        offline.run(swept, providers, a.target, file)
    else:
        from benchmarks.sweep import open_bench, sweep

        bench = open_bench(a.rehearse, a.mode, a.samples)
        kind = "rehearsed" if a.rehearse else "measured"
        header = environment(bench.device, kind, mode=a.mode, copy_bandwidth=bench.copy_bandwidth)
        file = results(pathlib.Path("rehearsal" if a.rehearse else folder_name(header["device"])), header)
        if not sweep(swept, providers, bench, file, a.seconds):
            print(f"{a.seconds:.0f} s are over; the same command goes on", file=sys.stderr)
            return file.path
    file.append({"record": "finished"})
    return file.path


def bench(fresh: bool) -> pathlib.Path:
    """On a GPU every case in bf16; without one the offline sweep.  Goes on where the last one was stopped."""
    import torch

    from benchmarks.report import report

    mode = ("--dtypes", "bf16") if torch.accelerator.is_available() else ("--offline",)
    results = run(parser().parse_args(["run", *mode, *(["--fresh"] if fresh else [])]), again=True)
    return report(results, results.parent)


def main(argv: Sequence[str] | None = None) -> None:
    a = parser().parse_args(argv)
    try:
        if a.command == "run":
            print(run(a))
        elif a.command == "bench":
            print(bench(a.fresh))
        elif a.command == "report":
            from benchmarks.report import report

            print(report(a.results, a.out or a.results.parent))
        elif a.command == "recurrent":
            from benchmarks.recurrent import run as recurrent

            recurrent(a)
        elif a.command == "claims":
            from benchmarks.claims.run import run as claims

            page, verdicts = claims(a.out, a.seeds)
            for v in verdicts:
                print(f"{v.verdict:>18}: {v.claim} ({v.found})")
            print(page)
        else:
            from benchmarks.compare import compare

            print(compare(a.old, a.new, a.all))
    except (ValueError, RuntimeError, OSError) as error:
        sys.exit(f"python -m benchmarks {a.command}: {error}")


if __name__ == "__main__":
    main()
