"""What a model got right on some data: figures, picture, file."""

from __future__ import annotations

import json
from abc import ABC, abstractmethod
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import IO, TYPE_CHECKING, Any, ClassVar

from cello.tasks.files import REPORT, written_beside

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(kw_only=True)
class Report(ABC):
    """How good a model is on some data.

    Attributes:
        data: what it was judged on, for the eye.
        seconds: how long that took.
        training: the course of the training; filled after training.
    """

    data: str
    seconds: float
    training: dict[str, Any] = field(default_factory=dict)

    picture: ClassVar[str]
    """The name of the picture's file."""
    measure: ClassVar[str] = "score"
    """What `score` is, for the eye."""

    @property
    @abstractmethod
    def score(self) -> float:
        """The figure that stands for all."""

    @abstractmethod
    def draw(self, stream: IO[bytes]) -> None:
        """Draw the picture, in PNG."""

    def save(self, folder: Path) -> None:
        """Write ``report.json`` and the picture to a folder."""
        with written_beside(folder / self.picture) as stream:
            self.draw(stream)
        with written_beside(folder / REPORT, "w") as stream:
            content = {**asdict(self), "measure": self.measure, "score": self.score}
            json.dump(content, stream, indent=2, ensure_ascii=False, allow_nan=False)

    @abstractmethod
    def show(self, console: Console) -> None:
        """Print the figures."""
