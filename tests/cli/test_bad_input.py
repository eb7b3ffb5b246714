from __future__ import annotations

import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from safetensors.torch import load_file, save_file

Cello = Callable[..., Any]

GOOD = b"label,text\n" + b"pos,a fine film\nneg,a dull film\n" * 20


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("x.csv", None, "x.csv: no such file"),
        ("x.csv", b"", "x.csv: the file is empty"),
        ("x.jsonl", b"\n", "x.jsonl: the file is empty"),
        ("x.csv", b"label,text\n", "a header but no rows"),
        ("x.csv", b"y,text\n1,a\n", "x.csv: no column 'label'; there are: y, text"),
        ("x.jsonl", b'{"y": 1, "text": "a"}\n', "no column 'label'; there are: y, text"),
        ("x.csv", b"label,text\npos,caf\xe9\n", "x.csv, line 2: not UTF-8 at byte 18"),
        ("x.csv", b"label,text\npos,caf\xe9\n", "--encoding says how it is written, as gb18030,"),
        ("x.csv", b"label,text\npos,a,b\n", "x.csv, line 2: 3 columns, not 2"),
        ("x.csv", b'label,text\npos,"a\n', "x.csv, line 2: unexpected end of data"),
        ("x.csv", b"label,text\n,a\n", "x.csv: 1 row is left out where something is missing"),
        ("x.csv", GOOD.replace(b",", b";"), "there are: label;text; --delimiter says what parts"),
        ("x.csv", b"label,text\n" + b"pos,a film\n" * 30, "every label is 'pos'"),
        ("x.csv", b"label,text\npos,a\nneg,b\n", "too few rows to split off a test set (2 rows"),
        ("x.jsonl", b"{]\n", "x.jsonl, line 1: not JSON"),
        ("x.jsonl", b'{"label": 1, "text": 5}\n', "line 1: neither a text nor a list of steps"),
        ("x.jsonl", b'{"label": 1, "text": [[NaN]]}\n', "line 1: a number is not finite"),
        ("x.jsonl", b'{"label": 1, "text": [[1e39]]}\n', "line 1: a number is not finite"),
        ("x.jsonl", b'{"label": 1, "text": [[%s]]}' % (b"9" * 400), "a number is not finite"),
        ("x.jsonl", b'{"label": 1, "text": [[%s]]}' % (b"9" * 5000), "line 1: not JSON"),
        ("x.jsonl", b'{"label": 1, "text": [["1", "2"]]}\n', "line 1: neither a text nor"),
        ("x.jsonl", b'{"label": 1, "text": [[true, 2.0]]}\n', "line 1: neither a text nor"),
        ("x.jsonl", b'{"label": 1, "text": [[null]]}\n', "line 1: neither a text nor"),
        ("x.csv", b"text,label,text\na,pos,b\n", "x.csv: several columns 'text'; there are: text,"),
        ("x.jsonl", b'{"label": 1, "text": "\\ud800"}\n', "line 1: half of a surrogate pair"),
        ("x.jsonl", b'{"label": 1, "text": "a"}\n{"label": 1, "text": [[1]]}\n', "some rows"),
        ("x.csv.gz", b"\x1f\x8bnot gzip", "not a whole gzip file"),
        ("x.txt", b"a\n", "not a table; its name must end in .csv, .tsv, .jsonl or .gz; "),
        ("x.txt", b"a\n", "cello train language reads plain text"),
    ],
)
def test_training_data(
    cello: Cello, tmp_path: Path, name: str, content: bytes | None, expected: str
) -> None:
    if content is not None:
        (tmp_path / name).write_bytes(content)
    complaint = cello("train", tmp_path / name, "--out", tmp_path / "run").complaint
    assert expected in complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        (["--cell", "tree"], "cell: 'tree' is not one of lstm, peephole-lstm, gru, mgu, rnn"),
        (["--activation", "tan"], "'tan' is not known; choose from"),
        (["--gate-activation", "step"], "'step' is not known; choose from"),
        (["--cell", "rnn", "--gate-activation", "relu"], "the cell rnn has no gates"),
        (["--pooling", "median"], "pooling: 'median' is not one of"),
        (["--dropout", "1.5"], "dropout: 1.5 is not between 0.0 and 0.99"),
        (["--dropout", "nan"], "dropout: nan is not between"),
        (["--hidden", "0"], "hidden: 0 is not between 1 and 65,536"),
        (["--epochs", "many"], "--epochs"),
        (["--colour", "red"], "--colour"),
        (["--group-column", "movie"], "no column 'movie'"),
        (["--valid-data", "none.csv"], "none.csv: no such file"),
        (["--device", "abacus"], "device: 'abacus' is not one of"),
        (["--devices", "40"], "batch-size: 32 examples cannot be shared by 40 processes"),
        (["--sequence-column", "n"], "no column 'n'"),
        (["--feature-columns", "a"], "feature-columns: only a table of steps has them"),
        (["--precision", "float8"], "precision: 'float8' is not one of float32, bfloat16"),
        (["--label-column", "text"], "text-column and label-column are both 'text'"),
        (["--out", ""], "train needs --out FOLDER"),
        (["--encoding", "klingon"], "encoding: 'klingon' is not known"),
        (["--delimiter", "::"], "delimiter: '::' is not one character"),
        (["--split-seed", "-1"], "split-seed: -1 is not between 0 and"),
        (["--nodes", "2"], "nodes: 2 machines do not find each other by themselves"),
    ],
)
def test_options(
    cello: Cello,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    options: list[str],
    expected: str,
) -> None:
    monkeypatch.delenv("MASTER_ADDR", raising=False)  # a run with --nodes would wait for others
    (tmp_path / "x.csv").write_bytes(GOOD)
    complaint = cello("train", tmp_path / "x.csv", "--out", tmp_path / "run", *options).complaint
    assert expected in complaint


