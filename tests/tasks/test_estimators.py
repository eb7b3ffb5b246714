from __future__ import annotations

import pickle
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from sklearn.base import clone
from sklearn.exceptions import NotFittedError
from sklearn.model_selection import GridSearchCV, cross_val_score
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import FunctionTransformer, StandardScaler

from cello.tasks.classify import Classifier, InputError, Options
from cello.tasks.estimators import RecurrentClassifier

TEXTS = [f"{a} {b} film" for a in ("so", "a", "this", "very", "one") for b in ("fine", "dull")] * 20
LABELS = np.array(["good", "bad"] * 100)
SMALL = {
    "hidden": 8,
    "embedding": 8,
    "epochs": 20,
    "batch_size": 8,
    "learning_rate": 0.02,
    "device": "cpu",
}


def upper(texts: list[str]) -> list[str]:
    return [text.upper() for text in texts]


def test_defaults_are_those_of_the_task() -> None:
    options, settings = Options(), RecurrentClassifier().get_params()
    assert {name: getattr(options, name) for name in settings} == settings


def test_texts_in_scikit_learns_tools() -> None:
    model = RecurrentClassifier(**SMALL)
    with pytest.raises(NotFittedError):
        model.predict(TEXTS)
    pipeline = make_pipeline(FunctionTransformer(upper), model)
    assert cross_val_score(pipeline, TEXTS, LABELS, cv=2).tolist() == [1.0, 1.0]
    search = GridSearchCV(model, {"cell": ["gru", "rnn"]}, cv=2).fit(TEXTS, LABELS)
    assert search.best_score_ == 1.0
    assert search.best_estimator_.predictor_.config.options.cell == search.best_params_["cell"]


def test_labels_that_are_whole_numbers_in_any_type() -> None:
    for labels in (np.array([0.0, 1.0] * 100), np.array([True, False] * 100), [3, -1] * 100):
        model = RecurrentClassifier(**{**SMALL, "epochs": 1}).fit(TEXTS, labels)
        assert model.classes_.tolist() == sorted(set(np.asarray(labels).tolist()))


def test_probabilities_and_copies() -> None:
    model = RecurrentClassifier(**SMALL).fit(TEXTS, LABELS)
    assert model.classes_.tolist() == ["bad", "good"]
    probabilities = model.predict_proba(TEXTS)
    assert probabilities.shape == (200, 2)
    np.testing.assert_allclose(probabilities.sum(1), 1.0, rtol=1e-6)
    assert (model.predict(TEXTS) == model.classes_[probabilities.argmax(1)]).all()
    with pytest.raises(InputError, match="X: sequence 1 is empty"):
        model.predict([TEXTS[0], " "])
    assert model.score(TEXTS, LABELS) == 1.0
    again = pickle.loads(pickle.dumps(model))
    np.testing.assert_array_equal(again.predict_proba(TEXTS), probabilities)
    fresh = clone(model)
    assert fresh.get_params() == model.get_params()
    assert not hasattr(fresh, "predictor_")
    np.testing.assert_array_equal(fresh.fit(TEXTS, LABELS).predict_proba(TEXTS), probabilities)


@pytest.mark.parametrize("form", ["ragged", "(n, T, F)", "(n, T)"])
def test_numbers(form: str) -> None:
    """Each class has a level of its own; as words, ten would come before two."""
    random = np.random.default_rng(0)
    y = np.arange(240) % 12 * 10
    x = random.normal(size=(240, 6, 2)) + y[:, None, None]
    inputs = {"ragged": [one[: 3 + i % 4] for i, one in enumerate(x)], "(n, T)": x[..., 0]}.get(
        form, x
    )
    model = RecurrentClassifier(**{**SMALL, "epochs": 30, "hidden": 16, "batch_size": 16}).fit(
        inputs, y
    )
    assert model.classes_.tolist() == sorted(set(y.tolist()))
    assert model.score(inputs, y) > 0.9


def test_tables_have_a_sequence_a_row() -> None:
    x = np.random.default_rng(0).normal(size=(20, 20))
    y = x[:, 0] > 0
    for columns in (20, 1):
        frame = pd.DataFrame(x[:, :columns]).add_prefix("c")
        of_frame = RecurrentClassifier(**SMALL).fit(frame, y).predict_proba(frame)
        of_array = RecurrentClassifier(**SMALL).fit(x[:, :columns], y).predict_proba(x[:, :columns])
        np.testing.assert_array_equal(of_frame, of_array)
    model = RecurrentClassifier(**SMALL).fit(pd.DataFrame({"text": TEXTS}), LABELS)
    expected = model.predict_proba(TEXTS)
    np.testing.assert_array_equal(model.predict_proba(pd.DataFrame({"any": TEXTS})), expected)
    np.testing.assert_array_equal(model.predict_proba({"any": TEXTS}), expected)
    scaled = make_pipeline(
        StandardScaler().set_output(transform="pandas"), RecurrentClassifier(**SMALL)
    )
    assert scaled.fit(x, y).predict(x).shape == (20,)
    with pytest.raises(InputError, match="X: sequence 0 is neither a text nor numbers"):
        model.predict(pd.DataFrame({"a": TEXTS, "b": TEXTS}))


@pytest.mark.parametrize(
    ("x", "y", "expected"),
    [
        ("one text", ["a"], "X: one text"),
        (TEXTS, LABELS[:4], "y: 4 labels, where X has 200 sequences"),
        ([np.zeros((2, 2, 2))] * 2, [0, 1], r"sequence 0 has the shape \(2, 2, 2\)"),
        ([[1.0, np.nan]] * 2, [0, 1], "sequence 0 holds a number that is not finite"),
        (TEXTS, ["a"] * 200, "every label is 'a'; two classes are needed"),
        ([], [], "there are no labels"),
        (TEXTS, [["a", "b"]] * 200, r"y: has the shape \(200, 2\), not"),
        (TEXTS, [None, 1.5] * 100, "y: labels of several kinds"),
        (TEXTS, ["good", "bad"] * 99 + ["good", float("nan")], "y: label 199 is nan"),
        (TEXTS, [0.0, float("nan")] * 100, "y: label 1 is nan"),
        (TEXTS, np.array([0.0, np.nan] * 100, np.float32), "y: label 1 is nan"),
        (TEXTS, np.array(["a", np.nan] * 100, object), "y: label 1 is nan"),
        (TEXTS, np.linspace(0, 1, 200), "y: Unknown label type: continuous"),
        (TEXTS, [0.0, np.inf] * 100, "y: label 1 is inf"),
        (["a", *TEXTS[1:-1], " "], LABELS, "sequence 199: the text is empty"),
    ],
)
def test_wrong_input(x: object, y: object, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        RecurrentClassifier(**{**SMALL, "epochs": 1}).fit(x, y)  # type: ignore[arg-type]


def test_parameters_may_be_numbers_of_numpy() -> None:
    grid = {"hidden": np.arange(4, 6), "dropout": np.array([0.5])}
    model = RecurrentClassifier(**{**SMALL, "epochs": 1})
    search = GridSearchCV(model, grid, cv=2).fit(TEXTS, LABELS)
    assert search.best_params_["hidden"] in (4, 5)
    assert type(search.best_estimator_.predictor_.config.options.hidden) is int
    assert type(Options(distinct=np.bool_(True)).distinct) is bool


def test_labels_in_a_column_of_a_matrix_are_refused(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"the labels have the shape \(200, 1\), where \(n,\)"):
        Classifier.train((TEXTS, LABELS[:, None]), tmp_path / "run")
