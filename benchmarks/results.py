"""Results of the tasks on public data: runs a row's command and writes it into docs/results.md.

    python -m benchmarks.results DATA [ROW ...]

DATA is a folder with the files that a row names; ROW is one of the names below, all of them unless
given. ROW+own is the row with the hand-written cell in the place of the task's own. If the official test
file of a row is in DATA, it is the test set; otherwise the command splits a test set off the training
data. A row that is not run keeps the result of an earlier run.
"""

from __future__ import annotations

import json
import os
import platform
import subprocess
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

ROOT = Path(__file__).parents[1]
RECORD, PAGE = ROOT / "docs" / "results.json", ROOT / "docs" / "results.md"


@dataclass(frozen=True)
class Row:
    """One result: the command is ``cello train TASK DATA/train ... --out FOLDER``.

    Attributes:
        about: what is done, for the page.
        task: the task.
        train: the data, in the folder of all data.
        options: further words of the command; {data} is that folder.
        test: the official test file, used as the test set if it exists.
        held_out: the test set otherwise, for the page.
        otherwise: further words of the command without the official test file.
        figure: the metric, its name on the page and in the report.
    """

    about: str
    task: str
    train: str
    options: str
    test: str
    held_out: str
    otherwise: str = ""
    figure: tuple[str, str] = ("accuracy", "accuracy")


CELL = "recipes/cells.py:HardMGU"
"""The hand-written cell that each row is run with, too."""
OWN = "+own"

_ETT = (
    "--window 336 --normalize last --loss mae --train-rows 8640 --valid-rows 2880 --test-rows 2880"
)

