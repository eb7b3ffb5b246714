"""`cello train tag`, and evaluate and predict with what it wrote."""

from __future__ import annotations

import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

Cello = Callable[..., Any]

SMALL = [
    "--hidden", "8", "--embedding", "8", "--character-embedding", "4", "--character-hidden", "4",
    "--affix-embedding", "4", "--layers", "1", "--epochs", "12", "--learning-rate", "0.02",
    "--batch-size", "8", "--device", "cpu",
]  # fmt: skip

SENTENCES = [
    [("I", "PRON"), ("walk", "VERB")],
    [("a", "DET"), ("walk", "NOUN")],
    [("you", "PRON"), ("talk", "VERB")],
    [("the", "DET"), ("small", "ADJ"), ("talk", "NOUN")],
]
TAGGED = "I/PRON walk/VERB\nthe/DET small/ADJ talk/NOUN\n"
"""What a trained tagger makes of the first and the last sentence."""


REST = "\t_" * 8


def conllu(sentences: list[list[tuple[str, str]]], tags: bool = True) -> str:
    """Sentences in CoNLL-U, each with a comment, a range and an empty word."""
    text = ""
    for i, sentence in enumerate(sentences):
        text += f"# sent_id = {i}\n1-2\tboth{REST}\n"
        for n, (word, tag) in enumerate(sentence, 1):
            text += f"{n}\t{word}\t{word}\t{tag if tags else '_'}\tX{tag}\tN=1\t0\troot\t_\t_\n"
        text += f"{len(sentence)}.1\tgone{REST}\n\n"
    return text


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "train.conllu.gz"
    with gzip.open(path, "wt", encoding="utf-8") as stream:
        stream.write(conllu(SENTENCES * 40))
    return path


