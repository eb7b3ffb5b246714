from __future__ import annotations

import io
import sys
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

import pytest

pytest.importorskip("lightning", reason="needs the packages of cello[tasks]")
pytest.importorskip("typer", reason="needs the packages of cello[tasks]")


@dataclass
class Result:
    code: int
    out: str
    err: str

    @property
    def complaint(self) -> str:
        """The one line that wrong input gets."""
        assert self.out == ""
        return self._line()

    @property
    def late_complaint(self) -> str:
        """The one line that wrong input gets after the answers to what came before it."""
        assert self.out != ""
        return self._line()

    def _line(self) -> str:
        assert self.code == 2, (self.code, self.err)
        assert self.err.count("\n") == 1, self.err
        assert self.err.startswith("cello: ")
        return self.err.strip()


Cello = Callable[..., Result]


@pytest.fixture
def cello(capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Cello:
    """Run a command in this process, as `cello ...` would run it."""
    from cello.cli.main import main

    def run(*arguments: object, stdin: bytes | None = None) -> Result:
        if stdin is not None:
            monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(stdin)))
        capsys.readouterr()
        code = main([str(a) for a in arguments])
        captured = capsys.readouterr()
        return Result(code, captured.out, captured.err)

    return run


SMALL = ["--hidden", "8", "--embedding", "8", "--epochs", "3", "--device", "cpu"]


@pytest.fixture
def small() -> list[str]:
    """Options that make a run short."""
    return SMALL


def toy_rows(count: int = 160) -> list[tuple[str, str]]:
    """Texts whose class is told by one word."""
    rows = []
    for i in range(count):
        good = i % 2 == 0
        word = ("fine", "great", "lovely")[i % 3] if good else ("dull", "awful", "poor")[i % 3]
        filler = " ".join(("the", "film", "was", "long", "and")[: i % 5 + 1])
        rows.append(("pos" if good else "neg", f"{filler} {word} {filler}"))
    return rows


@pytest.fixture(scope="session")
def toy_csv(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("toy") / "toy.csv"
    path.write_text(
        "label,text\n" + "".join(f'{label},"{text}"\n' for label, text in toy_rows()),
        encoding="utf-8",
    )
    return path


@pytest.fixture(scope="session")
def toy_model(toy_csv: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A model of texts; tests that change it work on a copy."""
    from cello.cli.main import main

    folder = tmp_path_factory.mktemp("model") / "toy"
    arguments = ["train", toy_csv, "--out", folder, *SMALL, "--epochs", "30", "--patience", "30"]
    assert main([str(a) for a in (*arguments, "--learning-rate", "0.02")]) == 0
    return folder
