"""The claims, what each asks of the numbers, and whether these show it.

The criteria stand here before anything is run; the page prints them as they stand.  A ratio is LayerNorm's number over
that of the net without norm (or with BatchNorm, where it is said): below 1 is in favour of the claim.
"""

from __future__ import annotations

import statistics
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

Key = tuple[Any, ...]
Results = Mapping[Key, Sequence[Mapping[str, Any]]]  # of each experiment and its arguments, one of each seed
SHOWN, NOT_SHOWN, CONTRADICTED, NOT_RUN = "shown", "not shown", "contradicted here", "not run"
BATCHES, MLP_ITERATIONS, MLP_RATE = (4, 128), {"digits": 500, "mnist": 400}, 1e-3
SGD_RATES, SGD_ITERATIONS = (0.03, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0), 150
RATES, ITERATIONS = (3e-4, 1e-3, 3e-3, 1e-2, 3e-2, 1e-1, 3e-1), 120
CELLS, TRAINED = ("RNN", "LSTM", "GRU"), ("LSTM", "GRU")
SCALES, STEADY_FROM = (0.5, 1.0, 1.5, 2.0, 4.0, 8.0), 1.5
DESCENTS, DESCENT_ITERATIONS = (0.1, 0.5), 100
REACHED = {"MLP": 5.0, "LSTM": 10.0, "GRU": 10.0}  # percent of error
USABLE, EXPLODED, VANISHED = 15.0, 1e2, 1e-4


class Verdict(NamedTuple):
    claim: str
    criterion: str
    found: str
    verdict: str
    remark: str  # what to read beside it


def verdicts(results: Results) -> list[Verdict]:
    found = []
    for claim, criterion, judge, *remark in CLAIMS:
        try:
            figures, verdict = judge(results)
        except KeyError as missing:
            figures, verdict = f"without the data of {missing.args[0][1]}", NOT_RUN
        found.append(Verdict(claim, criterion, figures, verdict, *(remark or [""])))
    return found


def mean_error(results: Results, key: Key) -> float:
    return statistics.mean(r["error"] for r in results[key])


def best_rate(results: Results, cell: str, normalized: bool) -> float:
    return min(RATES, key=lambda rate: mean_error(results, speaker(cell, normalized, rate)))


# ---- keys of results -----------------------------------------------------------------------------


def by_batch(of: str, norm: str, batch: int) -> Key:
    return "train_mlp", of, norm, batch, "adam", MLP_RATE, MLP_ITERATIONS[of]


def by_sgd(norm: str, rate: float) -> Key:
    return "train_mlp", "digits", norm, 128, "sgd", rate, SGD_ITERATIONS


def speaker(cell: str, normalized: bool, rate: float) -> Key:
    return "train_speaker", cell, normalized, rate, ITERATIONS


def probed(cell: str, normalized: bool, scale: float) -> Key:
    return "probe", cell, normalized, scale


def descended(norm: str, rate: float) -> Key:
    return "descend", norm, rate, DESCENT_ITERATIONS


def curves(results: Results, net: str, normalized: bool) -> Sequence[Mapping[str, Any]]:
    """Of an MLP at the one rate of the batch experiment, and of recurrent nets each at its best rate."""
    if net == "MLP":
        return results[by_batch("digits", "LayerNorm" if normalized else "no norm", 128)]
    return results[speaker(net, normalized, best_rate(results, net, normalized))]


# ---- judgements ----------------------------------------------------------------------------------


def _by_ratios(ratios: Mapping[str, float], shown: float = 0.8, contradicted: float = 1.25) -> tuple[str, str]:
    figures = "; ".join(f"{name} {ratio:.3g}" for name, ratio in ratios.items())
    if all(ratio <= shown for ratio in ratios.values()):
        return figures, SHOWN
    return figures, CONTRADICTED if all(ratio >= contradicted for ratio in ratios.values()) else NOT_SHOWN


def _batch_invariance(results: Results) -> tuple[str, str]:
    layer, batch = (
        max(r["difference"] for r in results["same_in_any_batch", norm, "digits"])
        for norm in ("LayerNorm", "BatchNorm")
    )
    return f"LayerNorm {layer:g}, BatchNorm {batch:.2g}", SHOWN if layer == 0.0 else CONTRADICTED


def _small_batches(results: Results) -> tuple[str, str]:
    ratios = {}
    for of in ("digits", "mnist"):
        errors = {
            norm: [mean_error(results, by_batch(of, norm, batch)) for batch in BATCHES]
            for norm in ("LayerNorm", "BatchNorm")
        }
        (layer, layer_many), (batch, batch_many) = errors.values()
        ratios[f"{of} error"] = layer / batch
        ratios[f"{of} factor"] = (layer / layer_many) / (batch / batch_many)
    return _by_ratios(ratios)


def _works(results: Results) -> tuple[str, str]:
    gaps = {}
    for net in ("MLP", *TRAINED):
        layer, plain = (statistics.mean(r["error"] for r in curves(results, net, n)) for n in (True, False))
        gaps[net] = layer - plain
    figures = "; ".join(f"{net} {gap:+.1f}" for net, gap in gaps.items())
    worse = [gap > 1.0 for gap in gaps.values()]
    return figures, CONTRADICTED if all(worse) else NOT_SHOWN if any(worse) else SHOWN


def _convergence(column: int) -> Callable[[Results], tuple[str, str]]:
    def judge(results: Results) -> tuple[str, str]:
        ratios = {}
        for net, error in REACHED.items():
            layer, plain = (
                statistics.median(_reached(r["curve"], error, column) for r in curves(results, net, n))
                for n in (True, False)
            )
            ratios[net] = layer / plain if plain < float("inf") else 0.0 if layer < float("inf") else 1.0
        return _by_ratios(ratios)

    return judge


