"""Sequence classification: train a classifier, load it, predict, evaluate.

Example::

    from cello.tasks import classify

    report = classify.train("reviews.csv", "runs/reviews")
    classifier = classify.load("runs/reviews")
    for prediction in classifier.predict(["a fine film", "two lost hours"]):
        print(prediction.label, prediction.probability)
"""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, cast

import numpy as np
import torch
from numpy.typing import NDArray
from rich.console import Console
from tokenizers import Tokenizer
from torch import Tensor, nn
from torchmetrics.classification import MulticlassAccuracy

from cello.tasks import folder as model_folder
from cello.tasks.batches import loader, pad
from cello.tasks.errors import InputError, Interrupted
from cello.tasks.folder import Config
from cello.tasks.model import SequenceClassifier
from cello.tasks.options import DEVICES, Options
from cello.tasks.report import Report, report
from cello.tasks.sources import Input, Part, Source, read
from cello.tasks.splits import Splits, split
from cello.tasks.text import encode, train_tokenizer
from cello.tasks.trainer import Job, Schedule, fit

__all__ = [
    "Classifier", "InputError", "Options", "Prediction", "Report", "load", "resume", "train",
]  # fmt: skip


@dataclass(frozen=True)
class Prediction:
    """The class of one input: the likeliest label, and the probability of each one."""

    label: str
    probability: float
    probabilities: dict[str, float]


_NUMBERS = "numbers, in JSON as [[1.0, 2.0], [3.0, 4.0]]; a .csv or .tsv holds text"


class Classifier:
    """A network with all it needs to go from texts, or numbers, to labels.

    Args:
        config: what the model is.
        tokenizer: cuts texts; ``None`` where the inputs are numbers.
        device: where to compute.
    """

    def __init__(self, config: Config, tokenizer: Tokenizer | None, device: str = "auto") -> None:
        self.config = config
        self.tokenizer = tokenizer
        self.device = _device(device)
        self.model = SequenceClassifier(
            config.options,
            len(config.labels),
            vocabulary=None if tokenizer is None else tokenizer.get_vocab_size(),
            features=config.features,
        ).to(self.device)

    def encode(self, inputs: Sequence[Input], places: Sequence[str]) -> list[Tensor]:
        """Turn inputs into tensors, (T,) or (T, F).

        Raises:
            InputError: an input is empty or of another form; the message begins with its place.
        """
        for one, place in zip(inputs, places, strict=True):
            if isinstance(one, str) != (self.tokenizer is not None):
                form = "text" if self.tokenizer is not None else _NUMBERS
                raise InputError(f"{place}: the model reads {form}")
        if self.tokenizer is not None:
            return encode(self.tokenizer, cast(Sequence[str], inputs), places)
        features, arrays = self.config.features, cast(Sequence[NDArray[np.float32]], inputs)
        for array, place in zip(arrays, places, strict=True):
            if not array.size:
                raise InputError(f"{place}: the sequence is empty")
            if array.shape[1] != features:
                raise InputError(f"{place}: {array.shape[1]} numbers in a step, not {features}")
        longest = self.config.options.max_length
        return [torch.from_numpy(np.ascontiguousarray(array[:longest])) for array in arrays]

    def predict(self, inputs: Iterable[Input], *, batch_size: int = 64) -> Iterator[Prediction]:
        """Classify inputs one batch after the other, however many there are.

        Args:
            inputs: texts, or arrays (T, F) of numbers.
            batch_size: how many inputs are read before their predictions are given out.

        Yields:
            One prediction for each input, in order.

        Raises:
            InputError: an input is empty or of another form.
        """
        named = ((one, f"input {i}") for i, one in enumerate(inputs, 1))
        return self.predict_named(named, batch_size=batch_size)

    def predict_named(
        self, named: Iterable[tuple[Input, str]], *, batch_size: int = 64
    ) -> Iterator[Prediction]:
        """Do as :meth:`predict`, with inputs that each come with a name for messages."""
        rest = iter(named)
        labels = self.config.labels
        wrong: InputError | None = None
        while wrong is None:
            sequences: list[Tensor] = []
            try:
                for one, place in islice(rest, batch_size):
                    sequences += self.encode([one], [place])
            except InputError as error:  # what came before it is answered first
                wrong = error
            if not sequences:
                break
            for row in self._probabilities(sequences).tolist():
                best = max(range(len(row)), key=row.__getitem__)
                yield Prediction(labels[best], row[best], dict(zip(labels, row, strict=True)))
        if wrong is not None:
            raise wrong

    def evaluate(self, part: Part, data: str = "data", batch_size: int = 64) -> Report:
        """Compare predictions with the labels of some rows.

        Args:
            part: the rows, from :func:`cello.tasks.sources.read` and its like.
            data: what they are, for the eye.
            batch_size: rows computed at a time.

        Returns:
            The report.

        Raises:
            InputError: a label is not one of the model's, or an input is empty.
        """
        start = time.perf_counter()
        sequences = self.encode(part.inputs, part.places)
        targets = self.targets(part)
        order = sorted(range(len(sequences)), key=lambda i: len(sequences[i]))
        predicted = [0] * len(order)
        for first in range(0, len(order), batch_size):
            rows = order[first : first + batch_size]
            best = self._probabilities([sequences[i] for i in rows]).argmax(1).tolist()
            for i, one in zip(rows, best, strict=True):
                predicted[i] = one
        seconds = time.perf_counter() - start
        return report(data, self.config.labels, targets, predicted, seconds)

    def targets(self, part: Part) -> list[int]:
        """Return the number of each row's class.

        Raises:
            InputError: a label is not one of the model's.
        """
        numbers = {label: i for i, label in enumerate(self.config.labels)}
        for row in part.rows:
            if row.label not in numbers:
                known = ", ".join(self.config.labels)
                raise InputError(f"{row.place}: unknown label {row.label!r}; known are: {known}")
        return [numbers[label] for label in part.labels]

    @torch.inference_mode()
    def _probabilities(self, sequences: Sequence[Tensor]) -> Tensor:
        self.model.eval()
        x, lengths = pad(sequences)
        logits: Tensor = self.model(x.to(self.device), lengths.to(self.device))
        return logits.softmax(1).cpu()


