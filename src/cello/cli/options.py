"""Command line options from the fields of a dataclass, so that each option is defined once; checks."""

from __future__ import annotations

import inspect
import sys
import warnings
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import fields
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar, get_type_hints

import typer

from cello.cli import threads
from cello.tasks.errors import InputError
from cello.tasks.options import OUTPUT, PANELS, Checked

if TYPE_CHECKING:
    from cello.tasks.task import Predictor

Command = TypeVar("Command", bound=Callable[..., Any])

Threads = Annotated[
    int,
    typer.Option("--threads", min=0, max=1024, help="Number of threads; 0: as many as are free."),
]
"""The number of threads of a command."""


OptionsFile = Annotated[
    Path | None,
    typer.Option(
        "--options",
        help="YAML file with options; options of the command line override it.",
        show_default="none",
        rich_help_panel=OUTPUT,
    ),
]
"""The options of a training in a file."""


def using(number: int) -> AbstractContextManager[None]:
    """Compute with this number of threads inside the ``with``; 0: as many as are free."""
    import torch  # here: help is shown without

    from cello.inspect import measure

    return measure.threads(number or threads.free(torch.get_num_threads()))


OwnCell = Annotated[
    str | None,
    typer.Option(
        "--cell",
        help="The model's cell, if it is your own: file.py:Class or package.module:Class; its code is "
        "imported.",
        show_default="none",
    ),
]
"""The cell of a model whose folder holds none of its code."""

Encoding = Annotated[
    str | None, typer.Option(help="Encoding of the file.", show_default="the model's")
]
Delimiter = Annotated[
    str | None,
    typer.Option(
        help="Delimiter between the columns of the file, such as ';'.", show_default="the model's"
    ),
]
"""How a file is written that a model is to read."""


def load(model: Path, cell: str | None, device: str = "cpu") -> Predictor[Any, Any, Any]:
    """Load a model of any task; print a line if the code of its cell has changed."""
    from cello.tasks.task import Predictor

    with telling():
        return Predictor.load(model, device=device, cells=cell)


@contextmanager
def telling() -> Iterator[None]:
    """Print what there is to say about the code of a cell as one line each."""
    from cello.tasks.own import CellWarning

    with warnings.catch_warnings():
        warnings.simplefilter("always", CellWarning)
        usual = warnings.showwarning

        def show(message: Any, category: type[Warning], *place: Any, **more: Any) -> None:
            if issubclass(category, CellWarning):
                print(f"cello: {message}", file=sys.stderr)
            else:
                usual(message, category, *place, **more)

        warnings.showwarning = show
        yield


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
    types: dict[str, Any] = get_type_hints(options)
    types |= {f.name: f.metadata["written"] for f in fields(options) if f.metadata["written"]}

    def parameter(f: Any) -> inspect.Parameter:
        choices = f.metadata["choices"]
        flag = f.metadata["flag"]
        option = typer.Option(
            *([flag] if flag else []),
            help=f.metadata["help"],
            metavar="|".join(choices) if choices else "NAME=VALUE" if flag else None,
            show_default=f.metadata["shown"] or True,
            rich_help_panel=options.panel_of(f.name),
        )
        return inspect.Parameter(
            f.name,
            inspect.Parameter.KEYWORD_ONLY,
            default=f.default,
            annotation=Annotated[types[f.name], option],
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
