"""What the estimators with the conventions of scikit-learn share: parameters from options, training."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from dataclasses import fields
from inspect import Parameter, Signature
from pathlib import Path
from typing import Any, ClassVar, TypeVar, get_type_hints

from sklearn.base import BaseEstimator

from cello.tasks.folder import Assets, Config
from cello.tasks.options import NETWORK, TRAINING, RecurrentOptions
from cello.tasks.task import Data, Predictor, fit

AnyEstimator = TypeVar("AnyEstimator", bound="type[TaskEstimator]")

ELSEWHERE = ("stream", "devices", "nodes")
"""Options of the training that mean nothing to what a process holds in memory."""


class TaskEstimator(BaseEstimator):  # type: ignore[misc]  # sklearn has no types
    """A task that is trained on arrays instead of a file."""

    options: ClassVar[type[RecurrentOptions]]
    predictor_: Any

    def _chosen(self) -> Any:
        """Return the parameters as options of the task, checked."""
        return self.options(**self.get_params())

    def _train(
        self,
        kind: type[Predictor[Any, Any, Any]],
        data: Data[Any],
        options: Any,
        facts: dict[str, Any],
        assets: Assets,
    ) -> None:
        config = Config(kind.name, options, facts, {}, tuple(assets))
        with tempfile.TemporaryDirectory() as folder:
            self.predictor_, training = fit(kind, data, config, assets, Path(folder, "fit"))
        self.epochs_ = training["epochs"]


def parameters(
    options: type[RecurrentOptions],
    *,
    also: tuple[str, ...] = (),
    without: tuple[str, ...] = (),
    **defaults: Any,
) -> Callable[[AnyEstimator], AnyEstimator]:
    """Give an estimator the options of a task on network and training as keyword parameters.

    They are in the signature of its ``__init__``, where scikit-learn looks for them.

    Args:
        options: the task's.
        also: further fields of it.
        without: fields that are left out.
        **defaults: where they are not the task's.
    """
    hints = get_type_hints(options)
    learnt = [
        Parameter(
            f.name,
            Parameter.KEYWORD_ONLY,
            default=defaults.get(f.name, f.default),
            annotation=hints[f.name],
        )
        for f in fields(options)
        if f.name in also
        or (
            options.panel_of(f.name) in (NETWORK, TRAINING) and f.name not in (*without, *ELSEWHERE)
        )
    ]
    signature = Signature([Parameter("self", Parameter.POSITIONAL_OR_KEYWORD), *learnt])

    def __init__(*arguments: Any, **keywords: Any) -> None:  # noqa: N807  # it becomes the class's
        bound = signature.bind(*arguments, **keywords)
        bound.apply_defaults()
        self = bound.arguments.pop("self")
        for name, value in bound.arguments.items():
            setattr(self, name, value)

    __init__.__signature__ = signature  # type: ignore[attr-defined]  # functions take attributes

    def decorate(estimator: AnyEstimator) -> AnyEstimator:
        estimator.options = options
        estimator.__init__ = __init__  # type: ignore[method-assign]  # it has none of its own
        return estimator

    return decorate