ROWS = {
    "imdb": Row(
        "film reviews: word vectors of the texts, one bidirectional layer, pooling, a linear layer",
        "classify", "imdb/imdb_train.csv.gz", "--options recipes/imdb.yaml",
        "imdb/imdb_test.csv.gz", "a tenth of the films",
    ),
    "imdb-pooled": Row(
        "the same, larger and in bfloat16; the word vectors are pooled as well",
        "classify", "imdb/imdb_train.csv.gz",
        "--options recipes/imdb.yaml --hidden 150 --pool-input --precision bfloat16",
        "imdb/imdb_test.csv.gz", "a tenth of the films",
    ),
    "imdb-hard": Row(
        "the same with piecewise-linear gates and output",
        "classify", "imdb/imdb_train.csv.gz",
        "--options recipes/imdb.yaml --activation hardtanh --gate-activation hardsigmoid",
        "imdb/imdb_test.csv.gz", "a tenth of the films",
    ),
    "imdb-own-lstm": Row(
        "the same with a hand-written LSTM with hard gates",
        "classify", "imdb/imdb_train.csv.gz",
        "--options recipes/imdb.yaml --cell benchmarks/cells.py:HardLSTM",
        "imdb/imdb_test.csv.gz", "a tenth of the films",
    ),
    "imdb-alone": Row(
        "film reviews: recurrent networks alone; the mean of four",
        "classify", "imdb/imdb_train.csv.gz", "--options recipes/imdb-alone.yaml",
        "imdb/imdb_test.csv.gz", "a tenth of the films",
    ),
    "imdb-pretrained": Row(
        "film reviews: one recurrent network, which learns the language of the reviews first",
        "classify", "imdb/imdb_train.csv.gz", "--options recipes/imdb-pretrained.yaml",
        "imdb/imdb_test.csv.gz", "a tenth of the films",
    ),
    "imdb-best": Row(
        "film reviews: with n-grams beside",
        "ngrams", "imdb/imdb_train.csv.gz", "--options recipes/imdb-best.yaml",
        "imdb/imdb_test.csv.gz", "a tenth of the films",
    ),
    "trec": Row(
        "questions, 6 classes; the mean of three networks",
        "ngrams", "text/trec_train.tsv.gz", "--options recipes/trec.yaml",
        "text/trec_test.tsv.gz", "a tenth of the questions",
    ),
    "surnames": Row(
        "surnames by language, 18 classes, characters",
        "classify", "text/names18.tsv.gz", "--options recipes/surnames.yaml",
        "", "a tenth of the names",
    ),
    "movement": Row(
        "indoor movement, 4 signals of 19 to 129 steps",
        "classify", "series/indoor_movement.csv.gz", "--options recipes/movement.yaml",
        "", "a tenth of the 314 sequences",
    ),
    "mnist": Row(
        "MNIST by rows; the mean of two networks",
        "classify", "mnist/train-images-idx3-ubyte.gz", "--options recipes/mnist.yaml",
        "mnist/t10k-images-idx3-ubyte.gz", "a tenth of the images",
    ),
    "ewt": Row(
        "English parts of speech (EWT); the mean of two networks",
        "tag", "ud_english_ewt/en_ewt-ud-train.conllu.gz",
        "--valid-fraction 0.01 --keep last --members 2 --epochs 16 --precision bfloat16",
        "ud_english_ewt/en_ewt-ud-test.conllu.gz", "the development file",
        "--test-data {data}/ud_english_ewt/en_ewt-ud-dev.conllu.gz",
    ),
    "ewt-four": Row(
        "the same; the mean of four networks",
        "tag", "ud_english_ewt/en_ewt-ud-train.conllu.gz",
        "--valid-fraction 0.01 --keep last --members 4 --epochs 16 --precision bfloat16",
        "ud_english_ewt/en_ewt-ud-test.conllu.gz", "the development file",
        "--test-data {data}/ud_english_ewt/en_ewt-ud-dev.conllu.gz",
    ),
    "gsd": Row(
        "Chinese parts of speech (GSD, version 1); the mean of eight networks",
        "tag", "ud_chinese_gsd/zh-ud-train.conllu.gz",
        "--valid-fraction 0.01 --keep last --members 8 --epochs 20 --precision bfloat16",
        "ud_chinese_gsd/zh-ud-test.conllu.gz", "the development file",
        "--test-data {data}/ud_chinese_gsd/zh-ud-dev.conllu.gz",
    ),
    "shakespeare": Row(
        "the next character of tiny Shakespeare",
        "language", "text/tinyshakespeare.txt.gz", "", "", "the last tenth",
        figure=("nats per character", "nats_per_character"),
    ),
    "etth1-24": Row(
        "ETTh1, 7 columns, 24 hours ahead",
        "forecast", "series/ETTh1.csv.gz", f"--horizon 24 {_ETT}", "", "the usual 2,880 hours",
        figure=("standardised MSE", "mse"),
    ),
    "etth1-96": Row(
        "ETTh1, 7 columns, 96 hours ahead; the mean of three networks",
        "forecast", "series/ETTh1.csv.gz",
        f"--horizon 96 {_ETT} --learning-rate 0.001 --epochs 6 --members 3", "", "the usual 2,880 hours",
        figure=("standardised MSE", "mse"),
    ),
}  # fmt: skip


def main(arguments: list[str]) -> None:
    if not arguments or not Path(arguments[0]).is_dir():
        sys.exit("usage: python -m benchmarks.results DATA [ROW ...]; DATA is a folder")
    every = []
    for name, row in ROWS.items():
        has_own = "--cell" in row.options or "--activation" in row.options  # which is its point
        every += [name] if has_own else [name, name + OWN]
    data, names = Path(arguments[0]), arguments[1:] or every
    unknown = [name for name in names if name not in every]
    if unknown:
        sys.exit(f"{unknown[0]}: no such row; available: {', '.join(every)}")
    for name in names:
        result = run(name, data)
        known = json.loads(RECORD.read_text()) if RECORD.exists() else {}
        known[name] = result
        record = {name: known[name] for name in every if name in known}
        RECORD.write_text(json.dumps(record, indent=2) + "\n")
        PAGE.write_text(page(record), encoding="utf-8")
        print(name, result["figure"], f"{result['seconds']:.0f} s of training", flush=True)


