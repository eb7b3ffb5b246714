"""The options of a training run, written once for the Python API, the command line and YAML files.

What every task can be told stands here; a task adds fields of its own and may give other defaults.
"""

from __future__ import annotations

import codecs
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field, fields
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, TypeVar, get_args, get_type_hints

from cello.tasks.errors import InputError

if TYPE_CHECKING:
    from cello.tasks.cells import Layer

SCHEDULES = ("linear", "cosine", "constant")
PRECISIONS = ("float32", "bfloat16")
LOGS = ("none", "tensorboard")
KEPT = ("best", "last")
DEVICES = ("auto", "cpu", "cuda", "mps")

DATA, NETWORK, TRAINING, OUTPUT = PANELS = ("Data", "Network", "Training", "Output")
"""What options are about, in the order of the help."""


def option(
    default: Any,
    help: str,
    *,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    shown: str | None = None,
    written: Any = None,
    flag: str | None = None,
) -> Any:
    """Return a dataclass field that is also a command line option.

    Args:
        default: its value unless given.
        help: what it does, in a sentence.
        low: the smallest number allowed.
        high: the largest number allowed.
        choices: the words allowed.
        shown: what the help shows in the place of a default that says little, such as ``None``.
        written: its type on the command line, where it may be more in Python; its class checks it.
        flag: its name on the command line, where it is another one.
    """
    metadata = {
        "help": help, "low": low, "high": high, "choices": choices, "shown": shown,
        "written": written, "flag": flag,
    }  # fmt: skip
    return field(default=default, metadata=metadata)


def without_numpy(value: Any) -> Any:
    """Return a number of NumPy, as of a grid of parameters, as one of Python; anything else as it is."""
    is_number = type(value).__module__ == "numpy" and getattr(value, "shape", None) == ()
    return value.item() if is_number else value


@dataclass(frozen=True, kw_only=True)
class Checked:
    """A dataclass of options that holds each value to its type, range and choices.

    Attributes:
        panel: what the fields of a class are about, and of those classes that add to it.
        others: fields of a class that are about something else.

    Raises:
        InputError: a value is out of range, or a name is not known.
    """

    panel: ClassVar[str] = DATA
    others: ClassVar[dict[str, str]] = {}

    @classmethod
    def panel_of(cls, name: str) -> str:
        """Return what a field is about, one of :data:`PANELS`; the class that brought it in says."""
        classes = [c for c in reversed(cls.__mro__) if issubclass(c, Checked)]
        first = next(c for c in classes if name in {f.name for f in fields(c)})
        return first.others.get(name, first.panel)

    @classmethod
    def today(cls, values: dict[str, Any]) -> dict[str, Any]:
        """Return options by name as they are today, where an earlier version may have written them."""
        return values

    def __post_init__(self) -> None:
        hints = get_type_hints(type(self))
        for f in fields(self):
            object.__setattr__(self, f.name, without_numpy(getattr(self, f.name)))
            if f.metadata["written"] is None:
                _check(f.name, getattr(self, f.name), hints[f.name], **f.metadata)

    def plain(self) -> dict[str, Any]:
        """Return all options by name as files hold them."""
        return {f.name: getattr(self, f.name) for f in fields(self)}


