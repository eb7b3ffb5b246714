"""The tasks that there are, and models of any of them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from rich.console import Console

from cello.tasks import task
from cello.tasks.classify import Classifier
from cello.tasks.errors import InputError
from cello.tasks.folder import CONFIG, task_of
from cello.tasks.forecast import Forecaster
from cello.tasks.tag import Tagger
from cello.tasks.task import Predictor, Report

TASKS: dict[str, type[Predictor[Any, Any]]] = {
    "classify": Classifier,
    "forecast": Forecaster,
    "tag": Tagger,
}


def load(folder: Path, *, device: str = "auto") -> Predictor[Any, Any]:
    """Load a model of any task; see :func:`cello.tasks.task.load`."""
    return task.load(_kind(folder), folder, device=device)


def resume(folder: Path, *, console: Console | None = None) -> Report:
    """Continue a run of any task; see :func:`cello.tasks.task.resume`."""
    report: Report = task.resume(_kind(folder), folder, console=console)
    return report


def _kind(folder: Path) -> type[Predictor[Any, Any]]:
    name = task_of(folder)
    if name not in TASKS:
        raise InputError(
            f"{folder / CONFIG}: {name!r} is not a task; there are: {', '.join(TASKS)}"
        )
    return TASKS[name]
