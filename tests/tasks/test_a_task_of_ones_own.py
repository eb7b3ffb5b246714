"""What CONTRIBUTING says of a task is all there is to one: the line in the table, and a package."""

from __future__ import annotations

import json
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import IO, Any, ClassVar, TypedDict

import pytest
import torch
from rich.console import Console
from torch import Tensor, nn
from torchmetrics import MeanSquaredError

from cello.cli import train
from cello.cli.main import main
from cello.tasks import TASKS
from cello.tasks.batches import Examples
from cello.tasks.folder import Assets
from cello.tasks.options import TrainingOptions, option
from cello.tasks.report import Report
from cello.tasks.task import Data, Predictor, Request
from cello.tasks.trainer import Job


@dataclass(frozen=True, kw_only=True)
class Options(TrainingOptions):
    purpose: ClassVar[str] = "Learn the level of some numbers."
    sources: ClassVar[str] = "A file with a number a line."

    start: float = option(0.0, "Where to begin.", low=-10.0, high=10.0)


@dataclass(kw_only=True)
class LevelReport(Report):
    picture: ClassVar[str] = "level.txt"

    error: float

    @property
    def score(self) -> float:
        return self.error

    def draw(self, stream: IO[bytes]) -> None:
        stream.write(b"a picture")

    def show(self, console: Console) -> None:
        console.print(f"error {self.error:.6f}")


class Facts(TypedDict):
    count: int


class Level(nn.Module):
    def __init__(self, start: float) -> None:
        super().__init__()
        self.level = nn.Parameter(torch.tensor(start))


class Leveller(Predictor[Sequence[float], LevelReport, Options]):
    name = "level"
    options = Options
    report = LevelReport
    facts = Facts
    model: Level

    @classmethod
    def read(cls, source: str, options: Options) -> Data[Sequence[float]]:
        text = Path(source).read_text()
        x = [float(line) for line in text.split()]
        digest = sha256(text.encode()).hexdigest()
        return Data(source, "lines", x, x, x, digest)

    @classmethod
    def describe(
        cls, data: Data[Sequence[float]], options: Options
    ) -> tuple[Options, dict[str, Any], Assets]:
        return options, {"count": len(data.train)}, {"note.txt": "kept"}

    def build(self, assets: Assets) -> nn.Module:
        assert assets == {"note.txt": "kept"}
        return Level(self._options.start)

    def _loss(self, batch: Tensor) -> tuple[Tensor, int]:
        return ((batch - self.model.level) ** 2).sum(), len(batch)

    def job(self, data: Data[Sequence[float]]) -> Job:
        def judge(metric: Any, batch: Tensor) -> tuple[Tensor, int]:
            metric.update(self.model.level.expand(len(batch)), batch)
            return self._loss(batch)

        examples = Examples(data.train, [1] * len(data.train))
        return Job(
            self.model, self._loss, judge, MeanSquaredError(), "MSE", False,
            examples, examples, torch.tensor,
        )  # fmt: skip

    def evaluate(
        self, part: Sequence[float], data: str = "data", batch_size: int = 64
    ) -> LevelReport:
        error = abs(float(self.model.level.detach()) - sum(part) / len(part))
        return LevelReport(data=data, seconds=0.0, error=error)

    def evaluate_source(
        self, source: str, part: str | None = None, batch_size: int = 64, **changes: Any
    ) -> LevelReport:
        return self.evaluate(self.read(source, self._options).test, source)

    def answer(self, request: Request) -> Iterator[str]:
        yield f"{float(self.model.level.detach()):.3f}"


def test_it(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    package, options, predictor = (ModuleType(f"level{name}") for name in ("", ".o", ".p"))
    options.Options = Options  # type: ignore[attr-defined]
    predictor.Leveller = Leveller  # type: ignore[attr-defined]
    modules = {"": package, ".options": options, ".predictor": predictor}
    for name, module in modules.items():
        monkeypatch.setitem(sys.modules, f"cello.tasks.level{name}", module)
    monkeypatch.setitem(TASKS, "level", "Leveller")
    before = list(train.app.registered_commands)
    train.add("level")
    try:
        numbers, run = tmp_path / "numbers.txt", tmp_path / "run"
        numbers.write_text("1\n2\n3\n4\n")
        words = ["--epochs", "200", "--learning-rate", "0.1", "--batch-size", "4", "--start", "5"]
        command = ["train", "level", str(numbers), "--out", str(run), "--device", "cpu", *words]
        assert main([*command, "--patience", "300", "--threads", "1"]) == 0
        assert main(["train", "level", "--start", "11", str(numbers), "--out", "x"]) == 2
        assert main(["evaluate", str(run), str(numbers)]) == 0
        assert main(["predict", str(run), "anything"]) == 0
        assert main(["page", str(run), "a text", "--out", str(tmp_path / "p.html")]) == 2
        shown = capsys.readouterr()
        level = Predictor.load(run).model.level.item()
    finally:
        train.app.registered_commands[:] = before
    assert level == pytest.approx(2.5, abs=0.01)  # the mean of the numbers
    assert f"{level:.3f}\n" in shown.out
    assert "start: 11.0 is not between -10.0 and 10.0" in shown.err
    assert "the model does not read texts" in shown.err
    assert {path.name for path in run.iterdir()} == {
        "config.json", "options.yaml", "model.safetensors", "note.txt", "report.json", "level.txt",
        "history.csv", "curves.png",
    }  # fmt: skip
    assert json.loads((run / "config.json").read_text())["facts"] == {"count": 4}
