from __future__ import annotations

import csv
import json
from collections import Counter
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from cello.tasks.classify import Options
from cello.tasks.errors import InputError
from cello.tasks.sources import Part, Row, Source, read, whole
from cello.tasks.splits import split

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
