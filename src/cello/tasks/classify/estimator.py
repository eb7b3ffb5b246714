"""Classification with the conventions of scikit-learn."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from sklearn.base import ClassifierMixin
from sklearn.exceptions import NotFittedError
from sklearn.utils.multiclass import check_classification_targets

from cello.tasks.classify import Classifier, Options
from cello.tasks.classify.rows import Input, Part, Row, Source
from cello.tasks.classify.splits import split
from cello.tasks.errors import InputError
from cello.tasks.memory import in_a_row, names_of
from cello.tasks.scikit import TaskEstimator, parameters
from cello.tasks.tables import check_characters
from cello.tasks.task import Data


@parameters(Options, also=("valid_fraction", "split_seed"))
class RecurrentClassifier(ClassifierMixin, TaskEstimator):  # type: ignore[misc]  # of untyped bases
    """A recurrent classifier of texts or of sequences of numbers, for scikit-learn's tools.

    It stands in a ``Pipeline``, in ``cross_val_score`` and in a grid search. A tenth of the rows that
    it is given is put aside to choose the best epoch. The arguments are those options of
    :class:`cello.tasks.classify.Options` that are on the network and its training, with `valid_fraction`
    and `split_seed`.

    Attributes:
        classes_: the labels, (C,), sorted.
        predictor_: the :class:`cello.tasks.classify.Classifier` behind it.
        epochs_: for each epoch its loss, validation score and seconds.

    Example:
        >>> texts = ["a fine film", "a dull film", "so fine", "so dull"] * 10
        >>> model = RecurrentClassifier(hidden=8, epochs=8, learning_rate=0.02)
        >>> model.fit(texts, ["good", "bad"] * 20).predict(["fine", "dull"])
        array(['good', 'bad'], dtype='<U4')
    """

    def fit(self, X: Sequence[str] | Sequence[ArrayLike] | NDArray[Any], y: ArrayLike) -> Any:
        """Train on sequences with their labels.

        Args:
            X: texts; or arrays of numbers, (T, F) each, whose lengths T may differ; or one array
                (n, T) or (n, T, F).
            y: the labels, (n,).

        Returns:
            The estimator.

        Raises:
            InputError: a sequence, the labels or an option cannot be used; a ValueError.
        """
        inputs = _sequences(X)
        labels = np.asarray(y)
        if labels.ndim != 1:
            raise InputError(f"y: has the shape {labels.shape}, not (n,)")
        # As they were given: in an array of words NaN is the word nan.
        for i, one in enumerate(np.asarray(y, dtype=object)):
            if isinstance(one, float) and not math.isfinite(one):
                raise InputError(f"y: label {i} is {one}, which is no class")
        try:
            self.classes_, numbers = np.unique(labels, return_inverse=True)
        except TypeError as error:  # None among numbers, for one
            raise InputError(f"y: labels of several kinds ({error})") from error
        if len(inputs) != len(numbers):
            raise InputError(f"y: {len(numbers)} labels, where X has {len(inputs)} sequences")
        if len(self.classes_) < 2:
            what = (
                f"every label is {self.classes_.tolist()[0]!r}" if inputs else "there are no labels"
            )
            raise InputError(f"y: {what}; two classes are needed at least")
        try:
            check_classification_targets(labels)
        except ValueError as error:  # measurements, for one
            raise InputError(f"y: {error}") from error
        rows = [
            Row(one, str(number), "", f"sequence {i}")
            for i, (one, number) in enumerate(zip(inputs, numbers, strict=True))
        ]
        options = self._chosen()
        # Nothing is held out here: that is for cross_val_score and its like.
        source = Source("X", "memory", {"train": Part(rows), "test": Part(rows[:1])})
        train, valid, test = split(source, options, options.split_seed)
        data = Data("X", "memory", train, valid, test, fingerprint="")
        options, facts, assets = Classifier.describe(data, options)
        self._train(Classifier, data, options, facts, assets)
        return self

    def predict(self, X: Sequence[str] | Sequence[ArrayLike] | NDArray[Any]) -> NDArray[Any]:
        """Return the likeliest label of each sequence, (n,); see :meth:`fit` for X."""
        best = self.predict_proba(X).argmax(1)
        labels: NDArray[Any] = self.classes_[best]
        return labels

    def predict_proba(self, X: Sequence[str] | Sequence[ArrayLike] | NDArray[Any]) -> NDArray[Any]:
        """Return the probability of each class, (n, C), in the order of `classes_`."""
        if not hasattr(self, "predictor_"):
            raise NotFittedError("RecurrentClassifier: call fit first")
        rows = []
        for i, one in enumerate(self.predictor_.predict_stream(_sequences(X))):
            if one.probabilities is None:
                raise InputError(f"X: sequence {i} is empty")
            rows.append(list(one.probabilities.values()))
        return np.array(rows).reshape(-1, len(self.classes_))


def _sequences(X: Any) -> list[Input]:
    """Return texts, or arrays (T, F)."""
    inputs: list[Input] = []
    names = names_of(X)
    for i, one in enumerate(in_a_row(X, "X")):
        if isinstance(one, str):
            check_characters(one, f"X: sequence {i}")
            inputs.append(str(one))
            continue
        if names is not None and len(names) == 1 and np.ndim(one) == 0:
            one = [one]  # the row of a table, as that of an array (n, 1)
        try:
            array = np.asarray(one, dtype=np.float64)
        except (TypeError, ValueError) as error:
            raise InputError(f"X: sequence {i} is neither a text nor numbers ({error})") from error
        if array.ndim == 1:
            array = array[:, None]  # (T,): steps of one number
        if array.ndim != 2:
            raise InputError(f"X: sequence {i} has the shape {array.shape}, not (T, F)")
        if not np.isfinite(array).all():
            raise InputError(f"X: sequence {i} holds a number that is not finite")
        inputs.append(array)
    return inputs
