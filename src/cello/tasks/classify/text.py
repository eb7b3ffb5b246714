"""Texts to numbers: a tokenizer that is trained on the training set."""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import torch
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import Tensor

from cello.tasks.errors import InputError

PAD, UNKNOWN = "[PAD]", "[UNK]"
UNKNOWN_ID = 1

_UNSPACED = (
    "Han", "Hiragana", "Katakana", "Bopomofo", "Yi", "Thai", "Lao", "Khmer", "Myanmar", "Tai_Le",
    "New_Tai_Lue", "Tai_Tham", "Tai_Viet", "Javanese",
)  # fmt: skip
"""Scripts that put no spaces between words, as Unicode calls them."""

CHARACTER = "[" + "".join(rf"\p{{{script}}}" for script in _UNSPACED) + r"\x{30FC}]\p{M}*"
"""A character of theirs with its marks; the mark of long vowels, U+30FC, is of no script."""


def train_tokenizer(
    texts: Iterable[str], *, kind: str, vocabulary: int, max_length: int
) -> Tokenizer:
    """Learn a vocabulary.

    Texts are put into Unicode NFKC form and lower case, ``<br />`` becomes a space, and punctuation
    stands alone. How texts are cut is part of the tokenizer, and of its JSON.

    Args:
        texts: the texts of the training set.
        kind: ``"word"``, where each character of a script without spaces is a word, with its marks;
            ``"bpe"`` for pieces of words; ``"char"`` for characters.
        vocabulary: the largest number of different tokens, padding and unknown included.
        max_length: how many tokens of a text are kept, from its beginning.

    Returns:
        The tokenizer.
    """
    tokenizer, trainer = untrained(kind, vocabulary, [PAD, UNKNOWN])
    tokenizer.normalizer = normalizers.Sequence(
        [
            normalizers.Replace(Regex(r"<[bB][rR]\s*/?>"), " "),
            normalizers.NFKC(),
            normalizers.Lowercase(),
        ]
    )
    cut: dict[str, pre_tokenizers.PreTokenizer] = {
        "word": pre_tokenizers.Sequence(
            [pre_tokenizers.Split(Regex(CHARACTER), "isolated"), pre_tokenizers.Whitespace()]
        ),
        "bpe": pre_tokenizers.Whitespace(),
        "char": pre_tokenizers.Split(Regex(r"[\s\S]"), "isolated"),
    }
    tokenizer.pre_tokenizer = cut[kind]
    tokenizer.train_from_iterator(texts, trainer)
    tokenizer.enable_truncation(max_length)
    return tokenizer


def untrained(
    kind: str, vocabulary: int, special: list[str], *, rarest: int = 2
) -> tuple[Tokenizer, trainers.Trainer]:
    """Return a tokenizer that does not cut texts yet, and what trains it.

    Args:
        kind: as of :func:`train_tokenizer`.
        vocabulary: the largest number of different tokens, special ones included.
        special: tokens that no text has, with the numbers from 0.
        rarest: how often a word or character must occur to be known.
    """
    if kind == "bpe":
        tokenizer = Tokenizer(models.BPE(unk_token=UNKNOWN))
        return tokenizer, trainers.BpeTrainer(
            vocab_size=vocabulary, special_tokens=special, show_progress=False
        )
    tokenizer = Tokenizer(models.WordLevel(unk_token=UNKNOWN))
    return tokenizer, trainers.WordLevelTrainer(
        vocab_size=vocabulary, special_tokens=special, min_frequency=rarest, show_progress=False
    )


def encode(tokenizer: Tokenizer, texts: Sequence[str], places: Sequence[str]) -> list[Tensor]:
    """Turn texts into token ids.

    Args:
        tokenizer: what :func:`train_tokenizer` returned.
        texts: the texts.
        places: where each text was read.

    Returns:
        One tensor of ids, (T,), for each text.

    Raises:
        InputError: a text has no tokens; the message begins with its place.
    """
    encoded = []
    for start in range(0, len(texts), 1024):
        batch = tokenizer.encode_batch_fast(texts[start : start + 1024], add_special_tokens=False)
        for i, one in enumerate(batch, start):
            if not one.ids:
                raise InputError(f"{places[i]}: the text is empty")
            encoded.append(torch.tensor(one.ids, dtype=torch.int32))
    return encoded


def cut(tokenizer: Tokenizer, text: str, most: int) -> tuple[list[tuple[str, str]], str]:
    """Cut a text where its first tokens begin and end; each with what stands before, and the rest."""
    encoding = tokenizer.encode(text, add_special_tokens=False)
    pieces, end = [], 0
    tokens = zip(encoding.tokens[:most], encoding.offsets[:most], strict=True)
    for token, (first, last) in tokens:
        start = max(first, end)
        # Two tokens of one character, as in a ligature: the second has its own spelling.
        pieces.append((text[end:start], text[start:last] if last > start else token))
        end = max(end, last)
    return pieces, text[end:]


def in_order(tokenizer: Tokenizer) -> list[str]:
    """Return the tokens by their ids."""
    numbered: dict[str, int] = tokenizer.get_vocab()
    return sorted(numbered, key=numbered.__getitem__)


class Known:
    """How many of the tokens of texts a model knows.

    Args:
        sequences: the ids of each text's tokens.

    Example:
        >>> known = Known([torch.tensor([5, 1]), torch.tensor([1, 7, 8])])
        >>> known.unknown
        0.4
    """

    def __init__(self, sequences: Iterable[Tensor] = ()) -> None:
        self._unknown = self._all = 0
        self.add(sequences)

    def add(self, sequences: Iterable[Tensor]) -> None:
        """Count further texts."""
        for ids in sequences:
            self._unknown += int((ids == UNKNOWN_ID).sum())
            self._all += len(ids)

    @property
    def unknown(self) -> float:
        """The share of unknown ones."""
        return self._unknown / max(self._all, 1)


def load_tokenizer(content: str, name: str) -> Tokenizer:
    """Read a tokenizer from its JSON.

    Args:
        content: the JSON.
        name: of its file, for messages.

    Raises:
        InputError: it is not whole.
    """
    try:
        tokenizer = Tokenizer.from_str(content)
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise InputError(f"{name}: not a whole tokenizer") from error
    vocabulary = tokenizer.get_vocab()
    numbers = sorted(vocabulary.values())
    if numbers != list(range(len(numbers))) or tokenizer.model.unk_token not in vocabulary:
        raise InputError(f"{name}: not a whole tokenizer")  # it would fail at some texts only
    return tokenizer
