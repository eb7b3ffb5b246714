"""Entry point of the command ``cello``."""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from io import TextIOWrapper

from cello.cli import threads


def main(arguments: Sequence[str] | None = None) -> int:
    """Run a command.

    What the user can put right is one line on stderr and exit code 2.

    Args:
        arguments: the words after ``cello``; those of the process unless given.

    Returns:
        The exit code: 0, 2 after wrong input, 130 after Ctrl-C.
    """
    if arguments is None:
        threads.begin()
        _write_anything()
    try:
        from cello.cli.app import run

        return run(arguments)
    except ModuleNotFoundError as error:
        if error.name is None or error.name.split(".")[0] == "cello":
            raise
        print(
            f"cello: the package {error.name} is missing; Cello needs the extra 'tasks': "
            "pip install '.[tasks]' in Cello's checkout",
            file=sys.stderr,
        )
        return 2


def _write_anything() -> None:
    """Let standard output take every character: as UTF-8, unless it is a terminal or somebody chose."""
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, TextIOWrapper):
            is_free = not stream.isatty() and "PYTHONIOENCODING" not in os.environ
            stream.reconfigure(
                encoding="utf-8" if is_free else stream.encoding, errors="backslashreplace"
            )


if __name__ == "__main__":
    sys.exit(main())
