from __future__ import annotations

import csv
import gzip
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cello.tasks.classify import Options
from cello.tasks.classify.data import Source, read, whole
from cello.tasks.classify.rows import Part, Row
from cello.tasks.classify.splits import split
from cello.tasks.errors import InputError

ODD = ["plain", 'with "quotes"', "two\nlines", "a,b", "next\u0085line \u2028 \x1c", "x" * 200_000]


def test_csv_gives_back_what_the_csv_module_wrote(tmp_path: Path) -> None:
    path = tmp_path / "x.csv"
    with path.open("w", newline="", encoding="utf-8") as stream:
        csv.writer(stream).writerows([["label", "text"], *([str(i), t] for i, t in enumerate(ODD))])
    rows = read(str(path), Options()).parts["train"]
    assert [row.input for row in rows] == ODD
    assert [row.label for row in rows] == [str(i) for i in range(len(ODD))]
    # The third text holds a line end, so that the rows after it are one line further down.
    assert [row.place.rpartition(" ")[2] for row in rows] == ["2", "3", "4", "6", "7", "8"]


def test_jsonl_and_tsv(tmp_path: Path) -> None:
    (tmp_path / "x.jsonl").write_text(
        "".join(json.dumps({"text": t, "label": 1.0, "more": None}) + "\n" for t in ODD)
    )
    rows = read(str(tmp_path / "x.jsonl"), Options()).parts["train"]
    assert [row.input for row in rows] == ODD
    assert {row.label for row in rows} == {"1"}
    (tmp_path / "x.tsv").write_text('\ufefflabel\ttext\n0\t"tis open\n\n1\tsay "no"\n', "utf-8")
    rows = read(str(tmp_path / "x.tsv"), Options()).parts["train"]
    assert [row.input for row in rows] == ['"tis open', 'say "no"']
    options = Options(text_column="1", label_column="0")
    rows = read(str(tmp_path / "x.tsv"), options).parts["train"]
    assert [row.label for row in rows] == ["label", "0", "1"]


def test_folder_of_text_files(tmp_path: Path) -> None:
    for name in ("train/pos", "train/neg", "train/unsup", "test/pos", "test/neg"):
        (tmp_path / name).mkdir(parents=True)
        for i in range(2):
            (tmp_path / name / f"{i}.txt").write_text(f"{name} {i}\nmore\u0085", "utf-8")
    source = read(str(tmp_path), Options())
    assert source.format == "folder"
    assert {part: len(rows) for part, rows in source.parts.items()} == {"train": 4, "test": 4}
    assert [row.label for row in source.parts["test"]] == ["neg", "neg", "pos", "pos"]
    assert source.parts["train"][0].input == "train/neg 0\nmore\u0085"
    (tmp_path / "train" / "pos" / "1.txt").write_bytes(b"a\nb\xff")
    with pytest.raises(InputError, match=r"1\.txt, line 2: not UTF-8 at byte 3"):
        read(str(tmp_path), Options())


def test_folder_of_classes(tmp_path: Path) -> None:
    """As load_files of scikit-learn and text_dataset_from_directory of Keras read it."""
    from sklearn.datasets import load_files

    for name in ("pos", "neg", "unsup", ".cache"):
        (tmp_path / name).mkdir()
        for i in range(3):
            (tmp_path / name / f"{i}.txt").write_text(f"{name} {i}", "utf-8")
    source = read(str(tmp_path), Options())
    assert (source.format, list(source.parts)) == ("folder", ["train"])
    theirs = load_files(tmp_path, categories=["neg", "pos"], encoding="utf-8", shuffle=False)
    assert [row.input for row in source.parts["train"]] == theirs.data
    assert source.parts["train"].labels == [theirs.target_names[i] for i in theirs.target]
    for part in ("train", "test"):
        (tmp_path / "parts" / part).mkdir(parents=True)
        (tmp_path / "parts" / part / "0.txt").write_text("text")
    with pytest.raises(InputError, match=r"no files .*train/CLASS/\*.txt or .*/CLASS/\*.txt"):
        read(str(tmp_path / "parts"), Options())  # parts without classes are no classes


