"""What a language model's training can be told. Nothing here needs torch, so that help is quick."""

from __future__ import annotations

from dataclasses import dataclass
from typing import ClassVar

from cello.tasks.classify.options import TOKENIZERS
from cello.tasks.errors import InputError
from cello.tasks.options import DATA, FileOptions, RecurrentOptions, option

FORMATS = ("auto", "text", "folder", "table")


@dataclass(frozen=True, kw_only=True)
class Options(RecurrentOptions, FileOptions):
    """Everything a language model's training can be told; each field is an option of ``cello train``.

    Raises:
        InputError: a value is out of range, or a name is not known.

    Example:
        >>> Options(tokenizer="word").steps
        64
    """

    purpose: ClassVar[str] = "Train a language model, which predicts the next token of a text."
    sources: ClassVar[str] = (
        "A text file (.gz too), a folder of .txt files, or a .csv, .tsv or .jsonl file with a column "
        "of texts."
    )

    others: ClassVar[dict[str, str]] = dict.fromkeys(
        ("format", "text_column", "valid_data", "test_data", "valid_fraction", "test_fraction"),
        DATA,
    )

    format: str = option("auto", "Format of DATA.", choices=FORMATS)
    text_column: str = option(
        "text", "Column of a table with the text; a number counts from 0 and means: no header."
    )
    valid_data: str | None = option(
        None, "Validation data, in the form of DATA.", shown="the end of DATA"
    )
    test_data: str | None = option(None, "Test data, in the form of DATA.", shown="none")
    valid_fraction: float = option(
        0.1, "Fraction of the text for validation, before the test part.", low=0.001, high=0.5
    )
    test_fraction: float = option(
        0.0, "Fraction of the text for the test set, at the end; 0: none.", low=0.0, high=0.5
    )
    tokenizer: str = option("char", "Tokenizer.", choices=TOKENIZERS)
    vocabulary: int = option(10_000, "Largest number of different tokens.", low=10, high=10_000_000)
    steps: int = option(
        64, "Steps of each stream in a batch; gradients go back that far.", low=1, high=1_000_000
    )
    embedding: int = option(128, "Size of a token's vector.", low=1, high=65_536)
    embedding_dropout: float = option(
        0.1, "Dropout of numbers in tokens' vectors.", low=0.0, high=0.99
    )
    tied: bool = option(False, "Use the tokens' vectors as the weights of the output, too.")
    # Other defaults.
    hidden: int = option(512, "Hidden units.", low=1, high=65_536)
    bidirectional: bool = option(False, "Not for a language model: it would read what it predicts.")
    dropout: float = option(
        0.3, "Dropout between and behind the recurrent layers.", low=0.0, high=0.99
    )
    epochs: int | None = option(  # type: ignore[assignment]  # open until the data is known
        None, "Maximum number of epochs.", low=1, high=100_000, shown="6, more for little data"
    )
    patience: int | None = option(  # type: ignore[assignment]
        None,
        "Stop after that many epochs without a better validation loss.",
        low=1,
        high=100_000,
        shown="5, or a third of the epochs",
    )
    batch_size: int = option(
        64, "Parallel streams, into which the training part is cut.", low=1, high=1_000_000
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.bidirectional:
            raise InputError(
                "bidirectional: a language model reads forward only; the other direction would read "
                "what is to be predicted"
            )
        if self.valid_fraction + self.test_fraction >= 1.0:
            raise InputError(
                f"valid-fraction: {self.valid_fraction} and test-fraction: {self.test_fraction} leave "
                "nothing to learn from"
            )
        if self.stream:
            raise InputError(
                "stream: a language model keeps its text in memory, once; batches are cut when they "
                "are needed"
            )
