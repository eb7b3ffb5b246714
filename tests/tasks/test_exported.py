"""Taggers and forecasters as ONNX files, run by the functions of `examples/exported_models.py`."""

from __future__ import annotations

import importlib.util
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch

from cello.tasks import forecast, tag
from cello.tasks.errors import InputError
from cello.tasks.tag.crf import CRF, ForwardBackward

pytest.importorskip("onnxruntime")
pytest.importorskip("onnxscript")
pandas = pytest.importorskip("pandas")

SMALL: Any = {"hidden": 8, "epochs": 1, "device": "cpu"}


@pytest.fixture(scope="module")
def alone() -> Any:
    """The functions that need neither torch nor Cello."""
    path = Path(__file__).parents[2] / "examples" / "exported_models.py"
    spec = importlib.util.spec_from_file_location("exported_models", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


WORDS = ["the", "dog", "barks", "A", "bird", "sings", "antidisestablishmentarianism", "!"]


@pytest.mark.parametrize("members", [1, 2])
@pytest.mark.parametrize("output", ["crf", "linear"])
def test_a_tagger(alone: Any, output: str, members: int, tmp_path: Path) -> None:
    generator = np.random.default_rng(0)
    sentences = [[str(w) for w in generator.choice(WORDS, n % 6 + 1)] for n in range(60)]
    tags = [[f"{len(word) % 3}{word[0].isupper()}" for word in one] for one in sentences]
    options = tag.Options(output=output, members=members, longest_word=12, **SMALL)
    tag.train((sentences, tags), tmp_path / "run", options)
    model = tag.load(tmp_path / "run", device="cpu")
    form, _ = model.export(tmp_path / "model.onnx")
    assert form.outputs == ("tags", "probabilities")
    some = [*sentences[:6], ["unknown", "WORDS", "dog"]]
    expected = model.predict(some)
    tags, shares = alone.tag(tmp_path / "model.onnx", some)
    assert tags == [one.tags for one in expected]
    for share, one in zip(shares, expected, strict=True):
        np.testing.assert_allclose(share, one.probabilities, rtol=1e-4, atol=1e-5)


def test_both_passes_are_those_of_the_field():
    """Against its gradient, and against Viterbi's algorithm step by step."""
    torch.manual_seed(0)
    crf = CRF(5).double()
    for parameter in crf.parameters():
        torch.nn.init.normal_(parameter)
    emissions, lengths = torch.randn(7, 4, 5, dtype=torch.float64), torch.tensor([7, 1, 3, 6])
    inside = torch.arange(7)[:, None] < lengths
    with torch.no_grad():
        sums = ForwardBackward(crf, is_sum=True)(emissions, lengths).softmax(2) * inside[..., None]
        bests = ForwardBackward(crf, is_sum=False)(emissions, lengths).argmax(2) * inside
    torch.testing.assert_close(sums, crf.marginals(emissions, lengths))
    assert torch.equal(bests, crf.best(emissions, lengths))


def table(days: int) -> Any:
    """Two shops, whose numbers are large beside what changes in them."""
    times = np.arange("2020-01-01", np.datetime64("2020-01-01") + days, dtype="datetime64[D]")
    generator, shops = np.random.default_rng(0), []
    for k, shop in enumerate(("north", "south")):
        wave = 100 * np.sin(2 * np.pi * np.arange(days) / 7)
        columns = {
            "sold": 1e6 + wave + generator.normal(0, 5, days),
            "temperature": generator.normal(20, 5, days),
            "promotion": generator.integers(0, 2, days).astype(float),
        }
        facts = {"date": times, "shop": shop, "size": str(k + 1), "kind": "xy"[k]}
        shops.append(pandas.DataFrame({**facts, **columns}))
    return pandas.concat(shops)


KINDS = {
    "plain": {"columns": "sold,temperature,promotion", "calendar": False, "levels": ""},
    "intervals": {"columns": "sold,temperature,promotion", "members": 2},
    "known ahead": {
        "columns": "sold,temperature", "future_columns": "promotion", "normalize": "window",
        "levels": "0.8",
    },
    "static": {
        "columns": "sold,temperature", "future_columns": "promotion",
        "static_columns": "size,kind", "mixed": "yes",
    },
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
def test_a_forecaster(alone: Any, kind: str, tmp_path: Path) -> None:
    data, options = table(300), KINDS[kind]
    named: Any = {"target": "sold", "time_column": "date", "series_column": "shop"}
    made = forecast.Options(horizon=6, window=20, **named, **options, **SMALL)  # type: ignore[arg-type]
    forecast.train(data, tmp_path / "run", made)
    model = forecast.load(tmp_path / "run", device="cpu")
    model.export(tmp_path / "model.onnx")
    ahead, static = options.get("future_columns"), options.get("static_columns")
    for shop, rows in data.groupby("shop"):
        known, later = rows.iloc[:200], rows.iloc[200:206]
        _, facts = alone.opened(tmp_path / "model.onnx")
        found = alone.forecast(
            tmp_path / "model.onnx",
            shop,
            known[facts["columns"]].to_numpy(float),
            rows["date"].to_numpy()[:206].astype("datetime64[us]"),
            later[[ahead]].to_numpy(float) if ahead else None,
            [rows[column].iloc[0] for column in str(static).split(",")] if static else (),
        )
        if ahead:
            known = pandas.concat([known, later.assign(sold=np.nan, temperature=np.nan)])
        (answer,) = model.predict(known)
        np.testing.assert_allclose(found[0], answer.values, rtol=1e-9)
        for k, bounds in enumerate(answer.intervals.values()):
            for part, expected in zip(found[1:], bounds, strict=True):
                np.testing.assert_allclose(part[..., k], expected, rtol=1e-9)


def test_a_task_without_a_form_says_so() -> None:
    from cello.tasks.task import Predictor

    with pytest.raises(InputError, match="a model of own has no form in ONNX"):
        Predictor.exportable(SimpleNamespace(name="own"))  # type: ignore[arg-type]
