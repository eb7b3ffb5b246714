"""Comparisons in Python: the list of cells, statistics, tables, matched sizes; every task."""

from __future__ import annotations

import math
import re
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest
import torch
from scipy import stats
from torch import Tensor, nn

from cello import nn as cello_nn
from cello import tasks
from cello.tasks import classify, compare, forecast, ngrams, summarize, tag
from cello.tasks.comparison_state import matched
from cello.tasks.curves import learning_curves, scores
from cello.tasks.errors import InputError
from cello.tasks.summary import table
from cello.tasks.variants import Variant, variants


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("lstm", [Variant("lstm", "lstm")]),
        (" lstm , gru ", [Variant("lstm", "lstm"), Variant("gru", "gru")]),
        ("a/mine.py:Mine", [Variant("Mine", "a/mine.py:Mine")]),
        (
            "my.own:Cell(a=-2.5, b=[1, (2)], c='x,y)', d=None),best one=gru(layers=2)",
            [
                Variant(
                    "Cell(a=-2.5, b=[1, (2)], c='x,y)', d=None)",
                    "my.own:Cell",
                    {"a": -2.5, "b": [1, 2], "c": "x,y)", "d": None},
                ),
                Variant("best one", "gru", {"layers": 2}),
            ],
        ),
        ("lstm(activation=hardtanh)", [
            Variant("lstm(activation=hardtanh)", "lstm", {"activation": "hardtanh"}),
        ]),
    ],
)  # fmt: skip
def test_list_of_cells(text: str, expected: list[Variant]) -> None:
    assert variants(text) == expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("", "'' is not a cell"),
        ("lstm,,gru", "'' is not a cell"),
        ("lstm(", "not closed in 'lstm('"),
        ("lstm)(", "is not a cell"),
        ("lstm('a)", "not closed"),
        ("lstm(2)", "an argument without a name"),
        ("lstm(*a)", "an argument without a name"),
        ("lstm(**a)", "an argument without a name"),
        ("lstm(a=1,a=2)", "an argument twice"),
        ("lstm(a=x+1)", "a in 'lstm(a=x+1)' is no number, word or list"),
        ("lstm(a={1})", "a in 'lstm(a={1})' is no number"),
        ("lstm(a=)", "cannot be read"),
        ("a=b=lstm", "is not a cell"),
        ("gru,lstm,gru", "'gru' is given twice; give one another name: other=gru"),
        ("a.py:X,b.py:X", "'X' is given twice"),
    ],
)
def test_what_is_no_list_of_cells(text: str, expected: str) -> None:
    with pytest.raises(InputError, match=re.escape(expected)):
        variants(text)


def test_cells_by_name_and_as_a_list() -> None:
    assert variants({"a": "lstm(layers=2)", "b": "lstm"}) == [
        Variant("a", "lstm", {"layers": 2}),
        Variant("b", "lstm"),
    ]
    assert variants(["gru", "x=lstm"]) == [Variant("gru", "gru"), Variant("x", "lstm")]
    with pytest.raises(InputError, match="there is none"):
        variants([])


def frame(tests: dict[str, list[float]], **columns: Any) -> pd.DataFrame:
    """Runs with these test scores; seeds count from 0."""
    rows = [
        {"cell": name, "seed": seed, "test": score}
        for name, found in tests.items()
        for seed, score in enumerate(found)
        if not math.isnan(score)
    ]
    runs = pd.DataFrame(rows).assign(
        valid=0.5, hidden=8, parameters=1234, train_seconds=2.0, predict_seconds=0.01,
        engine="native", error="", **columns,
    )  # fmt: skip
    runs.attrs.update(valid="accuracy", test="accuracy", higher_is_better=True)
    return runs


def test_summary_against_scipy_and_numpy() -> None:
    random = np.random.default_rng(0)
    a, b = random.normal(0.8, 0.02, 6), random.normal(0.82, 0.02, 6)
    lacking = b.copy()
    lacking[[1, 4]] = np.nan
    found = summarize(frame({"a": a.tolist(), "b": b.tolist(), "c": lacking.tolist()}))
    assert list(found.index) == ["a", "b", "c"]
    assert found.loc["b", "p"] == pytest.approx(stats.ttest_rel(b, a).pvalue)
    there = [0, 2, 3, 5]  # paired by seed, not by the order
    assert found.loc["c", "p"] == pytest.approx(stats.ttest_rel(b[there], a[there]).pvalue)
    assert found.loc["c", "difference"] == pytest.approx((b - a)[there].mean())
    assert found.loc["a", "test_std"] == pytest.approx(a.std(ddof=1))
    assert found.loc["c", "test_mean"] == pytest.approx(b[there].mean())
    assert found["runs"].tolist() == [6, 6, 4]
    assert math.isnan(found.loc["a", "p"])
    # Two means that differ by less than the t test of independent samples would see.
    assert found.loc["b", "p"] != pytest.approx(stats.ttest_ind(b, a).pvalue)


