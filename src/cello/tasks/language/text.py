"""Texts to tokens that can be put together to the same texts again, and documents to one long text."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from itertools import islice

import torch
from tokenizers import Regex, Tokenizer, pre_tokenizers
from torch import Tensor

from cello.tasks.classify.text import CHARACTER, PAD, UNKNOWN, load_tokenizer, untrained
from cello.tasks.errors import InputError

END = "[END]"
"""Stands between documents, and before the first token of all."""

END_ID = 2

NEVER = (PAD, UNKNOWN)
"""Tokens that are not generated: they have no spelling."""

LONGEST = 10_000
"""Longer lines are cut at a space, and tokenized one piece after the other."""

_WORDS = r" ?\w+| ?[^\w\s]+|\s"
"""A word or punctuation marks with the space in front of it, or another white space."""


def train_tokenizer(documents: Iterable[str], *, kind: str, vocabulary: int) -> Tokenizer:
    """Learn a vocabulary; no character of a text is lost or changed, but for unknown tokens.

    Args:
        documents: the texts of the training part.
        kind: ``"char"`` for characters; ``"word"`` for words and punctuation marks, each with the
            space in front of it, where each character of a script without spaces is a word;
            ``"bpe"`` for pieces of words.
        vocabulary: the largest number of different tokens, special ones included.

    Returns:
        The tokenizer; in its JSON as a classifier's.
    """
    special = [PAD, UNKNOWN, END]
    # The only rare characters of a long text are part of it; rare words become the unknown one.
    tokenizer, trainer = untrained(kind, vocabulary, special, rarest=2 if kind == "word" else 1)
    patterns = {"char": [r"[\s\S]"], "word": [CHARACTER, _WORDS], "bpe": [_WORDS]}[kind]
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Split(Regex(pattern), "isolated") for pattern in patterns]
    )
    tokenizer.train_from_iterator((piece for text in documents for piece in _pieces(text)), trainer)
    return tokenizer


def read_tokenizer(content: str, name: str) -> Tokenizer:
    """Read a tokenizer from its JSON.

    Raises:
        InputError: it is not whole, or that of another task.
    """
    tokenizer = load_tokenizer(content, name)
    if tokenizer.token_to_id(END) != END_ID:
        raise InputError(f"{name}: not the tokenizer of a language model, it has no {END}")
    tokenizer.encode_special_tokens = True  # "[END]" in a text is five characters of it
    return tokenizer


def encode(tokenizer: Tokenizer, documents: Sequence[str]) -> Tensor:
    """Turn documents into the ids of one long text, (N,), with the end token between two of them."""
    parts: list[Tensor] = []
    for number, text in enumerate(documents):
        if number:
            parts.append(torch.tensor([END_ID], dtype=torch.int32))
        pieces = _pieces(text)
        while batch := list(islice(pieces, 1024)):
            encoded = tokenizer.encode_batch_fast(batch, add_special_tokens=False)
            ids = [i for one in encoded for i in one.ids]
            parts.append(torch.tensor(ids, dtype=torch.int32))
    return torch.cat([torch.empty(0, dtype=torch.int32), *parts])


def with_plain_ends(text: str) -> str:
    r"""Return a text whose lines all end in ``\n``.

    Example:
        >>> with_plain_ends("of Windows\r\nof old Macs\r")
        'of Windows\nof old Macs\n'
    """
    return text.replace("\r\n", "\n").replace("\r", "\n")


def _pieces(text: str) -> Iterator[str]:
    """Cut a text where no token of words is cut: behind ends of lines, and in long lines before a space."""
    start = 0
    while start < len(text):
        end = text.find("\n", start, start + LONGEST) + 1
        if not end:
            end = start + LONGEST
            space = _SPACE.search(text, end, end + LONGEST)
            end = space.start() if space else end
        yield text[start:end]
        start = end


_SPACE = re.compile(r"(?<=\S)\s")
