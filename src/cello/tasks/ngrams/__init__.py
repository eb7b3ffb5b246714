"""Classification of texts by two models: a recurrent network, and a linear classifier over n-grams.

The two err on different texts. All else is as in :mod:`cello.tasks.classify`.
"""

from typing import TYPE_CHECKING

from cello.tasks import lazily
from cello.tasks.ngrams.options import Options

__all__ = ["EnsembleClassifier", "Options", "load", "resume", "train"]

if TYPE_CHECKING:
    from cello.tasks.ngrams.predictor import EnsembleClassifier, load, resume, train
else:
    __getattr__ = lazily("cello.tasks.ngrams.predictor", __all__)
