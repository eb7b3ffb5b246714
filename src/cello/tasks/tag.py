"""Tagging: a tag for each word of a sentence; train a tagger, load it, predict, evaluate.

Example::

    from cello.tasks import tag

    report = tag.train("en-train.conllu", "runs/en", tag.Options(valid_data="en-dev.conllu"))
    tagger = tag.load("runs/en")
    for sentence in tagger.predict([["A", "fine", "day"]]):
        print(sentence.words, sentence.tags)
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, TypedDict, overload

import torch
from rich.console import Console
from sklearn.model_selection import train_test_split
from torch import Tensor, nn

from cello.tasks import task
from cello.tasks.batches import Examples, answerable, enough
from cello.tasks.confusion import ClassReport, report
from cello.tasks.conllu import AnyForm, Conllu, Form, Lines, TwoColumns, recognised
from cello.tasks.errors import InputError
from cello.tasks.folder import Assets
from cello.tasks.options_tag import Options
from cello.tasks.stored import Stored
from cello.tasks.tables import decode_lines, open_text, suffix
from cello.tasks.tagger import Batch, Encoder, Lexicon, TaggingNetwork, lexicon, within
from cello.tasks.task import Data, Predictor, Request

__all__ = [
    "InputError", "Options", "Sentence", "TagReport", "Tagged", "Tagger", "load", "resume", "train",
]  # fmt: skip

LEXICON = "lexicon.json"
MOST_UNKNOWN = 0.2
"""The share of unknown words from which on it is said."""
LARGEST_BATCH = 20_000
"""Most words, padding included, that are computed at a time where tags are asked for."""


@dataclass(frozen=True)
class Sentence:
    """Words with their tags, and where they were read."""

    words: list[str]
    tags: list[str]
    place: str


@dataclass(frozen=True)
class Tagged:
    """The likeliest tags of a sentence, and the probability of each one at its word."""

    words: list[str]
    tags: list[str]
    probabilities: list[float]


class Sentences(Sequence[Sentence]):
    """Sentences in memory, or on disk.

    Args:
        rows: words and tags, each with tabs in between, and the place of each sentence.
        chosen: which of them; all unless given.
    """

    def __init__(self, rows: Sequence[Any], chosen: Sequence[int] | None = None) -> None:
        self._rows, self._chosen = rows, range(len(rows)) if chosen is None else chosen

    def __len__(self) -> int:
        return len(self._chosen)

    def __getitem__(self, index: Any) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        words, tags, place = self._rows[self._chosen[index]]
        return Sentence(words.split("\t"), tags.split("\t"), place)

    def split(self, fraction: float, seed: int) -> tuple[Sentences, Sentences]:
        """Return all but a random share of the sentences, and that share."""
        rest, off = train_test_split(self._chosen, test_size=fraction, random_state=seed)
        return Sentences(self._rows, sorted(rest)), Sentences(self._rows, sorted(off))


def read(source: str, options: Options) -> Sentences:
    """Read the sentences of a file; with ``options.stream`` they stay on disk.

    Raises:
        InputError: the file cannot be read, is not as it should be, or has no sentences.
    """
    rows = _rows(Path(source), options)
    first = next(rows, None)
    if first is None:
        raise InputError(f"{source}: holds no sentences")
    rows = chain([first], rows)
    return Sentences(Stored(rows) if options.stream else list(rows))


def _rows(path: Path, options: Options) -> Iterator[tuple[str, str, str]]:
    form, lines = _opened(path, options, TwoColumns(delimiter=options.delimiter))
    for block in form.blocks(lines, str(path)):
        if block.words:
            yield "\t".join(block.words), "\t".join(form.tags(block)), block.places[0]


def _opened(
    path: Path, options: Options, otherwise: AnyForm
) -> tuple[Conllu | AnyForm, Iterator[str]]:
    """Return how a file is written, `otherwise` where it is not CoNLL-U, and its lines."""
    if not path.exists():
        raise InputError(f"{path}: no such file")
    if path.is_dir():
        raise InputError(f"{path}: is a folder; a file is expected")
    lines = open_text(path, options.encoding)
    if options.format == "columns":
        return otherwise, lines
    if options.format == "conllu" or suffix(path) == ".conllu":
        return Conllu(options.label_column), lines
    return recognised(lines, options.label_column, otherwise)


@dataclass(kw_only=True)
class TagReport(ClassReport):
    """What a tagger got right on some data; `rows` are words, `classes` are tags.

    `known` and `unknown` are words that the training part has and has not, each with the accuracy (0
    of no words) and how many they are. `baseline` is the accuracy of the most frequent tag that each
    word has in the training part; for unknown words, of the most frequent one of all.
    """

    unit: ClassVar[str] = "words"

    sentences: int
    known: dict[str, float]
    unknown: dict[str, float]
    baseline: float

    @property
    def rivals(self) -> dict[str, float]:
        found = super().rivals
        return found and {**found, "the most frequent tag of each word": self.baseline}

    def show(self, console: Console) -> None:
        """Print the figures of each tag and of all words."""
        super().show(console)
        shares = [
            f"{name} words {share['accuracy']:.4f} of {share['words']:,}"
            for name, share in (("known", self.known), ("unknown", self.unknown))
            if share["words"]
        ]
        console.print(
            "  ".join([*shares, f"(the most frequent tag of each word: {self.baseline:.4f})"]),
            highlight=False,
            soft_wrap=True,
        )


class Facts(TypedDict):
    """What a tagger has to know again: its tags, and that of most words."""

    labels: list[str]
    most_frequent: str


class Tagger(Predictor[Sentences, TagReport]):
    """A network with all it needs to go from words to tags; see :func:`load`."""

    name: ClassVar[str] = "tag"
    options: ClassVar[type[Options]] = Options
    facts: ClassVar[type[Any]] = Facts
    unit: ClassVar[str] = "sentences"
    model: TaggingNetwork

    @classmethod
    def read(cls, source: str, options: Options) -> Data[Sentences]:
        whole = read(source, options)
        parts, digest = {"train": whole}, sha256()
        for number, (name, extra, fraction) in enumerate(
            [
                ("test", options.test_data, options.test_fraction),
                ("valid", options.valid_data, options.valid_fraction),
            ],
            start=2 * options.split_seed,
        ):
            if extra is not None:
                parts[name] = read(extra, options)
            elif len(parts["train"]) < 3:
                raise InputError(
                    f"{source}: too few sentences to split off a {name} part ({len(whole)})"
                )
            else:
                parts["train"], parts[name] = parts["train"].split(fraction, number)
        for name, part in sorted(parts.items()):
            for sentence in part:
                digest.update(repr((name, sentence.words, sentence.tags)).encode())
        train, valid, test = (parts[name] for name in ("train", "valid", "test"))
        return Data(source, options.format, train, valid, test, fingerprint=digest.hexdigest())

    @classmethod
    def describe(
        cls, data: Data[Sentences], options: Options
    ) -> tuple[Options, dict[str, Any], Assets]:
        counts = Counter(tag for sentence in data.train for tag in sentence.tags)
        if len(counts) < 2:
            raise InputError(
                f"{data.name}: every tag is {next(iter(counts))!r}; two are needed at least"
            )
        words = lexicon((sentence.words, sentence.tags) for sentence in data.train)
        epochs = options.epochs or enough(12, len(data.train), options.batch_size)
        options = replace(options, epochs=epochs)
        facts = {"labels": sorted(counts), "most_frequent": max(sorted(counts), key=counts.get)}  # type: ignore[arg-type]
        return options, facts, {LEXICON: json.dumps(words, ensure_ascii=False)}

    def build(self, assets: Assets) -> nn.Module:
        options = self._options
        self.labels: list[str] = self.config.facts["labels"]
        self.most_frequent: str = self.config.facts["most_frequent"]
        if len(set(self.labels)) < 2 or not all(isinstance(label, str) for label in self.labels):
            raise InputError("labels are not as they should be")
        self._numbers = {label: i for i, label in enumerate(self.labels)}
        self.lexicon = _read_lexicon(assets[LEXICON])
        tags = {self.most_frequent, *(tag for _, tag in self.lexicon.values())}
        if not tags <= self._numbers.keys():
            raise InputError(f"{LEXICON}: has tags that the model does not know")
        self.encoder = Encoder(
            self.lexicon,
            vocabulary=options.vocabulary,
            affixes=options.affixes,
            longest=options.longest_word,
        )
        letters = replace(options, hidden=options.character_hidden, layers=1, bidirectional=True)
        return TaggingNetwork(
            self.encoder,
            len(self.labels),
            characters=letters.layer(options.character_embedding),
            sentences=options.layer,
            word_embedding=options.embedding,
            affix_embedding=options.affix_embedding,
            crf=options.output == "crf",
            dropout=options.dropout,
            unknown=options.unknown,
        )

    @property
    def _options(self) -> Options:
        options: Options = self.config.options
        return options

    def job(self, data: Data[Sentences]) -> Any:
        from torchmetrics import MeanMetric

        from cello.tasks.trainer import Job

        options = self._options
        for part, extra in ((data.valid, options.valid_data), (data.test, options.test_data)):
            self._check_tags(part, extra or data.name)

        return Job(
            model=self.model,
            loss=lambda batch: (self.model.loss(batch), int(batch.lengths.sum())),
            update=self._update,
            metric=MeanMetric(),
            metric_name="accuracy",
            higher_is_better=True,
            train=_examples(data.train),
            valid=_examples(data.valid),
            collate=self._collate,
        )

    def _collate(self, sentences: Sequence[Sentence]) -> Batch:
        # A tag that training has not seen gets a number that is never predicted.
        other = len(self.labels)
        tags = [[self._numbers.get(tag, other) for tag in one.tags] for one in sentences]
        return self.encoder.batch([one.words for one in sentences], tags)

    def _update(self, metric: Any, batch: Batch) -> None:
        best = self.model.best(self.model(batch), batch.lengths)
        metric.update((best == batch.tags)[within(batch)].float())

    @overload
    def predict(self, sentences: str, *, batch_size: int = 64) -> Tagged: ...  # type: ignore[overload-overlap]  # a text is a sentence, not its characters
    @overload
    def predict(
        self, sentences: Iterable[Sequence[str]], *, batch_size: int = 64
    ) -> list[Tagged]: ...
    def predict(
        self, sentences: str | Iterable[Sequence[str]], *, batch_size: int = 64
    ) -> Tagged | list[Tagged]:
        """Tag one sentence, or some.

        Args:
            sentences: one sentence as a text with spaces between its words; or sentences, each a list
                of words, of which there is an end. An empty one has no tags.
            batch_size: how many sentences are computed at a time.

        Returns:
            For a text its answer, for anything else a list of one for each sentence, in order.

        Raises:
            InputError: a sentence is not a list of words that have characters.
        """
        if isinstance(sentences, str):
            return next(self.predict_stream([sentences.split()], batch_size=batch_size))
        return list(self.predict_stream(sentences, batch_size=batch_size))

    def predict_stream(
        self, sentences: Iterable[Sequence[str]], *, batch_size: int = 64
    ) -> Iterator[Tagged]:
        """Tag sentences one batch after the other, however many there are.

        Args:
            sentences: each a list of words; an empty one has no tags. Read as they are answered.
            batch_size: how many sentences are read before their tags are given out.

        Yields:
            One answer for each sentence, in order.

        Raises:
            InputError: a sentence is not a list of words that have characters.
        """
        if isinstance(sentences, str):
            raise InputError("sentences: one text, where lists of words are expected")
        for batch in answerable(enumerate(sentences, 1), batch_size):
            yield from self._tagged([_checked(one, f"sentence {i}") for i, one in batch])

    def _tagged(self, sentences: Sequence[Sequence[str]]) -> Iterator[Tagged]:
        answers: list[Tagged] = [Tagged(list(words), [], []) for words in sentences]
        for chosen in _groups([len(words) for words in sentences]):
            tags, probabilities = self._best([sentences[i] for i in chosen], probable=True)
            for column, i in enumerate(chosen):
                length = len(sentences[i])
                answers[i].tags.extend(self.labels[t] for t in tags[:length, column].tolist())
                answers[i].probabilities.extend(probabilities[:length, column].tolist())
        yield from answers

    @torch.inference_mode()
    def _best(
        self, sentences: Sequence[Sequence[str]], *, probable: bool = False
    ) -> tuple[Tensor, Tensor]:
        """Return the numbers of the likeliest tags, and their probabilities if asked for."""
        self.model.eval()
        batch = self.encoder.batch(sentences, [[0] * len(words) for words in sentences])
        batch = Batch(*(tensor.to(self.device) for tensor in batch))
        scores = self.model(batch)
        tags = self.model.best(scores, batch.lengths)
        if not probable:
            return tags.cpu(), torch.empty(0)
        probabilities = self.model.probabilities(scores, batch.lengths)
        return tags.cpu(), probabilities.gather(2, tags[..., None])[..., 0].cpu()

    def evaluate(self, part: Sentences, data: str = "data", batch_size: int = 64) -> TagReport:
        start = time.perf_counter()
        unseen = sorted({tag for one in part for tag in one.tags} - set(self.labels))
        labels = [*self.labels, *unseen]
        numbers = {label: i for i, label in enumerate(labels)}
        self._check_tags(part, data)
        true, predicted, guessed, known = [], [], [], []
        pool = 100 * batch_size  # sentences sorted by length at a time: see _groups
        for first in range(0, len(part), pool):
            sentences = part[first : first + pool]
            for chosen in _groups([len(one.words) for one in sentences], batch_size):
                tags, _ = self._best([sentences[i].words for i in chosen])
                for column, i in enumerate(chosen):
                    words = sentences[i].words
                    true += [numbers[tag] for tag in sentences[i].tags]
                    predicted += tags[: len(words), column].tolist()
                    guessed += [numbers[self.guess(word)] for word in words]
                    known += [word in self.lexicon for word in words]
        right = torch.tensor(predicted) == torch.tensor(true)
        seen = torch.tensor(known)
        plain = report(data, labels, true, predicted, time.perf_counter() - start)
        return TagReport(
            **asdict(plain),
            sentences=len(part),
            known=_share(right[seen]),
            unknown=_share(right[~seen]),
            baseline=_share(torch.tensor(guessed) == torch.tensor(true))["accuracy"],
        )

    def _check_tags(self, part: Sentences, data: str) -> None:
        """Refuse another set of tags; a few that are new may well be."""
        new = Counter(tag for one in part for tag in one.tags if tag not in self._numbers)
        count, foreign = sum(len(one.words) for one in part), sum(new.values())
        if foreign > count / 2:
            raise InputError(
                f"{data}: {foreign:,} of {count:,} words have a tag that the model does not know, "
                f"as {', '.join(map(repr, sorted(new)[:5]))}; "
                f"it knows {', '.join(map(repr, self.labels[:5]))}"
            )

    def guess(self, word: str) -> str:
        """Return the most frequent tag of a word in the training part, or of all for unknown ones."""
        return self.lexicon[word][1] if word in self.lexicon else self.most_frequent

    def evaluate_source(
        self, source: str, part: str | None = None, batch_size: int = 64, **changes: Any
    ) -> TagReport:
        options = self.changed({"format": "auto", **changes})
        self.check_part(source, part)
        if part in ("train", "valid", "test"):
            sentences = getattr(self.read(source, options), part)
        else:
            part, sentences = "all", read(source, options)
        return self.evaluate(sentences, f"{source}, {part} sentences", batch_size)

    def answer(self, request: Request) -> Iterator[str]:
        form, lines, name = self._asked(request)
        words = unknown = 0
        for batch in answerable(form.blocks(lines, name), request.batch_size):
            for word in chain.from_iterable(block.words for block in batch):
                words += 1
                unknown += word not in self.lexicon and word.lower() not in self.lexicon
            for block, one in zip(batch, self._tagged([b.words for b in batch]), strict=True):
                if request.json:
                    yield json.dumps(asdict(one), ensure_ascii=False)
                else:
                    yield from form.filled(block, one.tags)
        if unknown > MOST_UNKNOWN * words:
            request.notes.append(
                f"the sentences: {unknown / words:.0%} of the words are unknown to the model, which "
                "sees their characters alone; words are what has spaces in between"
            )

    def _asked(self, request: Request) -> tuple[Form, Iterator[str], str]:
        """Return how the sentences of a request are written, its lines, and where they are from."""
        if request.column is not None:
            raise InputError("text-column: a tagger reads sentences, not tables")
        options = replace(request.changed(self._options), format="auto")
        if request.texts:
            return Lines(), iter(request.texts), "texts"
        if request.file is None:
            lines = decode_lines(request.stream, "stdin", options.encoding)
            return *recognised(lines, options.label_column, Lines()), "stdin"
        columns = suffix(request.file) in (".tsv", ".conll")
        two = TwoColumns(tagged=False, delimiter=options.delimiter)
        otherwise = two if columns else Lines()
        return *_opened(request.file, options, otherwise), str(request.file)


def train(
    source: str | Path,
    out: str | Path,
    options: Options | None = None,
    *,
    overwrite: bool = False,
    console: Console | None = None,
) -> TagReport:
    """Train a tagger and write it to a folder.

    Args:
        source: a file in CoNLL-U, or with a word and its tag a line (.gz too).
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
    return task.train(Tagger, source, out, options, overwrite=overwrite, console=console)


