from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

Cello = Callable[..., Any]


def test_all_rows_and_a_part(cello: Cello, toy_model: Path, toy_csv: Path, tmp_path: Path) -> None:
    result = cello("evaluate", toy_model, toy_csv, "--out", tmp_path / "report")
    assert result.code == 0
    report = json.loads((tmp_path / "report" / "report.json").read_text())
    assert report["rows"] == 160
    trained = json.loads((toy_model / "report.json").read_text())
    result = cello("evaluate", toy_model, toy_csv, "--part", "test", "--out", tmp_path / "test")
    assert result.code == 0
    held_out = json.loads((tmp_path / "test" / "report.json").read_text())
    assert held_out["rows"] == trained["rows"]
    assert held_out["confusion"] == trained["confusion"]


def test_figures_against_the_predictions(cello: Cello, toy_model: Path, tmp_path: Path) -> None:
    rows = [("pos", "fine"), ("neg", "fine"), ("neg", "dull"), ("neg", "awful"), ("pos", "poor")]
    data = tmp_path / "x.csv"
    data.write_text("label,text\n" + "".join(f"{y},the film was {x}\n" for y, x in rows))
    cello("evaluate", toy_model, data, "--out", tmp_path)
    report = json.loads((tmp_path / "report.json").read_text())
    lines = cello("predict", toy_model, "--file", data).out.splitlines()
    predicted = [line.split("\t")[0] for line in lines]
    assert predicted == ["pos", "pos", "neg", "neg", "neg"]
    # By hand: neg has 2 of 3 found and 2 of 3 right, pos has 1 of 2 and 1 of 2.
    assert report["confusion"] == [[2, 1], [1, 1]]
    assert report["accuracy"] == 3 / 5
    assert report["majority"] == 3 / 5
    assert abs(report["macro_f1"] - (2 / 3 + 1 / 2) / 2) < 1e-12
    assert report["classes"]["neg"]["rows"] == 3
