"""A linear classifier over the word sequences of a text, and its mean with a recurrent network."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from cello.tasks.classify.network import SequenceClassifier
from cello.tasks.errors import InputError


class NgramClassifier(nn.Module):
    """Logistic regression over the set of a text's n-grams, scaled by naive Bayes.

    A text has the feature f if the n-gram is in it, however often. For a class c, ``r_f = log p(f |
    c) - log p(f | not c)`` (counts plus one), and the logit of c is ``sum_f w_f r_f + b``, with w and
    b from a regularised logistic regression of c against the rest: the NBSVM of Wang and Manning
    (2012, https://aclanthology.org/P12-2018), with logistic loss. It sees which words stand side by
    side in the text, and nothing of their order beyond that; the two kinds of classifier err on
    different texts. N-grams of two tokens and more are numbered by a hash.

    Args:
        vocabulary: number of tokens; those below `special` count for nothing.
        classes: C.
        n: the longest n-grams.
        buckets: numbers for n-grams of two tokens and more, a power of two.
        special: tokens below this number stand for no word.
    """

    weight: Tensor
    bias: Tensor

    def __init__(
        self, vocabulary: int, classes: int, n: int, *, buckets: int = 1 << 20, special: int = 1
    ) -> None:
        super().__init__()
        self.vocabulary, self.n, self.buckets, self.special = vocabulary, n, buckets, special
        size = vocabulary + (buckets if n > 1 else 0)
        self.register_buffer("weight", torch.zeros(size, classes))
        self.register_buffer("bias", torch.zeros(classes))

    def features(self, ids: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Return the features of texts.

        Args:
            ids: the tokens, (T, B).
            lengths: how many tokens each text has, (B,).

        Returns:
            The number of the text and the number of the feature, (N,) each, each pair once.
        """
        steps = torch.arange(len(ids), device=ids.device)[:, None]
        ids = ids.long()
        texts = torch.arange(ids.shape[1], device=ids.device).expand_as(ids)
        hashed, found = torch.zeros_like(ids), []
        for n in range(1, self.n + 1):
            # The hash of an n-gram, at its last token: integers wrap around at 2**64.
            before = torch.cat([torch.zeros_like(hashed[:1]), hashed[:-1]])
            hashed = before * 1_000_003 + ids
            there = (steps >= n - 1) & (steps < lengths)
            if n == 1:
                there = there & (ids >= self.special)
                number = ids
            else:
                mixed = (hashed * -7046029254386353131) >> 20
                number = self.vocabulary + (mixed & (self.buckets - 1))
            found.append((texts * len(self.weight) + number)[there])
        pairs = torch.unique(torch.cat(found))
        return pairs // len(self.weight), pairs % len(self.weight)

    def forward(self, ids: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits, (B, C), of texts of tokens (T, B)."""
        text, feature = self.features(ids, lengths)
        return self.bias.expand(ids.shape[1], -1).index_add(0, text, self.weight[feature])

    def fit(self, batches: Iterable[tuple[Tensor, Tensor]], targets: Sequence[int]) -> None:
        """Find the weights for texts with known classes.

        Args:
            batches: pairs of tokens (T, B) and lengths (B,).
            targets: the number of each text's class, all of them in a row.
        """
        from scipy.sparse import csr_matrix, diags
        from sklearn.linear_model import LogisticRegression

        rows, columns, start = [], [], 0
        for ids, lengths in batches:
            text, feature = self.features(ids, lengths)
            rows.append(text.numpy() + start)
            columns.append(feature.numpy())
            start += ids.shape[1]
        row, column = np.concatenate(rows), np.concatenate(columns)
        shape = (start, len(self.weight))
        there = csr_matrix((np.ones(len(row), np.float32), (row, column)), shape=shape)
        y = np.asarray(targets)
        classes = range(self.weight.shape[1])
        # Of two classes one is enough: its logit is against the other's, which is zero.
        for c in classes if len(classes) > 2 else classes[1:]:
            inside = np.asarray(there[y == c].sum(0)).ravel() + 1.0
            outside = np.asarray(there[y != c].sum(0)).ravel() + 1.0
            ratio = np.abs(np.log(inside / inside.sum()) - np.log(outside / outside.sum()))
            scaled = (there @ diags(ratio)).astype(np.float32)
            found = LogisticRegression(max_iter=100).fit(scaled, y == c)
            self.weight[:, c] = torch.from_numpy(found.coef_[0] * ratio)
            self.bias[c] = float(found.intercept_[0])


class Ensemble(SequenceClassifier):
    """The mean of a recurrent network and a linear classifier over n-grams.

    Each learns by itself: the n-grams fit the training set so well that little would be left for the
    network.

    Args:
        options: of the network and the n-grams.
        classes: number of classes.
        vocabulary: number of tokens.
        features: ``None``: numbers have no n-grams.
    """

    def __init__(
        self, options: Any, classes: int, *, vocabulary: int | None, features: int | None
    ) -> None:
        super().__init__(options, classes, vocabulary=vocabulary, features=features)
        if vocabulary is None:
            raise InputError("features: n-grams are of texts, not of numbers")
        self.ngrams = NgramClassifier(
            vocabulary, classes, options.ngrams, buckets=1 << options.ngram_bits
        )

    def in_use(self, logits: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits, (B, classes), of the geometric mean of both's probabilities."""
        if self.training:
            return logits
        mean: Tensor = (logits.log_softmax(1) + self.ngrams(x, lengths).log_softmax(1)) / 2
        return mean
