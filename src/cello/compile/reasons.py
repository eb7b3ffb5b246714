"""Why a cell cannot be compiled, in words that help its author."""

from __future__ import annotations

import sys
from types import FrameType, TracebackType

from cello.foreign.scope import place


class CannotCompile(Exception):  # noqa: N818 - an answer, not a failure: another engine runs the cell
    """A cell cannot become a program; the message names the line that cannot be compiled."""


class Raises(CannotCompile):
    """A step raises an error of its own, such as that of an assertion."""


DEPENDS_ON_ROWS = (
    "what {} computes depends on the number of rows in the batch{}; rows must not see each other"
)
"""A reason for a cell and a line."""

DOES_OTHERWISE = (
    "what {} computes depends on the number of rows in the batch{}; compute with all rows at once in the "
    "place of a loop over them, and write squeeze(dim) in the place of squeeze()"
)
"""A reason for a cell that calls other functions of torch for another number of rows, and a line."""


def line_of(traceback: TracebackType | None = None) -> str:
    """``" (file.py:12)"``: the innermost line that is neither torch's nor Cello's own machinery.

    Args:
        traceback: of an error; without one, the line that is running.
    """
    frame: FrameType | None = sys._getframe(1)
    line = 0
    places = []
    if traceback is None:
        while frame is not None:
            places.append((frame, frame.f_lineno))
            frame = frame.f_back
    else:
        while traceback is not None:
            places.insert(0, (traceback.tb_frame, traceback.tb_lineno))
            traceback = traceback.tb_next
    for frame, line in places:
        module = frame.f_globals.get("__name__", "")
        ours = ("torch.", "cello.compile", "cello.engines", "cello.foreign", "contextlib")
        if not module.startswith(ours) and module != "torch":
            return f" ({place(frame.f_code, line)})"
    return ""
