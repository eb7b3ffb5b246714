"""What a classifier's training can be told. Nothing here needs torch, so that help is quick."""

from __future__ import annotations

from dataclasses import dataclass, fields
from typing import Any, ClassVar

from cello.tasks.errors import InputError
from cello.tasks.options import MemberOptions, PartOptions, RecurrentOptions, VectorOptions, option

FORMATS = ("auto", "digits", "table", "steps", "idx", "folder", "hub")
TOKENIZERS = ("word", "bpe", "char")
POOLINGS = ("last", "mean", "max", "mean-max")
SCALINGS = ("feature", "all")


@dataclass(frozen=True, kw_only=True)
class SourceOptions(PartOptions):
    """What the data is, and how its columns are named."""

    format: str = option("auto", "Format of DATA.", choices=FORMATS)
    text_column: str = option(
        "text",
        "Column with the text, or the sequence; a number counts from 0 and means: no header.",
    )
    label_column: str = option("label", "Column with the label.")
    group_column: str | None = option(
        None,
        "Column of DATA with the group: one group's rows stay in one part where it is split.",
        shown="none",
    )
    distinct: bool = option(
        False, "Remove rows that are there before, in the same file or set and with the same label."
    )
    sequence_column: str | None = option(
        None,
        "Column that numbers the sequences of a table with one step a row.",
        shown="none",
    )
    feature_columns: str | None = option(
        None, "Columns with the numbers of a step, as a,b,c.", shown="all others"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.text_column == self.label_column:
            raise InputError(f"text-column and label-column are both {self.text_column!r}")
        if self.feature_columns is not None and self.sequence_column is None:
            raise InputError("feature-columns: only a table of steps has them; see sequence-column")


@dataclass(frozen=True, kw_only=True)
class Options(RecurrentOptions, MemberOptions, SourceOptions, VectorOptions):
    """Everything a classifier's training can be told; each field is an option of ``cello train``.

    ``None`` in `epochs` and `patience` means: by the kind of the inputs.

    Raises:
        InputError: a value is out of range, or a name is not known.

    Example:
        >>> Options(cell="gru", hidden=64).hidden
        64
    """

    purpose: ClassVar[str] = "Train a classifier of texts or of sequences of numbers."
    sources: ClassVar[str] = (
        "digits; a .csv, .tsv or .jsonl file (.gz too); a folder CLASS/*.txt or train/CLASS/*.txt; "
        "images in MNIST format; or a dataset of the Hugging Face hub."
    )

    tokenizer: str = option("word", "Tokenizer.", choices=TOKENIZERS)
    vocabulary: int = option(25_000, "Largest number of different tokens.", low=10, high=10_000_000)
    max_length: int = option(
        400, "Steps of a sequence that are read in training.", low=1, high=1_000_000
    )
    read_length: int | None = option(
        None,
        "Steps of a sequence that are read in validation and use.",
        low=1,
        high=1_000_000,
        shown="as max-length",
    )
    scaling: str = option(
        "feature",
        "Numbers are scaled to mean 0 and deviation 1: each feature by itself, or all alike.",
        choices=SCALINGS,
    )
    embedding: int = option(100, "Size of a token's vector.", low=1, high=65_536)
    embedding_dropout: float | None = option(
        None, "Dropout of numbers in tokens' vectors.", low=0.0, high=0.99, shown="as dropout"
    )
    word_dropout: float = option(0.0, "Fraction of tokens dropped in training.", low=0.0, high=0.99)
    adversarial: float = option(
        0.0,
        "Adversarial training with perturbations of this size; 0: off. Twice the time.",
        low=0.0,
        high=1000.0,
    )
    text_vectors: int = option(
        0,
        "Start from word vectors made of the training texts: tokens with the same neighbours, up to so "
        "many tokens away, begin alike; 5 is usual, 0: off. Takes seconds.",
        low=0,
        high=100,
    )
    pretrain: int = option(
        0,
        "Epochs of learning to predict the next token (backwards: the previous one) of the training texts, "
        "before labels are used.",
        low=0,
        high=100_000,
    )
    pooling: str = option(
        "mean-max", "How the outputs of all steps become one vector.", choices=POOLINGS
    )
    pool_input: bool = option(
        False,
        "Beside the outputs also sum the vectors that the recurrent layers read (those of the tokens), "
        "over the root of their number.",
    )
    epochs: int | None = option(  # type: ignore[assignment]  # open until the data is known
        None,
        "Maximum number of epochs.",
        low=1,
        high=100_000,
        shown="4 for text, 30 for numbers, more for little data",
    )
    patience: int | None = option(  # type: ignore[assignment]
        None,
        "Stop after that many epochs without a better validation accuracy.",
        low=1,
        high=100_000,
        shown="2 for text, 20 for numbers, more for little data",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("vectors", "start_from"):
            if self.text_vectors and getattr(self, name) is not None:
                other = name.replace("_", "-")
                raise InputError(
                    f"text-vectors: {other} brings vectors of its own; give one of the two"
                )
        if self.pretrain and self.bidirectional and self.layers > 1:
            raise InputError(
                f"pretrain: the second of {self.layers} bidirectional layers would know the tokens that "
                "it is to predict; use layers 1 or no-bidirectional"
            )

    @property
    def longest(self) -> int:
        """Steps of a sequence that are read in validation and use."""
        return self.max_length if self.read_length is None else self.read_length

    @classmethod
    def today(cls, values: dict[str, Any]) -> dict[str, Any]:
        if "ngrams" in {f.name for f in fields(cls)} or values.get("ngrams"):
            return values
        # Every classifier had these options before there was a task with n-grams.
        return {n: value for n, value in values.items() if n not in ("ngrams", "ngram_bits")}