def train(
    source: str,
    out: str | Path,
    options: Options | None = None,
    *,
    overwrite: bool = False,
    console: Console | None = None,
) -> Report:
    """Train a classifier and write it to a folder.

    Args:
        source: ``digits``, a table, a folder of text files, or a dataset of the hub.
        out: the model folder.
        options: everything else; the defaults unless given.
        overwrite: replace a model that is in the folder.
        console: where progress is shown; nowhere unless given.

    Returns:
        The report on the held-out part, which is also in the folder.

    Raises:
        InputError: the data, an option or the folder cannot be used.
        Interrupted: Ctrl-C was pressed; :func:`resume` continues.
    """
    options = Options() if options is None else options
    _device(options.device)
    out = Path(out)
    model_folder.check_free(out, overwrite)
    data = read(source, options)
    options = _by_kind(options, data.kind)
    parts = split(data, options)
    tokenizer = None
    if data.kind == "text":
        tokenizer = train_tokenizer(
            cast(list[str], parts.train.inputs),
            kind=options.tokenizer,
            vocabulary=options.vocabulary,
            max_length=options.max_length,
        )
    first = parts.train.inputs[0]
    config = Config(
        kind=data.kind,
        features=None if isinstance(first, str) else (first.shape[1] if first.size else 1),
        labels=sorted(set(parts.train.labels), key=_label_order),
        options=options,
        data={
            "source": source,
            "format": data.format,
            "rows": {name: len(part) for name, part in parts._asdict().items()},
            "fingerprint": data.fingerprint(),
        },
    )
    return _train(data, parts, config, tokenizer, out, console, fresh=True)


def resume(out: str | Path, *, console: Console | None = None) -> Report:
    """Continue a run that was stopped, with its own options and data.

    Args:
        out: the folder of the run.
        console: where progress is shown; nowhere unless given.

    Returns:
        The same report as a run that was never stopped, but for the times.

    Raises:
        InputError: there is no such run, it is finished, or its data has changed.
        Interrupted: Ctrl-C was pressed again.
    """
    out = Path(out)
    config = model_folder.load_config(out)
    if (out / model_folder.REPORT).exists():
        raise InputError(f"{out}: training is finished, there is nothing to resume")
    source = config.data.get("source")
    if not isinstance(source, str):
        raise InputError(f"{out / model_folder.CONFIG}: does not name the run's data")
    data = read(source, config.options)
    if data.fingerprint() != config.data.get("fingerprint"):
        raise InputError(f"{data.name}: the data has changed since training began")
    tokenizer = model_folder.load_tokenizer(out) if config.kind == "text" else None
    parts = split(data, config.options)
    return _train(data, parts, config, tokenizer, out, console, fresh=False)


