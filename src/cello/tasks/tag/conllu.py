"""Sentences of words with tags: read, and filled in, as CoNLL-U, in two columns, or one a line.

CoNLL-U (https://universaldependencies.org/format.html) has a line of ten columns for each word and an
empty line behind each sentence. A line whose number is a range, 8-9, holds several words as they are
written together; 8.1 is a word that is not in the text. Neither is a word here; both stay as they are
where tags are filled in.
"""

from __future__ import annotations

import re
from abc import ABC, abstractmethod
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import chain
from typing import TypeVar

from cello.tasks.errors import InputError

CONLLU_COLUMNS = ("id", "form", "lemma", "upos", "xpos", "feats", "head", "deprel", "deps", "misc")
AnyFormat = TypeVar("AnyFormat", bound="Format")
LONGEST = 10_000
"""More lines, or words in a line, than a sentence has."""


@dataclass(frozen=True)
class Block:
    """One sentence as it stands in a file.

    Args:
        lines: its lines without their ends, comments too.
        rows: which of the lines are words.
        words: the words.
        name: the file, for messages.
        first: the number of its first line in the file, from 1.
    """

    lines: list[str]
    rows: list[int]
    words: list[str]
    name: str
    first: int

    @property
    def places(self) -> list[str]:
        """Where each word was read."""
        return [f"{self.name}, line {self.first + row}" for row in self.rows]


class Format(ABC):
    """How sentences are written; one subclass for each way."""

    @abstractmethod
    def blocks(self, lines: Iterable[str], name: str) -> Iterator[Block]:
        """Yield sentences one by one; lines that are only comments are a sentence of no words.

        Args:
            lines: the lines of a file, with their ends or without.
            name: the file, for messages.

        Raises:
            InputError: a line is not as it should be.
        """

    @abstractmethod
    def filled(self, block: Block, tags: Sequence[str]) -> list[str]:
        """Return the lines of a sentence with these tags, the empty one behind it too."""


class WordALine(Format):
    """A line for each word, an empty line behind each sentence."""

    @abstractmethod
    def word(self, line: str, number: int, place: str) -> str | None:
        """Return the word in a line, or ``None`` where there is none.

        Args:
            line: the line; it is not empty.
            number: how many words the sentence has before it.
            place: where the line was read.

        Raises:
            InputError: the line is not as it should be.
        """

    @abstractmethod
    def tags(self, block: Block) -> list[str]:
        """Return the tag of each word.

        Raises:
            InputError: a word has none.
        """

    def blocks(self, lines: Iterable[str], name: str) -> Iterator[Block]:
        block = Block([], [], [], name, 1)
        for number, line in enumerate(lines, 1):
            line = line.rstrip("\r\n")
            if not line.strip():
                if block.lines:
                    yield block
                block = Block([], [], [], name, number + 1)
                continue
            place = f"{name}, line {number}"
            word = self.word(line, len(block.words), place)
            if word is not None:
                block.rows.append(len(block.lines))
                block.words.append(word)
            block.lines.append(line)
            if len(block.lines) > LONGEST:
                raise InputError(
                    f"{place}: more than {LONGEST:,} lines without an empty one;"
                    " an empty line must end each sentence"
                )
        if block.lines:
            yield block


class Conllu(WordALine):
    """CoNLL-U, with the tag in one of its columns.

    Args:
        column: ``upos``, ``xpos``, ``deprel``, ``feats`` for all features as one tag, or a feature of
            them, ``feats:Number``, which is ``_`` for words that do not have it.

    Raises:
        InputError: there is no such column.
    """

    _NUMBER = re.compile(r"(\d{1,9})(-\d+|\.\d+)?")

    def __init__(self, column: str = "upos") -> None:
        name, colon, self.feature = column.partition(":")
        one = name == "feats" and self.feature != ""
        if name not in ("upos", "xpos", "feats", "deprel") or (colon and not one):
            raise InputError(
                f"label-column: {column!r} is not one of upos, xpos, feats, feats:Number"
                " (or another feature), deprel"
            )
        self.column, self.index = column, CONLLU_COLUMNS.index(name)

    def word(self, line: str, number: int, place: str) -> str | None:
        if line.startswith("#"):
            return None
        fields = line.split("\t")
        if len(fields) != len(CONLLU_COLUMNS):
            raise InputError(f"{place}: {_count(fields)}, not the {len(CONLLU_COLUMNS)} of CoNLL-U")
        found = self._NUMBER.fullmatch(fields[0])
        if found is None:
            raise InputError(f"{place}: {fields[0][:40]!r} is not the number of a word")
        if found[2]:
            return None
        if int(fields[0]) != number + 1:
            raise InputError(
                f"{place}: word {fields[0]} where word {number + 1} is expected;"
                " an empty line must end each sentence"
            )
        if not fields[1].strip(" "):
            raise InputError(f"{place}: the word is empty")
        return fields[1]

    def tags(self, block: Block) -> list[str]:
        tags = []
        for row, place in zip(block.rows, block.places, strict=True):
            field = block.lines[row].split("\t")[self.index]
            if self.feature:
                field = _features(field, place).get(self.feature, "_")
            elif not field.strip(" ") or (field == "_" and self.column != "feats"):
                raise InputError(f"{place}: the word has no tag in the column {self.column}")
            tags.append(field)
        return tags

    def filled(self, block: Block, tags: Sequence[str]) -> list[str]:
        lines = block.lines.copy()
        for row, place, tag in zip(block.rows, block.places, tags, strict=True):
            fields = lines[row].split("\t")
            if self.feature:
                features = {**_features(fields[self.index], place), self.feature: tag}
                known = sorted(features.items(), key=lambda item: item[0].lower())
                tag = "|".join(f"{key}={value}" for key, value in known if value != "_") or "_"
            fields[self.index] = tag
            lines[row] = "\t".join(fields)
        return [*lines, ""]