def test_options_of_texts_for_numbers(cello: Cello, tmp_path: Path) -> None:
    for task, option, value in (
        ("classify", "word-dropout", "0.1"),
        ("classify", "embedding-dropout", "0.1"),
        ("ngrams", "ngrams", "2"),
    ):
        arguments = ["train", task, "digits", "--out", tmp_path / "run", f"--{option}", value]
        assert f"{option}: only texts have it" in cello(*arguments).complaint
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    ("name", "content", "expected"),
    [
        ("t.csv", GOOD + b"pos,\xff\n", "t.csv, line 42: not UTF-8 at byte"),
        ("t.jsonl", b'{"label": "pos", "text": [[1, 2]]}\n', "some rows are texts and some"),
    ],
)
def test_a_bad_held_out_part_is_refused_before_training(
    cello: Cello, tmp_path: Path, name: str, content: bytes, expected: str
) -> None:
    (tmp_path / "x.csv").write_bytes(GOOD)
    (tmp_path / name).write_bytes(content)
    out = tmp_path / "run"
    run = cello("train", tmp_path / "x.csv", "--test-data", tmp_path / name, "--out", out)
    assert expected in run.complaint  # the one line: no epoch before it
    assert not out.exists()


def test_missing_arguments(cello: Cello) -> None:
    assert "DATA is empty" in cello("train", "", "--out", "run").complaint
    assert "DATA" in cello("train").complaint
    assert "--out" in cello("train", "digits").complaint
    assert "fly" in cello("fly").complaint


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["clasify", "x.csv"], "clasify: neither a task nor a file; the tasks are classify,"),
        (["clasify", "x.csv"], "did you mean classify?"),
        (["Forecast", "x.csv"], "did you mean forecast?"),
        (["tags"], "the tasks are classify, forecast, language, ngrams, tag; did you mean tag?"),
        (["sentiment", "x.csv"], "the tasks are classify, forecast, language, ngrams, tag"),
        (["reviews"], "reviews: no such file"),
        (["owner/forecast.csv"], "owner/forecast.csv: no such file"),
    ],
)
def test_a_word_that_is_no_task(cello: Cello, words: list[str], expected: str) -> None:
    assert expected in cello("train", *words, "--out", "run").complaint


def test_a_file_that_is_named_like_a_task(
    cello: Cello, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "tags").write_bytes(GOOD)
    assert "tags: not a table" in cello("train", "tags", "--out", "run").complaint


@pytest.fixture
def model(toy_model: Path, tmp_path: Path) -> Path:
    return Path(shutil.copytree(toy_model, tmp_path / "model"))


