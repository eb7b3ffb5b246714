"""Classifiers: from texts, or sequences of numbers, to labels."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypedDict, overload

import numpy as np
import torch
from numpy.typing import NDArray
from tokenizers import Tokenizer
from torch import Tensor, nn

from cello.tasks.batches import Examples, answerable, by_length, enough, pad
from cello.tasks.classify.answers import Prediction, told
from cello.tasks.classify.data import read, read_inputs, read_steps, read_table
from cello.tasks.classify.network import Classifiers, ExportedClassifier, SequenceClassifier
from cello.tasks.classify.options import Options
from cello.tasks.classify.rows import LARGEST, Input, Part, is_empty, numbers, whole
from cello.tasks.classify.splits import split
from cello.tasks.classify.text import Known, cut, encode, in_order, load_tokenizer, train_tokenizer
from cello.tasks.confusion import ClassReport, report
from cello.tasks.errors import InputError, check_count
from cello.tasks.exported import Exportable
from cello.tasks.folder import Assets
from cello.tasks.members import each, first_of
from cello.tasks.memory import title
from cello.tasks.page import Read, watched
from cello.tasks.parts import limited, part_of
from cello.tasks.start import SPECIAL, width_of
from cello.tasks.stored import Stored
from cello.tasks.tables import TABLES, decode_lines, open_text, parse_json, suffix
from cello.tasks.task import Data, Predictor, Request

TOKENIZER = "tokenizer.json"
MOST_UNKNOWN = 0.2
"""The share of unknown tokens from which on it is said: a text is read with holes then."""


_NUMBERS = "numbers, in JSON as [[1.0, 2.0], [3.0, 4.0]]; a .csv or .tsv holds text"


class Facts(TypedDict):
    """What a classifier has to know again: its labels, and how many numbers a step has, if any."""

    labels: list[str]
    features: int | None


class Classifier(Predictor[Part, ClassReport, Options]):
    """A network with all it needs to go from texts, or numbers, to labels; see :func:`load`."""

    name: ClassVar[str] = "classify"
    options: ClassVar[type[Options]] = Options
    report: ClassVar[type[ClassReport]] = ClassReport
    facts: ClassVar[type[Any]] = Facts
    words: ClassVar[str | None] = "embedding.weight"
    heads: ClassVar[tuple[str, ...]] = ("linear",)
    network: ClassVar[type[SequenceClassifier]] = SequenceClassifier
    model: SequenceClassifier | Classifiers

    @classmethod
    def read(cls, source: Any, options: Options) -> Data[Part]:
        found = read(source, options, stream=options.stream)
        train, valid, test = split(found, options, options.split_seed)
        train, notes = limited(train, options.limit, options.split_seed, train.labels)
        return Data(
            found.name,
            found.format,
            train,
            valid,
            test,
            fingerprint=found.fingerprint(),
            notes=[*found.notes, *notes],
            features=found.features,
        )

    @classmethod
    def describe(cls, data: Data[Part], options: Options) -> tuple[Options, dict[str, Any], Assets]:
        first = data.train[0].input
        features = None if isinstance(first, str) else first.shape[1] if first.size else 1
        text = features is None
        for name in ("word_dropout", "embedding_dropout", "pretrain", "text_vectors"):
            if not text and getattr(options, name):
                raise InputError(f"{name.replace('_', '-')}: only texts have it, not numbers")
        epochs, patience = (4, 2) if text else (30, 20)
        epochs = enough(epochs, len(data.train), options.batch_size)
        patience = max(patience, epochs // 3)
        options = replace(
            options,
            epochs=epochs if options.epochs is None else options.epochs,
            patience=patience if options.patience is None else options.patience,
        )
        if data.features:  # by name, whatever the order of the columns in use
            options = replace(options, feature_columns=",".join(data.features))
        if text and options.vectors is not None:
            options = replace(options, embedding=width_of(options.vectors))
        assets = {}
        if text:
            tokenizer = train_tokenizer(
                (str(row.input) for row in data.train),
                kind=options.tokenizer,
                vocabulary=options.vocabulary,
                max_length=max(options.max_length, options.longest),
            )
            assets[TOKENIZER] = tokenizer.to_str()
        facts = {
            "labels": sorted(set(data.train.labels), key=_label_order),
            "features": features,
        }
        return options, facts, assets

    def build(self, assets: Assets) -> nn.Module:
        self.labels: list[str] = self.config.facts["labels"]
        self.features: int | None = self.config.facts["features"]
        self.tokenizer: Tokenizer | None = None
        if self.features is None:
            self.tokenizer = load_tokenizer(assets[TOKENIZER], TOKENIZER)
        if len(set(self.labels)) < 2 or not all(isinstance(label, str) for label in self.labels):
            raise InputError("labels are not as they should be")
        make = partial(
            self.network,
            self._options,
            len(self.labels),
            vocabulary=None if self.tokenizer is None else self.tokenizer.get_vocab_size(),
            features=self.features,
        )
        return Classifiers.of(make, self._options.members)

    def tokens(self) -> dict[str, Sequence[str]]:
        if self.tokenizer is None:
            return {}
        return {"embedding.weight": in_order(self.tokenizer)}

    def job(self, data: Data[Part]) -> Any:
        from torchmetrics.classification import MulticlassAccuracy

        from cello.tasks.trainer import Job

        if self.tokenizer is None:
            self._scale(data.train)
        # What could not be answered is refused now, not when training is done.
        known = Known(self._encoded(data.test, self._options.longest))
        notes = self._unknown(f"{data.name}, test set", known)
        train = self._examples(data.train, self._options.max_length)
        valid = self._examples(data.valid, self._options.longest)
        known = Known(x for x, _ in valid.items)
        notes += self._unknown(f"{data.name}, validation set", known)
        if self._options.text_vectors:
            notes.append(self._take_text_vectors(data.train))
        return Job(
            model=self.model,
            loss=self._loss,
            judge=self._judge,
            metric=MulticlassAccuracy(len(self.labels), average="micro"),
            metric_name="accuracy",
            higher_is_better=True,
            train=train,
            valid=valid,
            collate=_collate,
            notes=notes,
        )

    def first_job(self, job: Any) -> Any:
        epochs = self._options.pretrain
        if not epochs:
            return None
        from cello.tasks.classify.pretraining import job_of_neighbours

        assert self.tokenizer is not None  # numbers were refused
        return job_of_neighbours(self.model, job, self.tokenizer.get_vocab_size(), epochs)

    @torch.no_grad()
    def _take_text_vectors(self, part: Part) -> str:
        """Let the embeddings begin with vectors made of the texts; say what they are."""
        from cello.tasks.classify.cooccurrence import vectors_of

        assert self.tokenizer is not None  # numbers were refused
        options, texts = self._options, self._encoded(part, self._options.longest)
        size = self.tokenizer.get_vocab_size()
        vectors = vectors_of(texts, size, options.embedding, options.text_vectors, options.seed)
        known = vectors.any(1)
        for one in each(self.model):
            weight = one.get_parameter("embedding.weight")
            weight[known] = vectors[known] * weight[SPECIAL:].std()
        return f"vectors of the training texts: {int(known.sum()):,} of {size - SPECIAL:,} tokens"

    def _unknown(self, what: str, known: Known) -> list[str]:
        """Return what there is to say about tokens that the model does not know."""
        if self.tokenizer is None or known.unknown <= MOST_UNKNOWN:
            return []
        advice = ""
        if self._options.tokenizer == "word":
            advice = "; trained with --tokenizer bpe or char it reads smaller pieces"
        return [f"{what}: {known.unknown:.0%} of the tokens are unknown to the model{advice}"]

    def _scale(self, part: Part) -> None:
        # Sums in float64, one sequence after the other: the rows may be on disk.
        assert self.features is not None
        count, total, squares = 0, np.zeros(self.features), np.zeros(self.features)
        together = self._options.scaling == "all"
        near: Any = (
            None  # a number near the mean, without which squares of large ones lose the rest
        )
        for row in part:
            self._check(row.input, row.place)
            steps = np.asarray(row.input, np.float64)
            if near is None:
                near = np.full_like(steps[0], steps[0].mean()) if together else steps[0]
            steps = steps - near
            count += len(steps)
            total += steps.sum(0)
            squares += (steps**2).sum(0)
        if together:
            total, squares = np.full_like(total, total.mean()), np.full_like(total, squares.mean())
        mean = near + total / count
        spread = np.sqrt(np.maximum(squares / count - (total / count) ** 2, 0.0))
        spread[spread <= 1e-14 * np.abs(mean)] = 0.0  # a constant, up to rounding
        for one in each(self.model):
            one.scale_by(mean, np.where(spread > 0, spread, 1.0))

    def _examples(self, part: Part, longest: int) -> Examples:
        items = zip(self._encoded(part, longest), self.targets(part), strict=True)
        if not self._options.stream:
            kept = list(items)
            return Examples(kept, [len(x) for x, _ in kept])
        lengths: list[int] = []

        def counted() -> Iterator[tuple[Tensor, int]]:
            for x, target in items:
                lengths.append(len(x))
                yield x, target

        return Examples(Stored(counted()), lengths)

    def _encoded(self, part: Part, longest: int) -> Iterator[Tensor]:
        for start in range(0, len(part), 1024):
            rows = part[start : start + 1024]
            inputs, places = [row.input for row in rows], [row.place for row in rows]
            yield from self.encode(inputs, places, longest)

    def _loss(self, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, int]:
        return self.model.loss(*batch), len(batch[2])

    def _judge(self, metric: Any, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, int]:
        logits, loss = self.model.judged(*batch)
        metric.update(logits.float(), batch[2])
        return loss, len(batch[2])

    def encode(
        self, inputs: Sequence[Input], places: Sequence[str], longest: int | None = None
    ) -> list[Tensor]:
        """Turn inputs into tensors, (T,) or (T, F).

        Args:
            inputs: texts, or arrays (T, F).
            places: where each was read.
            longest: the most steps; as the model reads in use unless given.

        Raises:
            InputError: an input is empty or of another form; the message begins with its place.
        """
        for one, place in zip(inputs, places, strict=True):
            self._check(one, place)
        longest = self._options.longest if longest is None else longest
        if self.tokenizer is not None:
            ids = encode(self.tokenizer, inputs, places)  # type: ignore[arg-type]  # checked above
            return [one[:longest] for one in ids]
        first: SequenceClassifier = first_of(self.model)
        return first.less_mean([np.asarray(one[:longest]) for one in inputs])

    def _check_kind(self, one: Input, place: str) -> None:
        if isinstance(one, str) != (self.tokenizer is not None):
            form = "text" if self.tokenizer is not None else _NUMBERS
            raise InputError(f"{place}: the model reads {form}")
        if not isinstance(one, str | np.ndarray):
            raise InputError(f"{place}: {type(one).__name__}, where an array (T, F) is expected")

    def _check(self, one: Input, place: str) -> None:
        self._check_kind(one, place)
        if isinstance(one, str):
            return
        if not one.size:
            raise InputError(f"{place}: the sequence is empty")
        if one.ndim != 2:
            raise InputError(f"{place}: the sequence has the shape {one.shape}, not (T, F)")
        if not (np.abs(one) <= LARGEST).all():
            raise InputError(f"{place}: a number is not finite in float32")
        if one.shape[1] != self.features:
            raise InputError(f"{place}: {one.shape[1]} numbers in a step, not {self.features}")

    @overload
    def predict(self, inputs: str, *, batch_size: int = 64) -> Prediction: ...
    @overload
    def predict(self, inputs: Any, *, batch_size: int = 64) -> list[Prediction]: ...
    def predict(self, inputs: Any, *, batch_size: int = 64) -> Prediction | list[Prediction]:
        """Classify one text, or some inputs.

        Args:
            inputs: one text; or a list, column or array of texts or of sequences of numbers, (T, F) or
                (T,) each; or a table with the columns of the training data, as a DataFrame; or the
                :class:`pathlib.Path` of a file, as for ``cello predict --file``.
            batch_size: how many inputs are computed at a time.

        Returns:
            For one text its prediction, for anything else a list of one for each input, in order. That
            of an input with nothing to read, as an empty text, has None in each field.

        Raises:
            InputError: an input is of another form.
        """
        if isinstance(inputs, str):
            return next(self.predict_stream([inputs], batch_size=batch_size))
        return list(self.predict_stream(inputs, batch_size=batch_size))

    def predict_stream(self, inputs: Any, *, batch_size: int = 64) -> Iterator[Prediction]:
        """Classify inputs one batch after the other, however many there are.

        Args:
            inputs: as of :meth:`predict`, and any other iterable; read as they are answered.
            batch_size: how many inputs are read before their predictions are given out.

        Returns:
            An iterator with one prediction for each input, in order, as of :meth:`predict`.

        Raises:
            InputError: an input is of another form; what came before it is answered first.
        """
        if isinstance(inputs, str):
            raise InputError("inputs: one text, where several are expected; predict takes one")
        check_count("batch_size", batch_size)
        if isinstance(inputs, Path):
            asked = self._asked(Request(file=inputs))
        else:
            asked = read_inputs(inputs, self._options)
        encoded = (self._readable(one, place) for one, place in asked)
        return (one for batch in answerable(encoded, batch_size) for one in self._predicted(batch))

    def _readable(self, one: Input, place: str) -> Tensor | None:
        """Encode an input; None where there is nothing to read in it."""
        self._check_kind(one, place)
        return None if is_empty(one) else self.encode([one], [place])[0]

    def _predicted(self, sequences: Sequence[Tensor | None]) -> Iterator[Prediction]:
        there = [one for one in sequences if one is not None]
        rows = iter(self.probabilities(there).tolist() if there else ())
        for ids in sequences:
            if ids is None:
                yield Prediction(None, None, None, None)
                continue
            row = next(rows)
            best = max(range(len(row)), key=row.__getitem__)
            probabilities = dict(zip(self.labels, row, strict=True))
            unknown = 0.0 if self.tokenizer is None else Known([ids]).unknown
            yield Prediction(self.labels[best], row[best], probabilities, unknown)

    @torch.inference_mode()
    def probabilities(self, sequences: Sequence[Tensor]) -> Tensor:
        """Return the probability of each class, (B, classes), of what :meth:`encode` gave."""
        self.model.eval()
        x, lengths = pad(sequences)
        logits: Tensor = self.model(x.to(self.device), lengths.to(self.device))
        return logits.softmax(1).cpu()

    def targets(self, part: Part) -> list[int]:
        """Return the number of each row's class.

        Raises:
            InputError: a label is not one of the model's.
        """
        known = {label: i for i, label in enumerate(self.labels)}
        targets = []
        for row in part:
            label = row.label
            if label not in known and re.fullmatch(
                r"-?\d+(\.0)?", label
            ):  # 1 and 1.0 are one number
                label = label.removesuffix(".0") if label.endswith(".0") else f"{label}.0"
            if label not in known:
                raise InputError(
                    f"{row.place}: unknown label {row.label!r}; known are: {', '.join(known)}"
                )
            targets.append(known[label])
        return targets

    def evaluate(self, part: Any, data: str = "data", batch_size: int = 64) -> ClassReport:
        """Compare predictions with the labels of some rows.

        Args:
            part: the rows: a path or data in memory, as for :meth:`train`, of which the test set is taken
                if it has one; or a part from :func:`cello.tasks.classify.data.read`.
            data: what they are, for the eye.
            batch_size: rows computed at a time.

        Raises:
            InputError: a label is not one of the model's, or an input is empty.
        """
        check_count("batch_size", batch_size)
        if not isinstance(part, Part):
            return self.evaluate_source(part, None, batch_size)
        start = time.perf_counter()
        self._check(part[0].input, part[0].place)
        targets = self.targets(part)
        predicted: list[int] = []
        known = Known()
        pool = 100 * batch_size  # rows sorted by length at a time, so that there is little padding
        for first in range(0, len(part), pool):
            rows = part[first : first + pool]
            sequences = self.encode([row.input for row in rows], [row.place for row in rows])
            known.add(sequences)
            best = [0] * len(rows)
            for batch in by_length([len(one) for one in sequences], batch_size):
                answers = self.probabilities([sequences[i] for i in batch]).argmax(1).tolist()
                for i, one in zip(batch, answers, strict=True):
                    best[i] = one
            predicted += best
        seconds = time.perf_counter() - start
        found = report(data, self.labels, targets, predicted, seconds)
        found.notes = self._unknown(data, known)
        return found

    def evaluate_source(
        self, source: Any, part: str | None = None, batch_size: int = 64, **changes: Any
    ) -> ClassReport:
        options = self.changed({"format": "auto", **changes})
        self.check_part(source, part)
        if part in ("train", "valid", "test"):
            found = self.read(source, options if part == "train" else replace(options, limit=None))
            rows, notes = getattr(found, part), found.notes
        else:
            options = replace(options, group_column=None, valid_data=None, test_data=None)
            whole_source = read(source, options)
            parts, notes = whole_source.parts, whole_source.notes
            part = part or ("test" if "test" in parts else "all")
            rows = parts["test"] if part == "test" else whole(whole_source)
        judged = self.evaluate(rows, part_of(title(source), part), batch_size)
        judged.notes = [*notes, *judged.notes]
        return judged

    def exportable(self) -> Exportable:
        name, steps = ("tokens" if self.tokenizer is not None else "numbers"), (2, 5)
        x = torch.zeros(steps, dtype=torch.int64)
        if self.features is not None:
            x = torch.zeros(*steps, self.features, dtype=torch.float64)
        facts: dict[str, Any] = {"task": self.name, "labels": self.labels}
        facts["max_length"] = self._options.longest
        if self.tokenizer is not None:
            facts["tokenizer"] = TOKENIZER
        return Exportable(
            ExportedClassifier(self.model),
            (x.to(self.device), torch.tensor([5, 3], device=self.device)),
            (name, "lengths"),
            ({0: "batch", 1: "time"}, {0: "batch"}),
            ("probabilities",),
            facts,
        )

    def watch(self, text: str, place: str) -> Read:
        if self.tokenizer is None:
            return super().watch(text, place)  # which refuses it
        (ids,) = self.encode([text], [place])
        pieces, rest = cut(self.tokenizer, text, len(ids))
        size = self._options.batch_size
        prefixes = [ids[: k + 1] for k in range(len(ids))]
        groups = [prefixes[k : k + size] for k in range(0, len(prefixes), size)]
        probabilities = torch.cat([self.probabilities(group) for group in groups])
        layer, recording = watched(
            first_of(self.model).recurrent, lambda: self.probabilities([ids])
        )
        return Read(pieces, rest, layer, recording, self.labels, probabilities)

    def answer(self, request: Request) -> Iterator[str]:
        known, count, empty, first = Known(), 0, 0, ""

        def encoded() -> Iterator[Tensor | None]:
            nonlocal count, empty, first
            for one, place in self._asked(request):
                count += 1
                ids = self._readable(one, place)
                if ids is None:
                    empty, first = empty + 1, first or place
                yield ids

        for batch in answerable(encoded(), request.batch_size):
            known.add(one for one in batch if one is not None)
            for answer in self._predicted(batch):  # one line for each input, for an empty one too
                yield told(answer, request.json)
        if empty:
            request.notes.append(
                f"{empty:,} of {count:,} inputs had nothing to read and have no answer; "
                f"the first: {first}"
            )
        request.notes.extend(self._unknown("the texts", known))

    def _asked(self, request: Request) -> Iterator[tuple[Input, str]]:
        """Return the inputs of a request, each with where it was read."""
        options, file = request.changed(self._options), request.file
        if file is not None and options.sequence_column is not None:
            return ((row.input, row.place) for row in read_steps(file, options, labelled=False))
        if file is not None and suffix(file) in TABLES:
            column = request.column or options.text_column
            rows = read_table(file, column, **options.written)
            return ((row.input, row.place) for row in rows)
        if request.texts:
            lines = iter([(line, f"text {i}") for i, line in enumerate(request.texts, 1)])
        elif file is not None:
            if not file.exists():
                raise InputError(f"{file}: no such file")
            lines = _numbered(open_text(file, options.encoding), str(file))
        else:
            lines = _numbered(decode_lines(request.stream, "stdin", options.encoding), "stdin")
        return lines if self.tokenizer is not None else _parsed(lines)


train, resume, load = Classifier.train, Classifier.resume, Classifier.load


def _collate(examples: list[tuple[Tensor, int]]) -> tuple[Tensor, Tensor, Tensor]:
    x, lengths = pad([sequence for sequence, _ in examples])
    return x, lengths, torch.tensor([target for _, target in examples])


def _numbered(lines: Iterator[str], name: str) -> Iterator[tuple[str, str]]:
    for i, line in enumerate(lines, 1):
        yield line.removesuffix("\n").removesuffix("\r"), f"{name}, line {i}"


def _parsed(lines: Iterator[tuple[str, str]]) -> Iterator[tuple[NDArray[np.float64], str]]:
    for line, place in lines:
        value = parse_json(line, place) if line.strip() else []
        yield numbers(value, place), place


def _label_order(label: str) -> tuple[float, str]:
    return (int(label) if label.isdecimal() else float("inf"), label)