@pytest.mark.parametrize("other", [[0.5, 0.6, 0.7], [0.6, 0.7, 0.8], [0.9]])
def test_no_test_without_differences_that_vary(other: list[float]) -> None:
    """Of the same scores, of all shifted alike, and of a single pair."""
    found = summarize(frame({"a": [0.5, 0.6, 0.7], "b": other}))
    assert math.isnan(found.loc["b", "p"])


def test_runs_that_failed_do_not_count() -> None:
    runs = frame({"a": [0.5, 0.6], "b": [0.7, 0.9]})
    failed = {"cell": "c", "seed": 0, "error": "broken"}
    runs = pd.concat(
        [pd.DataFrame([failed]), runs, pd.DataFrame([{**failed, "cell": "a", "seed": 2}])]
    )
    found = summarize(runs)
    assert list(found.index) == ["a", "b"]
    assert found["runs"].tolist() == [2, 2]


def test_results_file_is_enough(tmp_path: Path) -> None:
    runs = frame({"a": [0.5, 0.6], "b": [0.7, 0.9]})
    runs.to_csv(tmp_path / "results.csv", index=False)
    again = summarize(pd.read_csv(tmp_path / "results.csv"))
    pd.testing.assert_frame_equal(again, summarize(runs))
    pd.testing.assert_frame_equal(summarize(tmp_path / "results.csv"), again)
    runs = frame({"null": [0.5, 0.6], "1": [0.7, 0.9]})  # as pandas reads them, no names
    runs.to_csv(tmp_path / "results.csv", index=False)
    pd.testing.assert_frame_equal(summarize(tmp_path / "results.csv"), summarize(runs))


def test_tables_hold_any_name() -> None:
    odd = "50%_of {x} & y$ #1 \\z ~^ <a|b>"
    found = table(frame({odd: [0.81234, 0.8], "plain": [0.9, 0.1]}))
    text = found.latex()
    body = [line for line in text.splitlines() if line.endswith(r"\\")]
    assert len(body) == 3
    columns = re.search(r"\\begin\{tabular\}\{(\w+)\}", text)
    assert columns is not None
    for line in body:
        bare = re.sub(r"\\[&%$#_{}]", "", line)  # written out
        assert bare.count("&") == len(columns[1]) - 1
        assert not set(bare) & set("%#_~^<>|±–")
        assert bare.count("$") % 2 == 0
        assert bare.count("{") == bare.count("}")
    assert text.count(r"\toprule") == text.count(r"\midrule") == text.count(r"\bottomrule") == 1
    assert r"0.8062 $\pm$ 0.0087" in text
    lines = found.markdown().splitlines()
    cells = [len(re.findall(r"(?<!\\)\|", line)) for line in lines[:4]]
    assert cells == [len(columns[1]) + 1] * 4
    assert "| 0.8062 ± 0.0087 |" in lines[2]


@pytest.mark.parametrize(
    ("score", "expected"), [(0.98765, "0.9877"), (12.3456, "12.35"), (123456.7, "123457")]
)
def test_four_digits(score: float, expected: str) -> None:
    found = table(frame({"a": [score]}))
    assert found.rows[0][4] == expected


def test_matched_sizes() -> None:
    """Of an LSTM's 4(H(F + H) + 2H), against all sizes there are."""

    def lstm(hidden: int) -> int:
        return sum(p.numel() for p in cello_nn.LSTM(7, hidden).parameters())

    for target in (40, 100, 5000, 100_000):
        best = min(range(1, 200), key=lambda h: abs(lstm(h) - target))
        for start in (1, 30, 128):
            assert matched(lstm, target, start) == best
    assert matched(lambda h: 10, 11, 8) is None
    assert matched(lambda h: 10 + h, 5, 8) is None  # whose smallest is much too large


def test_cells_have_about_as_many_parameters(reviews: Path, tmp_path: Path) -> None:
    options = classify.Options(hidden=40, embedding=4, epochs=1, device="cpu")
    cells = "lstm, gru, rnn, mgu, own=rnn(hidden=3)"
    runs = compare(reviews, tmp_path, cells, seeds=1, options=options, match_parameters=True)
    first, *matching, own = runs["parameters"]
    assert runs["hidden"].iloc[0] == 40
    assert all(abs(count / first - 1) < 0.03 for count in matching)
    assert all(a < b for a, b in pairwise(runs["hidden"].iloc[[0, 1, 3, 2]]))
    assert runs["hidden"].iloc[4] == 3
    assert own < first / 2
    saved = classify.load(tmp_path / "runs" / "rnn-0").model
    assert sum(p.numel() for p in saved.parameters()) == runs["parameters"].iloc[2]


