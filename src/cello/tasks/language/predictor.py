"""Language models: from a text to the next token."""

from __future__ import annotations

import json
import math
import time
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass, replace
from hashlib import sha256
from pathlib import Path
from typing import Any, ClassVar, TypedDict, overload

import torch
from torch import Tensor, nn

from cello.tasks.batches import answerable, enough
from cello.tasks.classify.text import Known, in_order
from cello.tasks.errors import InputError, check_count
from cello.tasks.exported import Exportable
from cello.tasks.folder import Assets
from cello.tasks.language.data import Text, read, rows, texts_of
from cello.tasks.language.generate import Choice
from cello.tasks.language.network import ExportedLanguageModel, LanguageNetwork, nats
from cello.tasks.language.options import Options
from cello.tasks.language.report import POINTS, LanguageReport, perplexity
from cello.tasks.language.streams import Windows, before, collate
from cello.tasks.language.text import (
    END_ID,
    NEVER,
    encode,
    read_tokenizer,
    train_tokenizer,
    with_plain_ends,
)
from cello.tasks.memory import in_a_row, names_of, parts_of, title
from cello.tasks.page import Read
from cello.tasks.tables import TABLES, check_characters, decode_lines, open_text, suffix
from cello.tasks.task import Data, Predictor, Request

TOKENIZER = "tokenizer.json"
MOST_UNKNOWN = 0.2
"""The share of unknown tokens from which on it is said."""
CHUNK = 1000
"""Steps of a text that are judged at a time."""


class Facts(TypedDict):
    """What a language model has to know again beside its tokenizer: nothing but its size."""

    vocabulary: int


@dataclass(frozen=True)
class Score:
    """How well a model predicts one text; see :class:`LanguageReport`. Of an empty text there is none."""

    tokens: int
    characters: int
    perplexity: float | None
    bits_per_character: float | None
    unknown: float


