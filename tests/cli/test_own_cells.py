"""Commands with cells of files: training, resuming, predicting, timing."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file

Cello = Callable[..., Any]

MINE = """
import torch
from torch import nn


class Mine(nn.Module):
    def __init__(self, input_size, hidden_size, gate=torch.sigmoid):
        super().__init__()
        self.cell = nn.GRUCell(input_size, hidden_size)
        self.hidden_size, self.gate = hidden_size, gate

    def forward(self, x, h):
        return self.gate(self.cell(x, h))
"""
CELL = ["--cell", "mine.py:Mine"]
GATE = ["--cell-arg", "gate=piecewise(-2.5:0, 2.5:1)"]


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("mine.py").write_text(MINE)
    yield
    sys.modules.pop("mine", None)


def run_command(*words: object) -> subprocess.CompletedProcess[str]:
    """Run a command in a process of its own, as from a terminal."""
    return subprocess.run(
        [sys.executable, "-m", "cello.cli.main", *map(str, words)],
        capture_output=True, text=True, check=False, timeout=300,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )  # fmt: skip


def test_a_cell_of_a_file_in_every_command(cello: Cello, toy_csv: Path, small: list[str]) -> None:
    result = cello("train", toy_csv, "--out", "run", *small, *CELL, *GATE)
    assert result.code == 0
    assert "\nMine runs on the native engine\n" in result.err
    assert "gate: piecewise(-2.5:0, 2.5:1)" in Path("run/options.yaml").read_text()
    told = "its cell Mine is not one of Cello's, and a model folder holds no code; give the cell: --cell"
    commands = {
        "predict": ["run", "film was long"],
        "evaluate": ["run", toy_csv],
        "page": ["run", "film was long"],
        "bench": ["--model", "run", "--time", "5", "--batch", "2", "--seconds", "0.1"],
    }
    for command, words in commands.items():
        assert told in cello(command, *words).complaint
        answered = cello(command, *words, *CELL)
        assert (answered.code, answered.err) == (0, ""), command
    Path("mine.py").write_text(MINE.replace("return ", "return 1 * "))
    changed = cello("predict", "run", "film was long", *CELL)
    assert changed.code == 0
    assert changed.err == (
        "cello: the source of the cell Mine has changed since the model in run was trained\n"
    )
    again = cello("train", toy_csv, "--out", "again", "--options", "run/options.yaml")
    assert again.code == 0
    assert Path("again/options.yaml").read_text() == Path("run/options.yaml").read_text()


def test_a_cell_of_a_file_is_timed(cello: Cello) -> None:
    sizes = ["--time", "5", "--batch", "2", "--hidden", "8", "--seconds", "0.1"]
    result = cello("bench", *CELL, *GATE, *sizes)
    assert result.code == 0
    assert "Recurrent(Mine(64, 8, gate=PiecewiseLinear([-2.5, 2.5], [0, 1])))" in result.out
    assert "give a cell" in cello("bench", "--cell", "torch-lstm", *sizes).complaint


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--cell", "mine.py:Mime"], "cell: mine.py has no 'Mime'; did you mean Mine?"),
        (["--cell", "nine.py:Mine"], "cell: nine.py: no such file; did you mean mine.py?"),
        (
            [*CELL, "--cell-arg", "gat=relu"],
            "Mine takes no argument 'gat'; it takes hidden_size, gate",
        ),
        ([*CELL, "--cell-arg", "gate"], "cell-arg: 'gate' is not name=value"),
        ([*CELL, "--cell-arg", "gate=[1"], "cell-arg: gate=[1 is no activation; choose from"),
    ],
)
def test_what_is_refused(cello: Cello, toy_csv: Path, options: list[str], expected: str) -> None:
    assert expected in cello("train", toy_csv, "--out", "run", *options).complaint
    assert not Path("run").exists()


def test_an_interrupted_run_says_how_to_give_the_cell_again(
    cello: Cello, toy_csv: Path, small: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cello.tasks import trainer

    step = trainer.Training.step

    def stop(self: Any, batch: Any) -> Any:
        if self.steps == 6:
            raise KeyboardInterrupt
        return step(self, batch)

    Path("own.yaml").write_text("cell: mine.py:Mine\n")
    with monkeypatch.context() as patch:
        patch.setattr(trainer.Training, "step", stop)
        stopped = cello("train", toy_csv, "--out", "run", *small, "--options", "own.yaml")
    assert stopped.code == 130
    assert stopped.err.endswith("to continue: cello train --resume run --cell mine.py:Mine\n")
    assert "give the cell: --cell mine.py:Mine" in cello("train", "--resume", "run").complaint
    assert cello("train", "--resume", "run", *CELL).code == 0
    assert cello("train", toy_csv, "--out", "whole", *small, *CELL).code == 0
    a, b = (load_file(f"{name}/model.safetensors") for name in ("run", "whole"))
    assert all(bool((a[name] == b[name]).all()) for name in a)


def test_several_processes_train_a_cell_of_a_file(toy_csv: Path, small: list[str]) -> None:
    """In a folder that no process has on its path, from a file that no import statement could name."""
    Path("mine.py").rename("my-cell.py")
    words = ["train", toy_csv, *small, "--cell", "my-cell.py:Mine", "--dropout", "0"]
    for out, more in (("one", []), ("two", ["--devices", "2"])):
        done = run_command(*words, "--batch-size", "16", "--out", out, *more)
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("Mine runs on the native engine") == 1
    a, b = (load_file(f"{name}/model.safetensors") for name in ("one", "two"))
    assert max(float((a[name] - b[name]).abs().max()) for name in a) < 1e-5
    assert (
        run_command("predict", "two", "film was long", "--cell", "my-cell.py:Mine").returncode == 0
    )
