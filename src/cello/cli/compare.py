"""``cello compare``: one command for each task that has a cell."""

# typer reads the annotations, and some use local variables of a function. So they must not be
# strings here.

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Annotated, Any

import typer

from cello.cli.options import OptionsFile, using, with_fields
from cello.cli.train import TaskGroup, free_threads, given_names, merged
from cello.tasks import TASKS, options_of
from cello.tasks.errors import InputError, Interrupted, say
from cello.tasks.options import NETWORK, OUTPUT, TRAINING, RecurrentOptions

app = typer.Typer(
    cls=TaskGroup,
    help="Compare cells: train each with several seeds on the same data. cello compare TASK --help lists "
    "the options. The default task is classify.",
    rich_markup_mode="rich",
)


def _command(name: str, kind: type[RecurrentOptions]) -> Callable[..., int]:
    @with_fields(kind, without=["cell", "cell_args"])
    def compare(
        context: typer.Context,
        data: Annotated[
            str | None, typer.Argument(metavar="DATA", help=kind.sources, show_default=False)
        ] = None,
        cells: Annotated[
            str | None,
            typer.Option(
                help="The cells, separated by commas; the others are tested against the first. A cell may "
                "have arguments and a name: lstm, mine.py:Mine(alpha=2), deep=lstm(layers=2).",
                show_default=False,
                rich_help_panel=NETWORK,
            ),
        ] = None,
        match_parameters: Annotated[
            bool,
            typer.Option(
                "--match-parameters",
                help="Choose the hidden size of each further cell so that its network has about as many "
                "parameters as that of the first.",
                rich_help_panel=NETWORK,
            ),
        ] = False,
        seeds: Annotated[
            int,
            typer.Option(
                min=1,
                help="Runs of each cell; their seeds are --seed and the numbers after it.",
                rich_help_panel=TRAINING,
            ),
        ] = 5,
        out: Annotated[
            str | None,
            typer.Option(
                help="The folder for runs, tables and pictures; the same command again goes on in it.",
                show_default=False,
                rich_help_panel=OUTPUT,
            ),
        ] = None,
        options: OptionsFile = None,
        **keywords: Any,
    ) -> int:
        from rich.console import Console  # here: other commands do without

        from cello.tasks.comparison import compare as run  # here: help is shown without torch
        from cello.tasks.comparison_state import State
        from cello.tasks.summary import table

        if data is None or not cells or not out:
            given = {"DATA": data, "--cells LIST": cells, "--out FOLDER": out}
            missing = next(name for name, value in given.items() if not value)
            raise InputError(
                f"compare needs {missing}: cello compare DATA --cells lstm,gru --out FOLDER"
            )
        console = Console(stderr=True)
        chosen = merged(kind, options, keywords, given_names(context), ("cell", "cell_args"))
        if not chosen.threads:  # written down, so that all runs have as many, also later ones
            state = State.read(Path(out))
            threads = free_threads(1, console) if state is None else state.threads
            chosen = replace(chosen, threads=threads)
        try:
            with using(chosen.threads):
                runs = run(
                    data, out, cells,
                    task=name, seeds=seeds, options=chosen, match_parameters=match_parameters,
                    console=console,
                )  # fmt: skip
        except Interrupted as stop:
            say(console, f"{stop}; the same command goes on")
            return 130
        except KeyboardInterrupt:
            console.print("interrupted before training began")
            return 130
        failed = runs[runs["error"] != ""]
        if len(failed) < len(runs):
            table(runs).show(Console())
        say(Console(), f"written to {out}")
        for row in failed.itertuples():
            say(console, f"failed: {row.cell}, seed {row.seed}: {row.error}")
        return int(len(failed) > 0)

    compare.__doc__ = kind.purpose.replace("Train", "Compare cells of", 1)
    return compare


for name in TASKS:
    if issubclass(kind := options_of(name), RecurrentOptions):
        app.command(name)(_command(name, kind))
