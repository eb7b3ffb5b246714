"""Shapes of a layer in letters and in numbers, and a table of them."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

WORDS = {
    "T": "time",
    "B": "batch",
    "N": "steps of all sequences",
    "F": "features",
    "H": "hidden",
    "O": "output",
    "P": "projection",
    "G": "gates",
    "L": "layers",
    "D": "directions",
}
"""The meaning of the letters; H0, H1, ... are the H of each layer if they differ."""


MOST_COLUMNS = 6
"""More parts of the parameters than this are rows of the table instead of columns."""

OF_LAYER = "of the layer itself"
"""The meaning of a parameter that belongs to no cell."""


@dataclass(frozen=True)
class Shape:
    """One tensor.

    Attributes:
        name: its name for the caller.
        letters: each dimension in letters, ``("G*H", "F")``; empty if no letters are known.
        numbers: each dimension as a number, ``(16, 28)``.
        meaning: its meaning in words.
    """

    name: str
    letters: tuple[str, ...]
    numbers: tuple[int, ...]
    meaning: str = ""

    @property
    def text(self) -> str:
        """``"(G*H, F) = (16, 28)"``, or only the numbers."""
        numbers = _tuple(self.numbers)
        return f"{_tuple(self.letters)} = {numbers}" if self.letters else numbers


@dataclass(frozen=True)
class Gate:
    """One block of H rows in each weight of a cell.

    Attributes:
        name: its usual letter.
        meaning: its name in words.
        function: its activation function.
        rows: its rows in `weight_ih`, `weight_hh` and the biases, in letters: ``"H:2*H"``.
    """

    name: str
    meaning: str
    function: str
    rows: str


@dataclass(frozen=True)
class Place:
    """One direction of one layer.

    Attributes:
        layer: its number, from 0.
        direction: 0 reads forward, 1 backward.
        cell: the name of its cell.
        suffix: the end of its parameters' names, ``"l0_reverse"``.
        index: the index of its final state, ``"[1]"``.
        after: the step after which it has this final state, in words.
        output: the place of the same values in `output`, ``"output[-1, :, :H]"``, or empty.
        counts: the number of its parameters of each part.
    """

    layer: int
    direction: int
    cell: str
    suffix: str
    index: str
    after: str
    output: str
    counts: dict[str, int]

    @property
    def reading(self) -> str:
        """The direction of reading."""
        return "backward" if self.direction else "forward"


@dataclass(frozen=True)
class Shapes:
    """Shapes, gates and numbers of parameters of a layer; ``str`` gives a table.

    Attributes:
        letters: the number for each letter, ``{"T": 3, "B": 10, ...}``.
        inputs: the input and the initial state.
        outputs: the output, the final state and, if asked for, the states of all steps.
        weights: parameters and buffers.
        gates: the blocks of rows of each weight, in order; empty if the cell has no known gates.
        places: layers x directions, in the order of the final states.
        names: the parts of the state, in order.
        state: the structure of the final state, ``"(h_n, c_n)"``.
        merge: how the outputs of both directions are merged; empty for one direction.
        dropout: the probability of zeroing an element between two layers in training.
        total: the number of parameters.
        frozen: how many of them are frozen.
    """

    letters: dict[str, int]
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    weights: tuple[Shape, ...]
    gates: tuple[Gate, ...]
    places: tuple[Place, ...]
    names: tuple[str, ...]
    state: str
    merge: str
    dropout: float
    total: int
    frozen: int = 0

    @property
    def legend(self) -> str:
        """The meaning and the number of each letter."""
        return ", ".join(f"{k}={v} {WORDS.get(k, WORDS[k[0]])}" for k, v in self.letters.items())

    def __str__(self) -> str:
        lines = [f"  {self.legend}"]
        for title, shapes in (
            ("takes", self.inputs),
            ("returns", self.outputs),
            ("weights", self.weights),
        ):
            if shapes:
                lines += [
                    "",
                    f"  {title}",
                    *_columns([(s.name, s.text, s.meaning) for s in shapes]),
                ]
            if title == "returns":
                lines += ["", f"  rows of the final state {self.state}", *self._places()]
        if self.gates:
            rows = [(g.name, g.meaning, g.function, f"rows {self._rows(g)}") for g in self.gates]
            lines += ["", "  gates, in the order of the rows of each weight and bias"]
            lines += _columns(rows)
        lines += ["", "  parameters", *self._counts()]
        return "\n".join(lines)

    def _rows(self, gate: Gate) -> str:
        known = {letter: value for letter, value in self.letters.items() if letter == "H"}
        return gate.rows if not known else f"{gate.rows} = {_numbers(gate.rows, known)}"

    def _places(self) -> list[str]:
        rows = [
            (p.index, f"layer {p.layer} {p.reading}", p.after, p.output and f"= {p.output}")
            for p in self.places
        ]
        return _columns(rows)

    def _counts(self) -> list[str]:
        """Return the table of parameters, with parts as columns, or as rows if there are many."""
        parts = list(dict.fromkeys(part for place in self.places for part in place.counts))
        if not parts:
            return ["    none"]
        counts = {
            f"layer {p.layer} {p.reading}": [p.counts.get(part, 0) for part in parts]
            for p in self.places
        }
        if len(counts) > 1:
            counts["all"] = [sum(column) for column in zip(*counts.values(), strict=True)]
        table: list[tuple[str, ...]] = [("", *parts, "total")]
        table += [(name, *(f"{n:,}" for n in (*row, sum(row)))) for name, row in counts.items()]
        if len(parts) > MOST_COLUMNS:
            table = list(zip(*table, strict=True))
        lines = _columns(table, right=True)
        more = sum(prod(s.numbers) for s in self.weights if s.meaning == OF_LAYER)
        lines += [f"    and {more:,} {OF_LAYER}"] if more else []
        return [*lines, f"    {self.frozen:,} of them are frozen"] if self.frozen else lines


def _tuple(items: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, items))}{',' if len(items) == 1 else ''})"


def _numbers(rows: str, letters: dict[str, int]) -> str:
    """``"H:2*H"`` with H = 4 as ``"4:8"``."""
    return ":".join(
        str(prod(letters.get(factor) or int(factor) for factor in end.split("*")))
        for end in rows.split(":")
    )


def _columns(rows: Sequence[tuple[str, ...]], right: bool = False) -> list[str]:
    """Align text in columns, and numbers to the right."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [
        [
            cell.rjust(width) if right and k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return [f"    {'  '.join(row)}".rstrip() for row in aligned]
