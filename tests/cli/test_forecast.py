from __future__ import annotations

import csv
import gzip
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Cello = Callable[..., Any]
SMALL = ["--hidden", "8", "--epochs", "2", "--device", "cpu"]


def rows(count: int) -> list[str]:
    days = np.arange("2020-01-01", np.datetime64("2020-01-01") + count, dtype="datetime64[D]")
    wave = 10 + np.sin(2 * np.pi * np.arange(count) / 7)
    return ["date,sold,note\n", *(f"{d},{x:.4f},hm\n" for d, x in zip(days, wave, strict=True))]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sales.csv.gz"
    with gzip.open(path, "wt") as stream:
        stream.writelines(rows(200))
    return path


@pytest.fixture(scope="module")
def model(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cello.cli.main import main

    folder = tmp_path_factory.mktemp("runs") / "sales"
    arguments = ["train", "forecast", table, "--out", folder, *SMALL]
    assert main([str(a) for a in arguments]) == 0
    return folder


def test_train_prints_the_report(cello: Cello, table: Path, tmp_path: Path) -> None:
    rows_ = ["--train-rows", "100", "--valid-rows", "30", "--test-rows", "30"]
    arguments = ["--horizon", "7", "--window", "21", *rows_, *SMALL]
    result = cello("train", "forecast", table, "--out", tmp_path / "run", *arguments)
    assert result.code == 0
    report = json.loads((tmp_path / "run" / "report.json").read_text())
    assert report["windows"] == 30 - 7 + 1
    assert f"MSE {report['mse']:.4f}" in result.out
    assert "seasonal naive: MSE 0.0000" in result.out
    assert "no better than: seasonal naive" in result.out  # a wave that repeats to the digit
    assert "80% interval" in result.out
    again = cello("evaluate", tmp_path / "run", table, "--part", "test", "--device", "cpu")
    assert f"MSE {report['mse']:.4f}" in again.out
    whole = cello("evaluate", tmp_path / "run", table, "--part", "all", "--out", tmp_path / "all")
    assert whole.code == 0
    figures = json.loads((tmp_path / "all" / "report.json").read_text())
    assert figures["windows"] == 200 - 21 - 7 + 1


def test_other_data_is_judged_whole(
    cello: Cello, table: Path, model: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def judged(data: Path, *arguments: str) -> tuple[str, dict[str, Any]]:
        out = tmp_path / "report"
        result = cello("evaluate", model, data, "--out", out, *arguments)
        assert result.code == 0
        return " ".join(result.out.split()), json.loads((out / "report.json").read_text())

    own, figures = judged(table)
    trained = json.loads((model / "report.json").read_text())
    assert (figures["windows"], figures["mse"]) == (trained["windows"], trained["mse"])
    assert figures["rows"] == 40
    assert "test rows: 34 forecasts of 7 steps" in own
    assert "judged: 40 rows, 2020-06-09 to 2020-07-18" in own
    window = figures["window"]
    # Another file: every row that has a window before it, so that one row more is one forecast more.
    other = tmp_path / "other.csv"
    for count in (window + 7, window + 8, 150):
        other.write_text("".join(rows(count)))
        text, figures = judged(other)
        assert figures["windows"] == count - window - 7 + 1
        assert figures["rows"] == count - window
        assert f"other.csv, all rows: {figures['windows']} forecasts of 7 steps" in text
        first, last = (np.datetime64("2020-01-01") + i for i in (window, count - 1))
        assert (figures["first"], figures["last"]) == (str(first), str(last))
        assert f"judged: {count - window} rows, {first} to {last}; each" in text
        assert f"made from the {window} rows before it" in text
    text, figures = judged(other, "--part", "test")
    assert figures["rows"] == 30
    # The run's own rows under another name are its own; so is its file from elsewhere.
    other.write_text("".join(rows(200)))
    assert judged(other)[1]["rows"] == 40
    monkeypatch.chdir(table.parent)
    assert judged(Path(table.name))[1]["rows"] == 40
    # Its file with further rows is still its own: the last fifth was never learnt from.
    kept = table.read_bytes()
    table.write_bytes(gzip.compress("".join(rows(300)).encode()))
    try:
        assert judged(table)[1]["rows"] == 60
    finally:
        table.write_bytes(kept)


def test_large_and_small_numbers_are_printed_in_full(
    cello: Cello, table: Path, tmp_path: Path
) -> None:
    """Forecasts of the same wave, moved and stretched, are the same ones moved and stretched."""
    days = np.arange("2020-01-01", "2020-07-19", dtype="datetime64[D]")
    wave = np.round(np.sin(2 * np.pi * np.arange(200) / 7), 4)
    found = {}
    for name, factor, offset, places in (
        ("plain", 1, 0, 4), ("far", 1, 10**9, 4), ("large", 10**9, 0, 0), ("small", 1e-9, 0, 13),
        ("times", 100, 17 * 10**8, 2),
    ):  # fmt: skip
        path = tmp_path / f"{name}.csv"
        lines = (f"{d},{offset + factor * x:.{places}f}\n" for d, x in zip(days, wave, strict=True))
        path.write_text("date,x\n" + "".join(lines))
        run = tmp_path / name
        assert cello("train", "forecast", path, "--out", run, *SMALL).code == 0
        printed = list(csv.DictReader(cello("predict", run, "--file", path).out.splitlines()))
        texts = [row["forecast"] for row in printed]
        assert len({*texts}) == len(texts) == 7, texts
        assert not any("e" in text for text in texts) or name == "small"
        exact = cello("predict", run, "--file", path, "--json").out.splitlines()
        for row, line in zip(printed, map(json.loads, exact), strict=True):
            for column in ("forecast", "lower_80", "upper_95"):
                assert float(row[column]) == pytest.approx(line[column], rel=6e-9, abs=0)
                assert float(row[column]) == pytest.approx(line[column], abs=1e-7 * factor)
        found[name] = (np.array(texts, float) - offset) / factor
    for name, values in found.items():
        np.testing.assert_allclose(values, found["plain"], atol=2e-3, err_msg=name)


def test_predict_prints_what_follows(
    cello: Cello, table: Path, model: Path, tmp_path: Path
) -> None:
    result = cello("predict", model, "--file", table)
    assert (result.code, result.err) == (
        0,
        "cello: 95% interval: not calibrated: 14 validation forecasts are too few, 95% needs 19\n",
    )
    answers = list(csv.DictReader(result.out.splitlines()))
    assert [row["date"] for row in answers][:2] == ["2020-07-19", "2020-07-20"]
    assert len(answers) == 7
    for row in answers:
        assert row["column"] == "sold"
        low, high = float(row["lower_80"]), float(row["upper_80"])
        assert low <= high
        assert 5 < float(row["forecast"]) < 15
    text = "".join(rows(200)).encode()
    assert cello("predict", model, stdin=text).out == result.out
    assert cello("predict", model, "--file", table, "--output", tmp_path / "out.csv").code == 0
    assert (tmp_path / "out.csv").read_text() == result.out
    (first, *_) = cello("predict", model, "--file", table, "--json").out.splitlines()
    assert json.loads(first)["date"] == "2020-07-19"


def test_date_and_time_in_two_columns(cello: Cello, tmp_path: Path) -> None:
    hours = np.arange("2020-01-01", 240, dtype="datetime64[h]").astype(str)
    lines = [f"{h[:10]},{h[11:]}:00,{i % 24}\n" for i, h in enumerate(hours)]
    path, run = tmp_path / "load.csv", tmp_path / "run"
    path.write_text("date,time,load\n" + "".join(lines))
    assert cello("train", "forecast", path, "--out", run, *SMALL).code == 0
    answers = cello("predict", run, "--file", path).out.splitlines()
    assert answers[0].startswith("column,date,time,forecast,")
    assert [row.split(",")[:3] for row in answers[1:3]] == [
        ["load", "2020-01-11", "00:00"], ["load", "2020-01-11", "01:00"]
    ]  # fmt: skip
    (first, *_) = cello("predict", run, "--file", path, "--json").out.splitlines()
    assert (json.loads(first)["date"], json.loads(first)["time"]) == ("2020-01-11", "00:00")
    assert cello("evaluate", run, path).code == 0


def test_options_come_from_yaml_too(cello: Cello, table: Path, tmp_path: Path) -> None:
    (tmp_path / "options.yaml").write_text("horizon: 3\nwindow: 9\nmixed: 'yes'\nlevels: '0.5'\n")
    arguments = ["--options", tmp_path / "options.yaml", *SMALL]
    result = cello("train", "forecast", table, "--out", tmp_path / "run", *arguments)
    assert result.code == 0
    assert "forecasts of 3 steps" in " ".join(result.out.split())
    assert "50% interval" in result.out


@pytest.mark.parametrize(
    ("line", "text", "message"),
    [
        (30, "2020-01-29,nil\n", "line 31: 2 columns, not 3"),
        (30, "2020-01-30,nil,hm\n", "line 31: sold is 'nil', not a number"),
        (30, "2020-01-30,1e39,hm\n", "line 31: sold is '1e39', not a number"),
        (30, "2020-01-30,,hm\n", "line 31: sold is missing; train with missing=forward"),
        (30, "2020-01-05,1,hm\n", "line 31: 2020-01-05 does not come after 2020-01-29 in line 30"),
        (30, "", "line 31: a row is missing between 2020-01-29 and 2020-01-31, at steps of 1 day"),
        (30, "30/1/2020,1,hm\n", "line 31: the time '30/1/2020' is not of the form %Y-%m-%d"),
        (0, "sold,note\n", "line 2: 3 columns, not 2"),
    ],
)
def test_broken_files_get_one_line(
    cello: Cello, model: Path, tmp_path: Path, line: int, text: str, message: str
) -> None:
    lines = rows(200)
    lines[line] = text
    path = tmp_path / "broken.csv"
    path.write_text("".join(lines))
    complaint = cello("train", "forecast", path, "--out", tmp_path / "run", *SMALL).complaint
    assert f"broken.csv, {message}" in complaint
    assert not (tmp_path / "run").exists()
    # What is further back than a forecast looks is of no matter, if the row can be read at all.
    result = cello("predict", model, "--file", path)
    assert result.code == (2 if "columns" in message or "not a number" in message else 0)


def test_gaps_are_filled_where_asked(cello: Cello, tmp_path: Path) -> None:
    lines = rows(200)
    del lines[100:103]
    path = tmp_path / "gaps.csv"
    path.write_text("".join(lines))
    arguments = ["--out", tmp_path / "run", *SMALL]
    assert "3 rows are missing" in cello("train", "forecast", path, *arguments).complaint
    assert cello("train", "forecast", path, *arguments, "--missing", "forward").code == 0
    assert cello("predict", tmp_path / "run", "--file", path).code == 0


def test_wrong_requests_get_one_line(
    cello: Cello, table: Path, model: Path, tmp_path: Path
) -> None:
    out = ["--out", tmp_path / "run"]
    wrong = cello("train", "forecast", table, *out, "--target", "bought")
    assert "target: 'bought' is not one of the columns read: sold" in wrong.complaint
    assert "no such file" in cello("train", "forecast", tmp_path / "none.csv", *out).complaint
    assert "no column 'shop'" in cello(
        "train", "forecast", table, *out, "--series-column", "shop"
    ).complaint  # fmt: skip
    late = cello("train", "forecast", table, *out, "--season", "1000", *SMALL)
    assert "200 rows, where one forecast of 12 steps from its past needs 1,012" in late.complaint
    assert not (tmp_path / "run").exists()
    short = tmp_path / "short.csv"
    short.write_text("".join(rows(10)))
    assert "short.csv: 10 rows, where a split" in cello("train", "forecast", short, *out).complaint
    assert "--file history.csv" in cello("predict", model, "some text").complaint
    result = cello("predict", model, "--file", short)
    assert (result.code, result.out.count("\n")) == (2, 1)
    assert "10 rows, where a forecast needs" in result.err
    assert "text-column: the task forecast has no such option" in cello(
        "evaluate", model, table, "--text-column", "x"
    ).complaint  # fmt: skip


def test_a_table_without_times(cello: Cello, tmp_path: Path) -> None:
    table = tmp_path / "plain.csv"
    table.write_text("x,y\n" + "".join(f"{i % 7},{i % 5}\n" for i in range(120)))
    complaint = cello("train", "forecast", table, "--out", tmp_path / "run", *SMALL).complaint
    assert "no column of times found among x, y" in complaint
    assert "time-column row counts the rows" in complaint
    options = ["--time-column", "row", "--season", "7", *SMALL]
    assert cello("train", "forecast", table, "--out", tmp_path / "run", *options).code == 0
    lines = cello("predict", tmp_path / "run", "--file", table).out.splitlines()
    assert lines[0].startswith("column,row,forecast")
    assert [line.split(",")[:2] for line in lines[1:8]] == [["x", str(120 + i)] for i in range(7)]
    again = cello("predict", tmp_path / "run", "--file", table, "--json").out.splitlines()
    assert json.loads(again[7])["row"] == "120"