@pytest.fixture(scope="module")
def model(data: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cello.cli.main import main

    folder = tmp_path_factory.mktemp("model") / "tagger"
    assert main(["train", "tag", str(data), "--out", str(folder), *SMALL]) == 0
    return folder


def test_end_to_end(cello: Cello, data: Path, model: Path) -> None:
    report = json.loads((model / "report.json").read_text())
    assert report["accuracy"] == 1.0
    assert report["sentences"] == 16
    assert report["baseline"] < 1.0
    assert sum(map(sum, report["confusion"])) == report["rows"]
    names = {path.name for path in model.iterdir()}
    assert names == {
        "config.json", "options.yaml", "lexicon.json", "model.safetensors", "report.json",
        "confusion.png", "history.csv", "curves.png",
    }  # fmt: skip
    result = cello("evaluate", model, data, "--device", "cpu")
    assert result.code == 0
    assert "accuracy 1.0000" in result.out
    assert "known words 1.0000 of 360" in result.out
    assert "unknown words" not in result.out


def test_sentences_in_lines(cello: Cello, model: Path, tmp_path: Path) -> None:
    lines = "I walk\nthe  small talk\n"
    (tmp_path / "x.txt").write_text(lines)
    (tmp_path / "dos.txt").write_bytes(lines.replace("\n", "\r\n").encode())
    for run in (
        cello("predict", model, "I walk", "the small talk"),
        cello("predict", model, "--file", tmp_path / "x.txt"),
        cello("predict", model, "--file", tmp_path / "dos.txt", "--batch-size", "1"),
        cello("predict", model, stdin=lines.encode()),
    ):
        assert (run.code, run.out, run.err) == (0, TAGGED, "")


def test_a_table_of_sentences(cello: Cello, model: Path, tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text('id,text,note\n1,I walk,"a, b"\n2,,c\n3,"the small\ntalk",d\n')
    (tmp_path / "x.tsv").write_text("note\tsay\nx\tI walk\nx\t\ny\tthe small talk\n")
    (tmp_path / "x.jsonl").write_text(
        '{"text": "I walk"}\n{"text": null}\n{"text": "the small talk"}\n'
    )
    first, second = TAGGED.splitlines()
    for run in (
        cello("predict", model, "--file", tmp_path / "x.csv"),
        cello("predict", model, "--file", tmp_path / "x.tsv", "--text-column", "say"),
        cello("predict", model, "--file", tmp_path / "x.jsonl", "--batch-size", "1"),
    ):
        assert (run.code, run.out, run.err) == (0, f"{first}\n\n{second}\n", "")
    (tmp_path / "x.jsonl").write_text('{"text": ["I", "walk"]}\n')
    wrong = cello("predict", model, "--file", tmp_path / "x.jsonl")
    assert "line 1: 'text' is ['I', 'walk'], not a text" in wrong.complaint
    wrong = cello("predict", model, "--file", tmp_path / "x.csv", "--text-column", "words")
    assert (
        "no column 'words'; there are: id, text, note; in a file without a header"
        in wrong.complaint
    )
    (tmp_path / "x.txt").write_text("I walk\n")
    lines = cello("predict", model, "--file", tmp_path / "x.txt", "--text-column", "text")
    assert "text-column: only a table has columns" in lines.complaint


def test_text_that_is_not_cut_into_words_is_said(cello: Cello, model: Path) -> None:
    run = cello("predict", model, "the small talk", "我们喜欢电影")
    assert (run.code, run.out.count("\n")) == (0, 2)
    assert run.err.startswith("cello: the sentences: 25% of the words are unknown to the model")
    assert cello("predict", model, "The small talk", "I walk", "blork").err == ""


def test_an_empty_line_stays_an_empty_line(cello: Cello, model: Path) -> None:
    assert cello("predict", model, stdin=b"I walk\n\nI walk\n").out.split("\n")[1] == ""


@pytest.mark.parametrize("source", ["conllu", "gz", "other name", "stdin"])
def test_conllu_is_filled_in(cello: Cello, model: Path, tmp_path: Path, source: str) -> None:
    given, expected = conllu(SENTENCES, tags=False), conllu(SENTENCES)
    name = {"gz": "x.conllu.gz", "other name": "x.dat"}.get(source, "x.conllu")
    path = tmp_path / name
    path.write_bytes(gzip.compress(given.encode()) if source == "gz" else given.encode())
    run = (
        cello("predict", model, stdin=given.encode())
        if source == "stdin"
        else cello("predict", model, "--file", path)
    )
    assert (run.code, run.out, run.err) == (0, expected, "")


def test_a_word_a_line_is_filled_in(cello: Cello, model: Path, tmp_path: Path) -> None:
    path = tmp_path / "x.tsv"
    path.write_text("I\nwalk\n\na\tOLD\nwalk\tOLD\n")
    run = cello("predict", model, "--file", path, "--output", tmp_path / "out.tsv")
    assert (run.code, run.out) == (0, "")
    assert (tmp_path / "out.tsv").read_text() == "I\tPRON\nwalk\tVERB\n\na\tDET\nwalk\tNOUN\n\n"


def test_json_has_probabilities(cello: Cello, model: Path) -> None:
    answer = json.loads(cello("predict", model, "--json", "I walk").out)
    assert answer["words"] == ["I", "walk"]
    assert answer["tags"] == ["PRON", "VERB"]
    assert all(0.5 < p <= 1.0 for p in answer["probabilities"])


def test_two_columns_teach_the_same(cello: Cello, data: Path, model: Path, tmp_path: Path) -> None:
    columns = "".join(
        "".join(f"{word} {tag}\n" for word, tag in sentence) + "\n" for sentence in SENTENCES * 40
    )
    (tmp_path / "x.txt").write_text(columns)
    result = cello("train", "tag", tmp_path / "x.txt", "--out", tmp_path / "run", *SMALL)
    assert result.code == 0
    (tmp_path / "x.conllu").write_text(columns)
    evaluated = cello("evaluate", model, tmp_path / "x.conllu", "--format", "columns")
    assert "accuracy 1.0000" in evaluated.out
    weights = [folder / "model.safetensors" for folder in (model, tmp_path / "run")]
    assert weights[0].read_bytes() == weights[1].read_bytes()


def test_another_column(cello: Cello, data: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    options = ["--label-column", "xpos", "--output", "crf"]
    assert cello("train", "tag", data, "--out", out, *SMALL, *options).code == 0
    assert cello("predict", out, "I walk").out == "I/XPRON walk/XVERB\n"
    (tmp_path / "x.conllu").write_text(conllu(SENTENCES).replace("\tX", "\tOLD"))
    filled = cello("predict", out, "--file", tmp_path / "x.conllu").out
    assert filled == conllu(SENTENCES)


LINE = "1\ta\t_\tX\t_\t_\t_\t_\t_\t_\n"


@pytest.mark.parametrize(
    ("name", "content", "complaint"),
    [
        ("x.conllu", b"", "holds no sentences"),
        ("x.conllu", b"# only a comment\n\n", "holds no sentences"),
        ("x.conllu", LINE.encode() + b"\n1\tb\tX\n", "line 3: 3 columns, not the 10 of CoNLL-U"),
        ("x.conllu", LINE.encode() * 2, "line 2: word 1 where word 2 is expected; an empty line"),
        ("x.conllu", LINE.replace("X", "_").encode(), "line 1: the word has no tag in the column"),
        ("x.conllu", LINE.replace("a", "").encode(), "line 1: the word is empty"),
        ("x.conllu", LINE.encode() + b"\n1\t\xff", "line 3: not UTF-8 at byte 23 of the file"),
        # mtime: a name of a test that holds the time of day is another one in each process.
        (
            "x.conllu.gz",
            gzip.compress(f"{LINE}\n".encode() * 99, mtime=0)[:-9],
            "not a whole gzip file",
        ),
        ("x.conllu.gz", LINE.encode(), "not a whole gzip file"),
        ("x.txt", b"a X\nb\n", "line 2: 1 column, not 2, a word and its tag"),
        ("x.txt", b"a X Y\n", "line 1: 3 columns, not 2, a word and its tag"),
        ("x.txt", b"\tX\n", "line 1: the word is empty"),
        ("x.txt", b"a\t \n", "line 1: the tag is empty"),
        ("x.txt", b"a X\n\nb X\n\nc X\n\nd X\n", "every tag is 'X'"),
        ("x.conllu", b"1" * 5000 + b"\ta" + b"\t_" * 8 + b"\n", "line 1: '1111"),
        ("x.txt", b"a X\nb Y\n", "too few sentences to split off a test set (1)"),
    ],
)
def test_broken_data_gets_one_line(
    cello: Cello, tmp_path: Path, name: str, content: bytes, complaint: str
) -> None:
    path = tmp_path / name
    path.write_bytes(content)
    line = cello("train", "tag", path, "--out", tmp_path / "run").complaint
    assert line.startswith(f"cello: {path}")
    assert complaint in line
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize("part", ["valid", "test"])
def test_parts_with_other_tags_are_refused_before_training(
    cello: Cello, data: Path, tmp_path: Path, part: str
) -> None:
    other, out = tmp_path / "other.txt", tmp_path / "run"
    other.write_text("a Q\nwalk Z\n\n")
    line = cello("train", "tag", data, f"--{part}-data", other, "--out", out).complaint
    assert f"{other}: 2 of 2 words have a tag that the model does not know, as 'Q', 'Z'" in line
    assert not out.exists()


def test_wrong_names_get_one_line(cello: Cello, data: Path, model: Path, tmp_path: Path) -> None:
    out = tmp_path / "run"
    missing = tmp_path / "none.conllu"
    for run in (
        cello("train", "tag", missing, "--out", out),
        cello("train", "tag", data, "--valid-data", missing, "--out", out),
        cello("evaluate", model, missing),
        cello("predict", model, "--file", missing),
    ):
        assert run.complaint == f"cello: {missing}: no such file"
    assert "is a folder" in cello("train", "tag", tmp_path, "--out", out).complaint
    wrong = cello("train", "tag", data, "--label-column", "pos", "--out", out)
    assert "label-column: 'pos' is not one of upos, xpos" in wrong.complaint
    nothing = cello("train", "tag", data, "--label-column", "feats:", "--out", out)
    assert "label-column: 'feats:' is not one of" in nothing.complaint
    assert "text-column" in cello("predict", model, "a", "--text-column", "x").complaint
    assert "text-column" in cello("evaluate", model, data, "--text-column", "x").complaint


def test_a_model_with_a_broken_lexicon_gets_one_line(
    cello: Cello, data: Path, model: Path, tmp_path: Path
) -> None:
    for content in ("{", "[]", '{"a": 1}', '{"a": ["x", "y"]}', '{"a": [1, "NEW"]}'):
        folder = tmp_path / "copy"
        folder.mkdir(exist_ok=True)
        for path in model.iterdir():
            (folder / path.name).write_bytes(path.read_bytes())
        (folder / "lexicon.json").write_text(content)
        line = cello("predict", folder, "a").complaint
        assert "lexicon.json: has tags" in line if "NEW" in content else "not whole" in line


def test_what_comes_before_a_bad_line_is_answered(
    cello: Cello, model: Path, tmp_path: Path
) -> None:
    good = conllu(SENTENCES[:1])
    (tmp_path / "x.conllu").write_text(good + "1\tb\n")
    run = cello("predict", model, "--file", tmp_path / "x.conllu")
    assert run.out == good
    assert "line 7: 2 columns, not the 10 of CoNLL-U" in run.late_complaint
