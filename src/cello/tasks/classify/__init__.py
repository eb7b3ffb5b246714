"""Sequence classification: train a classifier, load it, predict, evaluate.

Example::

    from cello.tasks import classify

    report = classify.train("reviews.csv", "runs/reviews")
    classifier = classify.load("runs/reviews")
    for prediction in classifier.predict(["a fine film", "two lost hours"]):
        print(prediction.label, prediction.probability)
"""

from typing import TYPE_CHECKING

from cello.tasks import lazily
from cello.tasks.classify.options import Options
from cello.tasks.errors import InputError

__all__ = [
    "ClassReport", "Classifier", "InputError", "Options", "Prediction", "load", "resume", "train",
]  # fmt: skip

if TYPE_CHECKING:
    from cello.tasks.classify.answers import Prediction
    from cello.tasks.classify.predictor import Classifier, load, resume, train
    from cello.tasks.confusion import ClassReport
else:
    __getattr__ = lazily("cello.tasks.classify.predictor", __all__)
