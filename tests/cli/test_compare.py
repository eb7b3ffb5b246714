"""``cello compare``: from the command to the files, stopped and continued, refused."""

from __future__ import annotations

import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

from cello.tasks.trainer import Training

Cello = Callable[..., Any]

SCORES = ["cell", "seed", "hidden", "parameters", "valid", "test", "kept_epoch", "epochs"]
SHORT = [
    "--hidden", "6", "--embedding", "5", "--epochs", "2", "--device", "cpu", "--threads", "1",
]  # fmt: skip


def scores(folder: Path) -> pd.DataFrame:
    return pd.read_csv(folder / "results.csv")[SCORES]


@pytest.fixture(scope="module")
def compared(toy_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Two cells with two seeds."""
    from cello.cli.main import main

    out = tmp_path_factory.mktemp("compared") / "c"
    command = ["compare", toy_csv, "--cells", "lstm,gru", "--seeds", "2", *SHORT, "--out", out]
    assert main([str(word) for word in command]) == 0
    return out


def test_files(compared: Path) -> None:
    assert {path.name for path in compared.iterdir()} == {
        "compare.json", "results.csv", "epochs.csv", "table.md", "table.tex", "runs",
        "learning_curves.pdf", "learning_curves.png", "scores.pdf", "scores.png",
    }  # fmt: skip
    assert sorted(path.name for path in (compared / "runs").iterdir()) == [
        "gru-0", "gru-1", "lstm-0", "lstm-1",
    ]  # fmt: skip
    for path in compared.glob("*.p*"):
        start = {".pdf": b"%PDF", ".png": b"\x89PNG"}[path.suffix]
        assert path.read_bytes().startswith(start)
    runs = pd.read_csv(compared / "results.csv")
    assert list(zip(runs["cell"], runs["seed"], strict=True)) == [
        ("lstm", 0), ("lstm", 1), ("gru", 0), ("gru", 1),
    ]  # fmt: skip
    assert (runs[["train_seconds", "predict_seconds"]] > 0).all(axis=None)
    assert len(pd.read_csv(compared / "epochs.csv")) == runs["epochs"].sum() == 8


def test_a_run_is_what_train_makes(
    cello: Cello, compared: Path, toy_csv: Path, tmp_path: Path
) -> None:
    out = tmp_path / "run"
    assert cello("train", toy_csv, "--cell", "gru", "--seed", "1", *SHORT, "--out", out).code == 0
    name = "model.safetensors"
    assert (out / name).read_bytes() == (compared / "runs/gru-1" / name).read_bytes()


def test_the_same_command_gives_the_same_scores(
    cello: Cello, compared: Path, toy_csv: Path, tmp_path: Path
) -> None:
    command = ["compare", "classify", toy_csv, "--cells", "lstm,gru", "--seeds", "2", *SHORT]
    result = cello(*command, "--out", tmp_path / "c")
    assert result.code == 0
    pd.testing.assert_frame_equal(scores(tmp_path / "c"), scores(compared))
    assert "run 3 of 4: lstm, seed 1" in result.err
    again = cello(*command, "--out", tmp_path / "c")
    assert "4 of 4 runs are finished already" in again.err
    assert "run " not in again.err
    assert again.out == result.out


def test_cells_and_seeds_are_added(cello: Cello, toy_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    command = ["compare", toy_csv, *SHORT, "--out", out]
    assert cello(*command, "--cells", "rnn", "--seeds", "1").code == 0
    before = (out / "runs/rnn-0/model.safetensors").stat().st_mtime_ns
    added = cello(*command, "--cells", "wide=rnn(hidden=9),rnn", "--seed", "1", "--seeds", "2")
    assert added.code == 0
    assert "run 4 of 4: wide, seed 2" in added.err
    last = cello(*command, "--cells", "rnn", "--seed", "0", "--seeds", "3", "--log", "none")
    assert "3 of 3 runs are finished already" in last.err
    runs = scores(out)
    assert list(zip(runs["cell"], runs["seed"], strict=True)) == [
        ("rnn", 0), ("rnn", 1), ("rnn", 2), ("wide", 1), ("wide", 2),
    ]  # fmt: skip
    assert runs["hidden"].tolist() == [6, 6, 6, 9, 9]
    assert (out / "runs/rnn-0/model.safetensors").stat().st_mtime_ns == before


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["--hidden", "7"], "holds a comparison with --hidden 6, not 7"),
        (["--match-parameters"], "with --match-parameters False, not True"),
        (["--patience", "3"], "with --patience None, not 3"),
        (["--threads", "2"], "with --threads 1, not 2"),
        (
            ["--cells", "gru=rnn"],
            "gru is gru in this folder; give the new one another name: other=rnn",
        ),
        (["--cells", "lstm,lstm"], "cells: 'lstm' is given twice"),
        (["--cells", "lstn"], "'lstn' is not one of lstm"),
        (["--cells", "lstm(alpha=1)"], "lstm takes no argument 'alpha'"),
        (["--cells", "rnn(gate_activation=hardsigmoid)"], "the cell rnn has no gates"),
        (["--cells", "rnn(hidden=0)"], "hidden: 0 is not between"),
        (["--seed", "2147483647"], "seed: 2147483648 is not between"),
        (["--devices", "2"], "a comparison computes in one process"),
    ],
)
def test_refused(
    cello: Cello, compared: Path, toy_csv: Path, words: list[str], expected: str
) -> None:
    before = {path: path.stat().st_mtime_ns for path in compared.rglob("*")}
    command = ["compare", toy_csv, "--cells", "lstm,gru", "--seeds", "2", *SHORT, *words]
    assert expected in cello(*command, "--out", compared).complaint
    assert {path: path.stat().st_mtime_ns for path in compared.rglob("*")} == before


def test_other_data_is_refused(cello: Cello, compared: Path, toy_csv: Path, tmp_path: Path) -> None:
    table = toy_csv.read_text()
    moved, other = tmp_path / "moved.csv", tmp_path / "other.csv"
    moved.write_text(table)
    other.write_text(table.replace("awful", "horrible"))
    command = ["--cells", "lstm", "--seeds", "2", *SHORT, "--out", compared]
    assert cello("compare", moved, *command).code == 0
    assert "which is other data than" in cello("compare", other, *command).complaint


def test_folders_of_something_else_are_refused(
    cello: Cello, compared: Path, toy_csv: Path, tmp_path: Path
) -> None:
    command = ["compare", toy_csv, "--cells", "lstm", *SHORT, "--out"]
    assert "holds a model" in cello(*command, compared / "runs/lstm-0").complaint
    assert "not a folder" in cello(*command, toy_csv).complaint
    (tmp_path / "results.csv").write_text("mine")
    assert "holds results.csv, which is not of a comparison" in cello(*command, tmp_path).complaint
    assert "needs --out" in cello(*command[:-1]).complaint
    assert "needs --cells" in cello("compare", toy_csv, "--out", tmp_path / "c").complaint
    missing = ["compare", tmp_path / "no.csv", "--cells", "lstm", "--out", tmp_path / "c"]
    assert "no such file" in cello(*missing).complaint
    assert not (tmp_path / "c").exists()


def start(*words: object) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "cello.cli.main", *map(str, words)],
        env={**os.environ, "OMP_NUM_THREADS": "1"},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def test_stopped_and_continued(
    cello: Cello,
    compared: Path,
    toy_csv: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Ctrl-C in the third run; then the same command, which ends as one that was never stopped."""
    out = tmp_path / "c"
    command = ["compare", toy_csv, "--cells", "lstm,gru", "--seeds", "2", *SHORT, "--out", out]
    run, begun = Training.run, []

    def stopped(self: Training) -> None:
        begun.append(self)
        if len(begun) == 3:
            raise KeyboardInterrupt
        run(self)

    with monkeypatch.context() as patched:
        patched.setattr(Training, "run", stopped)
        result = cello(*command)
    assert result.code == 130
    assert "interrupted in run 3 of 4 (lstm, seed 1); the same command goes on" in result.err
    assert scores(out)[["cell", "seed"]].to_numpy().tolist() == [["lstm", 0], ["gru", 0]]
    result = cello(*command)
    assert result.code == 0
    assert "2 of 4 runs are finished already" in result.err
    pd.testing.assert_frame_equal(scores(out), scores(compared))


def test_two_processes_do_not_share_a_folder(cello: Cello, toy_csv: Path, tmp_path: Path) -> None:
    out = tmp_path / "c"
    command = ["compare", toy_csv, "--cells", "rnn", *SHORT, "--epochs", "1000", "--out", out]
    first = start(*command)
    assert first.stderr is not None
    try:
        while "run 1 of" not in first.stderr.readline():
            time.sleep(0.01)
        assert "another process is computing" in cello(*command).complaint
    finally:
        first.kill()
        first.communicate()


CELLS = """
import torch
from torch import nn

class Mine(nn.Module):
    def __init__(self, input_size, hidden_size, alpha=1.0):
        super().__init__()
        self.linear = nn.Linear(input_size + hidden_size, hidden_size)
        self.alpha = alpha

    def forward(self, x, h):
        return torch.tanh(self.alpha * self.linear(torch.cat([x, h], -1)))

class Fours(Mine):
    def __init__(self, input_size, hidden_size):
        if hidden_size % 4:
            raise ValueError("a multiple of 4 is needed")
        super().__init__(input_size, hidden_size)

class Fixed(Mine):
    def __init__(self, input_size):
        super().__init__(input_size, 3)

class Broken(Mine):
    def forward(self, x, h):
        if h.shape[1] == 6 and len(x) == 32 and not x.is_meta:
            raise ValueError("broken here")
        return super().forward(x, h)
"""


def test_own_cells(cello: Cello, toy_csv: Path, tmp_path: Path) -> None:
    """One that fails loses no other run; what has runs may not change, what has none may."""
    file, out = tmp_path / "mine.py", tmp_path / "c"
    file.write_text(CELLS)
    command = ["compare", toy_csv, *SHORT, "--seeds", "2", "--out", out]
    cells = f"rnn,{file}:Mine,none={file}:Mine(alpha=0.0),{file}:Broken,torch-rnn"
    result = cello(*command, "--cells", cells)
    assert result.code == 1
    assert "failed: Broken, seed 0: ValueError: broken here" in result.err
    assert "failed: Broken, seed 1: ValueError: broken here" in result.err
    assert "broken here" in (out / "runs/Broken-0/error.txt").read_text()
    runs = pd.read_csv(out / "results.csv").set_index(["cell", "seed"])
    assert runs["engine"].dropna().groupby("cell").unique().str[0].to_dict() == {
        "rnn": "native", "Mine": "native", "none": "native", "torch-rnn": "torch",
    }  # fmt: skip
    # With alpha 0 every output is 0, and all texts get the same answer.
    assert (runs.loc["none", "test"] == 0.5).all()
    assert (
        runs.loc[("Mine", 0), "parameters"] < runs.loc[("rnn", 0), "parameters"]
    )  # one bias, not two

    before = scores(out)
    file.write_text(CELLS.replace("h.shape[1] == 6", "False") + "\nX = 1\n")
    result = cello(*command, "--cells", cells)
    assert (result.code, "run 10 of 10: Broken, seed 1" in result.err) == (0, True)
    assert not (out / "runs/Broken-0/error.txt").exists()
    finished = before.dropna().reset_index(drop=True)
    after = scores(out)
    pd.testing.assert_frame_equal(
        after[after["cell"] != "Broken"].reset_index(drop=True), finished, check_dtype=False
    )

    file.write_text(CELLS.replace("torch.tanh", "torch.sin"))
    refused = cello(*command, "--cells", f"{file}:Mine")
    assert "the source of Mine has changed since its runs in this folder" in refused.complaint
    assert f"other={file}:Mine" in refused.complaint
    assert cello(*command, "--cells", f"sine={file}:Mine").code == 0
    for wrong, expected in {
        f"{file}:Nine": "did you mean Mine?",
        f"{file}:Mine(beta=1)": "takes no argument 'beta'",
        f"{tmp_path}/other.py:Mine": "no such file",
    }.items():
        assert expected in cello(*command, "--cells", wrong).complaint


def test_own_cells_of_matched_sizes(cello: Cello, toy_csv: Path, tmp_path: Path) -> None:
    file = tmp_path / "mine.py"
    file.write_text(CELLS)
    command = [
        "compare",
        toy_csv,
        *SHORT,
        "--seeds",
        "1",
        "--match-parameters",
        "--out",
        tmp_path / "c",
    ]
    cells = f"lstm(hidden=40),{file}:Mine,{file}:Fours,{file}:Fixed"
    assert "no hidden size gives Fixed" in cello(*command, "--cells", cells).complaint
    assert cello(*command, "--cells", f"{cells}(hidden=1)").code == 0
    runs = scores(tmp_path / "c").set_index("cell")
    share = runs["parameters"] / runs["parameters"].iloc[0]
    assert abs(share["Mine"] - 1) < 0.02
    assert abs(share["Fours"] - 1) < 0.05
    assert runs.loc["Fours", "hidden"] % 4 == 0
    assert share.iloc[-1] < 0.5
