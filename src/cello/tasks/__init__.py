"""Whole jobs made of Cello's layers: data, model, training, report.

Example::

    from cello.tasks import Classifier, ClassifierOptions

    report = Classifier.train("reviews.csv", "runs/reviews", ClassifierOptions(hidden=64))
    prediction = Classifier.load("runs/reviews").predict("a fine film")

A task is a package with a line in :data:`TASKS`. Its module ``options`` has its ``Options``, from which
the command line is made without torch; its predictor, :class:`cello.tasks.task.Predictor`, has the
rest. Training needs the packages of the extra ``tasks``: ``pip install ".[tasks]"`` in Cello's checkout.
Prediction needs those of the extra ``predict``: numpy, safetensors and tokenizers.
"""

from __future__ import annotations

import sys
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from cello.tasks import classify, forecast, language, ngrams, tag
    from cello.tasks.classify import Classifier
    from cello.tasks.classify import Options as ClassifierOptions
    from cello.tasks.comparison import compare, summarize
    from cello.tasks.errors import InputError
    from cello.tasks.forecast import Forecaster
    from cello.tasks.forecast import Options as ForecasterOptions
    from cello.tasks.language import LanguageModel
    from cello.tasks.language import Options as LanguageModelOptions
    from cello.tasks.ngrams import EnsembleClassifier
    from cello.tasks.ngrams import Options as EnsembleClassifierOptions
    from cello.tasks.tag import Options as TaggerOptions
    from cello.tasks.tag import Tagger
    from cello.tasks.task import Predictor

__all__ = [
    "TASKS", "Classifier", "ClassifierOptions", "EnsembleClassifier", "EnsembleClassifierOptions",
    "Forecaster", "ForecasterOptions", "InputError", "LanguageModel", "LanguageModelOptions",
    "Predictor", "Tagger", "TaggerOptions",
    "classify", "compare", "forecast", "language", "ngrams", "summarize", "tag",
]  # fmt: skip

TASKS = {
    "classify": "Classifier",
    "forecast": "Forecaster",
    "language": "LanguageModel",
    "ngrams": "EnsembleClassifier",
    "tag": "Tagger",
}
"""The tasks, which are packages here, and the names of their predictors in them."""


def __getattr__(name: str) -> Any:
    """Return what `__all__` names; it is imported when it is asked for."""
    if name not in __all__:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    if name in TASKS:
        return import_module(f"{__name__}.{name}")
    elsewhere = {"InputError": "errors", "Predictor": "task", "compare": "comparison"}
    elsewhere["summarize"] = "comparison"
    if name in elsewhere:
        return getattr(import_module(f"{__name__}.{elsewhere[name]}"), name)
    predictor = name.removesuffix("Options")
    (task,) = (task for task, kind in TASKS.items() if kind == predictor)
    return options_of(task) if name != predictor else find(task)


def __dir__() -> list[str]:
    return sorted(__all__)


def options_of(name: str) -> Any:
    """Return the class of a task's options."""
    return import_module(f"cello.tasks.{name}.options").Options


def find(name: str) -> type[Predictor[Any, Any, Any]]:
    """Return the predictor of a task.

    Raises:
        InputError: there is no such task.
    """
    if name not in TASKS:
        from cello.tasks.errors import (
            InputError,  # here: the names above are imported when asked for
        )

        raise InputError(f"task: {name!r} is not one of {', '.join(TASKS)}")
    kind: type[Predictor[Any, Any, Any]]
    kind = getattr(import_module(f"cello.tasks.{name}.predictor"), TASKS[name])
    return kind


def lazily(module: str, names: list[str]) -> Callable[[str], Any]:
    """Return a package's ``__getattr__`` that imports a module when a name of it is asked for.

    So the help of the command line, which reads the options in the package, is shown without torch.
    The package gets a ``__dir__`` too, so that the names are there to complete.

    Args:
        module: where the names are.
        names: the names.
    """
    package = module.rpartition(".")[0]

    def attribute(name: str) -> Any:
        if name not in names:
            raise AttributeError(f"module {package!r} has no attribute {name!r}")
        return getattr(import_module(module), name)

    vars(sys.modules[package])["__dir__"] = lambda: sorted(names)
    return attribute
