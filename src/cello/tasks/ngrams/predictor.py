"""Classifiers that are the mean of a recurrent network and a linear classifier over n-grams."""

from __future__ import annotations

from itertools import islice
from typing import Any, ClassVar

from torch import nn

from cello.tasks.batches import pad
from cello.tasks.classify.predictor import Classifier
from cello.tasks.classify.rows import Part
from cello.tasks.errors import InputError
from cello.tasks.exported import Exportable
from cello.tasks.folder import Assets
from cello.tasks.members import each, first_of
from cello.tasks.ngrams.network import Ensemble
from cello.tasks.ngrams.options import Options
from cello.tasks.task import Data


class EnsembleClassifier(Classifier):
    """A classifier of texts that answers with the mean of two; see :class:`Ensemble`."""

    name: ClassVar[str] = "ngrams"
    options: ClassVar[type[Options]] = Options
    network: ClassVar[type[Ensemble]] = Ensemble

    def build(self, assets: Assets) -> nn.Module:
        model = super().build(assets)
        for other in each(model)[1:]:  # those of the first one count for all
            del other.ngrams
        return model

    @classmethod
    def describe(cls, data: Data[Part], options: Any) -> tuple[Any, dict[str, Any], Assets]:
        if not isinstance(data.train[0].input, str):
            raise InputError("ngrams: only texts have it, not numbers")
        return super().describe(data, options)

    def exportable(self) -> Exportable:
        raise InputError(
            "export: n-grams have no form in ONNX; a model of the task classify has one"
        )

    def job(self, data: Data[Part]) -> Any:
        job = super().job(data)
        # On as much of a text as it will be given in use.
        texts = self._encoded(data.train, self._options.longest)
        batches = iter(lambda: list(islice(texts, 256)), [])
        first_of(self.model).ngrams.fit(map(pad, batches), self.targets(data.train))
        return job


train, resume, load = EnsembleClassifier.train, EnsembleClassifier.resume, EnsembleClassifier.load
