"""What the training of an ensemble can be told. Nothing here needs torch, so that help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cello.tasks import classify
from cello.tasks.options import option


@dataclass(frozen=True, kw_only=True)
class Options(classify.Options):
    """Everything that can be told: what a classifier can, and the n-grams.

    Raises:
        InputError: a value is out of range, or a name is not known.

    Example:
        >>> Options(hidden=64).ngrams
        3
    """

    purpose: ClassVar[str] = (
        "Train a classifier of texts that is the mean of two: a recurrent network, and a linear "
        "classifier over n-grams."
    )
    sources: ClassVar[str] = "Texts with labels, in any form that cello train classify reads."

    ngrams: int = option(3, "Longest sequences of words that count.", low=1, high=8)
    ngram_bits: int = option(
        20, "N-grams of two words and more share 2 to this power weights.", low=8, high=28
    )
