from __future__ import annotations

import csv
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

Cello = Callable[..., Any]


@pytest.fixture(scope="module")
def table(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("data") / "sales.csv"
    days = np.datetime64("2020-01-01") + np.arange(200)
    wave = 10 + np.sin(2 * np.pi * np.arange(200) / 7)
    rows = [f"{day},{x:.4f},{day.astype(int) % 3}\n" for day, x in zip(days, wave, strict=True)]
    path.write_text("date,sold,promo\n" + "".join(rows))
    return path


@pytest.fixture(scope="module")
def model(table: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    from cello.cli.main import main

    folder = tmp_path_factory.mktemp("runs") / "sales"
    options = ["--future-columns", "promo", "--hidden", "8", "--epochs", "2", "--device", "cpu"]
    assert main([str(a) for a in ("train", "forecast", table, "--out", folder, *options)]) == 0
    return folder


def test_tables_of_forecasts_and_errors(
    cello: Cello, model: Path, table: Path, tmp_path: Path
) -> None:
    out, summary = tmp_path / "forecasts.csv", tmp_path / "errors.csv"
    result = cello("backtest", model, table, "--stride", "7", "--out", out, "--summary", summary)
    assert result.code == 0
    assert "test rows: 5 forecasts of 7 steps, 7 rows apart" in result.out
    assert "origins: 2020-06-08 to 2020-07-06" in result.out
    with out.open() as file:
        rows = list(csv.DictReader(file))
    assert len(rows) == 5 * 7
    assert {row["column"] for row in rows} == {"sold"}
    known = dict(line.split(",")[:2] for line in table.read_text().splitlines()[1:])
    assert all(float(row["actual"]) == float(known[row["date"]]) for row in rows)
    with summary.open() as file:
        errors = list(csv.DictReader(file))
    assert [row["step"] for row in errors] == [str(i) for i in range(8)]
    mae = np.mean([abs(float(row["forecast"]) - float(row["actual"])) for row in rows])
    assert float(errors[0]["mae"]) == pytest.approx(mae, rel=1e-6)
    shorter = cello("backtest", model, table, "--stride", "7", "--horizon", "2", "--part", "valid")
    assert "valid rows: 2 forecasts of 2 steps" in shorter.out


def test_predict_needs_what_is_known_ahead(
    cello: Cello, model: Path, table: Path, tmp_path: Path
) -> None:
    complaint = cello("predict", model, "--file", table).late_complaint
    assert (
        "a forecast needs promo in the 7 rows after 2020-07-18, and none of them is there"
        in complaint
    )
    days = np.datetime64("2020-07-19") + np.arange(7)
    planned = table.read_text() + "".join(f"{day},,1\n" for day in days)
    (tmp_path / "planned.csv").write_text(planned)
    result = cello("predict", model, "--file", tmp_path / "planned.csv")
    lines = result.out.splitlines()
    assert [line.split(",")[1] for line in lines[1:]] == [str(day) for day in days]
    again = cello("predict", model, stdin=planned.encode())
    assert again.out == result.out


def test_what_is_wrong(
    cello: Cello, model: Path, table: Path, toy_model: Path, tmp_path: Path
) -> None:
    for arguments, message in [
        ([toy_model, table], "the model is for the task 'classify', not 'forecast'"),
        ([model, table, "--horizon", "8"], "horizon: 8; expected 1 to 7"),
        ([model, table, "--part", "later"], "part: 'later' is not one of"),
        ([model, table, "--out", tmp_path], "is a folder"),
        ([model, table, "--out", tmp_path / "no" / "a.csv"], "no such folder"),
        ([model, tmp_path / "no.csv"], "no such file"),
        (
            [model, table, "--out", tmp_path / "a.csv", "--summary", tmp_path / "a.csv"],
            "out and summary are one file",
        ),
    ]:
        assert message in cello("backtest", *arguments).complaint


def test_origins_of_several_series(cello: Cello, tmp_path: Path) -> None:
    days = np.datetime64("2024-01-01") + np.arange(150)
    table = tmp_path / "two.csv"
    rows = [
        f"{day},{name},{k % 7}\n"
        for name in "ab"
        for k, day in enumerate(days[: 150 if name == "a" else 120])
    ]
    table.write_text("date,shop,sold\n" + "".join(rows))
    options = [
        "--series-column",
        "shop",
        "--hidden",
        "4",
        "--epochs",
        "1",
        "--window",
        "14",
        "--horizon",
        "3",
    ]
    assert cello("train", "forecast", table, "--out", tmp_path / "run", *options).code == 0
    result = cello("backtest", tmp_path / "run", table, "--part", "all", "--stride", "10")
    first, last = result.out.split("origins: ")[1].split(";")[0].split(" to ")
    assert first < last


LEAKY = """import torch


class Leaky(torch.nn.Module):
    def __init__(self, input_size):
        super().__init__()
        self.linear = torch.nn.Linear(input_size, 4)
        self.hidden_size = 4

    def forward(self, x, h):
        return 0.9 * h + torch.tanh(self.linear(x))
"""


def test_a_forecaster_with_an_own_cell(cello: Cello, table: Path, tmp_path: Path) -> None:
    code = tmp_path / "leaky.py"
    code.write_text(LEAKY)
    cell = ["--cell", f"{code}:Leaky"]
    options = ["--epochs", "1", *cell]
    assert cello("train", "forecast", table, "--out", tmp_path / "run", *options).code == 0
    assert "give the cell" in cello("backtest", tmp_path / "run", table).err
    assert cello("backtest", tmp_path / "run", table, *cell).code == 0
