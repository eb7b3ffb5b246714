"""The options of sequence classification, written once for the Python API and the command line."""

from __future__ import annotations

from dataclasses import dataclass, field, fields
from typing import Any, get_type_hints

from cello.nn import GRU, LSTM, RNN
from cello.tasks.errors import InputError

CELLS: dict[str, type[LSTM | GRU | RNN]] = {"lstm": LSTM, "gru": GRU, "rnn": RNN}
"""The layers that `cell` names."""

FORMATS = ("auto", "digits", "table", "folder", "hub")
POOLINGS = ("last", "mean", "max", "mean-max")
TOKENIZERS = ("word", "bpe")
DEVICES = ("auto", "cpu", "cuda", "mps")


def _option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    shown: str | None = None,
) -> Any:
    metadata = {"help": help, "low": low, "high": high, "choices": choices, "shown": shown}
    return field(default=default, metadata=metadata)


@dataclass(frozen=True)
class Options:
    """Everything a training run can be told; each field is an option of ``cello train``.

    ``None`` in `epochs` and `patience` means: by the kind of the inputs.

    Raises:
        InputError: a value is out of range, or a name is not known.

    Example:
        >>> Options(cell="gru", hidden=64).hidden
        64
    """

    # Data.
    format: str = _option("auto", "What DATA is.", choices=FORMATS)
    text_column: str = _option(
        "text",
        "Column with the text, or the sequence; a number counts from 0 and means: no header.",
    )
    label_column: str = _option("label", "Column with the label.")
    group_column: str | None = _option(
        None, "Column with the group: one group's rows stay in one part.", shown="none"
    )
    valid_data: str | None = _option(
        None, "Validation data, in the form of DATA.", shown="split off"
    )
    test_data: str | None = _option(None, "Held-out data, in the form of DATA.", shown="split off")
    valid_fraction: float = _option(
        0.1,
        "Share of the rows that are not held out to split off for validation.",
        low=0.01,
        high=0.5,
    )
    test_fraction: float = _option(
        0.1, "Share of the rows to split off as held-out part.", low=0.01, high=0.5
    )
    # Text.
    tokenizer: str = _option("word", "How a text is cut.", choices=TOKENIZERS)
    vocabulary: int = _option(
        25_000, "Largest number of different tokens.", low=10, high=10_000_000
    )
    max_length: int = _option(400, "Steps of a sequence that are read.", low=1, high=1_000_000)
    embedding: int = _option(100, "Size of a token's vector.", low=1, high=65_536)
    # Model.
    cell: str = _option("lstm", "The recurrent layer.", choices=tuple(CELLS))
    hidden: int = _option(128, "Units of a layer and direction.", low=1, high=65_536)
    layers: int = _option(1, "Recurrent layers, one on top of the other.", low=1, high=64)
    bidirectional: bool = _option(True, "Read the sequence in both directions.")
    activation: str = _option("tanh", "Activation of the cell: tanh, hardtanh, relu, ...")
    gate_activation: str = _option("sigmoid", "Activation of the gates: sigmoid, hardsigmoid, ...")
    pooling: str = _option(
        "mean-max", "How the outputs of all steps become one vector.", choices=POOLINGS
    )
    dropout: float = _option(
        0.4, "Dropout after the embedding, between layers and after pooling.", low=0.0, high=0.99
    )
    # Training.
    epochs: int | None = _option(
        None,
        "Most passes over the training part.",
        low=1,
        high=100_000,
        shown="4 for text, 30 for numbers",
    )
    patience: int | None = _option(
        None,
        "Stop after that many epochs without a better validation accuracy.",
        low=1,
        high=100_000,
        shown="2 for text, 20 for numbers",
    )
    batch_size: int = _option(32, "Sequences in a batch.", low=1, high=1_000_000)
    learning_rate: float = _option(
        4e-3, "First step size of Adam; it falls in a line to zero.", low=1e-8, high=10.0
    )
    clip: float = _option(1.0, "Largest norm of the gradient.", low=1e-6, high=1e6)
    seed: int = _option(
        0, "Seed of the split, the first weights, the order and the dropout.", low=0, high=2**31 - 1
    )
    device: str = _option("auto", "Where to compute.", choices=DEVICES)

    def __post_init__(self) -> None:
        hints = get_type_hints(Options)
        for f in fields(self):
            _check(f.name, getattr(self, f.name), hints[f.name], **f.metadata)
        if self.text_column == self.label_column:
            raise InputError(f"text-column and label-column are both {self.text_column!r}")
        if self.cell == "rnn" and self.gate_activation != "sigmoid":
            raise InputError("gate-activation: the cell rnn has no gates")
        try:
            self.layer(1, hidden=1)
        except ValueError as error:
            raise InputError(str(error)) from error

    def layer(self, features: int, hidden: int | None = None) -> LSTM | GRU | RNN:
        """Build the recurrent layer that these options describe.

        Args:
            features: size of one step of the input.
            hidden: units; `self.hidden` unless given.
        """
        keywords: dict[str, Any] = {"activation": self.activation}
        if self.cell != "rnn":
            keywords["gate_activation"] = self.gate_activation
        return CELLS[self.cell](
            features,
            self.hidden if hidden is None else hidden,
            num_layers=self.layers,
            dropout=self.dropout if self.layers > 1 else 0.0,
            bidirectional=self.bidirectional,
            **keywords,
        )


def _check(
    name: str,
    value: Any,
    type_: Any,
    low: float | None,
    high: float | None,
    choices: tuple[str, ...] | None,
    **_: Any,
) -> None:
    option = name.replace("_", "-")
    known = (float, int) if type_ is float else type_
    if not isinstance(value, known) or (isinstance(value, bool) and type_ is not bool):
        raise InputError(
            f"{option}: {value!r} is not of the type {getattr(type_, '__name__', type_)}"
        )
    if choices is not None and value not in choices:
        raise InputError(f"{option}: {value!r} is not one of {', '.join(choices)}")
    if low is not None and high is not None and value is not None and not low <= value <= high:
        raise InputError(f"{option}: {value} is not between {low:,} and {high:,}")
