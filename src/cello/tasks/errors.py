"""What a task says to its user, and when something is wrong with the input."""

from __future__ import annotations

import sys
from numbers import Integral, Real
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from rich.console import Console
    from rich.table import Table


class InputError(ValueError):
    """Data, an option or a model folder cannot be used; the message is one line saying why."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C and can be continued; the message says how far it got."""


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Hold an argument to a whole number.

    Args:
        name: the argument.
        value: what was given.
        least: the least that it may be.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, Integral) or isinstance(value, bool):
        raise InputError(f"{name}: {value!r} is not a whole number")
    if value < least:
        raise InputError(f"{name}: {value} is {'not positive' if least == 1 else 'negative'}")


def check_real(name: str, value: Any) -> None:
    """Hold an argument to a number.

    Raises:
        InputError: it is something else.
    """
    if not isinstance(value, Real) or isinstance(value, bool):
        raise InputError(f"{name}: {value!r} is not a number")


def console_of(verbose: bool | int | None) -> Console:
    """Return where progress is shown, as `verbose` of ``train`` asks.

    Raises:
        InputError: it is not one of 0, 1, 2, ``True``, ``False`` and ``None``.
    """
    from rich.console import Console

    if verbose not in (None, 0, 1, 2):  # True and False are 1 and 0
        raise InputError(
            f"verbose: {verbose!r} is not 0 (silent), 1 (with a bar) or 2 (lines only)"
        )
    usual = Console(stderr=True)
    if verbose is None:
        verbose = usual.is_terminal or usual.is_jupyter
    if verbose == 2:
        stream = sys.stdout if usual.is_jupyter else sys.stderr
        return Console(file=stream, force_terminal=False, force_jupyter=False)
    return usual if verbose else Console(quiet=True)


def say(console: Console, text: str) -> None:
    """Print a line as it is, however long."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)


def show_table(console: Console, table: Table) -> None:
    """Print a table, wider than the console if need be: a heading may be broken, a number is not cut."""
    from rich.cells import cell_len  # here: other commands do without
    from rich.text import Text

    for column in table.columns:
        texts = [Text.from_markup(str(cell)).plain for cell in column.cells]
        words = Text.from_markup(str(column.header)).plain.split()
        column.min_width = max(map(cell_len, [*texts, *words]), default=0)
    console.print(table, crop=False)