@pytest.fixture(scope="module")
def reviews(tmp_path_factory: pytest.TempPathFactory) -> Path:
    words = {"fine": "pos", "dull": "neg", "good": "pos", "poor": "neg"}
    path = tmp_path_factory.mktemp("data") / "reviews.csv"
    rows = [f"{word} film {n},{label}" for n in range(20) for word, label in words.items()]
    path.write_text("\n".join(["text,label", *rows]))
    return path


@pytest.fixture(scope="module")
def sentences(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "tags.tsv"
    blocks = [f"the\tDET\ncat{n}\tNOUN\n{w}\tVERB\n" for n in range(20) for w in ("sat", "ran")]
    path.write_text("\n".join(blocks))
    return path


@pytest.fixture(scope="module")
def waves(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "waves.csv"
    times = pd.date_range("2024-01-01", periods=400, freq="h")
    values = np.sin(np.arange(400) / 24 * 2 * np.pi)
    pd.DataFrame({"time": times, "load": values}).to_csv(path, index=False)
    return path


TASKS: dict[str, tuple[Any, str, tuple[str, str]]] = {
    "classify": (classify.Options(hidden=4, epochs=1), "reviews", ("accuracy", "accuracy")),
    "ngrams": (ngrams.Options(hidden=4, epochs=1), "reviews", ("accuracy", "accuracy")),
    "tag": (tag.Options(hidden=4, epochs=1, layers=1), "sentences", ("accuracy", "accuracy")),
    "forecast": (
        forecast.Options(hidden=4, epochs=1, loss="mae", horizon=4, window=24),
        "waves",
        ("MAE", "MSE"),
    ),
}


@pytest.mark.parametrize("task", TASKS)
def test_every_task(task: str, tmp_path: Path, request: pytest.FixtureRequest) -> None:
    options, data, (valid, test) = TASKS[task]
    source = request.getfixturevalue(data)
    runs = compare(source, tmp_path, "lstm,rnn", task=task, seeds=2, options=options)
    assert runs["error"].tolist() == [""] * 4
    # A forecaster's single step into the future, with gradients, runs on torch's function.
    assert {name for names in runs["engine"] for name in names.split(", ")} <= {"native", "vendor"}
    assert np.isfinite(runs[["valid", "test"]]).all(axis=None)
    assert runs.attrs == {
        "valid": valid, "test": test, "higher_is_better": valid == "accuracy",
    }  # fmt: skip
    assert f"test {test}" in (tmp_path / "table.tex").read_text()
    assert runs["hidden"].tolist() == [4] * 4


class Leaky(nn.Module):
    """A cell of one's own."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.linear = nn.Linear(input_size, hidden_size)

    def forward(self, x: Tensor, h: Tensor) -> Tensor:
        return torch.tanh(0.5 * h + self.linear(x))


def test_classes_as_cells(reviews: Path, tmp_path: Path) -> None:
    options = classify.Options(hidden=4, epochs=1)
    runs = compare(reviews, tmp_path, {"a": "lstm", "b": Leaky}, seeds=1, options=options)
    assert runs["cell"].tolist() == ["a", "b"]
    again = compare(reviews, tmp_path, [Leaky], seeds=1, options=options)
    assert again["cell"].tolist() == ["a", "b", "Leaky"]
    assert again["test"].iloc[1] == again["test"].iloc[2]


def test_the_split_is_the_same_for_all(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Read once; every run gets the very same rows."""
    seen: list[Any] = []
    read, evaluate = classify.Classifier.read, classify.Classifier.evaluate

    def counted(source: str, options: Any) -> Any:
        seen.append("read")
        return read(source, options)

    def noted(self: Any, part: Any, *arguments: Any, **keywords: Any) -> Any:
        seen.append([row.place for row in part])
        return evaluate(self, part, *arguments, **keywords)

    monkeypatch.setattr(classify.Classifier, "read", counted)
    monkeypatch.setattr(classify.Classifier, "evaluate", noted)
    options = classify.Options(hidden=4, epochs=1)
    compare(reviews, tmp_path, ["lstm", "gru"], seeds=2, options=options)
    first, *parts = seen
    assert first == "read"
    assert len(parts) == 4
    assert all(part == parts[0] for part in parts)


def test_python_and_a_task_without_cells(reviews: Path, tmp_path: Path) -> None:
    with pytest.raises(InputError, match="seeds: 0 is not positive"):
        compare(reviews, tmp_path, "lstm", seeds=0)
    with pytest.raises(InputError, match="task: 'foo' is not one of classify, forecast"):
        compare(reviews, tmp_path, "lstm", task="foo")
    with pytest.raises(AttributeError, match="no attribute 'comparee'"):
        getattr(tasks, "comparee")  # noqa: B009  # mypy knows that there is none


def test_a_run_that_fails_loses_no_other_one(
    reviews: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It is said with its message, it does not count, and it is tried again."""
    run = classify.Classifier.run.__func__  # type: ignore[attr-defined]  # of a class method

    def broken(cls: Any, data: Any, config: Any, *arguments: Any, **keywords: Any) -> Any:
        if config.options.cell == "gru" and config.options.seed == 1:
            raise RuntimeError("a gate\nis stuck")
        return run(cls, data, config, *arguments, **keywords)

    options = classify.Options(hidden=4, epochs=1)
    with monkeypatch.context() as patched:
        patched.setattr(classify.Classifier, "run", classmethod(broken))
        runs = compare(reviews, tmp_path, "gru,lstm", seeds=2, options=options)
    assert runs["error"].tolist() == ["", "RuntimeError: a gate is stuck", "", ""]
    assert summarize(runs)["runs"].to_dict() == {"gru": 1, "lstm": 2}
    assert "Without a finished run" not in (tmp_path / "table.md").read_text()
    error = tmp_path / "runs/gru-1/error.txt"
    assert "a gate\nis stuck" in error.read_text()
    assert "RuntimeError: a gate is stuck" in (tmp_path / "results.csv").read_text()
    again = compare(reviews, tmp_path, "gru,lstm", seeds=2, options=options)
    assert again["error"].tolist() == [""] * 4
    assert not error.exists()
    pd.testing.assert_series_equal(again["test"].iloc[[0, 2, 3]], runs["test"].iloc[[0, 2, 3]])


def test_pictures_show_mean_and_band() -> None:
    rows = [
        {"cell": cell, "seed": seed, "epoch": epoch, "loss": loss / epoch, "valid": loss}
        for cell, seed, loss, last in (("a", 0, 1.0, 3), ("a", 1, 2.0, 2), ("b", 0, 4.0, 3))
        for epoch in range(1, last + 1)
    ]
    figure = learning_curves(pd.DataFrame(rows), "accuracy")
    left, right = figure.axes
    a, b = left.lines
    assert np.asarray(a.get_xdata()).tolist() == [1, 2]  # up to where the first of its runs ends
    assert np.asarray(a.get_ydata()).tolist() == [1.5, 0.75]
    assert np.asarray(b.get_ydata()).tolist() == pytest.approx([4, 2, 4 / 3])
    assert len(left.collections) == 1  # one run has no band
    heights = left.collections[0].get_datalim(left.transData).intervaly
    assert heights[1] == pytest.approx(1.5 + np.std([1, 2], ddof=1))
    assert (right.get_ylabel(), right.get_xlabel()) == ("validation accuracy", "epoch")
    assert [line.get_color() for line in left.lines] == [line.get_color() for line in right.lines]

    runs = frame({"a": [0.5, 0.7], "b": [0.9]})
    (axes,) = scores(runs, "MSE", False).axes
    assert axes.get_xlabel() == "test MSE (lower is better)"
    assert [label.get_text() for label in axes.get_yticklabels()] == ["a", "b"]
    dots = [line for line in axes.lines if line.get_marker() == "o"]
    assert [np.asarray(line.get_xdata()).tolist() for line in dots] == [[0.5, 0.7], [0.9]]
    means = [line for line in axes.lines if line.get_marker() == "|"]
    assert [float(np.asarray(line.get_xdata())[0]) for line in means] == pytest.approx([0.6, 0.9])


def test_data_in_memory_is_known_again(reviews: Path, tmp_path: Path) -> None:
    data, options = pd.read_csv(reviews), classify.Options(hidden=4, epochs=1)
    first = compare(data, tmp_path / "frame", "gru", seeds=1, options=options)
    written = compare(reviews, tmp_path / "file", "gru", seeds=1, options=options)
    assert first["test"].tolist() == written["test"].tolist()
    more = compare(data, tmp_path / "frame", "gru, lstm", seeds=1, options=options)
    assert more["cell"].tolist() == ["gru", "lstm"]
    with pytest.raises(InputError, match="DataFrame: the data has changed since"):
        compare(data.iloc[1:], tmp_path / "frame", "gru", seeds=1, options=options)


def test_a_cell_without_a_finished_run_is_told_below_the_table() -> None:
    runs = frame({"a": [0.5, 0.6], "b": [0.7, 0.9]})
    failed = pd.DataFrame([{"cell": "mine", "seed": 0, "error": "ValueError: stuck"}])
    every = pd.concat([runs, failed])
    every.attrs = runs.attrs
    assert table(every).markdown().rstrip().endswith("Without a finished run: mine.")
    assert "Without" not in table(runs).markdown()
