from __future__ import annotations

import json
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from cello.tasks import classify, ngrams
from cello.tasks.batches import pad
from cello.tasks.errors import InputError
from cello.tasks.ngrams.network import NgramClassifier
from cello.tasks.ngrams.predictor import EnsembleClassifier
from cello.tasks.options import from_mapping


def texts(count: int, seed: int) -> tuple[list[list[int]], list[int]]:
    """Texts of tokens 1 to 11; the class is told by pairs of tokens, not by single ones."""
    random = np.random.default_rng(seed)
    rows = [random.integers(1, 12, random.integers(1, 9)).tolist() for _ in range(count)]
    return rows, [sum(a > b for a, b in pairwise(row)) % 3 for row in rows]


@pytest.mark.parametrize("n", [1, 2, 3])
@pytest.mark.parametrize("classes", [2, 3])
def test_against_words_and_scikit_learn(n: int, classes: int) -> None:
    rows, targets = texts(300, seed=0)
    targets = [min(target, classes - 1) for target in targets]
    model = NgramClassifier(12, classes, n, buckets=1 << 16)
    padded = [pad([torch.tensor(row) for row in rows[i : i + 50]]) for i in range(0, 300, 50)]
    model.fit(padded, targets)

    words = [" ".join(map(str, row)) for row in rows]
    counter = CountVectorizer(ngram_range=(1, n), binary=True, token_pattern=r"\S+")
    there, y = counter.fit_transform(words).toarray(), np.array(targets)
    logits = np.zeros((300, classes))
    for c in range(1 if classes == 2 else 0, classes):
        # What is in no text counts too, through the sums: numbers without an n-gram.
        empty = len(model.weight) - there.shape[1]
        p, q = there[y == c].sum(0) + 1, there[y != c].sum(0) + 1
        ratio = np.log(p / (p.sum() + empty)) - np.log(q / (q.sum() + empty))
        found = LogisticRegression(max_iter=1000, tol=1e-6).fit(there * ratio, y == c)
        logits[:, c] = found.decision_function(there * ratio)
    got = torch.cat([model(*batch) for batch in padded]).numpy()
    assert np.abs(got - logits).max() < 0.02 * np.abs(logits).max()


def test_what_is_a_feature() -> None:
    model = NgramClassifier(12, 2, 2, buckets=1 << 16)
    ids, lengths = pad([torch.tensor(row) for row in ([3, 4, 3, 4], [0, 3], [4, 3, 0, 4])])
    text, feature = model.features(ids, lengths)
    sets = [set(feature[text == i].tolist()) for i in range(3)]
    assert {3, 4} < sets[0]
    assert len(sets[0]) == 4  # 3, 4, 34, 43
    assert sets[1] & {0, 3} == {3}  # a token below `special` is no feature, but parts others
    assert len(sets[0] & sets[2]) == 3
    alone = model.features(*pad([torch.tensor([3, 4, 3, 4])]))[1]
    assert set(alone.tolist()) == sets[0]
    assert len(model.features(*pad([torch.tensor([5])]))[1]) == 1


def test_the_answer_is_the_mean_of_both(tmp_path: Path) -> None:
    """Which of two words comes first tells the class, which single words do not."""
    rows = "".join(
        f"{'xy'[i % 2]},{'b a' if i % 2 else 'a b'} {['c', 'd', 'e', 'f'][i % 4]}\n"
        for i in range(80)
    )
    (tmp_path / "x.csv").write_text("label,text\n" + rows)
    options = ngrams.Options(hidden=8, embedding=8, epochs=1, ngrams=2)
    assert ngrams.train(str(tmp_path / "x.csv"), tmp_path / "run", options).accuracy == 1.0
    made = ngrams.load(tmp_path / "run")
    (x,) = made.encode(["a b c"], ["1"])
    probabilities = made.probabilities([x])[0]
    net = made.model.read(made.model.embed(x[:, None]), torch.tensor([3])).softmax(1)
    words = made.model.ngrams(x[:, None], torch.tensor([3])).softmax(1)
    mean = (net * words).sqrt()[0]
    torch.testing.assert_close(probabilities, (mean / mean.sum()).detach())


def test_a_folder_from_when_it_was_an_option(tmp_path: Path) -> None:
    """Every classifier had the option; of one that used it the folder is a model of this task."""
    rows = "".join(f"{'xy'[i % 2]},{'ab'[i % 2]} {'cdef'[i % 4]}\n" for i in range(80))
    (tmp_path / "x.csv").write_text("label,text\n" + rows)
    small = {"hidden": 8, "embedding": 8, "epochs": 1}
    ngrams.train(tmp_path / "x.csv", tmp_path / "both", ngrams.Options(**small, ngrams=2))
    classify.train(tmp_path / "x.csv", tmp_path / "one", classify.Options(**small))
    answers = []
    for name, load in (("both", ngrams.load), ("one", classify.load)):
        config = tmp_path / name / "config.json"
        answers.append(load(tmp_path / name).predict("a c"))
        content = json.loads(config.read_text())
        options = {"ngrams": 0, "ngram_bits": 20, **content["options"]}
        config.write_text(json.dumps({**content, "task": "classify", "options": options}))
    both, one = (classify.load(tmp_path / name) for name in ("both", "one"))
    assert (type(both), type(one)) == (EnsembleClassifier, classify.Classifier)
    assert [both.predict("a c"), one.predict("a c")] == answers
    with pytest.raises(InputError, match="for the task 'classify', not 'ngrams'"):
        ngrams.load(tmp_path / "one")
    with pytest.raises(InputError, match=r"o\.yaml: 'ngrams' is not an option"):
        from_mapping(classify.Options, {"ngrams": 2, "ngram_bits": 20}, "o.yaml")
    assert from_mapping(classify.Options, {"ngrams": 0, "ngram-bits": 20}, "") == classify.Options()


def test_a_class_of_ones_own_loads_what_its_task_trained(tmp_path: Path) -> None:
    class Own(classify.Classifier):
        pass

    options = classify.Options(hidden=4, epochs=1, device="cpu")
    Own.train("digits", tmp_path / "run", options)
    assert (type(Own.load(tmp_path / "run")), type(classify.load(tmp_path / "run"))) == (
        Own,
        classify.Classifier,
    )
