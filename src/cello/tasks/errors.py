"""What a task says to its user when something is wrong with the input."""

from __future__ import annotations


class InputError(ValueError):
    """Data, an option or a model folder cannot be used; the message is one line saying why."""


class Interrupted(KeyboardInterrupt):
    """Training was stopped by Ctrl-C and can be continued; the message says how far it got."""
