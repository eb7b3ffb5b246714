"""`cello export`: models as ONNX files, run in processes that have neither torch nor Cello."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from cello.tasks import classify, language

Cello = Callable[..., Any]

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")

TEXTS = ["the film was lovely", "dull", "a great long film and the poor poor poor end"]

BEGINNING = f"""
import json, sys
sys.path.insert(0, {str(Path(__file__).parents[2] / "examples")!r})
from exported_models import classify, generate
from tokenizers import Tokenizer

folder, file, *words = sys.argv[1:]
tokenizer = Tokenizer.from_file(f"{{folder}}/tokenizer.json")
"""
ENDING = """
assert "torch" not in sys.modules and "cello" not in sys.modules
"""
CLASSIFY = BEGINNING + "print(json.dumps(classify(file, tokenizer, words)))" + ENDING
GENERATE = BEGINNING + "print(generate(file, tokenizer, words[0], int(words[1])))" + ENDING


def alone(code: str, *words: object) -> str:
    """Run code in a process of its own and return what it prints."""
    command = [sys.executable, "-c", code, *map(str, words)]
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_a_classifier_of_texts(cello: Cello, toy_model: Path, tmp_path: Path) -> None:
    file = tmp_path / "folder" / "model.onnx"
    done = cello("export", toy_model, "--out", file)
    assert done.code == 0, done.err
    assert done.out.splitlines()[1:] == ["inputs: tokens, lengths", "outputs: probabilities"]
    found = json.loads(alone(CLASSIFY, toy_model, file, *TEXTS))
    for one, expected in zip(found, classify.load(toy_model).predict(TEXTS), strict=True):
        assert one == pytest.approx(expected.probabilities, abs=1e-5)
    assert [path.name for path in file.parent.iterdir()] == ["model.onnx"]


@pytest.mark.parametrize("pooling", ["last", "mean", "max", "mean-max"])
def test_a_classifier_of_numbers(cello: Cello, pooling: str, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sequences = [generator.normal(1e8, 3.0, (n % 7 + 2, 3)) for n in range(40)]
    labels = ["up" if one.mean() > 1e8 else "down" for one in sequences]
    more: Any = {"hidden": 8, "epochs": 2, "device": "cpu", "pool_input": True, "members": 2}
    options = classify.Options(pooling=pooling, **more)
    classify.train((sequences, labels), tmp_path / "run", options)
    model = classify.load(tmp_path / "run")
    done = cello("export", tmp_path / "run", "--out", tmp_path / "model.onnx")
    assert done.code == 0, done.err
    import onnxruntime

    session = onnxruntime.InferenceSession(tmp_path / "model.onnx")
    some = sequences[:5]
    numbers = np.zeros((5, max(map(len, some)), 3))
    for row, one in zip(numbers, some, strict=True):
        row[: len(one)] = one
    given = {"numbers": numbers, "lengths": np.array([len(one) for one in some])}
    (found,) = session.run(None, given)
    for row, expected in zip(found, model.predict(some), strict=True):
        assert dict(zip(model.labels, row.tolist(), strict=True)) == pytest.approx(
            expected.probabilities, abs=1e-4
        )


OWN = """
import torch
from torch import nn

class Leaky(nn.Module):
    def __init__(self, features, size):
        super().__init__()
        self.hidden_size = size
        self.x, self.h = nn.Linear(features, size), nn.Linear(size, size)

    def forward(self, x, h=None):
        h = x.new_zeros(len(x), self.hidden_size) if h is None else h
        return h + 0.5 * (nn.functional.hardtanh(self.x(x) + self.h(h)) - h)

class Started(Leaky):
    def forward(self, x, h=None):
        return super().forward(x, x.new_ones(len(x), self.hidden_size) if h is None else h)

class Solves(Leaky):
    def forward(self, x, h):
        a = torch.linalg.solve(self.h.weight + 9 * torch.eye(self.hidden_size), self.h.bias)
        return torch.tanh(self.x(x) + self.h(h) + a)

class Asks(Leaky):
    def forward(self, x, h):
        return x if h.sum() > 1e9 else super().forward(x, h)