def test_dataset_of_the_hub_from_a_local_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    datasets = pytest.importorskip("datasets")
    monkeypatch.setattr(datasets.config, "HF_DATASETS_CACHE", str(tmp_path / "cache"))
    features = datasets.Features(
        {"text": datasets.Value("string"), "label": datasets.ClassLabel(names=["bad", "good"])}
    )
    data = tmp_path / "data"
    for part in ("train", "test"):
        rows = {"text": [f"{part} {i}" for i in range(6)], "label": [0, 1] * 3}
        table = datasets.Dataset.from_dict(rows, features=features)
        table.to_parquet(data / "data" / f"{part}-00000-of-00001.parquet")
    source = read(str(data), Options())
    assert source.format == "hub"
    assert [row.label for row in source.parts["train"]] == ["bad", "good"] * 3
    assert [row.input for row in source.parts["test"]] == [f"test {i}" for i in range(6)]
    with pytest.raises(InputError, match="no column 'movie'; there are: text, label"):
        read(str(data), Options(group_column="movie"))
    train = {"text": ["a", None, "c"], "label": [0, 1, -1], "movie": ["m", "n", "o"]}
    columns = datasets.Features({**features, "movie": datasets.Value("string")})
    table = datasets.Dataset.from_dict(train, features=columns)
    table.to_parquet(tmp_path / "groups" / "train" / "x.parquet")
    source = read(str(tmp_path / "groups"), Options(group_column="movie"))
    assert [row.group for row in source.parts["train"]] == ["m"]
    assert source.notes[0].startswith(f"{tmp_path / 'groups'}: 2 rows are left out")
    (tmp_path / "empty").mkdir()
    with pytest.raises(InputError, match="cannot be loaded as a dataset"):
        read(str(tmp_path / "empty"), Options())


def test_digits_are_the_images_and_their_split_is_fixed() -> None:
    from sklearn.datasets import load_digits

    first, second = (read("digits", Options(seed=seed)) for seed in (0, 1))
    assert first.fingerprint() == second.fingerprint()
    rows = [*first.parts["train"], *first.parts["test"]]
    images = load_digits().images
    assert len(rows) == len(images) == 1797
    for row in rows:
        assert isinstance(row.input, np.ndarray)
        assert (row.input == images[int(row.place.split()[-1])]).all()
    assert set(Counter(row.label for row in first.parts["test"]).values()) <= {35, 36, 37}


def make(count: int, groups: int = 1, classes: int = 3) -> Source:
    rows = [
        Row(f"text {i}", str(i % classes), f"g{i * 7 % groups}", f"row {i}") for i in range(count)
    ]
    return Source("made", "table", {"train": Part(rows)})


def test_split_is_stratified_seeded_and_complete() -> None:
    source = make(300)
    parts = split(source, Options(), 0)
    again, other = split(source, Options(), 0), split(source, Options(), 1)
    assert [list(part) for part in parts] == [list(part) for part in again]
    assert [list(part) for part in parts] != [list(part) for part in other]
    assert [len(part) for part in parts] == [243, 27, 30]
    assert sorted(row.place for part in parts for row in part) == sorted(
        row.place for row in whole(source)
    )
    assert set(Counter(parts.test.labels).values()) == {10}


def test_split_keeps_groups_together() -> None:
    parts = split(make(600, groups=60), Options(group_column="g"), 0)
    groups = [{row.group for row in part} for part in parts]
    assert not groups[0] & groups[1]
    assert not groups[0] & groups[2]
    assert not groups[1] & groups[2]
    assert len(groups[0] | groups[1] | groups[2]) == 60
    assert 40 <= len(parts.test) <= 80
    with pytest.raises(InputError, match="too few rows to split off a test part"):
        split(make(600, groups=5), Options(group_column="g"), 0)


@pytest.mark.parametrize("fraction", [0.01, 0.1, 0.3, 0.4, 0.5])
def test_fractions_are_kept_by_groups_of_any_size(fraction: float) -> None:
    rows = [
        Row(f"text {group} {i}", str((group + i) % 3), f"g{group}", "")
        for group in range(300)
        for i in range(group % 17 + 1)
    ]
    options = Options(group_column="g", valid_fraction=fraction, test_fraction=fraction)
    train, valid, test = split(Source("made", "table", {"train": Part(rows)}), options, 0)
    assert len(test) / len(rows) == pytest.approx(fraction, abs=0.01)
    assert len(valid) / (len(train) + len(valid)) == pytest.approx(fraction, abs=0.01)
    for part in (train, valid, test):
        for count in Counter(part.labels).values():
            assert count == pytest.approx(len(part) / 3, rel=0.05, abs=3)


@pytest.mark.parametrize("group_column", [None, "g"])
def test_the_largest_seed_and_the_fewest_rows(group_column: str | None) -> None:
    options = Options(seed=2**31 - 1, group_column=group_column)
    assert len(split(make(300, groups=60), options, 0).test) == pytest.approx(30, abs=5)
    with pytest.raises(InputError, match="seed"):
        Options(seed=2**31)
    rows = [*make(300, groups=60).parts["train"], Row("text", "rare", "g1", "")]
    with pytest.raises(InputError, match=r"\(301 rows; 1 with the label 'rare', where"):
        split(Source("made", "table", {"train": Part(rows)}), options, 0)


