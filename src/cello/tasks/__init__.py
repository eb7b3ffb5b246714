"""Whole jobs made of Cello's layers: data, model, training, report.

A task is a package with a line in :data:`TASKS`. Its module ``options`` has its ``Options``, from which
the command line is made without torch; its predictor, :class:`cello.tasks.task.Predictor`, has the
rest. The modules here need the packages of the extra ``tasks``: ``pip install ".[tasks]"`` in Cello's
checkout.
"""

from __future__ import annotations

from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cello.tasks.task import Predictor

TASKS = {
    "classify": "Classifier",
    "forecast": "Forecaster",
    "language": "LanguageModel",
    "ngrams": "EnsembleClassifier",
    "tag": "Tagger",
}
"""The tasks, which are packages here, and the names of their predictors in them."""


def options_of(name: str) -> Any:
    """Return the class of a task's options."""
    return import_module(f"cello.tasks.{name}.options").Options


def find(name: str) -> type[Predictor[Any, Any, Any]]:
    """Return the predictor of a task."""
    kind: type[Predictor[Any, Any, Any]]
    kind = getattr(import_module(f"cello.tasks.{name}.predictor"), TASKS[name])
    return kind


def lazily(module: str, names: list[str]) -> Callable[[str], Any]:
    """Return a package's ``__getattr__`` that imports a module when a name of it is asked for.

    So the help of the command line, which reads the options in the package, is shown without torch.

    Args:
        module: where the names are.
        names: the names.
    """

    def attribute(name: str) -> Any:
        if name not in names:
            package = module.rpartition(".")[0]
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(module), name)

    return attribute