@dataclass(frozen=True, kw_only=True)
class FileOptions(Checked):
    """How text files are written."""

    encoding: str = option("utf-8", "Encoding of text files: utf-8, gb18030, utf-16, ...")
    delimiter: str | None = option(
        None,
        "Delimiter between columns, such as ';' or tab.",
        shown="comma, in .tsv tab",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        check_encoding(self.encoding)
        object.__setattr__(self, "delimiter", checked_delimiter(self.delimiter))

    @property
    def written(self) -> dict[str, Any]:
        """Encoding and delimiter, by these names."""
        return {"encoding": self.encoding, "delimiter": self.delimiter}


def check_encoding(name: str) -> None:
    """Refuse an encoding that Python does not know.

    Raises:
        InputError: it is that.
    """
    try:
        codecs.getincrementaldecoder(name)
        b"text".decode(name)
    except UnicodeDecodeError:  # the encoding is there; these bytes are just not written in it
        pass
    except (LookupError, ValueError) as error:
        raise InputError(
            f"encoding: {name!r} is not known; choose from utf-8, gb18030, utf-16, windows-1252, ..."
        ) from error


def checked_delimiter(given: str | None) -> str | None:
    """Return what parts the columns of a table: one character, for which ``tab`` may stand too.

    Raises:
        InputError: it is something else.
    """
    delimiter = "\t" if given in ("tab", "\\t") else given
    if delimiter is not None and (len(delimiter) != 1 or delimiter in '"\r\n'):
        raise InputError(f"delimiter: {given!r} is not one character, as ';', nor the word tab")
    return delimiter


@dataclass(frozen=True, kw_only=True)
class PartOptions(FileOptions):
    """How files are written, which data is for validation and which is the test set."""

    valid_data: str | None = option(
        None, "Validation data, in the form of DATA.", shown="split off"
    )
    test_data: str | None = option(None, "Test data, in the format of DATA.", shown="split off")
    valid_fraction: float = option(
        0.1, "Fraction of the remaining rows for validation.", low=0.01, high=0.5
    )
    test_fraction: float = option(0.1, "Fraction of the rows for the test set.", low=0.01, high=0.5)
    split_seed: int = option(0, "Seed of the train/validation/test split.", low=0, high=2**31 - 1)
    limit: int | None = option(
        None,
        "Train on the first rows (or sentences) only, in a random order: for quick trials.",
        low=1,
        high=10**12,
        shown="all",
    )


@dataclass(frozen=True, kw_only=True)
class TrainingOptions(Checked):
    """How long and how to train, the same for every task.

    Attributes:
        purpose: what the task does, for the help of its command.
        sources: what its data may be.
    """

    purpose: ClassVar[str]
    sources: ClassVar[str]
    panel = TRAINING
    others: ClassVar[dict[str, str]] = {"log": OUTPUT, "checkpoint_every": OUTPUT}

    epochs: int = option(10, "Maximum number of epochs.", low=1, high=100_000)
    patience: int = option(
        5, "Stop after that many epochs without a better validation score.", low=1, high=100_000
    )
    keep: str = option(
        "best",
        "Which epoch's weights to keep: the best on the validation set, or the last, without "
        "stopping early.",
        choices=KEPT,
    )
    batch_size: int = option(32, "Examples in a batch.", low=1, high=1_000_000)
    learning_rate: float = option(4e-3, "Peak learning rate of Adam.", low=1e-8, high=10.0)
    schedule: str = option("linear", "Learning-rate schedule.", choices=SCHEDULES)
    warmup: float = option(0.0, "Fraction of the steps for warm-up.", low=0.0, high=0.9)
    weight_decay: float = option(0.0, "Decoupled weight decay (AdamW).", low=0.0, high=10.0)
    clip: float = option(1.0, "Clip gradients to this norm.", low=1e-6, high=1e6)
    average: float = option(
        0.0,
        "Validate and keep a moving average of the weights with this decay, as 0.999; 0: none.",
        low=0.0,
        high=0.999999,
    )
    buckets: bool = option(True, "Batch examples of about the same length together.")
    precision: str = option(
        "float32", "Products in bfloat16 (mixed precision) or float32.", choices=PRECISIONS
    )
    stream: bool = option(
        False, "Keep the data in Arrow files on disk instead of memory while training."
    )
    checkpoint_every: int = option(
        500, "Steps between checkpoints; there is one after each epoch too.", low=1, high=10**9
    )
    log: str = option(
        "none",
        "Write loss, score and learning rate to logs in the model folder too; history.csv has those "
        "of each epoch.",
        choices=LOGS,
    )
    seed: int = option(
        0, "Seed of the initial weights, the order and dropout.", low=0, high=2**31 - 1
    )
    device: str = option("auto", "Where to compute.", choices=DEVICES)
    threads: int = option(
        0,
        "Threads of each process; 0: as many as the machine has free when training begins.",
        low=0,
        high=1024,
    )
    devices: int = option(
        1, "Processes (on GPUs: devices) of a node that share each batch.", low=1, high=1024
    )
    nodes: int = option(1, "Machines that share each batch; start with torchrun.", low=1, high=1024)

    def __post_init__(self) -> None:
        if self.log == "csv":
            raise InputError("log: csv is always written, history.csv in the model folder")
        super().__post_init__()
        if self.batch_size < self.devices * self.nodes:
            raise InputError(
                f"batch-size: {self.batch_size} examples cannot be shared by"
                f" {self.devices * self.nodes} processes"
            )


def cell_option(default: str) -> Any:
    """Return the field of the cell, for a task with this default."""
    return option(
        default,
        "The cell: lstm, gru, rnn, ..., torch-lstm; or your own: file.py:Class, package.module:Class.",
        written=str,
    )


@dataclass(frozen=True, kw_only=True)
class RecurrentOptions(TrainingOptions):
    """The recurrent layers, and how to train them.

    Attributes:
        cell: the name of a layer of :mod:`cello.nn`, as ``gru`` or ``peephole-lstm``, or of torch's own,
            as ``torch-lstm``; or a class of cells, or a function that makes one of the size of its input,
            or of that and `hidden`, as :class:`cello.nn.Recurrent` takes them; or the name of such, whose
            code is imported.
        cell_args: arguments of the cell by name; or ``name=value`` each.
    """

    panel = NETWORK

    cell: Any = cell_option("lstm")  # noqa: RUF009  # it returns a field, as the next
    cell_args: Any = option(  # noqa: RUF009
        None,
        "An argument of the cell; once for each. Activations: hardsigmoid, piecewise(-2:0,2:1), ...",
        shown="none",
        written=list[str],
        flag="--cell-arg",
    )
    hidden: int = option(128, "Hidden units per direction.", low=1, high=65_536)
    layers: int = option(1, "Recurrent layers, one on top of the other.", low=1, high=64)
    bidirectional: bool = option(True, "Read the sequence in both directions.")
    activation: str | None = option(
        None,
        "Activation of the cell: tanh, hardtanh, relu, ..., piecewise(x:y,...).",
        shown="the cell's",
    )
    gate_activation: str | None = option(
        None,
        "Activation of the gates: sigmoid, hardsigmoid, ..., piecewise(x:y,...).",
        shown="the cell's",
    )
    dropout: float = option(
        0.4, "Dropout in front of, between and behind the recurrent layers.", low=0.0, high=0.99
    )

    start_from: str | None = option(
        None,
        "Model folder whose weights to start from (fine-tuning), where names and shapes fit.",
        shown="random weights",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        from cello.tasks import cells  # here: help is shown without torch

        object.__setattr__(self, "cell", cells.find(self.cell))
        if self.cell_args is not None:
            object.__setattr__(self, "cell_args", cells.read_arguments(self.cell_args))
        if isinstance(
            self.cell, str
        ):  # others may be costly to make, or need the sizes of the data
            self._layer(1, device="meta")
        else:
            cells.checked(self.cell, self.cell_args or {}, self._functions)

    @property
    def directions(self) -> int:
        """How many directions a layer has."""
        return 2 if self.bidirectional else 1

    @property
    def _functions(self) -> dict[str, str | None]:
        return {"activation": self.activation, "gate_activation": self.gate_activation}

    def plain(self) -> dict[str, Any]:
        from cello.tasks import cells

        return super().plain() | {"cell": cells.name_of(self.cell)}

    def layer(self, features: int) -> Layer:
        """Build the recurrent layers that these options describe.

        Args:
            features: size of one step of the input.

        Raises:
            InputError: a cell of one's own cannot be made, or is none.
        """
        return self._layer(features)

    def _layer(self, features: int, device: str | None = None) -> Layer:
        from cello.tasks import cells

        return cells.make(
            self.cell,
            features,
            self.hidden,
            self.cell_args or {},
            self._functions,
            device=device,
            num_layers=self.layers,
            dropout=self.dropout if self.layers > 1 else 0.0,
            bidirectional=self.bidirectional,
        )


@dataclass(frozen=True, kw_only=True)
class VectorOptions(Checked):
    """Word vectors of others, for tasks with an `embedding`."""

    panel = NETWORK

    vectors: str | None = option(
        None,
        "File with word vectors to start from, in the text format of GloVe or word2vec (.gz too); "
        "its width sets embedding.",
        shown="none",
    )
    freeze_embedding: bool = option(False, "Do not train the word vectors.")

    def __post_init__(self) -> None:
        super().__post_init__()
        start_from = getattr(self, "start_from", None)
        if self.vectors is not None and start_from is not None:
            raise InputError("vectors: start-from brings vectors of its own; give one of the two")
        own = getattr(self, "text_vectors", 0)
        if self.freeze_embedding and self.vectors is None and start_from is None and not own:
            raise InputError("freeze-embedding: needs vectors or start-from")


@dataclass(frozen=True, kw_only=True)
class MemberOptions(Checked):
    """Several networks instead of one, for tasks whose answers have a mean."""

    panel = NETWORK

    members: int = option(
        1,
        "Networks that learn side by side from other first weights; the answer is their mean. "
        "So many times the time.",
        low=1,
        high=100,
    )


AnyOptions = TypeVar("AnyOptions", bound=TrainingOptions)


def from_mapping(kind: type[AnyOptions], values: Mapping[str, Any], place: str) -> AnyOptions:
    """Make options of values by name, ``_`` and ``-`` alike.

    Args:
        kind: the options of a task.
        values: a value for each name.
        place: where they were read, for messages.

    Raises:
        InputError: a name is not known, a value is not allowed, or a name is given twice.
    """
    named: dict[str, Any] = {}
    keys: dict[str, Any] = {}
    for key, value in values.items():
        name = str(key).replace("-", "_")
        if name in named:
            raise InputError(f"{place}: {key!r} is given twice")
        named[name], keys[name] = value, key
    known, hints, named = {f.name for f in fields(kind)}, get_type_hints(kind), kind.today(named)
    for name, value in named.items():
        if name not in known:
            close = get_close_matches(name, known, n=1)
            advice = f"; did you mean {close[0]}?" if close else "; see cello train TASK --help"
            if name in ("ngrams", "ngram_bits"):
                advice = "; it is one of the task ngrams: cello train ngrams"
            raise InputError(f"{place}: {keys[name]!r} is not an option{advice}")
        named[name] = _as_meant(value, get_args(hints[name]) or (hints[name],))
    try:
        return kind(**named)
    except InputError as error:
        raise InputError(f"{place}: {error}") from error


def _key_twice(node: Any) -> Any:
    """Return the second of two equal keys of a YAML node, of which a reader would take the last."""
    seen = set()
    for key, _ in node.value if node is not None and node.id == "mapping" else ():
        if key.id != "scalar":
            continue
        if key.value in seen:
            return key
        seen.add(key.value)
    return None


def read_options(path: Path) -> dict[str, Any]:
    """Read options from a YAML file, one ``name: value`` a line.

    Raises:
        InputError: the file cannot be read, or does not hold names with values.
    """
    import yaml  # here: a model that predicts needs none

    try:
        text = path.read_text(encoding="utf-8")
        twice = _key_twice(yaml.compose(text, yaml.SafeLoader))
        content = yaml.safe_load(text)
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except UnicodeDecodeError as error:
        raise InputError(f"{path}: not UTF-8 at byte {error.start} of the file") from error
    except yaml.YAMLError as error:
        mark = getattr(error, "problem_mark", None)
        place = str(path) if mark is None else f"{path}, line {mark.line + 1}"
        raise InputError(f"{place}: not YAML ({getattr(error, 'problem', error)})") from error
    except (ValueError, RecursionError) as error:  # of a date that there is not, for one
        raise InputError(f"{path}: not YAML ({error})") from error
    if twice is not None:
        raise InputError(f"{path}, line {twice.start_mark.line + 1}: {twice.value} is given twice")
    if content is None:
        return {}
    if not isinstance(content, dict):
        raise InputError(f"{path}: not a list of names with values, `hidden: 128` each")
    return content


def to_yaml(options: TrainingOptions) -> str:
    """Return options as a YAML file that :func:`read_options` reads."""
    import yaml

    return str(yaml.safe_dump(options.plain(), sort_keys=False, allow_unicode=True))


def _in_words(type_: Any) -> str:
    """What a type is called where it is asked for."""
    kinds = get_args(type_) or (type_,)
    return " or ".join(_WORDS.get(kind, getattr(kind, "__name__", str(kind))) for kind in kinds)


_WORDS = {
    int: "a whole number",
    float: "a number",
    bool: "true or false",
    str: "a text",
    type(None): "null",
}


def _as_meant(value: Any, kinds: tuple[Any, ...]) -> Any:
    """A value as YAML reads it, as one of these kinds: 1e-3 is a number, and 1 or no may be a text."""
    if isinstance(value, str) and float in kinds and str not in kinds:
        with suppress(ValueError):
            return float(value)
    if isinstance(value, bool) and str in kinds and bool not in kinds:
        return "yes" if value else "no"
    if isinstance(value, int | float) and str in kinds and not {int, float, bool} & set(kinds):
        return str(value)
    return value


def _check(
    name: str,
    value: Any,
    type_: Any,
    low: float | None = None,
    high: float | None = None,
    choices: tuple[str, ...] | None = None,
    **_: Any,
) -> None:
    flag = name.replace("_", "-")
    known = (float, int) if type_ is float else type_
    if not isinstance(value, known) or (isinstance(value, bool) and type_ is not bool):
        raise InputError(f"{flag}: {value!r} is not {_in_words(type_)}")
    if choices is not None and value not in choices:
        raise InputError(f"{flag}: {value!r} is not one of {', '.join(choices)}")
    if low is not None and high is not None and value is not None and not low <= value <= high:
        raise InputError(f"{flag}: {value} is not between {low:,} and {high:,}")