class LanguageModel(Predictor[Text, LanguageReport, Options]):
    """A network with all it needs to go from a text to its continuation; see :func:`load`."""

    name: ClassVar[str] = "language"
    options: ClassVar[type[Options]] = Options
    report: ClassVar[type[LanguageReport]] = LanguageReport
    facts: ClassVar[type[Any]] = Facts
    unit: ClassVar[str] = "characters"
    model: LanguageNetwork

    @classmethod
    def read(cls, source: Any, options: Options) -> Data[Text]:
        name = title(source)
        given = parts_of(source)
        format, train = read(given["train"], options)
        notes, parts = list(train.notes), {}
        cut_off = 0.0
        extras = {"test": options.test_data, "valid": options.valid_data}
        fractions = {"test": options.test_fraction, "valid": options.valid_fraction}
        for part, fraction in fractions.items():
            extra = given.get(part) if extras[part] is None else extras[part]
            if extra is not None:
                _, parts[part] = read(extra, replace(options, format="auto"))
                notes += parts[part].notes
            elif fraction > 0.0:
                length = len(train)
                train, parts[part] = train.cut(fraction / (1.0 - cut_off))
                cut_off += fraction
                if not (len(train) and len(parts[part])):
                    raise InputError(
                        f"{name}: too short to split off a {part} part ({length} characters)"
                    )
        if "test" not in parts:
            parts["test"] = parts["valid"]
            notes.append("there is no test set: the figures at the end are of the validation set")
        digest = sha256()
        for each in (train, parts["valid"], parts["test"]):
            digest.update(each.fingerprint().encode())
        return Data(name, format, train, parts["valid"], parts["test"], digest.hexdigest(), notes)

    @classmethod
    def describe(cls, data: Data[Text], options: Options) -> tuple[Options, dict[str, Any], Assets]:
        tokenizer = train_tokenizer(
            data.train.documents, kind=options.tokenizer, vocabulary=options.vocabulary
        )
        # Of a short text there are fewer streams, but one for each process.
        windows = max(len(data.train) // options.steps, options.devices * options.nodes)
        streams = min(options.batch_size, windows)
        epochs = options.epochs or enough(6, windows, streams)
        options = replace(
            options,
            batch_size=streams,
            epochs=epochs,
            patience=options.patience or max(5, epochs // 3),
        )
        facts = {"vocabulary": tokenizer.get_vocab_size()}
        return options, facts, {TOKENIZER: tokenizer.to_str()}

    def build(self, assets: Assets) -> nn.Module:
        self.tokenizer = read_tokenizer(assets[TOKENIZER], TOKENIZER)
        size = self.tokenizer.get_vocab_size()
        if self.config.facts["vocabulary"] != size:
            raise InputError(f"{TOKENIZER}: has {size} tokens, not those of the model")
        self._judged: Any = None  # the state in the validation part
        return LanguageNetwork(self._options, size)

    def tokens(self) -> dict[str, Sequence[str]]:
        weights = ("embedding.weight", "linear.weight", "linear.bias", "bias")
        there = dict(self.model.named_parameters())
        return dict.fromkeys((name for name in weights if name in there), in_order(self.tokenizer))

    def job(self, data: Data[Text]) -> Any:
        from torchmetrics import MeanMetric

        from cello.tasks.trainer import Job

        options = self._options
        train, valid = (self.encode(part) for part in (data.train, data.valid))
        self.model.counts.copy_(torch.bincount(train, minlength=len(self.model.counts)))
        job = Job(
            model=self.model,
            loss=lambda batch: self._loss(job.carried, batch),
            judge=self._judge,
            metric=MeanMetric(),
            metric_name="loss",
            higher_is_better=False,
            train=Windows(train, options.batch_size, options.steps).examples(),
            valid=Windows(valid, options.batch_size, options.steps).examples(),
            collate=collate,
            notes=self._unknown(f"{data.name}, validation part", Known([valid])),
        )
        return job

    def _loss(self, carried: Any, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, int]:
        number, x, y = batch
        state = None
        if int(number):
            state = self.model.structure.unflatten([one.to(x.device) for one in carried.tensors])
        logits, state = self.model(x, state)
        carried.tensors = [one.detach().clone() for one in self.model.structure.flatten(state)]
        return nats(logits, y, reduction="sum"), int((y >= 0).sum())

    def _judge(self, metric: Any, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, int]:
        number, x, y = batch
        logits, self._judged = self.model(x, self._judged if int(number) else None)
        loss, there = nats(logits, y, reduction="sum"), int((y >= 0).sum())
        if there:
            metric.update(loss / there, weight=there)
        return loss, there

    def _unknown(self, what: str, known: Known) -> list[str]:
        """Return what there is to say about tokens that the model does not know."""
        if known.unknown <= MOST_UNKNOWN:
            return []
        advice = ""
        if self._options.tokenizer == "word":
            advice = "; trained with --tokenizer bpe or char it reads smaller pieces"
        return [f"{what}: {known.unknown:.0%} of the tokens are unknown to the model{advice}"]

    def encode(self, text: Text) -> Tensor:
        """Return the ids of a text, (N,)."""
        return encode(self.tokenizer, text.documents)

    @torch.inference_mode()
    def nats(self, ids: Tensor) -> Tensor:
        """Return minus the natural logarithm of the probability of each token of a text, (N,).

        Each token is predicted from all that come before it, the first one from the end token.

        Args:
            ids: what :meth:`encode` gave.
        """
        if not len(ids):
            return torch.empty(0, dtype=torch.float64)
        self.model.eval()
        found: list[Tensor] = []
        state = None
        for x, y in zip(before(ids).split(CHUNK), ids.split(CHUNK), strict=True):
            logits, state = self.model(x[:, None].to(self.device), state)
            found.append(nats(logits, y[:, None].to(self.device), reduction="none").cpu())
        return torch.cat(found).double()

    def evaluate(self, part: Any, data: str = "data", batch_size: int = 64) -> LanguageReport:
        """Measure how well the model predicts a text, which is read as one sequence.

        Args:
            part: the text: a path or data in memory, as for :meth:`train`, of which the test set is taken
                if it has one; or a part of :meth:`read`.
            data: what it is, for the eye.
            batch_size: without meaning here: there is one sequence.

        Raises:
            InputError: the data cannot be read.
        """
        if not isinstance(part, Text):
            return self.evaluate_source(part, None, batch_size)
        start = time.perf_counter()
        ids = self.encode(part)
        found = self.nats(ids)
        tokens, characters, total = len(ids), len(part), found.sum().item()
        frequency = (self.model.counts.cpu().double() + 1.0).log()
        frequency = frequency.logsumexp(0) - frequency
        plain = frequency[ids.long()].sum().item()
        known = Known([ids])
        ratio = tokens / characters / math.log(2.0)
        return LanguageReport(
            data=data,
            seconds=time.perf_counter() - start,
            tokens=tokens,
            characters=characters,
            nats=total / tokens,
            perplexity=perplexity(total / tokens),
            bits_per_character=total / characters / math.log(2.0),
            nats_per_character=total / characters,
            baseline={
                "perplexity": perplexity(plain / tokens),
                "bits_per_character": plain / characters / math.log(2.0),
            },
            unknown=known.unknown,
            course=[one.mean().item() * ratio for one in found.chunk(POINTS)],
            notes=self._unknown(data, known),
        )

    def evaluate_source(
        self, source: Any, part: str | None = None, batch_size: int = 64, **changes: Any
    ) -> LanguageReport:
        options = self.changed({"format": "auto", **changes})
        self.check_part(source, part)
        if part in ("train", "valid", "test"):
            data = self.read(source, options)
            text: Text = getattr(data, part)
            notes = data.notes if part == "test" else text.notes
        else:
            held = parts_of(source)
            part = "test" if "test" in held else "all"
            _, text = read(held.get("test", source), options)
            notes = text.notes
        report = self.evaluate(text, f"{title(source)}, {part} characters", batch_size)
        report.notes = [*notes, *report.notes]
        return report

    @overload
    def predict(self, texts: str, *, batch_size: int = 64) -> Score: ...  # type: ignore[overload-overlap]  # a text is one input, not its characters
    @overload
    def predict(self, texts: Iterable[str], *, batch_size: int = 64) -> list[Score]: ...
    def predict(self, texts: str | Iterable[str], *, batch_size: int = 64) -> Score | list[Score]:
        """Measure how probable texts are; :meth:`generate` continues one.

        Args:
            texts: one text, or some, each with a beginning of its own: in a list, or in a column of a
                table; or the :class:`pathlib.Path` of a file, as for ``cello predict --file``.
            batch_size: how many texts are read at a time.

        Returns:
            For one text its score, for anything else a list of one for each text, in order.

        Raises:
            InputError: a text is none.
        """
        if isinstance(texts, str):
            return self._score(texts, "text 1")
        asked: Iterable[tuple[str, str]]
        if isinstance(texts, Path):
            asked = self._asked(Request(file=texts))
        elif names_of(texts) is not None:
            asked = texts_of(texts, self._options)
        else:
            given = enumerate(in_a_row(texts, "texts"), 1)
            asked = ((text, f"text {i}") for i, text in given)
        scores = (self._score(text, place) for text, place in asked)
        return [one for batch in answerable(scores, batch_size) for one in batch]

    def _score(self, text: str, place: str) -> Score:
        if not isinstance(text, str):
            raise InputError(f"{place}: {type(text).__name__}, where a text is expected")
        check_characters(text, place)
        plain = Text([with_plain_ends(text)] if text else [])
        ids = self.encode(plain)
        total = self.nats(ids).sum().item()
        return Score(
            len(ids),
            len(plain),
            perplexity(total / len(ids)) if len(ids) else None,
            total / len(plain) / math.log(2.0) if len(plain) else None,
            Known([ids]).unknown,
        )

    def generate(
        self,
        prompt: str = "",
        *,
        length: int = 500,
        temperature: float = 1.0,
        top_k: int | None = None,
        top_p: float | None = None,
        seed: int | None = None,
    ) -> Iterator[str]:
        """Continue a text, one token at a time; each takes the same time, however long the text is.

        Args:
            prompt: the beginning of the text; empty for the beginning of a document.
            length: the number of tokens; there are fewer where the model ends the document, which only
                one does that was trained on several documents.
            temperature: below 1 probable tokens are chosen more often, above 1 less often; 0 for always
                the most probable one.
            top_k: choose among that many of the most probable tokens only.
            top_p: choose among the most probable tokens whose probabilities reach it together.
            seed: of the choice; another one each time unless given.

        Returns:
            An iterator of the pieces of text that follow the prompt.

        Raises:
            InputError: a value is out of range.

        Example::

            print("ROMEO:" + "".join(model.generate("ROMEO:", length=200, seed=1)))
        """
        if not isinstance(prompt, str):
            raise InputError(f"prompt: {type(prompt).__name__}, where a text is expected")
        check_count("length", length, 0)
        if seed is not None:
            check_count("seed", seed, 0)
        if seed is not None and seed >= 2**31:
            raise InputError(f"seed: {seed} is not between 0 and {2**31 - 1:,}")
        choice = Choice(temperature, top_k, top_p)
        generator = torch.Generator()
        if seed is None:
            generator.seed()
        else:
            generator.manual_seed(seed)
        check_characters(prompt, "prompt")
        ids = encode(self.tokenizer, [with_plain_ends(prompt)])
        return self._generated(ids, length, choice, generator)

    @torch.inference_mode()
    def _generated(
        self, prompt: Tensor, length: int, choice: Choice, generator: torch.Generator
    ) -> Iterator[str]:
        self.model.eval()
        never = self._never()
        state, last = None, END_ID
        if len(prompt):
            *others, last = prompt.tolist()
            start = torch.tensor([END_ID, *others], device=self.device)
            for chunk in start.split(CHUNK):
                _, state = self.model(chunk[:, None], state)
        for _ in range(length):
            logits, state = self.model.step(torch.tensor([last], device=self.device), state)
            scores = logits[0].cpu()
            scores[never] = -math.inf
            last = choice.draw(scores, generator)
            if last == END_ID:
                return
            yield str(self.tokenizer.id_to_token(last))

    def _never(self) -> list[int | None]:
        """Return the tokens that are not generated."""
        never = [self.tokenizer.token_to_id(token) for token in NEVER]
        if not self.model.counts[END_ID]:  # the training part was one document, without an end
            never.append(END_ID)
        return never

    def unknown(self, text: str) -> float:
        """Return the share of a text's tokens that the model does not know."""
        return Known([encode(self.tokenizer, [with_plain_ends(text)])]).unknown

    def exportable(self) -> Exportable:
        ids, structure = (
            torch.zeros(5, 2, dtype=torch.int64, device=self.device),
            self.model.structure,
        )
        with torch.no_grad():
            self.model.eval()
            logits, state = self.model(ids)
            parts = [torch.zeros_like(part) for part in structure.flatten(state)]
            again, _ = self.model(ids, structure.unflatten(parts))
        if not torch.allclose(logits, again, rtol=1e-4, atol=1e-5):  # but for rounding
            raise InputError("export: the cell begins in a state of its own, which is not zero")
        names = tuple(f"state{k}" for k in range(len(parts)))
        return Exportable(
            ExportedLanguageModel(self.model),
            (ids.T.contiguous(), *parts),
            ("tokens", *names),
            ({0: "batch", 1: "time"}, tuple([{1: "batch"} for _ in parts])),
            ("logits", *(f"new_{name}" for name in names)),
            {
                "task": self.name,
                "tokenizer": TOKENIZER,
                "first_token": END_ID,
                "last_token": END_ID,
                "never": self._never(),
                "states": [[part.shape[0], *part.shape[2:]] for part in parts],
            },
        )

    def watch(self, text: str, place: str) -> Read:
        raise InputError(
            "page: a language model has no labels to show; cello generate continues a text"
        )

    def answer(self, request: Request) -> Iterator[str]:
        known: list[float] = []

        def scores() -> Iterator[Score]:
            for text, place in self._asked(request):
                one = self._score(text, place)
                known.append(one.unknown)
                yield one

        for batch in answerable(scores(), request.batch_size):
            for one in batch:
                yield _told(one, request.json)
        if known and sum(known) > MOST_UNKNOWN * len(known):
            share = sum(known) / len(known)
            request.notes.append(f"the texts: {share:.0%} of the tokens are unknown to the model")

    def _asked(self, request: Request) -> Iterator[tuple[str, str]]:
        """Return the texts of a request, each with where it was read."""
        options, file = request.changed(self._options), request.file
        if request.column is not None:
            options = replace(options, text_column=request.column)
        if request.texts:
            return ((text, f"text {i}") for i, text in enumerate(request.texts, 1))
        if file is None:
            lines, name = decode_lines(request.stream, "stdin", options.encoding), "stdin"
        elif not file.exists():
            raise InputError(f"{file}: no such file")
        elif suffix(file) in TABLES:
            return rows(file, options)
        else:
            lines, name = open_text(file, options.encoding), str(file)
        return ((line.rstrip("\r\n"), f"{name}, line {i}") for i, line in enumerate(lines, 1))


train, resume, load = LanguageModel.train, LanguageModel.resume, LanguageModel.load


def _told(score: Score, as_json: bool) -> str:
    """Return the line that tells a score: bits per character, perplexity of the tokens."""
    if as_json:
        return json.dumps(asdict(score))
    if score.perplexity is None:
        return "\t"
    return f"{score.bits_per_character:.4f}\t{score.perplexity:.4f}"
