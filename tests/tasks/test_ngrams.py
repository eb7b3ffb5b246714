from __future__ import annotations

from itertools import pairwise

import numpy as np
import pytest
import torch
from sklearn.feature_extraction.text import CountVectorizer
from sklearn.linear_model import LogisticRegression

from cello.tasks.batches import pad
from cello.tasks.classify.ngrams import NgramClassifier


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
