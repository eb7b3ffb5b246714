"""Files that are never half written, and the names of some."""

from __future__ import annotations

import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO, Any, Literal

BEST, LAST, REPORT = "best.ckpt", "last.ckpt", "report.json"
HISTORY, CURVES = "history.csv", "curves.png"


@contextmanager
def written_beside(path: Path, mode: Literal["w", "wb"] = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears under its name when it is complete: beside it, then renamed.

    What is no plain file, a pipe or a device, is written to as it is; a link is followed.

    Args:
        path: the file; the folders above it are made.
        mode: ``"wb"``, or ``"w"`` for UTF-8 with the line ends as they are given.

    Yields:
        The open file.
    """
    encoding, newline = ("utf-8", "\n") if mode == "w" else (None, None)
    if path.exists() and not path.is_file():
        with path.open(mode, encoding=encoding, newline=newline) as stream:
            yield stream
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open(mode, encoding=encoding, newline=newline) as stream:
            yield stream
            stream.flush()
            os.fsync(stream.fileno())
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)