def test_each_part_needs_a_row_of_each_class() -> None:
    with pytest.raises(InputError, match=r"\(20 rows; a row of each of 3 classes is needed"):
        split(make(20), Options(), 0)


def test_parts_that_exist_are_kept(tmp_path: Path) -> None:
    source = read("digits", Options())
    assert split(source, Options(), 0).test is source.parts["test"]
    held_out = make(9).parts["train"]
    (tmp_path / "test.csv").write_text(
        "label,text\n" + "".join(f"{row.label},{row.input}\n" for row in held_out)
    )
    (tmp_path / "train.csv").write_text("label,text\n" + "0,a\n1,b\n2,c\n" * 10)
    options = Options(test_data=str(tmp_path / "test.csv"))
    parts = split(read(str(tmp_path / "train.csv"), options), options, 0)
    assert [row.input for row in parts.test] == [row.input for row in held_out]
    assert (len(parts.train), len(parts.valid)) == (27, 3)
    (tmp_path / "test.csv").write_text("label,text\n7,a\n")
    with pytest.raises(InputError, match="label '7' is not in the training part"):
        split(read(str(tmp_path / "train.csv"), options), options, 0)


def test_parts_that_are_not_split_need_no_groups(tmp_path: Path) -> None:
    rows = "".join(f"{'xy'[i % 2]},text {i},g{i // 2}\n" for i in range(60))
    (tmp_path / "x.csv").write_text("label,text,movie\n" + rows)
    (tmp_path / "t.csv").write_text("text,label\none,x\ntwo,y\n")
    options = Options(group_column="movie", test_data=str(tmp_path / "t.csv"))
    parts = split(read(str(tmp_path / "x.csv"), options), options, 0)
    assert [row.input for row in parts.test] == ["one", "two"]
    assert not {row.group for row in parts.train} & {row.group for row in parts.valid}
    with pytest.raises(InputError, match=r"t.csv: no column 'movie'"):
        read(str(tmp_path / "t.csv"), Options(group_column="movie"))


def test_rows_that_lack_something_are_left_out_and_counted(tmp_path: Path) -> None:
    lines = ["a,x,g", " ,x,g", "<br />,y,g", "b,,g", "c,y,", "d,y,g"]
    (tmp_path / "x.csv").write_text("text,label,movie\n" + "\n".join(lines))
    source = read(str(tmp_path / "x.csv"), Options())
    assert [row.input for row in source.parts["train"]] == ["a", "c", "d"]
    name = str(tmp_path / "x.csv")
    assert source.notes == [
        f"{name}: 3 rows are left out where something is missing "
        f"({name}, line 3 has no text, {name}, line 5 has no label)"
    ]
    source = read(name, Options(group_column="movie"))
    assert [row.input for row in source.parts["train"]] == ["a", "d"]
    assert f"{name}, line 6 has no group" in source.notes[0]
    (tmp_path / "y.jsonl").write_text('{"text": null, "label": 1}\n{"text": "a", "label": null}\n')
    with pytest.raises(InputError, match="2 rows are left out where something is missing"):
        read(str(tmp_path / "y.jsonl"), Options())
    (tmp_path / "z.jsonl").write_text('{"text": [], "label": 1}\n{"text": [[1]], "label": 1}\n')
    source = read(str(tmp_path / "z.jsonl"), Options())
    assert len(source.parts["train"]) == 1
    assert "line 1 has no sequence" in source.notes[0]


ENCODINGS = ("gb18030", "gbk", "big5", "shift_jis", "utf-16", "utf-16-le", "utf-32", "utf-8-sig")


@pytest.mark.parametrize("encoding", ENCODINGS)
@pytest.mark.parametrize("packed", [False, True])
def test_tables_in_other_encodings(tmp_path: Path, encoding: str, packed: bool) -> None:
    # In UTF-16 the character U+0A0A has the bytes of two line ends.
    wide = "" if encoding in ENCODINGS[1:4] else "\u0a0a"
    content = f'label;text\r\n好;"今日;天氣{wide}"\r\n大;"文"\n'.encode(encoding)
    path = tmp_path / ("x.csv.gz" if packed else "x.csv")
    path.write_bytes(gzip.compress(content) if packed else content)
    rows = read(str(path), Options(encoding=encoding, delimiter=";")).parts["train"]
    assert [(row.label, row.input) for row in rows] == [("好", f"今日;天氣{wide}"), ("大", "文")]
    assert [row.place.rpartition(" ")[2] for row in rows] == ["2", "3"]


