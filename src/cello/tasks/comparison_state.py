"""What a comparison is, apart from its runs, in ``compare.json``; what it may not change."""

from __future__ import annotations

import dataclasses
import json
import re
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from cello.tasks import own
from cello.tasks.errors import InputError
from cello.tasks.files import REPORT, written_beside
from cello.tasks.folder import CONFIG
from cello.tasks.options import RecurrentOptions, TrainingOptions
from cello.tasks.variants import Variant

STATE = "compare.json"
FORMAT = 1
"""The version of the folder's format."""

RUNS = "runs"
RESULTS, EPOCHS, MARKDOWN, LATEX = "results.csv", "epochs.csv", "table.md", "table.tex"
PICTURES = tuple(
    f"{name}.{ending}" for name in ("learning_curves", "scores") for ending in ("pdf", "png")
)

FREE = ("cell", "cell_args", "seed", "log", "checkpoint_every")
"""Options that are chosen for each run, and those that no result depends on."""
MOST = 65_536
"""The largest hidden size."""
CLOSE = 0.1
"""By how much of a target the count of the smallest size may exceed it."""
WIDEST_STEP = 64
"""The largest step between hidden sizes that a cell can have, such as multiples of 64."""


@dataclass(frozen=True)
class Entry:
    """A cell of a comparison, with what was found out about it.

    Attributes:
        name: how tables and pictures call it.
        cell: the cell as text.
        arguments: as in :class:`Variant`.
        hidden: its hidden size.
        parameters: how many its network has.
        folder: the beginning of the names of its runs' folders.
        source: the hash of the source of a cell of one's own.
    """

    name: str
    cell: str
    arguments: dict[str, Any]
    hidden: int
    parameters: int
    folder: str
    source: str | None

    @property
    def text(self) -> str:
        """The cell with its arguments."""
        arguments = ", ".join(f"{name}={value!r}" for name, value in self.arguments.items())
        return f"{self.cell}({arguments})" if arguments else self.cell


