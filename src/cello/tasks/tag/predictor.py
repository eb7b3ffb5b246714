"""Taggers: from words to tags."""

from __future__ import annotations

import json
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from typing import Any, ClassVar, TypedDict, overload

import torch
from torch import Tensor, nn

from cello.tasks.batches import Examples, answerable, by_length, enough
from cello.tasks.confusion import report
from cello.tasks.errors import InputError, check_count
from cello.tasks.exported import Exportable
from cello.tasks.folder import Assets
from cello.tasks.members import first_of
from cello.tasks.memory import in_a_row, is_name, names_of, parts_of, title
from cello.tasks.page import Read, watched
from cello.tasks.parts import SETS, limited, part_of
from cello.tasks.start import width_of
from cello.tasks.tables import TABLES, decode_lines, read_texts, suffix
from cello.tasks.tag.conllu import Format, Lines, TwoColumns, recognised
from cello.tasks.tag.data import Sentence, Sentences, opened, read, words_of
from cello.tasks.tag.network import (
    Batch,
    Encoder,
    ExportedTagger,
    Lexicon,
    Taggers,
    TaggingNetwork,
    lexicon,
    within,
)
from cello.tasks.tag.options import Options
from cello.tasks.tag.report import TagReport
from cello.tasks.task import Data, Predictor, Request

LEXICON = "lexicon.json"
MOST_UNKNOWN = 0.2
"""The share of unknown words from which on it is said."""
LARGEST_BATCH = 20_000
"""Most words, padding included, that are computed at a time where tags are asked for."""


@dataclass(frozen=True)
class Tagged:
    """The likeliest tags of a sentence, and the probability of each one at its word."""

    words: list[str]
    tags: list[str]
    probabilities: list[float]


class Facts(TypedDict):
    """What a tagger has to know again: its tags, and that of most words."""

    labels: list[str]
    most_frequent: str


