"""What a tagger's training can be told. Nothing here needs torch, so that help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cello.tasks.errors import InputError
from cello.tasks.options import (
    DATA,
    MemberOptions,
    PartOptions,
    RecurrentOptions,
    VectorOptions,
    option,
)
from cello.tasks.tag.conllu import Conllu

FORMATS = ("auto", "conllu", "columns")
OUTPUTS = ("linear", "crf")


@dataclass(frozen=True, kw_only=True)
class Options(RecurrentOptions, MemberOptions, PartOptions, VectorOptions):
    """Everything a tagger's training can be told; each field is an option of ``cello train tag``.

    Raises:
        InputError: a value is out of range, or a name is not known.

    Example:
        >>> Options(output="crf").hidden
        128
    """

    purpose: ClassVar[str] = "Train a tagger of words, for example of parts of speech."
    sources: ClassVar[str] = (
        "A file in CoNLL-U, or with a word and its tag on each line and an empty line between sentences "
        "(.gz too)."
    )

    others: ClassVar[dict[str, str]] = {"format": DATA, "label_column": DATA}

    format: str = option("auto", "How DATA is written.", choices=FORMATS)
    label_column: str = option(
        "upos", "Where the tag is in CoNLL-U: upos, xpos, deprel, feats, or one as feats:Number."
    )
    output: str = option(
        "linear", "Score each tag by itself, or neighbouring ones together.", choices=OUTPUTS
    )
    vocabulary: int = option(
        100_000, "Maximum number of words with an embedding.", low=1, high=10_000_000
    )
    embedding: int = option(100, "Size of a word's own vector.", low=1, high=65_536)
    character_embedding: int = option(32, "Size of a character's vector.", low=1, high=65_536)
    character_hidden: int = option(
        64, "Units of each direction of the layer over a word's characters.", low=1, high=65_536
    )
    longest_word: int = option(
        40, "Maximum characters of a word; longer words lose their middle.", low=2, high=1_000_000
    )
    affixes: int = option(
        3, "Longest prefix and suffix with an embedding; 0: none.", low=0, high=20
    )
    affix_embedding: int = option(32, "Size of the vector of each of these.", low=1, high=65_536)
    unknown: float = option(
        0.25,
        "In training a word seen n times counts as unknown with probability unknown/(n+unknown).",
        low=0.0,
        high=1e6,
    )
    layers: int = option(2, "Recurrent layers over the words.", low=1, high=64)
    dropout: float = option(
        0.33, "Dropout in front of, between and behind these layers.", low=0.0, high=0.99
    )
    epochs: int | None = option(  # type: ignore[assignment]  # open until the data is known
        None,
        "Maximum number of epochs.",
        low=1,
        high=100_000,
        shown="12, more for little data",
    )
    warmup: float = option(0.05, "Fraction of the steps for warm-up.", low=0.0, high=0.9)

    def __post_init__(self) -> None:
        super().__post_init__()
        Conllu(self.label_column)
        if self.format == "conllu" and self.delimiter is not None:
            raise InputError("delimiter: in CoNLL-U tabs part the columns")
