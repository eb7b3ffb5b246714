"""Sentences whose words have tags."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from itertools import chain, groupby
from pathlib import Path
from typing import Any

from cello.tasks.errors import InputError
from cello.tasks.memory import in_a_row, is_name, names_of, plain, records, title
from cello.tasks.stored import Chosen, Stored
from cello.tasks.tables import open_text, suffix
from cello.tasks.tag.conllu import AnyFormat, Conllu, TwoColumns, recognised
from cello.tasks.tag.options import Options


@dataclass(frozen=True)
class Sentence:
    """Words with their tags, and where they were read."""

    words: list[str]
    tags: list[str]
    place: str


class Sentences(Chosen[Sentence]):
    """Sentences of one part of the data; a row is words, tags (with tabs in between) and a place."""

    @staticmethod
    def make(row: Any) -> Sentence:
        """Return a sentence."""
        words, tags, place = row
        return Sentence(words.split("\t"), tags.split("\t"), place)


def read(source: Any, options: Options) -> Sentences:
    """Read the sentences of a file, or in memory; with ``options.stream`` they stay on disk.

    Args:
        source: a path; or in memory, as :func:`sentences` takes it.
        options: how a file is written.

    Raises:
        InputError: the data cannot be read, is not as it should be, or has no sentences.
    """
    if is_name(source):
        rows = _rows(Path(source), options)
    else:
        rows = (
            ("\t".join(words), "\t".join(tags), place) for place, words, tags in sentences(source)
        )
    first = next(rows, None)
    if first is None:
        raise InputError(f"{title(source)}: holds no sentences")
    rows = chain([first], rows)
    return Sentences(Stored(rows) if options.stream else list(rows))


def _rows(path: Path, options: Options) -> Iterator[tuple[str, str, str]]:
    file_format, lines = opened(path, options, TwoColumns(delimiter=options.delimiter))
    for block in file_format.blocks(lines, str(path)):
        if block.words:
            yield "\t".join(block.words), "\t".join(file_format.tags(block)), block.places[0]


def sentences(source: Any) -> Iterator[tuple[str, list[str], list[str]]]:
    """Read sentences in memory, each with its place, its words and its tags.

    Args:
        source: a table with a sentence a row, in the columns `words` (or `tokens`) and `tags`; or with a
            word a row, in the columns `sentence`, `word` and `tag`; or a pair of sentences and of their
            tags; or a list of sentences, each a pair ``(words, tags)``, or a list of pairs ``(word, tag)``.

    Raises:
        InputError: it is something else, or a word or tag is missing.
    """
    for place, words, tags in _given(source):
        for values, what in ((words, "words"), (tags, "tags")):
            if isinstance(values, str) or not isinstance(values, Iterable):
                raise InputError(f"{place}: the {what} are {values!r}, not a list")
        found = [[as_field(one) for one in values] for values in (words, tags)]
        if len(found[0]) != len(found[1]):
            raise InputError(f"{place}: {len(found[0])} words, but {len(found[1])} tags")
        for fields, what in zip(found, ("word", "tag"), strict=True):
            for i, field in enumerate(fields):
                if not field.strip(" ") or "\t" in field:
                    reason = "is empty" if not field.strip(" ") else "holds a tab"
                    raise InputError(f"{place}, word {i}: the {what} {reason}")
        if found[0]:
            yield place, found[0], found[1]


def as_field(value: Any) -> str:
    """Return a word or tag as a text; nothing for a missing one."""
    value = plain(value)
    return "" if value is None else str(value)


def words_of(table: Any) -> Iterator[tuple[str, list[str]]]:
    """Read the sentences of a table without tags, each with its place; see :func:`sentences`."""
    names = names_of(table) or []
    if "word" in names:
        for place, rows in _by_sentence(table, ["word"]):
            yield place, [as_field(row["word"]) for row in rows]
    else:
        column = "tokens" if "tokens" in names and "words" not in names else "words"
        for place, record in records(table, [column]):
            if isinstance(record[column], str) or not isinstance(record[column], Iterable):
                raise InputError(f"{place}: the words are {record[column]!r}, not a list")
            yield place, [as_field(word) for word in record[column]]


def _given(source: Any) -> Iterator[tuple[str, Any, Any]]:
    names = names_of(source)
    if names is not None and "word" in names:
        for place, rows in _by_sentence(source, ["word", "tag"]):
            yield place, [row["word"] for row in rows], [row["tag"] for row in rows]
    elif names is not None:
        column = "tokens" if "tokens" in names and "words" not in names else "words"
        for place, record in records(source, [column, "tags"]):
            yield place, record[column], record["tags"]
    elif isinstance(source, tuple) and len(source) == 2:
        words, tags = (
            list(in_a_row(one, name)) for one, name in zip(source, ("words", "tags"), strict=True)
        )
        if len(words) != len(tags):
            raise InputError(
                f"data: tags of {len(tags):,} sentences, where there are {len(words):,}"
            )
        for i, (one, own) in enumerate(zip(words, tags, strict=True)):
            yield f"data, sentence {i}", one, own
    elif isinstance(source, list):
        for i, one in enumerate(source):
            yield f"data, sentence {i}", *_both(one, f"data, sentence {i}")
    else:
        raise InputError(
            f"data: {type(source).__name__}, where a path, a table, (sentences, tags) or a list of "
            "(words, tags) is expected"
        )


def _both(sentence: Any, place: str) -> tuple[Any, Any]:
    """Return the words and the tags of a sentence that is a pair of both, or a list of pairs."""
    if isinstance(sentence, list) and all(isinstance(x, tuple) and len(x) == 2 for x in sentence):
        return [word for word, _ in sentence], [tag for _, tag in sentence]
    if isinstance(sentence, Mapping) and {"words", "tags"} <= sentence.keys():
        return sentence["words"], sentence["tags"]
    if not isinstance(sentence, tuple | list) or len(sentence) != 2:
        raise InputError(f"{place}: neither (words, tags) nor a list of pairs (word, tag)")
    return sentence[0], sentence[1]


def _by_sentence(table: Any, columns: list[str]) -> Iterator[tuple[str, list[dict[str, Any]]]]:
    """Return the rows of each sentence of a table with a word a row, and where it begins."""
    rows = records(table, ["sentence", *columns])
    seen = set[Any]()
    for key, group in groupby(rows, lambda row: row[1]["sentence"]):
        together = list(group)
        place = together[0][0]
        if key is None or key in seen:
            reason = "has no sentence" if key is None else "do not stand together"
            what = "the word" if key is None else f"the words of the sentence {key!r}"
            raise InputError(f"{place}: {what} {reason}")
        seen.add(key)
        yield place, [record for _, record in together]


def opened(
    path: Path, options: Options, otherwise: AnyFormat
) -> tuple[Conllu | AnyFormat, Iterator[str]]:
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
