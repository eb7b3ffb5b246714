from __future__ import annotations

import csv
import gzip
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
    given = (TEXTS[0] + "\n" + TEXTS[1] + "\n").encode() + b"\xff\n" + TEXTS[2].encode()
    result = cello("predict", toy_model, "--batch-size", batch_size, stdin=given)
    assert [line.split("\t")[0] for line in result.out.splitlines()] == LABELS[:2]
    assert result.code == 2
    assert result.err.startswith("cello: stdin, line 3: not UTF-8 at byte 32 of the file")
    assert result.err.count("\n") == 1


@pytest.mark.parametrize("batch_size", [1, 2, 64])
def test_an_empty_input_has_a_line_without_an_answer(
    cello: Cello, toy_model: Path, tmp_path: Path, batch_size: int
) -> None:
    said = "cello: 3 of 5 inputs had nothing to read and have no answer; the first: {}\n"
    given = "\n".join(["", "a fine film", " \t", "<br />", "the dull film"]).encode()
    result = cello("predict", toy_model, "--batch-size", batch_size, stdin=given)
    assert [line.split("\t")[0] for line in result.out.splitlines()] == ["", "pos", "", "", "neg"]
    assert result.out.splitlines()[0] == "\t"
    assert (result.code, result.err) == (0, said.format("stdin, line 1"))
    (tmp_path / "x.csv").write_text('text\n" "\na fine film\n"\n"\n<br />\nthe dull film\n')
    table = cello("predict", toy_model, "--file", tmp_path / "x.csv")
    assert (table.out, table.err) == (result.out, said.format(f"{tmp_path / 'x.csv'}, line 2"))
    answers = [json.loads(line) for line in cello(
        "predict", toy_model, "--json", "--batch-size", batch_size, stdin=given
    ).out.splitlines()]  # fmt: skip
    assert [one["label"] for one in answers] == [None, "pos", None, None, "neg"]
    assert answers[0] == dict.fromkeys(answers[1])
    alone = cello("predict", toy_model, "")
    assert (alone.code, alone.out) == (0, "\t\n")


def test_unknown_words_are_said_at_the_end(cello: Cello, toy_model: Path) -> None:
    result = cello("predict", toy_model, "fine film", "blork film blork")
    assert result.out.count("\n") == 2
    assert result.err.startswith("cello: the texts: 40% of the tokens are unknown to the model")
    assert cello("predict", toy_model, "fine film", "the blork film").err == ""  # a fifth


def test_other_encodings_and_delimiters(cello: Cello, toy_model: Path, tmp_path: Path) -> None:
    expected = cello("predict", toy_model, *TEXTS).out
    lines = "".join(text + "\r\n" for text in TEXTS).encode("utf-16")
    (tmp_path / "x.txt").write_bytes(lines)
    cells = "text;more\n" + "".join(f"{text};'é'\n" for text in TEXTS)
    (tmp_path / "x.csv").write_bytes(cells.replace("\u0085", " ").encode("cp1252"))
    form = ["--encoding", "windows-1252", "--delimiter", ";"]
    for run in (
        cello("predict", toy_model, "--file", tmp_path / "x.txt"),
        cello("predict", toy_model, "--file", tmp_path / "x.txt", "--encoding", "utf-16"),
        cello("predict", toy_model, "--encoding", "utf-16", stdin=lines),
        cello("predict", toy_model, "--file", tmp_path / "x.csv", *form),
    ):
        assert (run.code, run.out, run.err) == (0, expected, "")


def test_the_model_knows_how_its_files_are_written(
    cello: Cello, toy_csv: Path, tmp_path: Path, small: list[str]
) -> None:
    """Files are read as those of the training; a stream is in UTF-8."""
    text = toy_csv.read_text().replace('"', "").replace(",", ";").replace("pos;", "好;")
    data, out = tmp_path / "x.csv", tmp_path / "run"
    data.write_bytes(text.encode("gb18030"))
    form = ["--encoding", "gb18030", "--delimiter", ";"]
    assert cello("train", data, "--out", out, *small, *form).code == 0
    assert cello("evaluate", out, data, "--part", "test").code == 0
    found = cello("predict", out, "--file", data)
    assert {line.split("\t")[0] for line in found.out.splitlines()} <= {"好", "neg"}
    assert found.code == 0
    plain = tmp_path / "y.csv"
    plain.write_bytes(text.replace(";", ",").encode())
    assert "--delimiter" in cello("evaluate", out, plain).complaint
    run = cello("evaluate", out, plain, "--encoding", "utf-8", "--delimiter", ",")
    assert run.code == 0
    assert cello("predict", out, stdin="很 fine film\n".encode()).code == 0
    complaint = cello("predict", out, stdin="很很 fine\n".encode("gb18030")).complaint
    assert "stdin, line 1: not UTF-8 at byte 0" in complaint


@pytest.mark.parametrize("mark", ["\n", "\r\n", "\t", "\u2028"])
def test_a_label_with_a_line_end_is_one_field_of_one_line(
    cello: Cello, tmp_path: Path, small: list[str], mark: str
) -> None:
    rows = [("label", "text"), *((f"very{mark}good", "fine"), ('"bad"', "dull")) * 40]
    with (tmp_path / "x.csv").open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows(rows)
    options = [*small, "--epochs", 20, "--learning-rate", 0.05, "--batch-size", 8]
    assert cello("train", tmp_path / "x.csv", "--out", tmp_path / "run", *options).code == 0
    found = cello("predict", tmp_path / "run", "fine", "dull").out
    assert found.count("\n") == len(found.splitlines()) == 2
    labels = [line.split("\t")[0] for line in found.splitlines()]
    assert [json.loads(label) for label in labels] == [f"very{mark}good", '"bad"']


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
    empty = cello("predict", out, stdin=b"[]\n\n[[0.7, 1]]\n")
    assert [line.split("\t")[0] for line in empty.out.splitlines()] == ["", "", "1"]
    assert "2 of 3 inputs had nothing to read and have no answer" in empty.err
    assert "line 2: not JSON" in cello("predict", out, stdin=b"[[1, 2]]\nfine\n").late_complaint
    assert "line 1: neither" in cello("predict", out, stdin=b'[["a", "b"]]\n').complaint
    (tmp_path / "x.csv").write_text('steps\n"[[1, 2]]"\n')
    complaint = cello("predict", out, "--file", tmp_path / "x.csv").complaint
    assert "line 2: the model reads numbers, in JSON as [[1.0, 2.0]" in complaint


def test_output_is_not_the_file_that_is_read(cello: Cello, toy_model: Path, tmp_path: Path) -> None:
    file, packed = tmp_path / "x.txt", tmp_path / "labels.tsv.gz"
    file.write_text("a fine film\n")
    (tmp_path / "link").symlink_to(file)
    for output in (file, tmp_path / "link"):
        result = cello("predict", toy_model, "--file", file, "--output", output)
        assert (result.code, file.read_text()) == (2, "a fine film\n")
        assert "--output is the file that is read" in result.err
    expected = cello("predict", toy_model, "--file", file)
    assert cello("predict", toy_model, "--file", file, "--output", packed).code == 0
    assert gzip.decompress(packed.read_bytes()).decode() == expected.out
