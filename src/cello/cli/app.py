"""The command line application: its commands, and how errors are reported."""

from __future__ import annotations

import errno
import sys
from collections.abc import Sequence
from inspect import cleandoc
from typing import Annotated

import typer

import cello
from cello.cli.backtest import backtest
from cello.cli.bench import bench
from cello.cli.compare import app as compare
from cello.cli.evaluate import evaluate
from cello.cli.export import export
from cello.cli.generate import generate
from cello.cli.page import page
from cello.cli.predict import predict
from cello.cli.train import app as train
from cello.tasks.errors import InputError

FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
"""Error numbers of the system for a file that cannot grow."""

app = typer.Typer(
    name="cello",
    help="Recurrent networks for sequences: train a model, evaluate it, predict with it, compare cells.",
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode="rich",
)
app.add_typer(train, name="train")
app.add_typer(compare, name="compare")
for command in (evaluate, predict, generate, backtest, export, bench, page):
    # Rich keeps the line breaks of a docstring; each paragraph should be as wide as the terminal.
    paragraphs = cleandoc(command.__doc__ or "").split("\n\n")
    app.command(help="\n\n".join(" ".join(part.split()) for part in paragraphs))(command)


def _show_version(wanted: bool) -> None:
    if wanted:
        print(f"cello {cello.__version__}")
        raise typer.Exit


@app.callback(invoke_without_command=True)
def _main(
    context: typer.Context,
    version: Annotated[
        bool, typer.Option("--version", help="Print the version.", callback=_show_version)
    ] = False,
) -> None:
    if context.invoked_subcommand is None:
        print(context.get_help())


def run(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code; see :func:`cello.cli.main.main`."""
    try:
        code = app(arguments, prog_name="cello", standalone_mode=False)
        return code if isinstance(code, int) else 0
    except InputError as error:
        return _complain(str(error))
    except typer.TyperException as error:  # wrong use of the command line
        return _complain(error.format_message() or "--help shows the commands")
    except OSError as error:
        if error.filename is not None:
            return _complain(f"{error.filename}: {error.strerror}")
        if error.errno in FULL:  # writing to an open file does not say its name
            return _complain(f"cannot write: {error.strerror}")
        raise


def _complain(message: str) -> int:
    print("cello:", " ".join(message.split()), file=sys.stderr)
    return 2
