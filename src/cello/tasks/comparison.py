"""An experiment: several cells, several seeds, the same data, split and options; scores side by side.

The folder of a comparison has a model folder for each run, in ``runs``. What is finished there is not
trained again, so that a comparison can be stopped, continued, and extended.
"""

from __future__ import annotations

import json
import traceback
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field, replace
from glob import escape
from pathlib import Path
from typing import Any

import pandas as pd
from rich.console import Console

from cello.tasks import curves, find
from cello.tasks import folder as model_folder
from cello.tasks.comparison_state import (
    EPOCHS,
    LATEX,
    MARKDOWN,
    PICTURES,
    RESULTS,
    RUNS,
    Entry,
    State,
    shared,
)
from cello.tasks.devices import find_device
from cello.tasks.errors import InputError, Interrupted, check_count, say
from cello.tasks.files import REPORT, held, written_beside
from cello.tasks.folder import Assets, Config
from cello.tasks.memory import is_name
from cello.tasks.options import RecurrentOptions
from cello.tasks.summary import summarize, table
from cello.tasks.task import Data, Predictor, count_weights
from cello.tasks.variants import Cells, changed, variants

__all__ = ["compare", "summarize"]

ERROR = "error.txt"
"""In the folder of a run that failed: where it did."""

COLUMNS = [
    "cell", "seed", "hidden", "parameters", "valid", "test", "kept_epoch", "epochs",
    "train_seconds", "predict_seconds", "engine", "error",
]  # fmt: skip


def compare(
    source: Any,
    out: str | Path,
    cells: Cells,
    *,
    task: str = "classify",
    seeds: int = 5,
    options: RecurrentOptions | None = None,
    match_parameters: bool = False,
    console: Console | None = None,
) -> pd.DataFrame:
    """Train every cell with every seed on the same data, and write tables and pictures to a folder.

    The data is read and split once. A run is what ``cello train`` does with the same options. A run that
    is finished in the folder is not trained again; further cells and seeds are added to it.

    Args:
        source: the data, as for the task's ``train``: a path or name, or data in memory, which a
            comparison that goes on knows again by its rows.
        out: the folder of the comparison.
        cells: a list such as ``"lstm, gru, mine.py:Mine(alpha=2), deep=lstm(layers=2)"``; or several
            cells, each as in such a list or as what `options.cell` takes; or those by name. The others
            are tested against the first one in the folder.
        task: the name of the task.
        seeds: how many runs a cell has; their seeds are `options.seed` and the numbers after it.
        options: of the task, for all runs; the defaults unless given.
        match_parameters: choose the hidden size of each further cell so that its network has about as
            many parameters as that of the first; cells with ``hidden`` of their own keep it.
        console: where progress is shown; nowhere unless given.

    Returns:
        All runs in the folder, a row each, in the order of the cells: `cell`, `seed`, `hidden`,
        `parameters` of the network, `valid` (the score on the validation set), `test`, `kept_epoch`,
        `epochs`, `train_seconds`, `predict_seconds` (of the test set), `engine`, and `error`, which is
        empty but for runs that failed just now. Its `attrs` say what `valid` and `test` are.

    Raises:
        InputError: the data, a cell, an option or the folder cannot be used; or the folder holds a
            comparison of other data or with other options.
        Interrupted: Ctrl-C was pressed; the same call continues.
    """
    source, kind = str(source) if is_name(source) else source, find(task)
    out = model_folder.place("out", out)
    if not issubclass(kind.options, RecurrentOptions):
        raise InputError(f"task: {task!r} has no cell to compare")
    chosen: Any = kind.options() if options is None else options
    kind.check_options(chosen)
    check_count("seeds", seeds)
    replace(chosen, seed=chosen.seed + seeds - 1)  # which is refused where it is too large
    if chosen.devices * chosen.nodes > 1:
        raise InputError("devices, nodes: a comparison computes in one process")
    device = find_device(chosen.device).type
    listed = variants(cells)
    for one in listed:
        changed(chosen, one)  # what cannot be is refused before the data is read
    console = Console(quiet=True) if console is None else console
    with held(out, "computing this comparison"):
        state = State.read(out)
        if state is not None and not chosen.threads:  # as many as before: the same numbers again
            chosen = replace(chosen, threads=state.threads)
        common = shared(replace(chosen, device=device))
        if state is not None:
            state.check(out, task, match_parameters, common)
        data = kind.read(source, chosen)
        if state is None:
            state = State(task, data.name, data.fingerprint, match_parameters, common)
        state.check_data(out, data.name, data.fingerprint)
        config, assets = kind.prepare(source, data, chosen)
        experiment = _Experiment(kind, data, config, assets, out, state, console)
        wanted = range(chosen.seed, chosen.seed + seeds)
        return experiment.run(experiment.options_of(listed), wanted)


