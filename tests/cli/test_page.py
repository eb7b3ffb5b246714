"""``cello page``: the file that it writes, and what it refuses."""

from __future__ import annotations

import pytest


def test_a_page_of_texts_and_of_a_file(cello, toy_model, tmp_path):
    lines = tmp_path / "lines.txt"
    lines.write_text("a dull film\n\n a fine film \n", encoding="utf-8")
    out = tmp_path / "pages" / "toy.html"
    result = cello("page", toy_model, "the film was great", "--file", lines, "--out", out)
    assert result.code == 0, result.err
    assert result.out.startswith(f"{out}: 3 texts, 0.")
    html = out.read_text("utf-8")
    assert html.startswith("<!DOCTYPE html>")
    assert '"title":"toy"' in html
    assert sorted(path.name for path in out.parent.iterdir()) == ["toy.html"]


@pytest.mark.parametrize(
    ("arguments", "line"),
    [
        ([], "page needs texts"),
        (["--file", "nowhere.txt"], "nowhere.txt: no such file"),
        (["a film", "--out", "."], ".: is a folder"),
        (["a"] * 101, "101 texts are too many for one page; 100 are the most"),
        ([" "], "text 1: the text is empty"),
    ],
)
def test_what_is_refused(cello, toy_model, arguments, line):
    assert line in cello("page", toy_model, *arguments).complaint


def test_a_folder_without_a_model(cello, tmp_path):
    assert "it has no config.json" in cello("page", tmp_path, "a film").complaint


def test_a_page_of_a_table(cello, toy_model, tmp_path):
    table, out = tmp_path / "some.csv", tmp_path / "page.html"
    table.write_text('text,label\n"good, really good",1\nawful,0\n')
    cello("page", toy_model, "--file", table, "--out", out)
    assert "really" in out.read_text()
    assert '"label"' not in out.read_text()
    refused = cello("page", toy_model, "--file", table, "--text-column", "no", "--out", out)
    assert "no column 'no'; there are: text, label" in refused.complaint


def test_a_table_is_read_as_the_model_read_its_own(cello, tmp_path):
    table = tmp_path / "semi colons.csv"
    rows = "".join(f"{'good' if i % 2 else 'bad'} film, really;{i % 2}\n" for i in range(60))
    table.write_text(f"text;label\n{rows}")
    model, out = tmp_path / "the model", tmp_path / "page.html"
    options = ["--hidden", 4, "--embedding", 4, "--epochs", 1, "--device", "cpu"]
    result = cello("train", "classify", table, "--delimiter", ";", "--out", model, *options)
    assert result.code == 0, result.err
    table.write_text(f"text;label\n{rows.splitlines()[1]}\n")
    result = cello("page", model, "--file", table, "--out", out)
    assert result.code == 0, result.err
    assert result.out.startswith(f"{out}: 1 text, ")
    table.write_text("text|label\ngood film|1\n")
    result = cello("page", model, "--file", table, "--delimiter", "|", "--out", out)
    assert result.code == 0, result.err


def test_options_of_a_file_that_the_command_line_replaces_are_not_read(cello, tmp_path):
    table, options = tmp_path / "x.csv", tmp_path / "options.yaml"
    table.write_text("text,label\n" + "good film,1\nbad film,0\n" * 30)
    options.write_text("cell: gone.py:Gone\nhidden: 4\nembedding: 4\nepochs: 1\ndevice: cpu\n")
    base = [table, "--options", options, "--out"]
    result = cello("train", "classify", *base, tmp_path / "a")
    assert "gone.py: no such file" in result.complaint
    result = cello("train", "classify", *base, tmp_path / "a", "--cell", "lstm")
    assert result.code == 0, result.err
    result = cello("compare", *base, tmp_path / "b", "--cells", "lstm,gru", "--seeds", 1)
    assert result.code == 0, result.err
    result = cello(
        "train", "classify", "--resume", tmp_path / "a", "--batch-size", 3, "--epochs", 2
    )
    assert "not --batch-size, --epochs;" in result.complaint