class Tagger(Predictor[Sentences, TagReport, Options]):
    """A network with all it needs to go from words to tags; see :func:`load`."""

    name: ClassVar[str] = "tag"
    options: ClassVar[type[Options]] = Options
    report: ClassVar[type[TagReport]] = TagReport
    facts: ClassVar[type[Any]] = Facts
    unit: ClassVar[str] = "sentences"
    words: ClassVar[str | None] = "words.weight"
    heads: ClassVar[tuple[str, ...]] = ("linear", "crf")
    model: TaggingNetwork | Taggers

    @classmethod
    def read(cls, source: Any, options: Options) -> Data[Sentences]:
        from sklearn.model_selection import train_test_split

        name = title(source)
        given = parts_of(source)
        parts = {part: read(one, options) for part, one in given.items()}
        whole, digest = parts["train"], sha256()
        for number, (part, extra, fraction) in enumerate(
            [
                ("test", options.test_data, options.test_fraction),
                ("valid", options.valid_data, options.valid_fraction),
            ],
            start=2 * options.split_seed,
        ):
            if extra is not None:
                parts[part] = read(extra, options)
            elif part in parts:
                continue
            elif len(parts["train"]) < 3:
                raise InputError(
                    f"{name}: too few sentences to split off a {SETS[part]} ({len(whole)})"
                )
            else:
                rest = parts["train"]
                left, off = train_test_split(
                    range(len(rest)), test_size=fraction, random_state=number
                )
                parts["train"], parts[part] = rest.take(sorted(left)), rest.take(sorted(off))
        for part, sentences in sorted(parts.items()):
            for sentence in sentences:
                digest.update(repr((part, sentence.words, sentence.tags)).encode())
        train, notes = limited(parts["train"], options.limit, options.split_seed, unit="sentences")
        form = options.format if is_name(source) else "memory"
        return Data(name, form, train, parts["valid"], parts["test"], digest.hexdigest(), notes)

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
        if options.vectors is not None:
            options = replace(options, embedding=width_of(options.vectors))
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

        def make() -> TaggingNetwork:
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

        return Taggers.of(make, options.members)

    def tokens(self) -> dict[str, Sequence[str]]:
        affixes = {f"affixes.{i}.weight": v.tokens for i, v in enumerate(self.encoder.affixes)}
        letters = self.encoder.characters.tokens
        return {"words.weight": self.encoder.words.tokens, "letters.weight": letters, **affixes}

    def job(self, data: Data[Sentences]) -> Any:
        from torchmetrics import MeanMetric

        from cello.tasks.trainer import Job

        options = self._options
        for part, extra in ((data.valid, options.valid_data), (data.test, options.test_data)):
            self._check_tags(part, extra or data.name)

        return Job(
            model=self.model,
            loss=lambda batch: (
                self.model.loss(self.model(batch), batch),
                int(batch.lengths.sum()),
            ),
            judge=self._judge,
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

    def _judge(self, metric: Any, batch: Batch) -> tuple[Tensor, int]:
        scores = self.model(batch)
        best = self.model.best(scores, batch.lengths)
        metric.update((best == batch.tags)[within(batch)].float())
        return self.model.loss(scores, batch), int(batch.lengths.sum())

    @overload
    def predict(self, sentences: str, *, batch_size: int = 64) -> Tagged: ...
    @overload
    def predict(self, sentences: Any, *, batch_size: int = 64) -> list[Tagged]: ...
    def predict(self, sentences: Any, *, batch_size: int = 64) -> Tagged | list[Tagged]:
        """Tag one sentence, or some.

        Args:
            sentences: one sentence as a text with spaces between its words; or a list of sentences, each a
                list of words; or a table with a sentence a row, in the column `words`, or a word a row, in
                the columns `sentence` and `word`; or the :class:`pathlib.Path` of a file, as for ``cello
                predict --file``. An empty sentence has no tags.
            batch_size: how many sentences are computed at a time.

        Returns:
            For a text its answer, for anything else a list of one for each sentence, in order.

        Raises:
            InputError: a sentence is not a list of words that have characters.
        """
        if isinstance(sentences, str):
            return next(self.predict_stream([sentences.split()], batch_size=batch_size))
        return list(self.predict_stream(sentences, batch_size=batch_size))

    def predict_stream(self, sentences: Any, *, batch_size: int = 64) -> Iterator[Tagged]:
        """Tag sentences one batch after the other, however many there are.

        Args:
            sentences: as of :meth:`predict`, and any other iterable; read as they are answered.
            batch_size: how many sentences are read before their tags are given out.

        Yields:
            One answer for each sentence, in order.

        Raises:
            InputError: a sentence is not a list of words that have characters.
        """
        if isinstance(sentences, str):
            raise InputError("sentences: one text, where lists of words are expected")
        asked: Iterable[tuple[str, Sequence[str]]]
        if isinstance(sentences, Path):
            form, lines, name = self._asked(Request(file=sentences))
            asked = ((name, block.words) for block in form.blocks(lines, name))
        elif names_of(sentences) is not None:
            asked = words_of(sentences)
        else:
            given = enumerate(in_a_row(sentences, "sentences"), 1)
            asked = ((f"sentence {i}", one) for i, one in given)
        for batch in answerable(asked, batch_size):
            yield from self._tagged([_checked(one, place) for place, one in batch])

    def _tagged(self, sentences: Sequence[Sequence[str]]) -> Iterator[Tagged]:
        answers: list[Tagged] = [Tagged(list(words), [], []) for words in sentences]
        for chosen in by_length([len(words) for words in sentences], largest=LARGEST_BATCH):
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

    def evaluate(self, part: Any, data: str = "data", batch_size: int = 64) -> TagReport:
        """Compare the tags of some sentences with the truth.

        Args:
            part: the sentences: a path or data in memory, as for :meth:`train`; or a part of
                :meth:`read`.
            data: what they are, for the eye.
            batch_size: sentences computed at a time.

        Raises:
            InputError: the data cannot be read, or most tags are not the model's.
        """
        check_count("batch_size", batch_size)
        if not isinstance(part, Sentences):
            return self.evaluate_source(part, None, batch_size)
        start = time.perf_counter()
        unseen = sorted({tag for one in part for tag in one.tags} - set(self.labels))
        labels = [*self.labels, *unseen]
        numbers = {label: i for i, label in enumerate(labels)}
        self._check_tags(part, data)
        true, predicted, guessed, known = [], [], [], []
        pool = 100 * batch_size  # sentences sorted by length at a time
        for first in range(0, len(part), pool):
            sentences = part[first : first + pool]
            for chosen in by_length(
                [len(one.words) for one in sentences], batch_size, LARGEST_BATCH
            ):
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
        """Return the most frequent tag of a word in the training set, or of all for unknown ones."""
        return self.lexicon[word][1] if word in self.lexicon else self.most_frequent

    def evaluate_source(
        self, source: Any, part: str | None = None, batch_size: int = 64, **changes: Any
    ) -> TagReport:
        options = self.changed({"format": "auto", **changes})
        self.check_part(source, part)
        if part in ("train", "valid", "test"):
            sentences = getattr(self.read(source, options), part)
        else:
            held = parts_of(source)
            part, sentences = (
                "test" if "test" in held else "all",
                read(held.get("test", source), options),
            )
        return self.evaluate(sentences, part_of(title(source), part), batch_size)

    def exportable(self) -> Exportable:
        def ones(*sizes: int) -> Tensor:
            return torch.ones(*sizes, dtype=torch.int64, device=self.device)

        encoder, whole = self.encoder, {0: "batch", 1: "time"}
        affixes = len(encoder.affixes)
        inputs = {
            "words": (ones(2, 5), whole),
            "lengths": (torch.tensor([5, 3], device=self.device), {0: "batch"}),
            "characters": (ones(2, 5, 4), {**whole, 2: "characters"}),
            "character_lengths": (ones(2, 5), whole),
            "affixes": (ones(2, 5, affixes), whole),
        }
        return Exportable(
            ExportedTagger(self.model),
            tuple([given for given, _ in inputs.values()]),
            tuple(inputs),
            tuple([axes for _, axes in inputs.values()]),
            ("tags", "probabilities"),
            {
                "task": self.name,
                "labels": self.labels,
                "words": encoder.words.tokens,
                "characters": encoder.characters.tokens,
                "affixes": [one.tokens for one in encoder.affixes],
                "longest_word": encoder.longest,
            },
        )

    def watch(self, text: str, place: str) -> Read:
        words = list(re.finditer(r"\S+", text))
        if not words:
            raise InputError(f"{place}: the text is empty")
        ends = [0, *(word.end() for word in words)]
        pieces = [
            (text[end : word.start()], word[0]) for end, word in zip(ends, words, strict=False)
        ]
        answers: list[Tagged] = []
        sentence = [word[0] for word in words]
        layer, recording = watched(
            first_of(self.model).sentences, lambda: answers.extend(self.predict([sentence]))
        )
        (answer,) = answers
        tags = torch.tensor([self.labels.index(tag) for tag in answer.tags])
        sure = torch.tensor(answer.probabilities)
        return Read(pieces, text[ends[-1] :], layer, recording, self.labels, tags=(tags, sure))

    def answer(self, request: Request) -> Iterator[str]:
        file_format, lines, name = self._asked(request)
        words = unknown = 0
        for batch in answerable(file_format.blocks(lines, name), request.batch_size):
            for word in chain.from_iterable(block.words for block in batch):
                words += 1
                unknown += word not in self.lexicon and word.lower() not in self.lexicon
            for block, one in zip(batch, self._tagged([b.words for b in batch]), strict=True):
                if request.json:
                    yield json.dumps(asdict(one), ensure_ascii=False)
                else:
                    yield from file_format.filled(block, one.tags)
        if unknown > MOST_UNKNOWN * words:
            request.notes.append(
                f"the sentences: {unknown / words:.0%} of the words are unknown to the model, which "
                "sees their characters alone; words are what has spaces in between"
            )

    def _asked(self, request: Request) -> tuple[Format, Iterator[str], str]:
        """Return how the sentences of a request are written, its lines, and where they are from."""
        options, file = replace(request.changed(self._options), format="auto"), request.file
        is_table = file is not None and (
            suffix(file) in (".csv", ".jsonl")
            or (request.column is not None and suffix(file) in TABLES)
        )
        if file is not None and is_table:  # a sentence a row, with spaces between its words
            rows = read_texts(file, request.column or "text", **options.written)
            return Lines(), (text for _, text in rows), str(file)
        if request.column is not None:
            raise InputError("text-column: only a table has columns, a file .csv, .tsv or .jsonl")
        if request.texts:
            return Lines(), iter(request.texts), "texts"
        if request.file is None:
            lines = decode_lines(request.stream, "stdin", options.encoding)
            return *recognised(lines, options.label_column, Lines()), "stdin"
        columns = suffix(request.file) in (".tsv", ".conll")
        two = TwoColumns(tagged=False, delimiter=options.delimiter)
        otherwise = two if columns else Lines()
        return *opened(request.file, options, otherwise), str(request.file)


train, resume, load = Tagger.train, Tagger.resume, Tagger.load


def _examples(part: Sentences) -> Examples:
    return Examples(part, [len(one.words) for one in part])


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
