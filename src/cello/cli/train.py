"""``cello train``: one command for each task."""

# typer reads the annotations, and some use local variables of a function. So they must not be
# strings here.

from collections.abc import Callable, Sequence
from dataclasses import fields, replace
from difflib import get_close_matches
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from cello.cli import threads
from cello.cli.options import OptionsFile, telling, using, with_fields
from cello.tasks import TASKS, options_of
from cello.tasks.errors import InputError, Interrupted, say
from cello.tasks.options import OUTPUT, TrainingOptions, from_mapping, read_options
from cello.tasks.tables import listed

if TYPE_CHECKING:
    from rich.console import Console

DEFAULT = "classify"
"""The task of ``cello train DATA``."""


class TaskGroup(typer.core.TyperGroup):
    """The tasks, one command each; without one, as in ``cello train DATA``, data is classified."""

    def parse_args(self, ctx: Any, args: list[str]) -> list[str]:
        if not args or args[0] not in (*self.commands, "--help"):
            _check_task(args, [*self.commands])
            args = [DEFAULT, *args]
        return super().parse_args(ctx, args)


def _check_task(args: Sequence[str], tasks: Sequence[str]) -> None:
    """Refuse a word that is neither a task nor data, but was probably meant as a task.

    Raises:
        InputError: it is that.
    """
    word, following = (*args, "", "")[:2]
    if word in ("", "digits") or word.startswith("-") or set(word) & {*"./\\"}:
        return
    close = get_close_matches(word.lower(), tasks, n=1)
    followed = following != "" and not following.startswith("-")
    if not (close or followed) or Path(word).exists():
        return
    advice = f"; did you mean {close[0]}?" if close else ""
    raise InputError(f"{word}: neither a task nor a file; the tasks are {listed(tasks)}{advice}")


app = typer.Typer(
    cls=TaskGroup,
    help="Train a model; cello train TASK --help lists the options. The default task is classify.",
    rich_markup_mode="rich",
)


def _command(name: str, kind: type[TrainingOptions]) -> Callable[..., int]:
    @with_fields(kind)
    def train(
        context: typer.Context,
        data: Annotated[
            str | None, typer.Argument(metavar="DATA", help=kind.sources, show_default=False)
        ] = None,
        out: Annotated[
            str | None,
            typer.Option(
                help="The model folder to write.", show_default=False, rich_help_panel=OUTPUT
            ),
        ] = None,
        options: OptionsFile = None,
        overwrite: Annotated[
            bool,
            typer.Option(
                "--overwrite",
                help="Replace a model in the folder; it is deleted before the first epoch.",
                rich_help_panel=OUTPUT,
            ),
        ] = False,
        resume: Annotated[
            Path | None,
            typer.Option(
                help="Continue the run in this folder, with its own data and options.",
                show_default=False,
                rich_help_panel=OUTPUT,
            ),
        ] = None,
        **keywords: Any,
    ) -> int:
        from rich.console import Console  # here: other commands do without

        from cello.tasks import find  # here: help is shown without torch
        from cello.tasks.devices import is_first
        from cello.tasks.report import Report
        from cello.tasks.task import Predictor

        console = Console(stderr=True)
        folder = Path(resume or out or "")
        given = given_names(context)
        try:
            if resume is not None:
                others = given - {"resume", "cell"}
                if others:
                    told = ", ".join(
                        "DATA" if one == "data" else f"--{one.replace('_', '-')}"
                        for one in sorted(others)
                    )
                    raise InputError(
                        f"--resume takes the run's own data and options, not {told}; --cell gives a cell "
                        "of your own again"
                    )
                own = keywords.get("cell") if "cell" in given else None
                with using(0), telling():
                    report: Report = Predictor.resume(resume, cells=own, console=console)
            elif data is None or not out:  # an empty --out is an unset variable, not this folder
                missing = "DATA" if data is None else "--out FOLDER"
                raise InputError(f"train needs {missing}: cello train DATA --out FOLDER")
            else:
                chosen = merged(kind, options, keywords, given)
                if not chosen.threads:  # written down, so that a resumed run has as many
                    chosen = replace(chosen, threads=free_threads(chosen.devices, console))
                with using(chosen.threads):
                    report = find(name).train(
                        data, out, chosen, overwrite=overwrite, console=console
                    )
        except Interrupted as stop:
            from cello.tasks.folder import resuming  # here: help is shown without torch

            say(console, f"{stop}; to continue: cello train {resuming(folder)}")
            return 130
        except KeyboardInterrupt:
            console.print("interrupted before training began; nothing was written")
            return 130
        if is_first():
            report.show(Console())
            say(
                Console(),
                f"weights of epoch {report.training['kept_epoch']}, trained in "
                f"{report.training['seconds']:.1f} s; written to {folder}",
            )
        return 0

    train.__doc__ = kind.purpose
    return train


def free_threads(processes: int, console: "Console") -> int:
    """Return how many threads to train with; print a line if there are fewer than usual."""
    import torch  # here: help is shown without

    from cello.tasks.devices import is_first

    most = torch.get_num_threads()
    number = threads.free(most, processes)
    if number < most // processes and is_first():
        say(
            console,
            f"computing with {number} of {most} threads, because the machine is busy or limited; "
            "--threads sets the number",
        )
    return number


def given_names(context: typer.Context) -> set[str]:
    """Return the names of the options on the command line."""
    sources = {name: context.get_parameter_source(name) for name in context.params}
    return {name for name, source in sources.items() if source and source.name == "COMMANDLINE"}


def merged(
    kind: type[Any],
    file: Path | None,
    keywords: dict[str, Any],
    given: set[str],
    ignored: Sequence[str] = (),
) -> Any:
    """Return the options of a file, some ignored, with those of the command line in their place."""
    if file is None:
        return kind(**keywords)
    # What the command line says is not read in the file: a cell may be gone.
    left_out = given.union(ignored)
    written = {
        key: value
        for key, value in read_options(file).items()
        if str(key).replace("-", "_") not in left_out
    }
    values = from_mapping(kind, written, str(file))
    return replace(values, **{f.name: keywords[f.name] for f in fields(kind) if f.name in given})


def add(name: str) -> None:
    """Add the command of a task."""
    app.command(name)(_command(name, options_of(name)))


for name in TASKS:
    add(name)
