"""What a damaged model folder says: every fact of every task's model, with values of other kinds."""

from __future__ import annotations

import copy
import json
from collections.abc import Iterator
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any, TypedDict

import pytest

from cello.tasks import classify, forecast, tag
from cello.tasks.errors import InputError
from cello.tasks.folder import fits
from cello.tasks.task import Predictor, Request

SMALL = {"epochs": 1, "hidden": 2}
GONE = object()
OTHERS = [GONE, None, -1, 0, 3, 10**30, 1.5, float("nan"), "", "%", True, [], ["x"], [[1]], {}]


class Inner(TypedDict):
    months: int


class Outer(TypedDict):
    labels: list[str]
    width: int | None
    inner: Inner


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        ({"labels": [], "width": None, "inner": {"months": 1}}, True),
        ({"labels": ["x"], "width": 3, "inner": {"months": 1}}, True),
        ({"labels": ["x"], "width": True, "inner": {"months": 1}}, False),
        ({"labels": ["x", None], "width": 3, "inner": {"months": 1}}, False),
        ({"labels": "x", "width": 3, "inner": {"months": 1}}, False),
        ({"labels": ["x"], "width": 3, "inner": {"months": 1.0}}, False),
        ({"labels": ["x"], "width": 3, "inner": {}}, False),
        ({"labels": ["x"], "width": 3}, False),
        ({"labels": ["x"], "width": 3, "inner": {"months": 1}, "more": 1}, False),
        (None, False),
    ],
)
def test_fits(value: Any, expected: bool) -> None:
    assert fits(value, Outer) == expected


@pytest.fixture(scope="module")
def models(tmp_path_factory: pytest.TempPathFactory) -> dict[str, tuple[Path, Request]]:
    """A model of each task, and what it can answer."""
    folder = tmp_path_factory.mktemp("models")
    rows = [f"{word} film {i},{label}" for i in range(12) for word, label in (("a", 0), ("b", 1))]
    (folder / "texts.csv").write_text("\n".join(["text,label", *rows]))
    (folder / "words.txt").write_text("the\tD\ncat\tN\nsat\tV\n\n" * 12)
    start = datetime(2020, 1, 1)
    lines = [f"{start + timedelta(hours=i)},{i % 24}" for i in range(200)]
    (folder / "hours.csv").write_text("\n".join(["time,x", *lines]))
    classify.train(folder / "texts.csv", folder / "classify", classify.Options(**SMALL))
    tag.train(folder / "words.txt", folder / "tag", tag.Options(**SMALL))
    options = forecast.Options(**SMALL, window=24, horizon=4)
    forecast.train(folder / "hours.csv", folder / "forecast", options)
    return {
        "classify": (folder / "classify", Request(texts=["a film"])),
        "tag": (folder / "tag", Request(texts=["the cat"])),
        "forecast": (folder / "forecast", Request(file=folder / "hours.csv")),
    }


def places(value: Any, path: tuple[Any, ...] = ()) -> Iterator[tuple[Any, ...]]:
    if path:
        yield path
    keys = value if isinstance(value, dict) else range(len(value) if isinstance(value, list) else 0)
    for key in keys:
        yield from places(value[key], (*path, key))


def complaint(folder: Path, request: Request) -> list[str]:
    try:
        list(Predictor.load(folder).answer(request))
    except InputError as error:
        return [str(error)]
    return []


@pytest.mark.parametrize("name", ["classify", "tag", "forecast"])
def test_a_damaged_fact_is_one_line_or_does_no_harm(
    name: str, models: dict[str, tuple[Path, Request]]
) -> None:
    folder, request = models[name]
    config = folder / "config.json"
    whole = config.read_text()
    content = json.loads(whole)
    refused: list[str] = []
    try:
        for *path, last in places({key: content[key] for key in ("facts", "assets")}):
            for other in OTHERS:
                damaged = copy.deepcopy(content)
                place = damaged
                for key in path:
                    place = place[key]
                if other is GONE:
                    del place[last]
                else:
                    place[last] = other
                config.write_text(json.dumps(damaged))
                refused += complaint(folder, request)
    finally:
        config.write_text(whole)
    assert [line for line in refused if "\n" in line] == []
    assert len(refused) > 30
    assert list(Predictor.load(folder).answer(request))
