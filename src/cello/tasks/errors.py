"""What a task says to its user, and when something is wrong with the input."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


class InputError(ValueError):
    """Data, an option or a model folder cannot be used; the message is one line saying why."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C and can be continued; the message says how far it got."""


def say(console: Console, text: str) -> None:
    """Print a line as it is, however long."""
    console.print(text, highlight=False, markup=False, soft_wrap=True)