def _reached(curve: Sequence[Sequence[float]], error: float, column: int) -> float:
    return next((point[column] for point in curve if point[2] <= error), float("inf"))


def _updates(results: Results) -> tuple[str, str]:
    """How many times as large the largest usable rate is without the norm."""
    ratios = {}
    keys: dict[str, tuple[Sequence[float], Callable[[bool, float], Key]]] = {
        "MLP": (SGD_RATES, lambda n, rate: by_sgd("LayerNorm" if n else "no norm", rate)),
        **{cell: (RATES, lambda n, rate, cell=cell: speaker(cell, n, rate)) for cell in TRAINED},  # type: ignore[misc]
    }
    for net, (rates, key) in keys.items():
        layer, plain = (
            max((rate for rate in rates if mean_error(results, key(n, rate)) <= USABLE), default=rates[0])
            for n in (True, False)
        )
        ratios[net] = plain / layer
    return _by_ratios(ratios, 0.34, 2.9)


def _states(results: Results) -> tuple[str, str]:
    ratios = {}
    scales = [s for s in SCALES if s >= STEADY_FROM]
    for cell in CELLS:
        saturated, spread = [], []
        for n in (True, False):
            ends = [[(r["saturated"][-1], r["norm"][-1]) for r in results[probed(cell, n, s)]] for s in scales]
            means = [[statistics.mean(column) for column in zip(*end)] for end in ends]
            saturated.append(statistics.mean(m[0] for m in means))
            spread.append(max(m[1] for m in means) / min(m[1] for m in means))
        ratios[f"{cell} saturated"] = (saturated[0] + 1e-3) / (saturated[1] + 1e-3)
        ratios[f"{cell} spread"] = spread[0] / spread[1]
    return _by_ratios(ratios)


def _gradients(beyond: Callable[[float], bool]) -> Callable[[Results], tuple[str, str]]:
    def judge(results: Results) -> tuple[str, str]:
        layer, plain = (
            sum(
                beyond(statistics.median(r["gradient"][-1] for r in results[probed(cell, n, s)]))
                for cell in CELLS
                for s in SCALES
            )
            for n in (True, False)
        )
        cases = len(CELLS) * len(SCALES)
        figures = f"with LayerNorm {layer} of {cases}, without {plain}"
        if layer > plain:
            return figures, CONTRADICTED
        return figures, SHOWN if plain and layer <= plain / 2 else NOT_SHOWN

    return judge


def _smoothness(results: Results) -> tuple[str, str]:
    ratios = {}
    for rate in DESCENTS:
        for what, name in (("jumps", "loss"), ("changes", "gradient")):
            layer, plain = (
                statistics.median(statistics.median(r[what]) for r in results[descended(norm, rate)])
                for norm in ("LayerNorm", "no norm")
            )
            ratios[f"{name} at {rate:g}"] = layer / plain
    return _by_ratios(ratios)


RATIO = "Shown if every ratio is at most {:g}, contradicted if every one is at least {:g}."
CLAIMS: tuple[tuple[Any, ...], ...] = (  # claim, criterion, judge, and perhaps a remark
    (
        "A sample's result does not depend on its batch",
        "The largest difference of a norm's result for an image in a batch of 128 from that alone, in training. Shown "
        "if it is 0 for LayerNorm.",
        _batch_invariance,
    ),
    (
        "Independent of the batch size: small batches serve",
        "MLPs on digits and MNIST, 500 and 400 iterations: LayerNorm's test error at batch 4 over BatchNorm's, and the "
        "factor from batch 128 to 4 over BatchNorm's factor. " + RATIO.format(0.8, 1.25),
        _small_batches,
    ),
    (
        "Works in feed-forward and in recurrent nets",
        "Test error with LayerNorm less that without, in percentage points, recurrent nets each at its best rate. "
        "Shown if none is above 1, contradicted if all are.",
        _works,
    ),
    (
        "Converges faster, in iterations",
        "Median iterations to a test error of 5 % (MLP on digits) and 10 % (LSTM and GRU on JapaneseVowels, each at "
        "its best rate), over those without. " + RATIO.format(0.8, 1.25),
        _convergence(0),
    ),
    (
        "Converges faster, in seconds",
        "The same in seconds of training on this machine. " + RATIO.format(0.8, 1.25),
        _convergence(1),
    ),
    (
        "Allows larger updates",
        f"The largest rate at which the mean test error is at most {USABLE:g} %, without LayerNorm over that with it; "
        "SGD for the MLP, Adam for LSTM and GRU. " + RATIO.format(0.34, 2.9),
        _updates,
    ),
    (
        "Steadies the hidden state",
        "New recurrent layers, recurrent scale 1.5 to 8, after 60 steps: the fraction of units beyond 0.9, and the "
        "spread (largest over smallest) of the state's norm over the scales, over those without. "
        + RATIO.format(0.8, 1.25),
        _states,
    ),
    (
        "Keeps gradients from exploding",
        f"Of 3 cells at 6 recurrent scales, how many have a gradient 50 steps back above {EXPLODED:g} times that of "
        "the last step. Shown if at most half as many as without, contradicted if more.",
        _gradients(lambda g: g > EXPLODED),
    ),
    (
        "Keeps gradients from vanishing",
        f"The same of those below {VANISHED:g} times that of the last step.",
        _gradients(lambda g: g < VANISHED),
        "LayerNorm's gradients do not depend on the recurrent scale, whatever they are.",
    ),
    (
        "Makes the loss smoother",
        "Full-batch gradient descent of an MLP on digits at two rates: median relative change of the loss in a step, "
        "and of the gradient, over those without. " + RATIO.format(0.8, 1.25),
        _smoothness,
        "A net that learns less changes less in a step: see its losses in the plot.",
    ),
)
