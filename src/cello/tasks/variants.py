"""The cells of a comparison, as a list writes them. Nothing here needs torch.

A cell stands in the list as ``--cell`` takes it. It may have arguments behind it, and a name in front::

    lstm, gru(layers=2), hard=lstm(activation=hardtanh), mine.py:Mine(alpha=0.5)
"""

from __future__ import annotations

import ast
import json
import re
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, fields, replace
from typing import Any, TypeVar

from cello.tasks.errors import InputError
from cello.tasks.options import RecurrentOptions, TrainingOptions

AnyRecurrent = TypeVar("AnyRecurrent", bound=RecurrentOptions)

Cells = str | Sequence[Any] | Mapping[str, Any]
"""A list as text; or some cells, each as text or as what :class:`RecurrentOptions` takes; or by name."""

_OPENING, _CLOSING, _QUOTES = "([{", ")]}", "'\""


@dataclass(frozen=True)
class Variant:
    """A cell of a comparison.

    Attributes:
        name: how tables and pictures call it; no other one has it.
        cell: the cell, as the options take it.
        arguments: options of the network that are this cell's own, and arguments of its class.
    """

    name: str
    cell: Any
    arguments: dict[str, Any] = field(default_factory=dict)


def changed(options: AnyRecurrent, variant: Variant) -> AnyRecurrent:
    """Return options of a task with a cell in the place of theirs.

    Raises:
        InputError: there is no such cell, or it does not take an argument.
    """
    layers = {f.name for f in fields(RecurrentOptions)} - {f.name for f in fields(TrainingOptions)}
    layers -= {"cell", "cell_args"}
    own = {name: value for name, value in variant.arguments.items() if name in layers}
    others = {name: value for name, value in variant.arguments.items() if name not in layers}
    try:
        return replace(options, cell=variant.cell, cell_args=others, **own)
    except InputError as error:
        raise InputError(f"cells: {variant.name}: {error}") from error


def variants(cells: Cells) -> list[Variant]:
    """Read the cells of a comparison.

    Raises:
        InputError: it is not a list of cells, or a name is given twice.

    Example:
        >>> for one in variants("lstm, hard=lstm(activation=hardtanh, layers=2)"):
        ...     print(one.name, one.cell, one.arguments)
        lstm lstm {}
        hard lstm {'activation': 'hardtanh', 'layers': 2}
    """
    if isinstance(cells, str):
        found = [_variant(piece) for piece in _pieces(cells)]
    elif isinstance(cells, Mapping):
        found = [_given(cell, name) for name, cell in cells.items()]
    else:
        found = [_given(cell) for cell in cells]
    if not found:
        raise InputError("cells: there is none; as lstm,gru,mine.py:Mine")
    names = [one.name for one in found]
    for name in names:
        if names.count(name) > 1:
            raise InputError(f"cells: {name!r} is given twice; give one another name: other={name}")
    return found


def _given(cell: str | type[Any] | Callable[..., Any], name: str | None = None) -> Variant:
    if isinstance(cell, str):
        found = _variant(cell)
        return found if name is None else replace(found, name=name)
    return Variant(str(name or getattr(cell, "__name__", type(cell).__name__)), cell)


def _pieces(text: str) -> Iterator[str]:
    """Cut a list at its commas, but not inside brackets, nor inside quotes within them."""
    depth, quote, start = 0, "", 0
    for i, letter in enumerate(text):
        if quote:
            quote = "" if letter == quote else quote
        elif depth and letter in _QUOTES:
            quote = letter
        elif letter in _OPENING:
            depth += 1
        elif letter in _CLOSING:
            depth -= 1
        elif letter == "," and not depth:
            yield text[start:i]
            start = i + 1
    if depth or quote:
        raise InputError(f"cells: a bracket or quote is not closed in {text!r}")
    yield text[start:]


def _variant(text: str) -> Variant:
    match = re.fullmatch(r"(?:([^=()]+)=)?([^=()]+)(?:\((.*)\))?", text.strip(), re.DOTALL)
    if match is None or not match[2].strip():
        raise InputError(
            f"cells: {text.strip()!r} is not a cell, as lstm, mine.py:Mine(alpha=2) or name=lstm"
        )
    name, cell, arguments = match[1], match[2].strip(), match[3]
    if name is None:  # of an own cell its class, without the file
        behind = "" if arguments is None else f"({' '.join(arguments.split())})"
        name = cell.rpartition(":")[2] + behind
    values = {} if arguments is None else _arguments(arguments, text.strip())
    return Variant(name.strip(), cell, values)


def _arguments(text: str, place: str) -> dict[str, Any]:
    try:
        call = ast.parse(f"f({text})", mode="eval").body
    except (SyntaxError, ValueError) as error:
        raise InputError(
            f"cells: {place!r} cannot be read; as mine.py:Mine(alpha=2), texts in quotes"
        ) from error
    if not isinstance(call, ast.Call) or call.args or any(k.arg is None for k in call.keywords):
        raise InputError(f"cells: {place!r} has an argument without a name; as Mine(alpha=2)")
    values = {str(k.arg): _value(k, place) for k in call.keywords}
    if len(values) < len(call.keywords):
        raise InputError(f"cells: {place!r} has an argument twice")
    return values


def _value(keyword: ast.keyword, place: str) -> Any:
    """Return a number, a text, a list or True, False, None; a word stands for itself."""
    if isinstance(keyword.value, ast.Name):
        return keyword.value.id
    try:
        value = ast.literal_eval(keyword.value)
        json.dumps(value)  # as the folder keeps it
    except (TypeError, ValueError) as error:
        raise InputError(f"cells: {keyword.arg} in {place!r} is no number, word or list") from error
    return value
