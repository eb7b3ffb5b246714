"""Tagging: a tag for each word of a sentence; train a tagger, load it, predict, evaluate.

Example::

    from cello.tasks import tag

    report = tag.train("en-train.conllu", "runs/en", tag.Options(valid_data="en-dev.conllu"))
    tagger = tag.load("runs/en")
    for sentence in tagger.predict([["A", "fine", "day"]]):
        print(sentence.words, sentence.tags)
"""

from typing import TYPE_CHECKING

from cello.tasks import lazily
from cello.tasks.errors import InputError
from cello.tasks.tag.options import Options

__all__ = [
    "InputError", "Options", "Sentence", "TagReport", "Tagged", "Tagger", "load", "resume", "train",
]  # fmt: skip

if TYPE_CHECKING:
    from cello.tasks.tag.data import Sentence
    from cello.tasks.tag.predictor import Tagged, Tagger, load, resume, train
    from cello.tasks.tag.report import TagReport
else:
    __getattr__ = lazily("cello.tasks.tag.predictor", __all__)