def test_the_mark_of_utf_16_is_enough(tmp_path: Path) -> None:
    for encoding in ("utf-16-le", "utf-16-be"):
        (tmp_path / "x.tsv").write_bytes("\ufefflabel\ttext\nä\tß\n".encode(encoding))
        for options in (Options(), Options(encoding=encoding), Options(encoding="utf-16")):
            (row,) = read(str(tmp_path / "x.tsv"), options).parts["train"]
            assert (row.label, row.input) == ("ä", "ß")


@pytest.mark.parametrize(
    ("encoding", "content", "expected"),
    [
        ("utf-8", "label,text\nü,caf\xe9\n".encode("cp1252"), "line 2: not UTF-8 at byte 11"),
        ("utf-8", b"label,text\na,caf\xc3", "line 2: not UTF-8 at byte 16"),
        ("gb18030", b"label,text\na,b\na,b\xff\n", "line 3: not GB18030 at byte 18"),
        ("ascii", "label,text\na,ü\n".encode(), "line 2: not ASCII at byte 13"),
        ("utf-16-le", "label,text\na,b\n".encode("utf-16-le") + b"\0", "line 3: not UTF-16-LE at"),
        ("utf-16", b"label,text\na,b\n", "not UTF-16 at byte 0"),
    ],
)
def test_what_cannot_be_decoded(
    tmp_path: Path, encoding: str, content: bytes, expected: str
) -> None:
    (tmp_path / "x.csv").write_bytes(content)
    with pytest.raises(InputError, match=f"x.csv, .*{expected} .*; --encoding says how it is"):
        read(str(tmp_path / "x.csv"), Options(encoding=encoding))


def test_delimiters(tmp_path: Path) -> None:
    for given, mark in ((";", ";"), ("|", "|"), ("tab", "\t"), ("\\t", "\t"), ("\t", "\t")):
        (tmp_path / "x.csv").write_text(f'label{mark}text\na{mark}"b, c"\n')
        (row,) = read(str(tmp_path / "x.csv"), Options(delimiter=given)).parts["train"]
        assert row.input == "b, c"
        with pytest.raises(InputError, match=r"no column 'text'; there .*--delimiter says what"):
            read(str(tmp_path / "x.csv"), Options())
    (tmp_path / "y.csv").write_text("label;text\n")  # columns by number: nothing names them
    with pytest.raises(InputError, match="no column '1'; there are: 0; --delimiter says what"):
        read(str(tmp_path / "y.csv"), Options(text_column="1", label_column="0"))
    (tmp_path / "y.csv").write_text("review\na\n")
    with pytest.raises(InputError, match=r"no column 'text'; there are: review$"):
        read(str(tmp_path / "y.csv"), Options())
    (tmp_path / "x.tsv").write_text('label;text\na;"b" \n')  # in a .tsv nothing is quoted
    (row,) = read(str(tmp_path / "x.tsv"), Options(delimiter=";")).parts["train"]
    assert row.input == '"b" '
    with pytest.raises(InputError, match=r"'y'; there are: label, text$"):
        read(str(tmp_path / "x.tsv"), Options(delimiter=";", label_column="y"))


@pytest.mark.parametrize(
    ("options", "expected"),
    [
        ({"delimiter": ";;"}, "delimiter: ';;' is not one character"),
        ({"delimiter": ""}, "delimiter: '' is not one character"),
        ({"delimiter": '"'}, "is not one character"),
        ({"encoding": "klingon"}, "encoding: 'klingon' is not known; choose from utf-8"),
        ({"encoding": "base64"}, "encoding: 'base64' is not known"),
        ({"encoding": ""}, "encoding: '' is not known"),
    ],
)
def test_wrong_encodings_and_delimiters(options: dict[str, str], expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Options(**options)  # type: ignore[arg-type]


def test_auto_and_forced_formats(tmp_path: Path) -> None:
    with pytest.raises(InputError, match="no such file"):
        read(str(tmp_path / "missing"), Options())
    with pytest.raises(InputError, match="no such file"):
        read("digits", Options(format="table"))
    with pytest.raises(InputError, match="no files"):
        read(str(tmp_path), Options(format="folder"))
    path = tmp_path / "x.csv"
    path.write_text("label,text\na,b\n")
    assert read(str(path), replace(Options(), format="auto")).format == "table"