@dataclass
class _Experiment:
    """A comparison on the way: its data, what its models are before training, and what has failed."""

    kind: type[Predictor[Any, Any, Any]]
    data: Data[Any]
    config: Config
    assets: Assets
    out: Path
    state: State
    console: Console
    failures: dict[tuple[str, int], str] = field(default_factory=dict)

    def options_of(self, listed: Sequence[Any]) -> dict[str, Any]:
        """Return the options of each cell by name; those that are new are added to the state."""
        found, before = {}, list(self.state.cells)
        for one in listed:
            try:
                options = changed(self.config.options, one)
                entry, options = self.state.add(one, options, self._weights, self._is_finished)
            except InputError:
                raise
            except Exception as error:  # of an own cell, at a size that it was not tried with
                raise InputError(f"cells: {one.name}: {_told(error)}") from error
            found[one.name] = options
            if (
                entry not in before
            ):  # what it has not finished was of a cell of this name that has changed
                for folder in (self.out / RUNS).glob(f"{escape(entry.folder)}-*"):
                    if folder.name.rpartition("-")[0] == entry.folder:
                        model_folder.drop_checkpoints(folder)
        first = self.state.cells[0]
        for entry in self.state.cells:
            share = entry.parameters / first.parameters
            of = "" if entry is first else f" ({share:.1%} of {first.name}'s)"
            text = f"{entry.name}: hidden {entry.hidden:,}, {entry.parameters:,} parameters{of}"
            say(self.console, text)
        return found

    def _is_finished(self, entry: Entry) -> bool:
        return any(self._report(entry, seed) for seed in self.state.seeds)

    def _weights(self, options: RecurrentOptions) -> int:
        config = replace(self.config, options=options)
        return count_weights(self.kind(config, self.assets, "cpu").model)

    def run(self, options: dict[str, Any], seeds: Sequence[int]) -> pd.DataFrame:
        """Train what is not finished; every cell with one seed before the next seed.

        So a comparison that is stopped has about as many runs of each cell, and a machine that is
        busy for a while makes none of them look slow.

        Args:
            options: of each cell, by name.
            seeds: of the runs.
        """
        self.state.seeds = sorted({*self.state.seeds, *seeds})
        self.state.write(self.out)
        entries = [entry for entry in self.state.cells if entry.name in options]
        todo = [(one, seed) for seed in seeds for one in entries if not self._report(one, seed)]
        total, done = len(entries) * len(seeds), len(entries) * len(seeds) - len(todo)
        if done:
            say(self.console, f"{done} of {total} runs are finished already")
        where = "before the first run"
        try:
            for number, (entry, seed) in enumerate(todo, done + 1):
                where = f"in run {number} of {total} ({entry.name}, seed {seed})"
                say(self.console, f"run {number} of {total}: {entry.name}, seed {seed}")
                self._train(entry, replace(options[entry.name], seed=seed))
                self._write(RESULTS, self.results())
            where = "after the last run"
            runs = self.results()
            self._write(RESULTS, runs)
            self._write(EPOCHS, self.epochs())
            self._show(runs)
        except KeyboardInterrupt as stop:
            raise Interrupted(f"interrupted {where}") from stop
        return runs

    def _folder(self, entry: Entry, seed: int) -> Path:
        return self.out / RUNS / f"{entry.folder}-{seed}"

    def _train(self, entry: Entry, options: Any) -> None:
        folder = self._folder(entry, options.seed)
        config = replace(self.config, options=options)
        fresh = not model_folder.has_checkpoint(folder)
        try:
            self.kind.run(self.data, config, self.assets, folder, self.console, fresh)
            (folder / ERROR).unlink(missing_ok=True)
        except Exception as error:  # the other runs go on
            self.failures[entry.name, options.seed] = _told(error)
            say(self.console, f"failed: {_told(error)}")
            model_folder.drop_checkpoints(folder)
            with written_beside(folder / ERROR, "w") as stream:
                stream.write(traceback.format_exc())

    def _report(self, entry: Entry, seed: int) -> dict[str, Any] | None:
        """Return the report of a run; None where it is not finished."""
        try:
            path = self._folder(entry, seed) / REPORT
            report: dict[str, Any] = json.loads(path.read_text(encoding="utf-8"))
        except (FileNotFoundError, ValueError):
            return None
        return report

    def _reports(self) -> Iterator[tuple[Entry, int, dict[str, Any] | None]]:
        for entry in self.state.cells:
            for seed in self.state.seeds:
                yield entry, seed, self._report(entry, seed)

    def results(self) -> pd.DataFrame:
        """Return what :func:`compare` does."""
        rows, attributes = [], {}
        for entry, seed, report in self._reports():
            row = {
                "cell": entry.name, "seed": seed, "hidden": entry.hidden,
                "parameters": entry.parameters, "error": self.failures.get((entry.name, seed), ""),
            }  # fmt: skip
            if report is not None:
                training = report["training"]
                kept = training["epochs"][training["kept_epoch"] - 1]
                row |= {
                    "valid": kept[training["score"]], "test": report["score"],
                    "kept_epoch": training["kept_epoch"], "epochs": len(training["epochs"]),
                    "train_seconds": training["seconds"], "predict_seconds": report["seconds"],
                    "engine": ", ".join(training["engines"]) or "torch",
                }  # fmt: skip
                attributes = {
                    "valid": training["metric"], "test": report["measure"],
                    "higher_is_better": training["higher_is_better"],
                }  # fmt: skip
            if report is not None or row["error"]:
                rows.append(row)
        runs = pd.DataFrame(rows, columns=COLUMNS)
        whole = dict.fromkeys(["kept_epoch", "epochs"], "Int64")  # a run that failed has none
        runs = runs.astype(whole)
        runs.attrs.update(attributes)
        return runs

    def epochs(self) -> pd.DataFrame:
        """Return the course of all finished runs: a row for each epoch."""
        rows = [
            {
                "cell": entry.name,
                "seed": seed,
                "epoch": epoch["epoch"],
                "loss": epoch["train_loss"],
                "valid": epoch[report["training"]["score"]],
                "seconds": epoch["seconds"],
            }
            for entry, seed, report in self._reports()
            if report is not None
            for epoch in report["training"]["epochs"]
        ]
        return pd.DataFrame(rows, columns=["cell", "seed", "epoch", "loss", "valid", "seconds"])

    def _write(self, name: str, content: pd.DataFrame | str) -> None:
        with written_beside(self.out / name, "w") as stream:
            if isinstance(content, str):
                stream.write(content)
            else:
                content.to_csv(stream, index=False, lineterminator="\n")

    def _show(self, runs: pd.DataFrame) -> None:
        """Write tables and pictures, and say what they do not."""
        done = runs[runs["error"] == ""]
        if done.empty:
            return
        valid, test = runs.attrs["valid"], runs.attrs["test"]
        found = table(runs)
        self._write(MARKDOWN, found.markdown())
        self._write(LATEX, found.latex())
        with curves.style():
            better = runs.attrs["higher_is_better"]
            figures = [
                curves.learning_curves(self.epochs(), valid),
                curves.scores(done, test, better),
            ]
            for name in PICTURES:
                figure = figures[name.startswith("scores")]
                kind = name.rpartition(".")[2]
                with written_beside(self.out / name) as stream:
                    curves.write(figure, stream, kind)
        for name, reasons in self._slow().items():
            say(self.console, f"{name} ran in a Python loop; {'; '.join(reasons)}")

    def _slow(self) -> dict[str, list[str]]:
        """Return why no engine ran cells, of those that a Python loop ran."""
        found = {}
        for entry, _, report in self._reports():
            if report is not None and "reference" in report["training"]["engines"]:
                found[entry.name] = report["training"]["engines"]["reference"]
        return found


def _told(error: Exception) -> str:
    """Return an error in a line."""
    message = " ".join(str(error).split())
    if isinstance(error, InputError):
        return message
    return f"{type(error).__name__}: {message}" if message else type(error).__name__