"""


def trained(cello: Cello, task: str, data: Path, folder: Path, cell: str, *more: object) -> None:
    small = ["--hidden", 8, "--embedding", 8, "--epochs", 1, "--device", "cpu", *more]
    done = cello("train", task, data, "--out", folder, "--cell", cell, *small)
    assert done.code == 0, done.err


def test_a_cell_of_ones_own(cello: Cello, toy_csv: Path, tmp_path: Path) -> None:
    (tmp_path / "cells.py").write_text(OWN)
    run, file, cell = tmp_path / "run", tmp_path / "model.onnx", f"{tmp_path / 'cells.py'}:Leaky"
    trained(cello, "classify", toy_csv, run, cell)
    assert "holds no code" in cello("export", run, "--out", file).complaint
    assert cello("export", run, "--cell", cell, "--out", file).code == 0
    found = json.loads(alone(CLASSIFY, run, file, *TEXTS))
    for one, expected in zip(found, classify.load(run, cells=cell).predict(TEXTS), strict=True):
        assert one == pytest.approx(expected.probabilities, abs=1e-5)


@pytest.mark.parametrize("cell", ["lstm", "Leaky"])
def test_a_language_model(cello: Cello, cell: str, tmp_path: Path) -> None:
    (tmp_path / "cells.py").write_text(OWN)
    (tmp_path / "text.txt").write_text("to be, or not to be: that is the question.\n" * 60)
    run, file = tmp_path / "run", tmp_path / "model.onnx"
    cell = cell if cell == "lstm" else f"{tmp_path / 'cells.py'}:{cell}"
    trained(cello, "language", tmp_path / "text.txt", run, cell, "--steps", 10, "--batch-size", 4)
    words = [] if cell == "lstm" else ["--cell", cell]
    done = cello("export", run, *words, "--out", file)
    assert done.code == 0, done.err
    model = language.load(run, **({"cells": cell} if words else {}))
    expected = "to be" + "".join(model.generate("to be", length=30, temperature=0.0))
    assert alone(GENERATE, run, file, "to be", 30) == expected + "\n"


def test_what_cannot_be_exported(
    cello: Cello, toy_csv: Path, toy_model: Path, tmp_path: Path
) -> None:
    (tmp_path / "cells.py").write_text(OWN)
    (tmp_path / "text.txt").write_text("to be, or not to be: that is the question.\n" * 60)
    file = tmp_path / "model.onnx"
    file.write_bytes(b"what was there")
    asks, started = (f"{tmp_path / 'cells.py'}:{name}" for name in ("Asks", "Started"))
    trained(cello, "classify", toy_csv, tmp_path / "asks", asks)
    said = cello("export", tmp_path / "asks", "--cell", asks, "--out", file).complaint
    assert "Asks depends on the values of tensors in Python" in said
    solves = f"{tmp_path / 'cells.py'}:Solves"
    trained(cello, "classify", toy_csv, tmp_path / "solves", solves)
    said = cello("export", tmp_path / "solves", "--cell", solves, "--out", file).complaint
    assert "export: torch cannot export the network" in said
    assert "linalg" in said
    short = ["--steps", 10, "--batch-size", 4]
    trained(cello, "language", tmp_path / "text.txt", tmp_path / "start", started, *short)
    said = cello("export", tmp_path / "start", "--cell", started, "--out", file).complaint
    assert "begins in a state of its own" in said
    trained(cello, "ngrams", toy_csv, tmp_path / "ngrams", "gru")
    said = cello("export", tmp_path / "ngrams", "--out", file).complaint
    assert "n-grams have no form in ONNX" in said
    trained(cello, "classify", toy_csv, tmp_path / "torch", "torch-gru")
    said = cello("export", tmp_path / "torch", "--out", file).complaint
    assert "train it with --cell gru" in said
    assert "is a folder" in cello("export", toy_model, "--out", tmp_path).complaint
    assert file.read_bytes() == b"what was there"


def test_a_missing_package_is_said(
    cello: Cello, toy_model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys.modules["cello.onnx.export"], "find_spec", lambda name: None)
    said = cello("export", toy_model, "--out", tmp_path / "model.onnx").complaint
    assert "pip install 'cello[onnx]'" in said
    assert not (tmp_path / "model.onnx").exists()
