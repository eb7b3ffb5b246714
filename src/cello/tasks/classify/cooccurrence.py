"""Word vectors made of the training texts: tokens with like neighbours get like vectors.

What is factorised is how much more often two tokens stand near each other than by chance, which is what
word2vec does in a roundabout way (Levy and Goldberg, "Neural Word Embedding as Implicit Matrix
Factorization", 2014); how counts are weighted follows Levy, Goldberg and Dagan, "Improving Distributional
Similarity with Lessons Learned from Word Embeddings" (2015, https://aclanthology.org/Q15-1016).
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from scipy import sparse
from sklearn.utils.extmath import randomized_svd
from torch import Tensor

from cello.tasks.start import SPECIAL

SMOOTHING = 0.75
"""Power of a neighbour's frequency, which makes rare ones less surprising."""
TINY = 1e-12
BLOCK = 1 << 22
"""Tokens whose neighbours are counted at once."""


def vectors_of(
    texts: Iterable[Tensor], vocabulary: int, width: int, window: int, seed: int
) -> Tensor:
    """Return a vector for each token by the tokens that stand near it.

    With the number ``n(a, b)`` of times that b stands up to `window` tokens away from a, d tokens apart
    counted as 1 / d, and ``p(b)`` proportional to ``n(b)^0.75``, the matrix ``max(log(n(a, b) /
    (n(a) p(b))), 0)`` is factorised: the rows of U S^0.5 of its largest singular values, less their mean.

    Args:
        texts: ids, (T,) each; ids below 2 are no tokens.
        vocabulary: V, the number of ids.
        width: of a vector.
        window: how many tokens away a neighbour may be.
        seed: of the factorisation, which begins at random numbers.

    Returns:
        (V, `width`): rows with a mean square of 1, in as many columns as there are singular values; zeros
        where a token has no neighbours.
    """
    counts = _counts(texts, vocabulary, window)
    surprise = _surprise(counts)
    found = min(width, vocabulary - 1)
    left, values, _ = randomized_svd(surprise, found, n_iter=4, random_state=seed)
    rows = left * np.sqrt(values)
    has_neighbours = np.diff(surprise.indptr) > 0
    rows -= rows[has_neighbours].mean(0) if has_neighbours.any() else 0.0
    size = np.sqrt((rows**2).mean(1, keepdims=True))
    is_known = has_neighbours[:, None] & (size > TINY)
    rows = np.where(is_known, rows / np.maximum(size, TINY), 0.0)
    out = torch.zeros(vocabulary, width)
    out[:, :found] = torch.from_numpy(rows).float()
    return out


def _counts(texts: Iterable[Tensor], vocabulary: int, window: int) -> Any:
    total = sparse.csr_matrix((vocabulary, vocabulary))
    for ids in _blocks(texts, window):
        firsts, seconds, weights = [], [], []
        for distance in range(1, window + 1):
            a, b = ids[:-distance], ids[distance:]
            are_tokens = (a >= SPECIAL) & (b >= SPECIAL)
            firsts.append(a[are_tokens])
            seconds.append(b[are_tokens])
            weights.append(np.full(len(firsts[-1]), 1.0 / distance))
        pairs = (np.concatenate(firsts), np.concatenate(seconds))
        block = sparse.coo_matrix((np.concatenate(weights), pairs), total.shape)
        total = total + block.tocsr()
    return total + total.T


def _blocks(texts: Iterable[Tensor], window: int) -> Iterator[NDArray[np.int32]]:
    """Many texts one after the other, with so much between them that they are no neighbours."""
    between = np.zeros(window, np.int32)
    block: list[NDArray[np.int32]] = []
    size = 0
    for text in texts:
        block += [text.numpy().astype(np.int32), between]
        size += len(text)
        if size >= BLOCK:
            yield np.concatenate(block)
            block, size = [], 0
    if block:
        yield np.concatenate(block)


def _surprise(counts: Any) -> Any:
    """How much more often than by chance, as a logarithm; what is rarer than by chance is left out."""
    often = np.asarray(counts.sum(1)).ravel()
    share = often**SMOOTHING
    share /= max(share.sum(), TINY)
    pairs = counts.tocoo()
    values = np.log(pairs.data / (often[pairs.row] * share[pairs.col]))
    kept = values > 0
    places = (pairs.row[kept], pairs.col[kept])
    return sparse.csr_matrix((values[kept], places), counts.shape)