class TwoColumns(WordALine):
    r"""A word and its tag in each line, a tab or spaces between them; an empty line ends a sentence.

    Args:
        tagged: whether each line must have a tag.
        delimiter: one character between a word and its tag, instead of a tab or spaces.

    Example:
        >>> file_format = TwoColumns()
        >>> [block] = file_format.blocks(["A DET", "day NOUN", ""], "some lines")
        >>> block.words, file_format.tags(block)
        (['A', 'day'], ['DET', 'NOUN'])
        >>> file_format.filled(block, ["X", "Y"])
        ['A\tX', 'day\tY', '']
    """

    def __init__(self, tagged: bool = True, delimiter: str | None = None) -> None:
        self.tagged, self.delimiter = tagged, delimiter

    def word(self, line: str, number: int, place: str) -> str | None:
        fields = self._two(line)
        if len(fields) > 2 or (len(fields) == 1 and self.tagged):
            raise InputError(f"{place}: {_count(fields)}, not 2, a word and its tag")
        for field, what in zip(fields, ("word", "tag"), strict=False):
            if not field.strip(" "):
                raise InputError(f"{place}: the {what} is empty")
            if "\t" in field:
                raise InputError(f"{place}: the {what} {field!r} holds a tab")
        return fields[0]

    def tags(self, block: Block) -> list[str]:
        return [self._two(line)[1] for line in block.lines]

    def filled(self, block: Block, tags: Sequence[str]) -> list[str]:
        between = self.delimiter or "\t"
        return [*(f"{word}{between}{tag}" for word, tag in zip(block.words, tags, strict=True)), ""]

    def _two(self, line: str) -> list[str]:
        if self.delimiter is not None:  # the last one: the word may be one itself
            return line.rsplit(self.delimiter, 1)
        # At plain spaces alone: a word may hold, or be, one of Unicode's other spaces.
        return line.split("\t") if "\t" in line else re.split(" +", line.strip(" "))


class Lines(Format):
    """One sentence a line, spaces between its words; tags are filled in as ``word/TAG``."""

    def blocks(self, lines: Iterable[str], name: str) -> Iterator[Block]:
        """Yield a sentence for each line, of no words for an empty one."""
        for number, line in enumerate(lines, 1):
            words = line.split()
            if len(words) > LONGEST:
                raise InputError(f"{name}, line {number}: more than {LONGEST:,} words in a line")
            yield Block([line], [0] * len(words), words, name, number)

    def filled(self, block: Block, tags: Sequence[str]) -> list[str]:
        return [" ".join(f"{word}/{tag}" for word, tag in zip(block.words, tags, strict=True))]


def recognised(
    lines: Iterable[str], column: str, otherwise: AnyFormat
) -> tuple[Conllu | AnyFormat, Iterator[str]]:
    """Return how some lines are written, and the lines again.

    They are CoNLL-U if the first that is neither empty nor a comment has ten columns, the first of
    them the number of a word. No line behind it is read.

    Args:
        lines: the lines.
        column: where the tag is in CoNLL-U.
        otherwise: what they are if they are not CoNLL-U.
    """
    rest = iter(lines)
    seen = []
    for line in rest:
        seen.append(line)
        if line.strip() and not line.startswith("#"):
            break
    fields = seen[-1].split("\t") if seen else []
    conllu = len(fields) == len(CONLLU_COLUMNS) and fields[0][:1].isdecimal()
    return Conllu(column) if conllu else otherwise, chain(seen, rest)


def _count(fields: list[str]) -> str:
    return f"{len(fields)} column{'' if len(fields) == 1 else 's'}"


def _features(field: str, place: str) -> dict[str, str]:
    if field == "_":
        return {}
    pairs = [pair.split("=", 1) for pair in field.split("|")]
    if any(len(pair) != 2 for pair in pairs):
        raise InputError(f"{place}: {field!r} are no features, as Case=Nom|Number=Sing")
    return dict(pairs)