def run(name: str, data: Path) -> dict[str, Any]:
    """Run one row, or one with the hand-written cell, and return its result."""
    row, out = ROWS[name.removesuffix(OWN)], Path("runs", "results", name)
    official = bool(row.test) and (data / row.test).exists()
    words = row.options.split() + (
        ["--test-data", f"{{data}}/{row.test}"] if official else row.otherwise.split()
    )
    if name.endswith(OWN):
        words += ["--cell", CELL]
    command = ["train", row.task, f"{{data}}/{row.train}", *words, "--out", str(out)]
    place = str(data.resolve())
    filled = [word.replace("{data}", place) for word in command]
    start = time.perf_counter()
    subprocess.run(
        [sys.executable, "-m", "cello.cli.main", *filled, "--overwrite"], cwd=ROOT, check=True
    )
    whole = time.perf_counter() - start
    report = json.loads((ROOT / out / "report.json").read_text())
    config = json.loads((ROOT / out / "config.json").read_text())
    shown = " ".join(command).replace("{data}", "DATA")
    return {
        "command": f"cello {shown}",
        "figure": report[row.figure[1]],
        "judged_on": Path(row.test).name if official else row.held_out,
        "seed": config["options"]["seed"],
        "seconds": report["training"]["seconds"],
        "seconds_of_the_command": whole,
        "load": os.getloadavg()[2],
        "machine": f"threads: {config['options']['threads']}, {_processor()}, PyTorch {torch.__version__}",
    }


def page(record: dict[str, dict[str, Any]]) -> str:
    """Return the page of all results."""
    lines = [
        "# Results",
        "",
        "This page lists what the tasks reach on public data. One command runs all rows and writes "
        "this page:",
        "",
        "```console",
        "python -m benchmarks.results DATA",
        "```",
        "",
        "DATA is a folder with the files of the commands below. If it has the official test file of a "
        "row, this file is the test set. The training time is the time of all epochs; the command also "
        "reads the data, makes the vocabulary, and evaluates. No row uses pretrained word vectors, "
        "pretrained models or other texts than its training data.",
        "",
        "The column *hand-written* has the same options with a cell that is not Cello's, a minimal gated "
        f"unit whose functions are piecewise linear: `--cell {CELL}`. Its step is three lines of "
        "PyTorch. Neither its size nor the learning rate was chosen for it. Each figure is from a single "
        "run with one seed. The two times of a row are often from different machines and numbers of "
        "threads (see the list below), so they do not compare the cells.",
        "",
        "| | metric | result | hand-written | test set | training time (then: hand-written) | seed |",
        "|---|---|---|---|---|---|---|",
    ]
    for name, row in ROWS.items():
        if name not in record:
            continue
        result, own = record[name], record.get(name + OWN)
        figure, seconds = (f"{own['figure']:.4f}", f", {own['seconds']:.0f} s") if own else ("", "")
        lines.append(
            f"| {name}: {row.about} | {row.figure[0]} | **{result['figure']:.4f}** | {figure} | "
            f"{result['judged_on']} | {result['seconds']:.0f} s{seconds} | {result['seed']} |"
        )
    lines += ["", "The commands and the machines:", ""]
    for name, result in record.items():
        lines += [
            f"- **{name}**: `{result['command']}`  ",
            f"  {result['seconds_of_the_command']:.0f} s for the whole command; "
            f"{result['machine']}; load of the machine {result['load']:.1f}",
        ]
    return "\n".join(lines) + "\n"


def _processor() -> str:
    try:
        for line in Path("/proc/cpuinfo").read_text().splitlines():
            if line.startswith("model name"):
                return line.partition(":")[2].strip()
    except OSError:
        pass
    return platform.processor() or platform.machine()


if __name__ == "__main__":
    main(sys.argv[1:])
