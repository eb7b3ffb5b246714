from __future__ import annotations

import csv
import json
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cello = Callable[..., Any]

TEXTS = ["a fine film", "an awful, dull film", "the great and lovely film", "poor\u0085dull"]
LABELS = ["pos", "neg", "pos", "neg"]


def test_argument_file_table_and_stdin_agree(cello: Cello, toy_model: Path, tmp_path: Path) -> None:
    lines = "".join(text + "\n" for text in TEXTS)
    (tmp_path / "x.txt").write_text(lines, encoding="utf-8")
    (tmp_path / "dos.txt").write_bytes(lines.replace("\n", "\r\n").encode()[:-2])
    with (tmp_path / "x.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["text"], *([text] for text in TEXTS)])
    expected = cello("predict", toy_model, *TEXTS)
    assert expected.code == 0
    assert [line.split("\t")[0] for line in expected.out.splitlines()] == LABELS
    runs = [
        cello("predict", toy_model, "--file", tmp_path / "x.txt"),
        cello("predict", toy_model, "--file", tmp_path / "x.txt", "--batch-size", 1),
        cello("predict", toy_model, "--file", tmp_path / "dos.txt"),
        cello("predict", toy_model, "--file", tmp_path / "x.csv"),
        cello("predict", toy_model, stdin=lines.encode()),
    ]
    for run in runs:
        assert (run.code, run.out, run.err) == (0, expected.out, "")
    output = tmp_path / "labels.tsv"
    assert cello("predict", toy_model, *TEXTS, "--output", output).out == ""
    assert output.read_text() == expected.out


@pytest.mark.parametrize("batch_size", [1, 64])
def test_what_comes_before_a_bad_line_is_answered(
    cello: Cello, toy_model: Path, batch_size: int
) -> None:
    given = (TEXTS[0] + "\n" + TEXTS[1] + "\n\n" + TEXTS[2] + "\n").encode()
    result = cello("predict", toy_model, "--batch-size", batch_size, stdin=given)
    assert [line.split("\t")[0] for line in result.out.splitlines()] == LABELS[:2]
    assert result.code == 2
    assert result.err == "cello: stdin, line 3: the text is empty\n"


def test_no_command_shows_the_help(cello: Cello) -> None:
    result = cello()
    assert result.code == 0
    assert "Usage: cello" in result.out
    assert "\n" in result.out.strip()


def test_json_lines(cello: Cello, toy_model: Path) -> None:
    result = cello("predict", toy_model, *TEXTS, "--json")
    for line, label in zip(result.out.splitlines(), LABELS, strict=True):
        record = json.loads(line)
        assert record["label"] == label
        assert record["probability"] == max(record["probabilities"].values())
        assert sum(record["probabilities"].values()) == pytest.approx(1.0, abs=1e-6)


def test_a_pipe_that_gives_one_line_at_a_time_and_one_that_closes(toy_model: Path) -> None:
    command = [sys.executable, "-m", "cello.cli.main", "predict", str(toy_model), "--batch-size=1"]
    with subprocess.Popen(
        command,
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    ) as process:
        assert process.stdin is not None
        assert process.stdout is not None
        assert process.stderr is not None
        for text, label in zip(TEXTS, LABELS, strict=True):
            process.stdin.write(f"{text}\n".encode())
            process.stdin.flush()
            assert process.stdout.readline().startswith(label.encode())
        process.stdout.close()  # as `| head -4` does
        process.stdin.write(b"fine\n" * 3)
        process.stdin.close()
        assert process.wait(timeout=30) == 0
        assert process.stderr.read() == b""


def test_a_model_of_numbers(cello: Cello, tmp_path: Path, small: list[str]) -> None:
    rows = []
    for i in range(60):
        sign = 1 if i % 2 else -1
        steps = [[sign * (0.5 + t / 10), float(i % 7)] for t in range(i % 5 + 1)]
        rows.append({"sign": sign, "steps": steps})
    data, out = tmp_path / "x.jsonl", tmp_path / "run"
    data.write_text("".join(json.dumps(row) + "\n" for row in rows))
    columns = ["--text-column", "steps", "--label-column", "sign"]
    result = cello(
        "train", data, "--out", out, *columns, *small, "--epochs", 20, "--learning-rate", 0.02
    )
    assert result.code == 0
    assert json.loads((out / "report.json").read_text())["accuracy"] == 1.0
    lines = b"[[-1.0, 3]]\n[[0.7, 1], [0.8, 1]]\n"
    predicted = cello("predict", out, stdin=lines)
    assert [line.split("\t")[0] for line in predicted.out.splitlines()] == ["-1", "1"]
    assert cello("predict", out, "--file", data).code == 0
    assert "line 1: 1 numbers in a step, not 2" in cello("predict", out, stdin=b"[[1]]\n").complaint
    assert "line 1: the sequence is empty" in cello("predict", out, stdin=b"[]\n").complaint
    assert "line 2: not JSON" in cello("predict", out, stdin=b"[[1, 2]]\nfine\n").late_complaint
    assert "line 1: neither" in cello("predict", out, stdin=b'[["a", "b"]]\n').complaint
    (tmp_path / "x.csv").write_text('steps\n"[[1, 2]]"\n')
    complaint = cello("predict", out, "--file", tmp_path / "x.csv").complaint
    assert "line 2: the model reads numbers, in JSON as [[1.0, 2.0]" in complaint
