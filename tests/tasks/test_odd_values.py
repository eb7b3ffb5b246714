"""Values that are odd but possible: in files of options, in data, in names of files."""

from __future__ import annotations

import json
import os
import stat
import subprocess
import sys
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from cello.tasks import classify, forecast, options_of
from cello.tasks.errors import InputError
from cello.tasks.files import written_beside
from cello.tasks.language.data import _files
from cello.tasks.options import from_mapping, read_options

SMALL = {"hidden": 4, "embedding": 4, "epochs": 1, "device": "cpu"}


def read_yaml(tmp_path: Path, task: str, text: str) -> object:
    path = tmp_path / "options.yaml"
    path.write_text(text)
    return from_mapping(options_of(task), read_options(path), str(path))


def test_yaml_says_numbers_and_truth_values_in_its_own_way(tmp_path: Path) -> None:
    options = read_yaml(tmp_path, "classify", "embedding_dropout: 1e-1\ntext_column: 1\n")
    assert (options.embedding_dropout, options.text_column) == (0.1, "1")
    assert read_yaml(tmp_path, "forecast", "levels: 0.8\n").levels == "0.8"
    with pytest.raises(InputError, match="hidden: '8' is not a whole number"):
        read_yaml(tmp_path, "classify", "hidden: '8'\n")


def test_a_validation_loss_that_is_not_finite_is_said_after_the_first_epoch(tmp_path: Path) -> None:
    values = np.sin(np.arange(200.0))
    values[150:160] = 1e20  # a fill value, in the validation rows
    table = pd.DataFrame({"time": pd.date_range("2020", periods=200, freq="D"), "y": values})
    table.to_csv(tmp_path / "x.csv", index=False)
    options = options_of("forecast")(
        hidden=4, epochs=2, device="cpu", horizon=2, window=8, normalize="none"
    )
    with pytest.raises(InputError, match=r"validation set is not finite in epoch 1"):
        forecast.train(str(tmp_path / "x.csv"), tmp_path / "run", options)


def test_labels_that_are_numbers_in_a_file_and_in_a_frame(tmp_path: Path) -> None:
    texts = ["good film", "bad film"] * 30
    path = tmp_path / "x.csv"
    path.write_text("text,label\n" + "".join(f"{t},{float(i % 2)}\n" for i, t in enumerate(texts)))
    classify.train(str(path), tmp_path / "run", options_of("classify")(**SMALL))
    model = classify.Classifier.load(tmp_path / "run")
    assert model.labels == ["0.0", "1.0"]
    frame = pd.read_csv(path)
    assert model.evaluate(frame).rows == model.evaluate(str(path)).rows == len(texts)


def test_hidden_folders_hold_no_texts(tmp_path: Path) -> None:
    for name in ("a.txt", ".ipynb_checkpoints/a-checkpoint.txt", ".b.txt"):
        file = tmp_path / "texts" / name
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text("some words of a text. " * 40)
    assert [file.name for file in _files(tmp_path / "texts")] == ["a.txt"]


@pytest.mark.skipif(sys.platform == "win32", reason="there are no such files and modes")
def test_a_file_keeps_its_mode_and_one_that_is_open_its_content(tmp_path: Path) -> None:
    private = tmp_path / "private.txt"
    private.write_text("before")
    private.chmod(0o600)
    with written_beside(private, "w") as stream:
        stream.write("after")
    assert (private.read_text(), stat.S_IMODE(private.stat().st_mode)) == ("after", 0o600)
    log = tmp_path / "log.txt"
    log.write_text("first\n")
    code = (
        "from pathlib import Path; from cello.tasks.files import written_beside\n"
        "with written_beside(Path('/dev/stdout'), 'w') as stream: stream.write('second\\n')"
    )
    with log.open("a") as opened:
        subprocess.run([sys.executable, "-c", code], stdout=opened, check=True)
    assert log.read_text() == "first\nsecond\n"


def test_a_run_that_has_only_its_report_left_knows_its_engine(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def stop(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(classify.Classifier, "evaluate", stop)
        with pytest.raises(KeyboardInterrupt):
            classify.train("digits", tmp_path / "run", options_of("classify")(**SMALL))
    classify.Classifier.resume(tmp_path / "run")
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert list(report["training"]["engines"]) == ["native"]


def test_output_of_any_characters(tmp_path: Path) -> None:
    texts = ["好 电影", "坏 电影"] * 30
    path = tmp_path / "x.csv"
    lines = (f"{text},{'好' if i % 2 == 0 else '坏'}\n" for i, text in enumerate(texts))
    path.write_text("text,label\n" + "".join(lines), "utf-8")
    classify.train(str(path), tmp_path / "run", options_of("classify")(**SMALL))
    command = [sys.executable, "-m", "cello.cli.main", "predict", str(tmp_path / "run"), "好 电影"]
    for encoding in ("cp1252", None):
        environment = {k: v for k, v in os.environ.items() if k != "PYTHONIOENCODING"}
        environment |= {} if encoding is None else {"PYTHONIOENCODING": encoding}
        done = subprocess.run(command, env=environment, capture_output=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.startswith("好".encode() if encoding is None else b"\\u597d") or (
            done.stdout.startswith("坏".encode() if encoding is None else b"\\u574f")
        )
