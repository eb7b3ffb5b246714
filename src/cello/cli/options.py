"""Command line options from the fields of a dataclass, so that each option is defined once; checks."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import fields
from typing import Annotated, Any, TypeVar, get_type_hints

import typer

from cello.cli import threads
from cello.tasks.errors import InputError
from cello.tasks.options import PANELS, Checked

Command = TypeVar("Command", bound=Callable[..., Any])

Threads = Annotated[
    int,
    typer.Option("--threads", min=0, max=1024, help="Number of threads; 0: as many as are free."),
]
"""The number of threads of a command."""


def using(number: int) -> AbstractContextManager[None]:
    """Compute with this number of threads inside the ``with``; 0: as many as are free."""
    import torch  # here: help is shown without

    from cello.inspect import measure

    return measure.threads(number or threads.free(torch.get_num_threads()))


def check_texts(texts: Sequence[str]) -> None:
    """Check that the arguments of the command line are valid text.

    Raises:
        InputError: one is not UTF-8.
    """
    for i, text in enumerate(texts, 1):
        try:
            text.encode()
        except UnicodeEncodeError as error:
            raise InputError(f"text {i}: not UTF-8") from error


def _panel(parameter: inspect.Parameter) -> int:
    """Return the position of a parameter's panel in the help."""
    marks = getattr(parameter.annotation, "__metadata__", ())
    panel = marks[0].rich_help_panel if marks else None
    return 0 if panel is None else PANELS.index(panel)


def with_fields(
    options: type[Checked], without: Sequence[str] = ()
) -> Callable[[Command], Command]:
    """Give a command one option for each field of a dataclass.

    The command takes the values in ``**keywords``. A field's metadata holds its ``help``, its
    ``choices`` and, for a default that is not the value itself, what is ``shown``.

    Args:
        options: the dataclass.
        without: fields that the command leaves out.

    Returns:
        A decorator.
    """
    hints = get_type_hints(options)

    def parameter(f: Any) -> inspect.Parameter:
        choices = f.metadata["choices"]
        option = typer.Option(
            help=f.metadata["help"],
            metavar="|".join(choices) if choices else None,
            show_default=f.metadata["shown"] or True,
            rich_help_panel=options.panel_of(f.name),
        )
        return inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=f.default,
            annotation=Annotated[hints[f.name], option],
        )

    def decorate(command: Command) -> Command:
        signature = inspect.signature(command, eval_str=True)
        keyword = inspect.Parameter.KEYWORD_ONLY
        own = [
            p.replace(kind=keyword) for p in signature.parameters.values() if p.kind < p.VAR_KEYWORD
        ]
        theirs = [parameter(f) for f in fields(options) if f.name not in without]
        all_ = sorted(own + theirs, key=_panel)
        command.__signature__ = signature.replace(parameters=all_)  # type: ignore[attr-defined]  # functions take attributes
        command.__annotations__ = {p.name: p.annotation for p in all_}
        return command

    return decorate