def test_evaluate(cello: Cello, model: Path, tmp_path: Path) -> None:
    data = tmp_path / "x.csv"
    data.write_bytes(b"label,text\nmeh,a fine film\n")
    assert "x.csv, line 2: unknown label 'meh'; known are: neg, pos" in (
        cello("evaluate", model, data).complaint
    )
    data.write_bytes(b"y,text\npos,a fine film\n")
    assert "no column 'label'" in cello("evaluate", model, data).complaint
    assert "the model reads text" in cello("evaluate", model, "digits").complaint
    assert "part" in cello("evaluate", model, data, "--part", "some").complaint
    complaint = cello("evaluate", model, data, "--device", "abacus").complaint
    assert "device: 'abacus' is not one of auto, cpu" in complaint


def test_predict(cello: Cello, model: Path, tmp_path: Path) -> None:
    assert "no such file" in cello("predict", model, "--file", tmp_path / "x.txt").complaint
    assert "not both" in cello("predict", model, "a", "--file", tmp_path / "x.txt").complaint
    (tmp_path / "x.txt").write_bytes(b"fine\ncaf\xe9\ndull\n")
    complaint = cello("predict", model, "--file", tmp_path / "x.txt").late_complaint
    assert "x.txt, line 2: not UTF-8 at byte 8 of the file; --encoding says" in complaint
    assert "klingon" in cello("predict", model, "fine", "--encoding", "klingon").complaint
    assert "delimiter: ''" in cello("predict", model, "fine", "--delimiter", "").complaint
    output = tmp_path / "labels.txt"
    result = cello("predict", model, "--file", tmp_path / "x.txt", "--output", output)
    assert result.code == 2
    assert sorted(tmp_path.glob("*abels*")) == []
    complaint = cello("predict", model, "fine", "--output", tmp_path / "nope" / "x.tsv").complaint
    assert complaint.endswith("nope: no such folder")
    complaint = cello("predict", model, "fine", "--device", "abacus").complaint
    assert "device: 'abacus' is not one of auto, cpu" in complaint
    complaint = cello("predict", model, stdin=b"fine\ncaf\xe9\n").late_complaint
    assert "stdin, line 2: not UTF-8 at byte 8" in complaint


def test_model_folder(cello: Cello, model: Path, tmp_path: Path) -> None:
    def complaint() -> str:
        return str(cello("predict", model, "fine").complaint)

    assert "no such model folder" in cello("predict", tmp_path / "none", "fine").complaint
    assert "not a model folder" in cello("predict", tmp_path, "fine").complaint

    weights = (model / "model.safetensors").read_bytes()
    for length in (0, 7, 100, len(weights) - 1):
        (model / "model.safetensors").write_bytes(weights[:length])
        assert "model.safetensors: cut short or damaged" in complaint()
    (model / "model.safetensors").unlink()
    assert "model.safetensors: no such file" in complaint()
    (model / "model.safetensors").write_bytes(weights)
    tensors = load_file(model / "model.safetensors")
    save_file({k: v for k, v in tensors.items() if "linear" not in k}, model / "model.safetensors")
    assert "the weights do not fit" in complaint()
    (model / "model.safetensors").write_bytes(weights)

    tokenizer = (model / "tokenizer.json").read_text()
    (model / "tokenizer.json").write_text(tokenizer[:-30])
    assert "tokenizer.json: not a whole tokenizer" in complaint()
    (model / "tokenizer.json").unlink()
    assert "tokenizer.json: no such file" in complaint()
    (model / "tokenizer.json").write_text(tokenizer)

    config = json.loads((model / "config.json").read_text())
    for change, expected in [
        ({"format": 1}, "has format 1; this version of Cello reads 2"),
        ({"task": "sing"}, "'sing' is not a task; there are: classify"),
        ({"options": {**config["options"], "cell": "os"}}, "'os' is not one of"),
        ({"options": {**config["options"], "hidden": "8"}}, "hidden: '8'"),
        ({"options": {**config["options"], "wings": 2}}, "wings"),
        ({"options": {**config["options"], "hidden": 9}}, "the weights do not fit"),
        ({"facts": {**config["facts"], "labels": ["pos"]}}, "labels"),
        ({"facts": {**config["facts"], "labels": [1, 2]}}, "labels"),
        ({"facts": {}}, "labels is not as it should be"),
        ({"assets": ["../x"]}, "assets is not as it should be"),
    ]:
        (model / "config.json").write_text(json.dumps({**config, **change}))
        assert expected in complaint()
    (model / "config.json").write_text(json.dumps(config)[:-5])
    assert "config.json: not whole" in complaint()
    (model / "config.json").write_text(json.dumps(config))
    assert cello("predict", model, "fine").code == 0


