"""What a model begins with: the weights of another model, or word vectors from a file."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from cello.nn import Recurrent, RecurrentLayer
from cello.tasks.errors import InputError
from cello.tasks.members import first_of, plain
from cello.tasks.tables import open_text

SPECIAL = 2
"""The first rows of an embedding are of no token: padding, and what is unknown."""


@torch.no_grad()
def take(predictor: Any, other: Any, folder: str) -> str:
    """Copy the weights of another model whose names and shapes fit into a new one.

    The rows of an embedding are matched by their tokens; between models of two tasks without regard to
    upper case and spaces, which are part of a token to a language model only. The layers that score
    labels are taken only if the labels are the same, and recurrent layers only if their cell is the same.

    Args:
        predictor: of the new model, a :class:`cello.tasks.task.Predictor`.
        other: of the other model, of whatever task.
        folder: where the other model is, for messages.

    Returns:
        A sentence that says what was taken and what was not.

    Raises:
        InputError: nothing fits.
    """
    given = dict(other.model.named_parameters())
    given |= {
        plain(name): weight for name, weight in reversed(given.items())
    }  # of its first network
    tokens, other_tokens = predictor.tokens(), other.tokens()
    if predictor.name != other.name:
        tokens, other_tokens = _plain(tokens), _plain(other_tokens)
    by_token = tokens.keys() & other_tokens.keys()
    taken: dict[str, str] = {}
    new: dict[str, str] = {}
    for full, weight in predictor.model.named_parameters():
        name = plain(full)
        module, source = name.rpartition(".")[0] or name, given.get(full, given.get(name))
        if source is None:
            new.setdefault(module, "not in that model")
        elif reason := _misfit(predictor, other, module, weight, source, name in by_token):
            new.setdefault(module, reason)
        elif name in by_token:
            count = _rows_by_token(weight, tokens[name], source, other_tokens[name])
            if count:
                taken[module] = f" ({count:,} of {len(weight) - SPECIAL:,} tokens)"
            else:
                new[module] = "no token in common"
        else:
            weight.copy_(source)
            taken.setdefault(module, "")
    reasons = ", ".join(f"{module} ({reason})" for module, reason in new.items())
    if not taken:
        raise InputError(f"start-from: no weight of {folder} fits: {reasons}")
    parts = ", ".join(
        f"{'part of ' if module in new else ''}{module}{count}" for module, count in taken.items()
    )
    return f"weights from {folder}: {parts}" + (f"; new: {reasons}" if new else "")


def _misfit(
    predictor: Any, other: Any, module: str, weight: Tensor, source: Tensor, by_token: bool
) -> str | None:
    """Return why a weight of another model cannot be taken, if it cannot."""
    rows = 1 if by_token else 0  # whose number may differ
    if weight.shape[rows:] != source.shape[rows:]:
        return f"{tuple(source.shape)} there, {tuple(weight.shape)} here"
    is_head = module.partition(".")[0] in predictor.heads
    if is_head and getattr(other, "labels", None) != predictor.labels:
        return "other labels"
    if _cell(predictor, module) != _cell(other, module):
        return "another cell"
    return None


def _cell(predictor: Any, name: str) -> str | None:
    """Return the class of the cell of the recurrent layer that a module of a model is in, if any."""
    found: Any = first_of(predictor.model)
    for part in name.split("."):
        found = getattr(found, part, None)
        if isinstance(found, RecurrentLayer):
            inner = next(iter(found.cells.values())) if isinstance(found, Recurrent) else found
            return f"{type(inner).__module__}.{type(inner).__qualname__}"
    return None


def _plain(tokens: dict[str, Sequence[str]]) -> dict[str, Sequence[str]]:
    """Return tokens as those write them that read texts in lower case and without their spaces."""
    return {name: [one.strip().lower() or one for one in some] for name, some in tokens.items()}


def _rows_by_token(
    weight: Tensor, tokens: Sequence[str], source: Tensor, other: Sequence[str]
) -> int:
    """Copy the rows of the tokens that both have; return how many, special ones not counted."""
    rows = {token: i for i, token in reversed([*enumerate(other)])}  # the more frequent come first
    pairs = [(i, rows[token]) for i, token in enumerate(tokens) if token in rows]
    to, of = torch.tensor(pairs, dtype=torch.long).reshape(-1, 2).T
    weight[to] = source[of]
    return int((to >= SPECIAL).sum())


@torch.no_grad()
def look_up(weights: Sequence[Tensor], tokens: Sequence[str], file: str) -> str:
    """Copy word vectors into embeddings.

    A word of the file that is not a token counts in lower case, unless the file has that word too.

    Args:
        weights: the embedding of each network, as wide as the vectors.
        tokens: what their rows stand for.
        file: as for :func:`vectors`.

    Returns:
        A sentence that says how many tokens were found.

    Raises:
        InputError: the file cannot be used, or has none of the tokens.
    """
    rows = {token: i for i, token in enumerate(tokens) if i >= SPECIAL}
    exact, lower = set[int](), set[int]()
    for word, numbers, place in vectors(file):
        found = exact if word in rows else lower
        row = rows.get(word, rows.get(word.lower()))
        if row is None or row in exact or row in found:
            continue
        vector = _vector(numbers, weights[0].shape[1], place)
        if vector is not None:
            found.add(row)
            for weight in weights:
                weight[row] = vector
    count = len(exact | lower)
    if not count:
        raise InputError(f"vectors: {file} has none of the {len(rows):,} tokens of the vocabulary")
    share = f"{count:,} of the {len(rows):,} tokens of the vocabulary ({count / len(rows):.0%})"
    return f"{file}: vectors of {share}"


def width_of(file: str) -> int:
    """Return how many numbers each vector of a file has.

    Raises:
        InputError: the file cannot be read, or does not begin with a vector.
    """
    _, numbers, place = next(vectors(file))
    width = len(numbers.split())
    _vector(numbers, width, place)
    return width


def vectors(file: str) -> Iterator[tuple[str, str, str]]:
    """Read a text file of word vectors, as of GloVe, word2vec or fastText; .gz too.

    A line holds a word and its numbers with spaces in between. A first line of two integers, how
    many words and how many numbers, is a header.

    Args:
        file: its path.

    Yields:
        A word, its numbers as they are written, and where it was read; at least one.

    Raises:
        InputError: the file cannot be read, or holds no vectors.
    """
    path, count, said = Path(file), 0, (0, 0)
    if not path.is_file():
        raise InputError(f"vectors: {file}: no such file")
    for number, line in enumerate(open_text(path), 1):
        word, _, numbers = line.rstrip().replace("\t", " ").partition(" ")
        is_header = number == 1 and word.isdecimal() and numbers.isdecimal()
        if is_header:
            said = int(word), int(numbers)
        elif numbers:
            width = len(numbers.split())
            if not count and said[1] > width:
                raise InputError(
                    f"{file}, line {number}: {width} numbers, where the first line says {said[1]}"
                )
            count += 1
            yield word, numbers, f"{file}, line {number}"
    if not count:
        raise InputError(f"vectors: {file} holds no vectors, a word and its numbers on each line")
    if count < said[0]:
        raise InputError(
            f"vectors: {file}: cut short, it has {count:,} of the {said[0]:,} words of its first line"
        )


def _vector(numbers: str, width: int, place: str) -> Tensor | None:
    """Return a vector; ``None`` of a word with spaces, which no token is.

    Raises:
        InputError: there are too few numbers, or something else.
    """
    fields = numbers.split()
    if len(fields) > width:
        return None
    try:
        vector = torch.tensor([float(field) for field in fields])
    except ValueError as error:
        raise InputError(f"{place}: not a word and its numbers ({error})") from error
    if len(fields) < width:
        raise InputError(f"{place}: {len(fields)} numbers, not {width} as in the first line")
    if not vector.isfinite().all():
        raise InputError(f"{place}: a number is not finite")
    return vector