@dataclass
class State:
    """The content of ``compare.json``.

    Attributes:
        task: the name of the task.
        source: the name of the data, for messages.
        fingerprint: the hash of the data.
        match_parameters: whether hidden sizes are matched.
        options: those that all runs share, as they were given.
        seeds: of all runs so far, rising.
        cells: the cells, in the order in which they came.
    """

    task: str
    source: str
    fingerprint: str
    match_parameters: bool
    options: dict[str, Any]
    seeds: list[int] = field(default_factory=list)
    cells: list[Entry] = field(default_factory=list)

    @classmethod
    def read(cls, out: Path) -> State | None:
        """Read the state of a folder; None where there is no comparison yet.

        Raises:
            InputError: it is not whole, or the folder holds something else.
        """
        path = out / STATE
        try:
            content = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, NotADirectoryError):
            _check_free(out)
            return None
        except ValueError as error:
            raise InputError(f"{path}: not whole, it cannot be read as JSON") from error
        try:
            if content.pop("format") != FORMAT:
                raise InputError(f"{path}: of another version of Cello")
            cells = [Entry(**entry) for entry in content.pop("cells")]
            return cls(**content, cells=cells)
        except (AttributeError, KeyError, TypeError) as error:
            raise InputError(f"{path}: not the description of a comparison") from error

    @property
    def threads(self) -> int:
        """How many threads the runs compute with."""
        return int(self.options["threads"])

    def write(self, out: Path) -> None:
        """Write it."""
        content = {"format": FORMAT, **dataclasses.asdict(self)}
        with written_beside(out / STATE, "w") as stream:
            json.dump(content, stream, indent=2, ensure_ascii=False)

    def check(self, out: Path, task: str, match_parameters: bool, options: dict[str, Any]) -> None:
        """Refuse to go on with another task or other options.

        Args:
            out: the folder, for messages.
            task: what was asked for, and so on.
            match_parameters: the same.
            options: the same, from :func:`shared`.

        Raises:
            InputError: they differ.
        """
        pairs: list[tuple[str, Any, Any]] = [
            ("task", self.task, task),
            ("--match-parameters", self.match_parameters, match_parameters),
        ]
        for name in dict.fromkeys([*self.options, *options]):
            flag = f"--{name.replace('_', '-')}"
            pairs.append((flag, self.options.get(name), options.get(name)))
        for what, before, now in pairs:
            if before != now:
                raise InputError(
                    f"{out}: holds a comparison with {what} {before}, not {now}; "
                    "choose another folder for it"
                )

    def check_data(self, out: Path, source: str, fingerprint: str) -> None:
        """Refuse other data.

        Raises:
            InputError: it is that.
        """
        if fingerprint == self.fingerprint:
            return
        if source == self.source:
            raise InputError(f"{source}: the data has changed since the comparison began")
        raise InputError(
            f"{out}: holds a comparison on {self.source}, which is other data than {source}; "
            "choose another folder for it"
        )

    def add(
        self,
        variant: Variant,
        options: RecurrentOptions,
        count: Callable[[RecurrentOptions], int],
        is_finished: Callable[[Entry], bool],
    ) -> tuple[Entry, RecurrentOptions]:
        """Add a cell, unless it is known already.

        Args:
            variant: the cell.
            options: of its runs, with its own arguments.
            count: the number of parameters of the network that options describe.
            is_finished: whether a cell has a finished run; one that has none may change.

        Returns:
            What is known of the cell, and the options with its hidden size.

        Raises:
            InputError: the name is that of another cell, or the cell has changed.
        """
        cell, source = options.plain()["cell"], None
        if callable(options.cell):
            source = own.record(options.cell)["source"]
        arguments, place = plain(variant.arguments), len(self.cells)
        for number, known in enumerate(self.cells):
            if known.name != variant.name:
                continue
            same = cell == known.cell if source is None else source == known.source
            if same and known.arguments == arguments:
                return known, replace(options, hidden=known.hidden)
            if is_finished(known):
                new = replace(known, cell=cell, arguments=arguments).text
                what = f"{known.name} is {known.text} in this folder"
                names = {one.rpartition(":")[2] for one in (known.cell, cell)}
                if source is not None and len(names) == 1 and known.arguments == arguments:
                    what = f"the source of {known.name} has changed since its runs in this folder"
                raise InputError(f"cells: {what}; give the new one another name: other={new}")
            place = number
        if place < len(self.cells):
            del self.cells[place]
        is_first = place == 0  # to which the others are matched
        if self.match_parameters and not is_first and "hidden" not in arguments:
            options = self._matched(variant.name, options, count)
        folder = self._free(variant.name)
        entry = Entry(variant.name, cell, arguments, options.hidden, count(options), folder, source)
        self.cells.insert(place, entry)
        return entry, options

    def _matched(
        self, name: str, options: RecurrentOptions, count: Callable[[RecurrentOptions], int]
    ) -> RecurrentOptions:
        """Return options whose network has about as many parameters as that of the first cell."""
        first = self.cells[0]

        def possible(hidden: int) -> tuple[int, int]:
            """The next size that the cell can have, which may want a multiple of some number."""
            for size in range(hidden, hidden + WIDEST_STEP):
                try:
                    return size, count(replace(options, hidden=size))
                except InputError as error:
                    refused = error
            raise refused

        start = options.hidden
        if possible(start)[1] == possible(2 * start)[1]:
            found = None
        else:
            found = matched(lambda h: possible(h)[1], first.parameters, start)
        if found is None:
            raise InputError(
                f"match-parameters: no hidden size gives {name} the {first.parameters:,} parameters of "
                f"{first.name}; with a hidden of its own, as {name}(hidden={options.hidden}), it is left "
                "as it is"
            )
        return replace(options, hidden=possible(found)[0])

    def _free(self, name: str) -> str:
        """Return a name for a cell's folders that no other cell has."""
        short = re.sub(r"[^\w.+-]+", "-", name).strip("-.") or "cell"
        taken = {entry.folder.lower() for entry in self.cells}  # some disks know no capitals
        numbers = range(2, len(taken) + 3)
        names = (short, *(f"{short}.{number}" for number in numbers))
        return next(name for name in names if name.lower() not in taken)


def shared(options: TrainingOptions) -> dict[str, Any]:
    """Return the options that all runs of a comparison share, as JSON holds them."""
    return plain({n: v for n, v in options.plain().items() if n not in FREE})


def plain(values: dict[str, Any]) -> dict[str, Any]:
    """Return values as they are read again from JSON."""
    found: dict[str, Any] = json.loads(json.dumps(values))
    return found


def matched(count: Callable[[int], int], target: int, start: int) -> int | None:
    """Return the size whose count is closest to a target; None where all are smaller or larger.

    Args:
        count: how many parameters there are with a hidden size; it grows with it.
        target: how many there should be.
        start: a size to begin at.

    Example:
        >>> matched(lambda h: 4 * h * (h + 10), 4 * 20 * 30, 128)
        20
    """
    low, high = 0, start
    while count(high) < target:
        low, high = high, 2 * high
        if high > MOST:
            return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (middle, high) if count(middle) < target else (low, middle)
    if low == 0 and count(high) > (1 + CLOSE) * target:
        return None
    return min((h for h in (low, high) if h), key=lambda h: abs(count(h) - target))


def _check_free(out: Path) -> None:
    """Refuse a folder that holds something else.

    Raises:
        InputError: it does.
    """
    if out.exists() and not out.is_dir():
        raise InputError(f"{out}: not a folder")
    if (out / CONFIG).exists():
        raise InputError(f"{out}: holds a model; choose another folder for the comparison")
    for name in (RESULTS, EPOCHS, MARKDOWN, LATEX, *PICTURES, RUNS, REPORT):
        if (out / name).exists():
            raise InputError(
                f"{out}: holds {name}, which is not of a comparison; choose another folder"
            )
