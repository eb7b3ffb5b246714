"""The commands of the guide's page on an LSTM by hand, one after the other, as its reader gives them."""

from __future__ import annotations

import re
import shlex
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pandas as pd
import pytest

Cello = Callable[..., Any]

PAGE = (Path(__file__).parents[2] / "docs/guide/own-lstm.md").read_text("utf-8")


def programs_with(*parts: str) -> str:
    """The programs of the page that have one of these parts."""
    found = re.findall(r"^```python\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE)
    return "\n\n".join(one for one in found if any(part in one for part in parts))


def commands() -> Iterator[list[str]]:
    for block in re.findall(r"^```console\n(.*?)^```", PAGE, re.DOTALL | re.MULTILINE):
        for line in block.replace("\\\n", "").splitlines():
            yield shlex.split(line)


@pytest.mark.slow
def test_every_command(cello: Cello, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", [*sys.path])
    head = "import torch\nfrom torch import nn\n\n\n"  # as the page says
    Path("by_hand.py").write_text(head + programs_with("class H"), "utf-8")
    namespace: dict[str, Any] = {}
    exec(programs_with("import csv", "def review", "def one_table"), namespace)
    errors, answers = {}, []
    for program, *words in commands():
        assert program == "cello"
        result = cello(*words)
        assert result.code == 0, result.err
        if "--out" in words:
            errors[words[words.index("--out") + 1]] = result.err
        elif words[0] == "predict":
            answers.append(result.out.split()[0])
    assert answers == ["neg"]
    assert "\nHandLSTM runs on the native engine\n" in errors["runs/hand"]
    assert "\nHardLSTM runs on the native engine\n" in errors["runs/hard"]
    for folder, limited in (("runs/cells", False), ("runs/imdb", True)):
        runs = pd.read_csv(Path(folder, "results.csv"))
        assert runs.cell.tolist() == ["lstm"] * 2 + ["HandLSTM"] * 2 + ["HardLSTM"] * 2
        assert (runs.engine == "native").all()
        assert Path(folder, "learning_curves.png").is_file()
        assert limited or (runs.test > 0.95).all()

    reviews = {"neg/0_2": "it was\nweak", "neg/1_1": 'so "dull"', "pos/0_9": "fine, great"}
    for name, text in reviews.items():
        file = Path("aclImdb/train", f"{name}.txt")
        file.parent.mkdir(parents=True, exist_ok=True)
        file.write_text(text, "utf-8")
    namespace["one_table"]("aclImdb/train", "imdb.csv")
    table = pd.read_csv("imdb.csv")
    assert table.columns.tolist() == ["text", "label"]
    assert table.values.tolist() == [[text, name[:3]] for name, text in reviews.items()]
