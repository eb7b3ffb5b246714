"""Files that are never half written, folders that one process writes at a time, and the names of some."""

from __future__ import annotations

import gzip
import io
import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager, nullcontext, suppress
from pathlib import Path
from typing import IO, Any, Literal

from cello.tasks.errors import InputError

try:
    import fcntl
except ImportError:  # Windows has no such locks
    fcntl = None  # type: ignore[assignment]

BEST, LAST, REPORT = "best.ckpt", "last.ckpt", "report.json"
HISTORY, CURVES = "history.csv", "curves.png"


@contextmanager
def written_beside(path: Path, mode: Literal["w", "wb"] = "wb") -> Iterator[IO[Any]]:
    """Open a file that appears under its name when it is complete: beside it, then renamed.

    What is no plain file, a pipe or a device, is written to as it is; a link is followed.

    Args:
        path: the file; the folders above it are made.
        mode: ``"wb"``, or ``"w"`` for UTF-8 with the line ends as they are given, compressed if the
            name ends in ``.gz``.

    Yields:
        The open file.
    """
    compressed = mode == "w" and path.suffix.lower() == ".gz"
    # By another name, as /dev/stdout, a plain file may be open that is not to be replaced.
    is_open = path.absolute().parts[1:2] in (("dev",), ("proc",))
    if path.exists() and (is_open or not path.is_file()):
        with path.open("ab") as binary, _as_asked(binary, mode, compressed) as stream:
            yield stream
        return
    path = path.resolve()
    path.parent.mkdir(parents=True, exist_ok=True)
    beside = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with beside.open("wb") as binary:
            with _as_asked(binary, mode, compressed) as stream:
                yield stream
            binary.flush()
            os.fsync(binary.fileno())
        if path.exists():
            shutil.copymode(path, beside)
        os.replace(beside, path)
    finally:
        beside.unlink(missing_ok=True)


@contextmanager
def held(folder: Path, doing: str) -> Iterator[None]:
    """Keep a folder to this process; where it is made for that, it is removed if nothing was written.

    Args:
        folder: the folder.
        doing: what another process is doing there, for the message.

    Raises:
        InputError: another process holds it, or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: not a folder")
    made = [one for one in (folder, *folder.parents) if not one.exists()]
    folder.mkdir(parents=True, exist_ok=True)
    descriptor = None if fcntl is None else os.open(folder, os.O_RDONLY)
    try:
        if descriptor is not None:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as error:
                raise InputError(f"{folder}: another process is {doing}") from error
            except OSError:  # a file system without locks
                pass
        try:
            yield
        finally:
            with suppress(OSError):  # they are not empty
                for one in made:
                    one.rmdir()
    finally:
        if descriptor is not None:
            os.close(descriptor)


@contextmanager
def _as_asked(binary: IO[bytes], mode: str, compressed: bool) -> Iterator[IO[Any]]:
    """Yield what writes to an open binary file in the way of a mode; it leaves that file open."""
    if mode == "wb":
        yield binary
        return
    # Without a name and a time, the same text gives the same file.
    packed = gzip.GzipFile("", "wb", fileobj=binary, mtime=0) if compressed else None
    with packed or nullcontext(binary) as raw:
        text = io.TextIOWrapper(raw, "utf-8", newline="\n")
        try:
            yield text
        finally:
            text.detach()  # which writes what is left; closing it would close the file
