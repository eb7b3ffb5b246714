"""Language modelling: train a model of text, load it, generate text, evaluate.

Example::

    from cello.tasks import language

    report = language.train("shakespeare.txt", "runs/shakespeare")
    model = language.load("runs/shakespeare")
    for piece in model.generate("ROMEO:", length=200, temperature=0.8, seed=1):
        print(piece, end="", flush=True)
"""

from typing import TYPE_CHECKING

from cello.tasks import lazily
from cello.tasks.errors import InputError
from cello.tasks.language.options import Options

__all__ = [
    "InputError", "LanguageModel", "LanguageReport", "Options", "Score", "load", "resume", "train",
]  # fmt: skip

if TYPE_CHECKING:
    from cello.tasks.language.predictor import LanguageModel, Score, load, resume, train
    from cello.tasks.language.report import LanguageReport
else:
    __getattr__ = lazily("cello.tasks.language.predictor", __all__)
