"""Model folders of the oldest format that is read predict what they did when they were written."""

from __future__ import annotations

import json
import math
import shutil
from pathlib import Path

import pytest

from cello.tasks.classify import Classifier
from cello.tasks.errors import InputError
from cello.tasks.forecast import Forecaster
from cello.tasks.tag import Tagger

STORED = Path(__file__).parents[1] / "data"


def test_a_classifier() -> None:
    found = Classifier.load(STORED / "classifier_format_2").predict(["a fine film", "a dull film"])
    assert [one.probabilities["pos"] for one in found] == pytest.approx(
        [0.5054110884666443, 0.4901004433631897], abs=1e-5
    )
    assert [one.label for one in found] == ["pos", "neg"]


def test_a_tagger() -> None:
    (found,) = Tagger.load(STORED / "tagger_format_2").predict([["the", "dog", "sleeps"]])
    assert list(found.tags) == ["DET", "NOUN", "VERB"]


def test_a_forecaster(tmp_path: Path) -> None:
    rows = [
        f"2024-01-{1 + i // 24:02d} {i % 24:02d}:00,{10 + 5 * math.sin(i * 2 * math.pi / 12):.3f}"
        for i in range(120)
    ]
    (tmp_path / "load.csv").write_text("\n".join(["time,load", *rows]))
    (found,) = Forecaster.load(STORED / "forecaster_format_2").predict(tmp_path / "load.csv")
    assert found.values.ravel().tolist() == pytest.approx([7.224127, 7.250559, 7.230768], abs=1e-4)


def test_a_folder_of_an_older_format_says_what_to_do(tmp_path: Path) -> None:
    folder = tmp_path / "model"
    shutil.copytree(STORED / "classifier_format_2", folder)
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | {"format": 1}))
    with pytest.raises(InputError, match="has format 1; this version of Cello reads 2"):
        Classifier.load(folder)
