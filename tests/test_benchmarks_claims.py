"""The claims: judged by criteria that can go either way, and put on a page."""

from __future__ import annotations

import base64
import json
import pathlib
import re
from typing import Any

import pytest

from benchmarks import character_model
from benchmarks.claims import data, experiments, page
from benchmarks.claims.run import keys
from benchmarks.claims.verdicts import CONTRADICTED, NOT_RUN, NOT_SHOWN, SHOWN, Key, verdicts

KEYS = [key for found in keys().values() for key in found]
ALWAYS = {"Works in feed-forward and in recurrent nets", "A sample's result does not depend on its batch"}


def numbers(key: Key, good: bool) -> dict[str, Any]:
    """Those of an experiment that went well or badly."""
    scale = key[3] if key[0] == "probe" else 1.0
    error = 1.0 if good else 40.0 if 4 in key else 20.0
    return {
        "error": error,
        "curve": [(5 * i, 0.1 * i, error) for i in range(1, 4)],
        "saturated": [0.1 if good else 0.9] * 2,
        "norm": [1.0, 1.0 if good else scale**2],
        "gradient": [1.0, 1.0 if good else 1e5 if scale > 1 else 1e-5],
        "losses": [2.0, 1.0],
        "jumps": [0.1 if good else 0.9],
        "changes": [0.1 if good else 0.9],
        "difference": 0.0 if good else 0.5,
    }


def results(layer_norm: bool, others: bool) -> dict[Key, list[dict[str, Any]]]:
    return {key: [numbers(key, layer_norm if "LayerNorm" in key or key[2] is True else others)] * 2 for key in KEYS}


def test_criteria_go_either_way() -> None:
    for layer_norm, others, expected in ((True, False, SHOWN), (False, True, CONTRADICTED), (True, True, NOT_SHOWN)):
        found = verdicts(results(layer_norm, others))
        assert len(found) == 10
        for v in found:
            assert v.verdict == (SHOWN if expected == NOT_SHOWN and v.claim in ALWAYS else expected), v


def test_what_was_not_run_is_not_judged(tmp_path: pathlib.Path, monkeypatch: pytest.MonkeyPatch) -> None:
    without = {key: r for key, r in results(True, False).items() if key[0] != "train_speaker" and key[1] != "mnist"}
    found = {v.claim: v.verdict for v in verdicts(without)}
    assert set(found.values()) == {SHOWN, NOT_RUN}
    assert found["Makes the loss smoother"] == SHOWN
    assert found["Converges faster, in iterations"] == NOT_RUN
    pytest.importorskip("matplotlib")
    monkeypatch.setattr(page, "png", lambda figure: b"")  # rendering is what takes long
    page.write(tmp_path, without, verdicts(without), {})
    assert len(list(tmp_path.glob("*.png"))) == 6


def test_the_page_says_all_and_asks_for_nothing(tmp_path: pathlib.Path) -> None:
    pytest.importorskip("matplotlib")
    found = verdicts(results(True, False))
    text = page.write(tmp_path, results(True, False), found, {"device": "a <slow> one"}).read_text()
    assert all(v.found in text for v in found)
    assert text.count(">shown<") == 10
    assert "a &lt;slow&gt; one" in text
    assert len(text) < 3e6
    pictures = re.findall(r'src="data:image/png;base64,([^"]*)"', text)
    written = sorted(f.read_bytes() for f in tmp_path.glob("*.png"))
    assert sorted(map(base64.b64decode, pictures)) == written
    assert len(written) == 6
    assert not re.search(r'(src|href)="(?!data:|#)', text)


@pytest.mark.usefixtures("without_kernels")
def test_experiments_are_repeatable_numbers() -> None:
    pytest.importorskip("sklearn")
    for run in (
        lambda: experiments.train_mlp("digits", "LayerNorm", 32, "adam", 1e-2, 40, 0),
        lambda: experiments.probe("RNN", True, 2.0, 0),
        lambda: experiments.descend("LayerNorm", 0.1, 3, 0),
        lambda: experiments.same_in_any_batch("LayerNorm", "digits", 0),
    ):
        first, again = run(), run()
        json.dumps(first)
        for numbers in (first, again):
            numbers["curve"] = [(i, error) for i, _, error in numbers.get("curve", [])]  # seconds are none
        assert first == again
    assert again["difference"] == 0.0
    assert experiments.train_mlp("digits", "LayerNorm", 32, "adam", 1e-2, 40, 0)["error"] < 20


def test_data_that_is_not_here_says_what_brings_it(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    data.mnist.cache_clear()
    with pytest.raises(data.Missing, match=r"pip install 'tritonln\[claims\]'"):
        data.mnist()


@pytest.mark.usefixtures("without_kernels")
def test_the_character_model_s_twins_learn_alike() -> None:
    assert character_model.apart([3.0] * 30, [3.0] * 15 + [2.0] * 15) == 1.0
    text, characters = character_model.corpus()
    assert 90 <= characters == int(text.max()) + 1
    ours, theirs = (character_model.train(module, 0, 3) for module in character_model.TWINS.values())
    assert character_model.apart(ours.losses * 4, theirs.losses * 4) < 1e-4