def test_checkpoints_are_not_read_outside_training(cello: Cello, model: Path) -> None:
    (model / "checkpoints").mkdir()
    (model / "checkpoints" / "last.ckpt").write_bytes(b"cos\nsystem\n(S'exit 1'\ntR.")
    assert cello("predict", model, "fine").code == 0


def test_words_that_are_no_text(cello: Cello, model: Path, tmp_path: Path) -> None:
    assert "text 2: not UTF-8" in cello("predict", model, "fine", "caf\udce9").complaint
    page = tmp_path / "page.html"
    assert "text 1: not UTF-8" in cello("page", model, "\udce9", "--out", page).complaint


def test_files_of_the_user_are_left_alone(cello: Cello, model: Path, tmp_path: Path) -> None:
    """A model folder's report, somebody's own files, devices and links."""
    data = tmp_path / "x.csv"
    data.write_bytes(GOOD)
    before = (model / "report.json").read_bytes()
    assert "is a model folder" in cello("evaluate", model, data, "--out", model).complaint
    assert (model / "report.json").read_bytes() == before

    mine = tmp_path / "mine"
    mine.mkdir()
    for name in ("options.yaml", "tokenizer.json"):
        (mine / name).write_text("mine")
        assert f"holds a file {name}" in cello("train", data, "--out", mine).complaint
        assert (mine / name).read_text() == "mine"
        (mine / name).unlink()

    link, target = tmp_path / "link", tmp_path / "target"
    target.touch()
    link.symlink_to(target)
    assert cello("predict", model, "fine", "--output", link).code == 0
    assert link.is_symlink()
    assert target.read_text().startswith("pos")
    assert cello("predict", model, "fine", "--output", "/dev/null").code == 0
    assert not Path("/dev/null").is_file()
    reading, writing = os.pipe()
    (tmp_path / "pipe").symlink_to(f"/proc/self/fd/{writing}")
    assert cello("predict", model, "fine", "--output", tmp_path / "pipe").code == 0
    assert os.read(reading, 3) == b"pos"
    os.close(reading)
    os.close(writing)


def test_a_part_of_other_data_is_split_off_that(cello: Cello, tmp_path: Path) -> None:
    data, test, other = tmp_path / "x.csv", tmp_path / "test.csv", tmp_path / "other.csv"
    data.write_bytes(GOOD)
    test.write_bytes(b"label,text\n" + b"pos,a fine film\n" * 7)
    other.write_bytes(GOOD * 1)
    small = ["--hidden", "4", "--epochs", "1", "--device", "cpu", "--test-data", test]
    assert cello("train", data, "--out", tmp_path / "run", *small).code == 0
    assert ": 7 rows" in cello("evaluate", tmp_path / "run", data, "--part", "test").out
    complaint = cello("evaluate", tmp_path / "run", other, "--part", "test").complaint
    assert "other.csv has no part 'test', as the run on" in complaint
    assert ": 40 rows" in cello("evaluate", tmp_path / "run", other).out


@pytest.mark.skipif(not Path("/dev/full").exists(), reason="needs /dev/full, a disk that is full")
def test_a_full_disk_is_one_line(cello: Cello, model: Path) -> None:
    complaint = cello("predict", model, "fine", "--output", "/dev/full").complaint
    assert complaint == "cello: cannot write: No space left on device"


@pytest.mark.parametrize("change", ["number", "missing", "unknown"])
def test_a_tokenizer_with_a_damaged_vocabulary(cello: Cello, model: Path, change: str) -> None:
    path = model / "tokenizer.json"
    content = json.loads(path.read_text())
    vocabulary = content["model"]["vocab"]
    if change == "number":
        vocabulary["fine"] = 10**9
    elif change == "missing":
        del vocabulary["[UNK]"]
    else:
        content["model"]["unk_token"] = "?"
    path.write_text(json.dumps(content))
    assert "tokenizer.json: not a whole tokenizer" in cello("predict", model, "fine").complaint