def resume(out: str | Path, *, console: Console | None = None) -> TagReport:
    """Continue a run that was stopped; see :func:`cello.tasks.task.resume`."""
    return task.resume(Tagger, out, console=console)


def load(folder: str | Path, *, device: str = "auto") -> Tagger:
    """Load a trained tagger; see :func:`cello.tasks.task.load`."""
    return task.load(Tagger, folder, device=device)


def _examples(part: Sentences) -> Examples:
    return Examples(part, [len(one.words) for one in part])


def _groups(lengths: Sequence[int], most: int | None = None) -> Iterator[list[int]]:
    """Yield the numbers of sentences of about the same length, in batches of bounded size.

    Sentences without words are left out.
    """
    order = sorted((i for i in range(len(lengths)) if lengths[i]), key=lengths.__getitem__)
    group: list[int] = []
    for i in order:  # the longest of a group is its last
        if group and (len(group) == most or (len(group) + 1) * lengths[i] > LARGEST_BATCH):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def _share(right: Tensor) -> dict[str, float]:
    accuracy = right.double().mean().item() if len(right) else 0.0
    return {"accuracy": accuracy, "words": len(right)}


def _checked(words: Sequence[str], place: str) -> Sequence[str]:
    if isinstance(words, str) or not all(isinstance(word, str) and word for word in words):
        raise InputError(f"{place}: {words!r} is not a list of words, as ['A', 'day']")
    return words


def _read_lexicon(text: str) -> Lexicon:
    try:
        return {word: (int(count), str(tag)) for word, (count, tag) in json.loads(text).items()}
    except (ValueError, TypeError, AttributeError) as error:
        raise InputError(f"{LEXICON}: not whole") from error
