"""An epoch's validation runs the model once a batch, and gives loss and metric of these outputs."""

from __future__ import annotations

import json
import random
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

import cello
from cello.tasks import classify, forecast, language, ngrams, tag
from cello.tasks.batches import validation_batches
from cello.tasks.language.network import nats
from cello.tasks.tag.network import within
from cello.tasks.trainer import Training

SMALL: dict[str, Any] = {"hidden": 4, "epochs": 1, "batch_size": 2, "device": "cpu", "threads": 1}


def texts(folder: Path) -> str:
    draw, path = random.Random(0), folder / "texts.jsonl"
    rows = [[draw.choice("abcdef") for _ in range(draw.randrange(1, 9))] for _ in range(120)]
    lines = [{"text": " ".join(row), "label": str("a" in row)} for row in rows]
    path.write_text("".join(json.dumps(line) + "\n" for line in lines))
    return str(path)


def sentences(folder: Path) -> str:
    draw, path = random.Random(0), folder / "sentences.txt"
    ones = [[draw.choice(["walk", "talk", "big", "a"]) for _ in range(4)] for _ in range(120)]
    path.write_text("".join("".join(f"{w}\t{len(w)}\n" for w in one) + "\n" for one in ones))
    return str(path)


def series(folder: Path) -> str:
    path = folder / "series.csv"
    times = np.datetime64("2020-01-01T00") + np.arange(300)
    values = np.sin(np.arange(300) / 5)
    lines = [f"{t},{x!r}\n" for t, x in zip(times, values.tolist(), strict=True)]
    path.write_text("time,x\n" + "".join(lines))
    return str(path)


def text(folder: Path) -> str:
    path = folder / "text.txt"
    path.write_text("the cat sat on the mat.\nthe dog sat on the log.\n" * 12)
    return str(path)


def is_right(model: Any, batch: Any) -> tuple[torch.Tensor, int]:
    x, lengths, targets = batch
    return (model(x, lengths).argmax(1) == targets).sum(), len(targets)


def is_tagged(model: Any, batch: Any) -> tuple[torch.Tensor, int]:
    right = (model.best(model(batch), batch.lengths) == batch.tags)[within(batch)]
    return right.sum(), right.numel()


def error(model: Any, batch: Any) -> tuple[torch.Tensor, int]:
    point = model(batch.past, batch.past_known, batch.future_known)[..., 0]
    return (point - batch.future).abs().sum(), batch.future.numel()


class Streams:
    """The loss of a language model, whose batches go on where the ones before ended."""

    state: Any = None

    def __call__(self, model: Any, batch: Any) -> tuple[torch.Tensor, int]:
        number, x, y = batch
        logits, self.state = model(x, self.state if int(number) else None)
        return nats(logits, y, reduction="sum"), int((y >= 0).sum())


Found = Callable[[Any, Any], tuple[torch.Tensor, int]]
TASKS: dict[str, tuple[Any, Any, Callable[[Path], str], Found]] = {
    "classify": (classify, classify.Options(**SMALL, embedding=4), texts, is_right),
    "ngrams": (ngrams, ngrams.Options(**SMALL, embedding=4, ngram_bits=8), texts, is_right),
    "tag": (tag, tag.Options(**SMALL, embedding=4, character_hidden=4), sentences, is_tagged),
    "crf": (tag, tag.Options(**SMALL, embedding=4, output="crf"), sentences, is_tagged),
    "forecast": (
        forecast,
        forecast.Options(**SMALL, horizon=4, window=8, loss="mae", levels="0.5,0.9"),
        series,
        error,
    ),
    "language": (language, language.Options(**SMALL, embedding=4, steps=5), text, Streams()),
}


@pytest.mark.parametrize("name", TASKS)
def test_the_model_runs_once_a_batch(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    task, options, write, measure = TASKS[name]
    ordinary, seen = Training.validate, []

    @torch.inference_mode()
    def validate(self: Training) -> tuple[float, float]:
        calls: Counter[Any] = Counter()
        job, model = self.job, self.job.model
        layers = [m for m in model.modules() if isinstance(m, cello.nn.base.RecurrentLayer)]
        handles = [one.register_forward_hook(lambda m, *_: calls.update([m])) for one in layers]
        loss, score = ordinary(self)
        counted = dict(calls)
        calls.clear()
        batches = list(validation_batches(job.valid, job.collate, options.batch_size, 0, 1))
        assert len(batches) > 1
        self._swap()  # the averaged weights, if there are such
        measured = [measure(model, batch) for batch in batches]
        assert calls
        assert {layer: counted[layer] for layer in calls} == dict(calls)  # a loss may have its own
        for handle in handles:
            handle.remove()
        expected = sum(float(total) for total, _ in measured) / sum(n for _, n in measured)
        assert score == pytest.approx(expected, rel=1e-6)
        if name == "language":  # whose metric is the loss
            assert loss == score
        else:
            losses = [job.loss(batch) for batch in batches]
            assert loss == sum(float(x) for x, _ in losses) / sum(n for _, n in losses)
        self._swap()
        seen.append((loss, score))
        return loss, score

    monkeypatch.setattr(Training, "validate", validate)
    task.train(write(tmp_path), tmp_path / "run", options)
    assert len(seen) == options.epochs
