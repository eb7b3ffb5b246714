"""`cello train language`, `cello generate`, and evaluate and predict with what was written."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import torch

import cello as package
from cello.tasks import language

Cello = Callable[..., Any]

TEXT = "to be, or not to be: that is the question.\n" * 60
SMALL = [
    "--hidden", "16", "--embedding", "8", "--steps", "10", "--batch-size", "4", "--dropout", "0",
    "--embedding-dropout", "0", "--epochs", "6", "--learning-rate", "0.02", "--device", "cpu",
    "--threads", "1",
]  # fmt: skip


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "hamlet.txt"
    path.write_text(TEXT)
    return path


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cello.cli.main import main

    folder = tmp_path_factory.mktemp("model") / "hamlet"
    assert main(["train", "language", str(data), "--out", str(folder), *SMALL]) == 0
    return folder


def test_train_and_evaluate(cello: Cello, data: Path, model: Path, tmp_path: Path) -> None:
    done = cello("train", "language", data, "--out", tmp_path / "run", *SMALL)
    assert done.code == 0
    assert "bits" in done.out
    assert "by the frequency of each token alone" in done.out
    assert "there is no test set" in done.out
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    done = cello("evaluate", model, data, "--part", "test", "--out", tmp_path / "again")
    again = json.loads((tmp_path / "again" / "report.json").read_text())
    assert again["nats"] == report["nats"]
    assert f"perplexity {report['perplexity']:.3f} of {report['tokens']} tokens" in done.out
    assert (tmp_path / "again" / "language.png").read_bytes().startswith(b"\x89PNG")


def test_generate(cello: Cello, model: Path) -> None:
    done = cello("generate", model, "--prompt", "to be", "--length", 40, "--temperature", 0)
    assert (done.code, done.err) == (0, "")
    assert done.out.startswith("to be")
    assert len(done.out) == len("to be") + 40 + 1  # and the end of the line
    texts = [
        cello("generate", model, "--seed", seed, "--top-k", 5, "--top-p", 0.9).out
        for seed in (1, 1, 2)
    ]
    assert texts[0] == texts[1] != texts[2]
    pieces = language.load(model).generate(seed=1, top_k=5, top_p=0.9)
    assert "".join(pieces) + "\n" == texts[0]
    unknown = cello("generate", model, "--prompt", "to 是", "--length", 3)
    assert unknown.err == "cello: the prompt: 25% of the tokens are unknown to the model\n"
    assert unknown.code == 0


def test_what_generate_refuses(cello: Cello, model: Path, toy_model: Path, tmp_path: Path) -> None:
    assert "temperature: -1.0" in cello("generate", model, "--temperature", -1).complaint
    assert "top-p: 0.0" in cello("generate", model, "--top-p", 0).complaint
    assert "top-k: 0" in cello("generate", model, "--top-k", 0).complaint
    assert "for the task 'classify', not 'language'" in cello("generate", toy_model).complaint
    assert "no such model folder" in cello("generate", tmp_path / "none").complaint
    page = cello("page", model, "to be", "--out", tmp_path / "page.html")
    assert "a language model has no labels" in page.complaint


def test_predict_measures_texts(cello: Cello, model: Path, tmp_path: Path) -> None:
    likely, unlikely, empty = cello(
        "predict", model, stdin=b"to be, or\neb ot ro\n\n"
    ).out.splitlines()
    assert float(likely.split("\t")[0]) < float(unlikely.split("\t")[0])
    assert empty == "\t"
    line = cello("predict", model, "to be", "--json").out
    score = json.loads(line)
    assert 2 ** score["bits_per_character"] == pytest.approx(score["perplexity"])
    assert (score["tokens"], score["characters"]) == (5, 5)
    (tmp_path / "t.csv").write_text("quote\nto be\n")
    table = cello(
        "predict", model, "--file", tmp_path / "t.csv", "--text-column", "quote", "--json"
    )
    assert table.out == line


OWN = """
import torch


class Leaky(torch.nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.read = torch.nn.Linear(input_size + hidden_size, hidden_size)
        self.down = torch.nn.Linear(hidden_size, 5)

    def forward(self, x, state):
        h, (a, b) = state
        h = torch.tanh(self.read(torch.cat([x, h], -1)))
        a = 0.9 * a + 0.1 * self.down(h)
        return torch.cat([h, a + b], -1), (h, (a, 0.5 * b + a))
"""


def test_a_cell_of_ones_own(cello: Cello, data: Path, tmp_path: Path) -> None:
    """Its state is nested, and its output is wider than its hidden size."""
    file = tmp_path / "leaky.py"
    file.write_text(OWN)
    cell, run = ["--cell", f"{file}:Leaky"], tmp_path / "run"
    state = ["--cell-arg", "state_size=[16, [5, 5]]"]
    done = cello("train", "language", data, "--out", run, *SMALL, *cell, *state)
    assert done.code == 0, done.err
    text = cello("generate", run, *cell, "--prompt", "to be", "--length", 30, "--temperature", 0)
    assert text.code == 0, text.err
    model = language.load(run, cells=f"{file}:Leaky")
    assert model.model.linear is not None
    assert model.model.linear.in_features == 16 + 5
    ids = [2, *(model.tokenizer.token_to_id(c) for c in "to be")]
    for _ in range(30):
        logits = model.model(torch.tensor(ids)[:, None])[0][-1, 0].detach()
        ids.append(int(logits[3:].argmax()) + 3)
    assert text.out == "".join(model.tokenizer.id_to_token(i) for i in ids[1:]) + "\n"
    assert "holds no code" in cello("generate", run).complaint
    assert cello("evaluate", run, data, *cell).code == 0


def test_a_layer_of_torch_generates_too(cello: Cello, data: Path, tmp_path: Path) -> None:
    words = ["train", "language", data, "--out", tmp_path / "run", *SMALL, "--cell", "torch-gru"]
    assert cello(*words).code == 0
    assert cello("generate", tmp_path / "run", "--length", 20, "--seed", 1).code == 0


def test_two_processes_carry_their_own_states(cello: Cello, data: Path, tmp_path: Path) -> None:
    """Each has half of the streams; together they take the steps of one process."""
    one, two = tmp_path / "one", tmp_path / "two"
    options = [*SMALL[:-2], "--epochs", "2", "--checkpoint-every", "5"]
    assert cello("train", "language", data, "--out", one, *options, "--threads", "1").code == 0
    words = ["train", "language", str(data), "--out", str(two), *options, "--devices", "2"]
    path = os.pathsep.join([str(Path(package.__file__).parents[1]), *sys.path])
    done = subprocess.run(
        [sys.executable, "-m", "cello.cli.main", *words],
        env={**os.environ, "PYTHONPATH": path}, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    a, b = (language.load(folder).model.state_dict() for folder in (one, two))
    for name, weight in a.items():
        torch.testing.assert_close(b[name], weight, rtol=1e-3, atol=1e-4)
