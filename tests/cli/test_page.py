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
