"""What a task says to its user, and when something is wrong with the input."""

from __future__ import annotations

import sys
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from rich.console import Console


class InputError(ValueError):
    """Data, an option or a model folder cannot be used; the message is one line saying why."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C and can be continued; the message says how far it got."""


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