def load(folder: str | Path, *, device: str = "auto") -> Classifier:
    """Load a trained classifier.

    Args:
        folder: the model folder.
        device: ``auto``, ``cpu``, ``cuda`` or ``mps``.

    Returns:
        The classifier.

    Raises:
        InputError: the folder is not a model, not whole, or of another version.
    """
    folder = Path(folder)
    config = model_folder.load_config(folder)
    weights = model_folder.load_weights(folder)
    tokenizer = model_folder.load_tokenizer(folder) if config.kind == "text" else None
    classifier = Classifier(config, tokenizer, device)
    try:
        classifier.model.load_state_dict(weights)
    except RuntimeError as error:
        raise InputError(f"{folder}: the weights do not fit {model_folder.CONFIG}") from error
    return classifier


def _train(
    data: Source,
    parts: Splits,
    config: Config,
    tokenizer: Tokenizer | None,
    out: Path,
    console: Console | None,
    fresh: bool,
) -> Report:
    start = time.perf_counter()
    console = Console(quiet=True) if console is None else console
    options = config.options
    torch.manual_seed(options.seed)
    classifier = Classifier(config, tokenizer, "cpu")
    train_x, valid_x, _ = [classifier.encode(part.inputs, part.places) for part in parts]
    train_y, valid_y, _ = [classifier.targets(part) for part in parts]
    if config.kind == "numbers":
        steps = torch.cat(train_x)
        classifier.model.mean.copy_(steps.mean(0))
        spread = steps.std(0, correction=0)
        classifier.model.scale.copy_(torch.where(spread > 0, spread, 1.0))
    console.print(
        f"{data.name}: {len(parts.train):,} rows to learn from, {len(parts.valid):,} to choose the "
        f"best epoch, {len(parts.test):,} held out; {len(config.labels)} classes; "
        f"{sum(p.numel() for p in classifier.model.parameters()):,} weights",
        highlight=False,
        markup=False,
        soft_wrap=True,
    )
    job = Job(
        model=classifier.model,
        loss=nn.functional.cross_entropy,
        metric=MulticlassAccuracy(len(config.labels), average="micro"),
        metric_name="accuracy",
        train=lambda epoch: loader(train_x, train_y, options.batch_size, options.seed, epoch),
        valid=loader(valid_x, valid_y, options.batch_size),
    )
    if fresh:
        model_folder.begin(out, config, tokenizer)
    try:
        epochs = fit(job, _schedule(options), out / model_folder.CHECKPOINTS, console)
        model_folder.save_weights(out, classifier.model.state_dict())
        classifier.device = _device(options.device)
        classifier.model.to(classifier.device)
        result = classifier.evaluate(parts.test, f"{data.name}, held-out part", options.batch_size)
        best = max(epochs, key=lambda epoch: epoch["valid"])
        result.training = {
            "best_epoch": best["epoch"],
            "epochs": epochs,
            "rows": config.data["rows"],
            "seconds": sum(epoch["seconds"] for epoch in epochs),
            "seconds_last_start": time.perf_counter() - start,
        }
        result.save(out)
        model_folder.drop_checkpoints(out)
    except Interrupted:
        raise
    except KeyboardInterrupt as stop:  # before the first epoch or after the last one
        raise Interrupted("interrupted") from stop
    return result


def _schedule(options: Options) -> Schedule:
    assert options.epochs is not None
    assert options.patience is not None
    return Schedule(
        epochs=options.epochs,
        patience=options.patience,
        learning_rate=options.learning_rate,
        clip=options.clip,
        seed=options.seed,
        device=_device(options.device).type,
    )


def _by_kind(options: Options, kind: str) -> Options:
    epochs, patience = (4, 2) if kind == "text" else (30, 20)
    return replace(
        options,
        epochs=epochs if options.epochs is None else options.epochs,
        patience=patience if options.patience is None else options.patience,
    )


def _device(name: str) -> torch.device:
    if name not in DEVICES:
        raise InputError(f"device: {name!r} is not one of {', '.join(DEVICES)}")
    if name == "auto":
        name = "cuda" if torch.cuda.is_available() else "cpu"
    backend: Any = {"cuda": torch.cuda, "mps": torch.backends.mps}.get(name)
    if backend is not None and not backend.is_available():
        raise InputError(f"device: there is no {name} here")
    return torch.device(name)


def _label_order(label: str) -> tuple[float, str]:
    return (int(label) if label.isdecimal() else float("inf"), label)
