"""Why a cell cannot be compiled, in words that help its author."""

from __future__ import annotations


class CannotCompile(Exception):  # noqa: N818 - an answer, not a failure: another engine runs the cell
    """A cell cannot become a program; the message names what stands in the way, and where."""
