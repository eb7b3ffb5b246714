"""What every task does in the same way: train, resume, load; and what a task brings of its own.

A task is a package with its data, network and report, put together in a subclass of :class:`Predictor`.
"""

from __future__ import annotations

import os
import time
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Iterator, Sequence, Sized
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

import torch
from torch import nn

from cello.inspect import measure
from cello.tasks import TASKS, find, history, start
from cello.tasks import folder as model_folder
from cello.tasks.cells import engines_of
from cello.tasks.devices import check_nodes, find_device, is_first
from cello.tasks.errors import InputError, Interrupted, console_of, say
from cello.tasks.exported import Exportable, write
from cello.tasks.files import CURVES, HISTORY, LAST, REPORT, held, written_beside
from cello.tasks.folder import Assets, Config
from cello.tasks.members import each
from cello.tasks.memory import is_name
from cello.tasks.options import AnyOptions
from cello.tasks.report import Report
from cello.tasks.tables import UTF8

if TYPE_CHECKING:
    from rich.console import Console

    from cello.tasks.page import Read

Part = TypeVar("Part", bound=Sized)
"""The rows of one part of the data, in whatever form a task reads them."""

AnyReport = TypeVar("AnyReport", bound="Report")
AnyPredictor = TypeVar("AnyPredictor", bound="Predictor[Any, Any, Any]")

FEWEST_STEPS = 50
"""Fewer steps of training than that are said: most models have hardly moved by then."""


@dataclass(frozen=True)
class Data(Generic[Part]):
    """Data in three parts: to learn from, to choose the best epoch on, to report on.

    Attributes:
        name: what was read, for messages.
        format: how it was read.
        train, valid, test: the parts.
        fingerprint: a hash of all rows, by which a resumed run knows its data again.
        notes: what there is to say about it, as that rows were left out.
        features: the columns with the numbers of a step, in tables with one step a row.
    """

    name: str
    format: str
    train: Part
    valid: Part
    test: Part
    fingerprint: str
    notes: Sequence[str] = ()
    features: Sequence[str] = ()

    def sizes(self) -> dict[str, int]:
        """Return how much each part holds."""
        return {"train": len(self.train), "valid": len(self.valid), "test": len(self.test)}


@dataclass(frozen=True, kw_only=True)
class Request:
    """What ``cello predict`` was asked: texts, or a file, or else the lines of a stream.

    `notes` fills while it is answered: what there is to say when all answers have been given.
    """

    texts: list[str] = field(default_factory=list)
    file: Path | None = None
    stream: Iterable[bytes] = ()
    column: str | None = None
    encoding: str | None = None
    delimiter: str | None = None
    json: bool = False
    batch_size: int = 64
    notes: list[str] = field(default_factory=list)

    def changed(self, options: Any) -> Any:
        """Return a model's options with how this request's file or stream is written.

        A stream is in UTF-8 unless something else was said, whatever the training data was in.

        Raises:
            InputError: the encoding or the delimiter is not as it should be.
        """
        encoding = UTF8 if self.encoding is None and self.file is None else self.encoding
        given = {"encoding": encoding, "delimiter": self.delimiter}
        kept = {name: value for name, value in given.items() if value is not None}
        return replace(options, **kept)


class Predictor(ABC, Generic[Part, AnyReport, AnyOptions]):
    """A model with all that it needs to answer, and how it is trained: the core of a task.

    Args:
        config: what the model is.
        assets: further files, by name.
        device: where to compute.

    Raises:
        InputError: the device is not there, or config and assets are not as they should be.
    """

    name: ClassVar[str]
    options: ClassVar[type[Any]]
    """The class of the task's options."""
    report: ClassVar[type[Report]]
    """The class of the task's reports."""
    facts: ClassVar[type[Any]]
    """The form of what :meth:`describe` calls facts, a ``TypedDict``."""
    unit: ClassVar[str] = "rows"
    """What the length of a part counts."""
    words: ClassVar[str | None] = None
    """The name of the weight with a vector for each word, for tasks that have one."""
    heads: ClassVar[tuple[str, ...]] = ()
    """The names of the modules that score `self.labels`."""

    history: dict[str, list[float]]
    """The course of the training by name: for each epoch its `epoch`, `train_loss`, `valid_loss`, score
    (as `valid_accuracy`), `learning_rate` and `seconds`. Empty for a model of an earlier version."""

    def __init__(self, config: Config, assets: Assets, device: str = "auto") -> None:
        self.config = config
        self.history = {}
        self.device = find_device(device)
        self.model = self.build(assets).to(self.device)

    @classmethod
    def train(
        cls,
        source: Any,
        out: str | Path,
        options: AnyOptions | None = None,
        *,
        overwrite: bool = False,
        verbose: bool | int | None = None,
        console: Console | None = None,
    ) -> AnyReport:
        """Train a model and write it to a folder.

        Args:
            source: the data: a path or name, see ``cello train TASK --help``, or data in memory, as a
                DataFrame; what it may be is the task's.
            out: the model folder.
            options: everything else; the defaults unless given.
            overwrite: replace a model that is in the folder.
            verbose: 0 or ``False`` shows nothing; 1 or ``True`` a line for each epoch and, in a terminal or
                a notebook with ipywidgets, a progress bar; 2 only the lines. By default 1 in a terminal or
                notebook, else 0.
            console: where progress is shown, instead of `verbose`.

        Returns:
            The report on the test set, which is also in the folder.

        Raises:
            InputError: the data, an option or the folder cannot be used.
            Interrupted: Ctrl-C was pressed; :meth:`resume` continues.
        """
        chosen: AnyOptions = cls.options() if options is None else options
        cls.check_options(chosen)
        console = console_of(verbose) if console is None else console
        source = str(source) if isinstance(source, Path) else source
        out = model_folder.place("out", out)
        find_device(chosen.device)
        with cls._held(out):
            if is_first():
                model_folder.check_free(out, overwrite, cls._pictures())
            data = cls.read(source, chosen)
            config, assets = cls.prepare(source, data, chosen)
            if is_first():
                model_folder.check_free(out, overwrite, assets)
            return cls.run(data, config, assets, out, console, fresh=True)

    @staticmethod
    def _held(out: Path) -> AbstractContextManager[None]:
        """Keep a model folder to this run, of which the first process writes."""
        return held(out, "training a model there") if is_first() else nullcontext()

    @classmethod
    def check_options(cls, options: Any) -> None:
        """Refuse options of something else.

        Raises:
            InputError: they are not of the task's class.
        """
        kind, wanted = type(options), cls.options
        if not issubclass(kind, wanted):
            raise InputError(
                f"options: {kind.__module__}.{kind.__qualname__}, where {wanted.__module__}."
                f"{wanted.__qualname__} is expected"
            )

    @classmethod
    def prepare(cls, source: Any, data: Data[Part], options: AnyOptions) -> tuple[Config, Assets]:
        """Return what a model of some data is before it is trained: what :meth:`run` takes.

        Args:
            source: what was read; its name, if it has one, is that by which a resumed run reads it again.
            data: what was read.
            options: with which it was read.
        """
        options, facts, assets = cls.describe(data, options)
        about = {
            "source": source if isinstance(source, str) else None,
            "format": data.format,
            cls.unit: data.sizes(),
            "fingerprint": data.fingerprint,
        }
        return Config(cls.name, options, facts, about, tuple(assets)), assets

    @classmethod
    def resume(
        cls,
        out: str | Path,
        source: Any = None,
        *,
        cells: Any = None,
        verbose: bool | int | None = None,
        console: Console | None = None,
    ) -> AnyReport:
        """Continue a run that was stopped, with its own options and data; see :meth:`load`.

        Args:
            out: the folder of the run.
            source: its data, if that was in memory; data that was read by name is read again.
            cells: its cell, if that is not one of Cello's; see :meth:`load`.
            verbose: as for :meth:`train`.
            console: where progress is shown, instead of `verbose`.

        Returns:
            The same report as a run that was never stopped, but for the times.

        Raises:
            InputError: there is no such run, it is finished, or its data has changed.
            Interrupted: Ctrl-C was pressed again.
        """
        out = model_folder.place("out", out)
        console = console_of(verbose) if console is None else console
        kind = cls._of(out)
        with cls._held(out):
            config = model_folder.load_config(out, kind.options, kind.facts, cells)
            return kind._resume(out, config, source, console)

    @classmethod
    def _resume(cls, out: Path, config: Config, source: Any, console: Console | None) -> AnyReport:
        if (out / REPORT).exists():
            if is_first():
                model_folder.drop_checkpoints(out)  # where the run was killed as it did
            raise InputError(f"{out}: training is finished, there is nothing to resume")
        named = config.data.get("source")
        source = named if source is None else source
        if source is None:
            raise InputError(
                f"{out}: trained on data in memory; {cls.__name__}.resume(folder, data) continues it"
            )
        data = cls.read(source, config.options)
        if data.fingerprint != config.data.get("fingerprint"):
            raise InputError(f"{data.name}: the data has changed since training began")
        assets = model_folder.load_assets(out, config)
        return cls.run(data, config, assets, out, console, fresh=False)

    @classmethod
    def load(
        cls: type[AnyPredictor], folder: str | Path, *, device: str = "auto", cells: Any = None
    ) -> AnyPredictor:
        """Load a trained model; :class:`Predictor` itself loads that of any task.

        A model folder holds no code, and no code is imported that `cells` does not name.

        Args:
            folder: the model folder.
            device: ``auto``, ``cpu``, ``cuda`` or ``mps``.
            cells: the cell that the model was trained with, if it is not one of Cello's: the class or
                function, or its name as ``file.py:Class``; or several by name, as ``{"Mine": Mine}``.

        Raises:
            InputError: the folder is not a model of the task, not whole, or of another version; or it
                needs a cell that was not given.

        Warns:
            cello.tasks.own.CellWarning: the code of the cell has changed since the model was trained.
        """
        folder = model_folder.place("folder", folder)
        kind = cls._of(folder)
        config = model_folder.load_config(folder, kind.options, kind.facts, cells)
        weights = model_folder.load_weights(folder)
        try:
            assets = model_folder.load_assets(folder, config)
            predictor = kind(config, assets, device)
        except InputError as error:
            if str(folder) in str(error):
                raise
            raise InputError(f"{folder}: {error}") from error
        except (KeyError, TypeError, AttributeError, ValueError, RuntimeError) as error:
            path = folder / model_folder.CONFIG
            reason = str(error).partition("\n")[0]
            raise InputError(f"{path}: facts are not as they should be ({reason})") from error
        model_folder.fill(predictor.model, weights, folder)
        predictor.model.eval()
        predictor.history = history.read(folder)
        return predictor

    @classmethod
    def _of(cls: type[AnyPredictor], folder: Path) -> type[AnyPredictor]:
        """Return the predictor of a folder's model: this one or, of this kind, another task's."""
        name, path = model_folder.task_of(folder), folder / model_folder.CONFIG
        if name == getattr(cls, "name", None):
            return cls
        if name not in TASKS:
            raise InputError(f"{path}: {name!r} is not a task; there are: {', '.join(TASKS)}")
        kind = find(name)
        if not issubclass(kind, cls):
            raise InputError(f"{path}: the model is for the task {name!r}, not {cls.name!r}")
        return kind

    @classmethod
    def run(
        cls,
        data: Data[Part],
        config: Config,
        assets: Assets,
        out: Path,
        console: Console | None,
        fresh: bool,
    ) -> AnyReport:
        """Do as :meth:`train`, with data that was read, into a folder that was checked.

        Args:
            data: the three parts.
            config: what the model is, from :meth:`prepare`.
            assets: further files, by name.
            out: the model folder.
            console: where progress is shown; nowhere unless given.
            fresh: begin; otherwise the run goes on from its last checkpoint, if there is one.

        Raises:
            InputError: the data or an option cannot be used.
            Interrupted: Ctrl-C was pressed after the run began.
        """
        start, begun, finished = time.perf_counter(), not fresh, False

        def begin() -> None:
            nonlocal begun
            if fresh and is_first():
                model_folder.begin(out, config, assets, cls._pictures())
            begun = True

        try:
            predictor, training = fit(
                cls, data, config, assets, out / model_folder.CHECKPOINTS,
                console=console, resume=not fresh, begin=begin,
            )  # fmt: skip
            name = f"{data.name}, test set"
            result: AnyReport = predictor.evaluate(data.test, name, config.options.batch_size)
            result.training = {**training, "seconds_last_start": time.perf_counter() - start}
            if is_first():
                model_folder.save_weights(out, predictor.model.state_dict())
                with written_beside(out / CURVES) as stream:
                    history.draw(training["epochs"], training["kept_epoch"], stream)
                result.save(out)  # now the run is finished
                finished = True
                model_folder.drop_checkpoints(out)
        except Interrupted:
            raise
        except KeyboardInterrupt as stop:  # before the first epoch or after the last one
            if not begun:
                raise
            if not finished:
                raise Interrupted("interrupted") from stop
            model_folder.drop_checkpoints(out)
        return result

    @classmethod
    def _pictures(cls) -> set[str]:
        """Return the names of all pictures: a folder may have held a model of another task."""
        before = f"{model_folder.PRETRAINING}/{HISTORY}"
        return {
            HISTORY,
            CURVES,
            before,
            *(kind.report.picture for kind in (cls, *map(find, TASKS))),
        }

    @property
    def _options(self) -> AnyOptions:
        options: AnyOptions = self.config.options
        return options

    @classmethod
    @abstractmethod
    def read(cls, source: Any, options: AnyOptions) -> Data[Part]:
        """Read and split data, by its name or in memory; the same source and options give the same parts.

        Raises:
            InputError: the data cannot be read or split.
        """

    @classmethod
    @abstractmethod
    def describe(
        cls, data: Data[Part], options: AnyOptions
    ) -> tuple[AnyOptions, dict[str, Any], Assets]:
        """Return the options with nothing left open, facts and assets: from the training set.

        Facts and assets are what :class:`Config` says.
        """

    @abstractmethod
    def build(self, assets: Assets) -> nn.Module:
        """Return the network that `self.config` and `assets` describe, with fresh weights.

        Raises:
            InputError: facts or assets are not as they should be.
        """

    @abstractmethod
    def job(self, data: Data[Part]) -> Any:
        """Return what the trainer needs, a :class:`cello.tasks.trainer.Job`; scaling is set here.

        Raises:
            InputError: a part, the test set too, is not of a form that can be answered.
        """

    def first_job(self, job: Any) -> Any:
        """Return what the network learns before its own job, if anything, with its number of epochs.

        Args:
            job: what :meth:`job` returned.

        Raises:
            InputError: the options ask for what the network cannot learn.
        """
        return None

    def tokens(self) -> dict[str, Sequence[str]]:
        """Return the tokens that the rows of some weights stand for, by the name of the weight.

        The first two are padding and what is unknown, whose names do not matter.
        """
        return {}

    def begin(self, resume: bool) -> list[str]:
        """Make a new model ready to train: put in the weights that its options name, and freeze some.

        Args:
            resume: all weights are in a checkpoint.

        Returns:
            What was put in, in sentences.

        Raises:
            InputError: a folder or file of the options cannot be used.
        """
        options = self._options
        start_from, vectors = (getattr(options, name, None) for name in ("start_from", "vectors"))
        notes = []
        if start_from is not None and not resume:
            cell = getattr(options, "cell", None)
            try:
                own = model_folder.has_own_cell(Path(start_from)) and callable(cell)
                other: Any = Predictor.load(start_from, device="cpu", cells=cell if own else None)
            except InputError as error:
                raise InputError(f"start-from: {error}") from error
            notes.append(start.take(self, other, start_from))
        if vectors is not None and not resume:
            weights = self._word_vectors("vectors")
            notes.append(start.look_up(weights, self.tokens()[str(self.words)], vectors))
        if getattr(options, "freeze_embedding", False):
            for weight in self._word_vectors("freeze-embedding"):
                weight.requires_grad_(False)
        return notes

    def _word_vectors(self, option: str) -> list[nn.Parameter]:
        """Return the vectors of words, of each network of the model."""
        if self.words not in self.tokens():
            raise InputError(f"{option}: only a model of texts has it, not of numbers")
        return [network.get_parameter(self.words) for network in each(self.model)]

    def calibrate(self, part: Part) -> None:  # most tasks have nothing to measure
        """Measure what only a trained model can be asked, on rows that it was not trained on.

        Args:
            part: the validation set.
        """

    @abstractmethod
    def evaluate(self, part: Part, data: str = "data", batch_size: int = 64) -> AnyReport:
        """Compare the model's answers with the truth.

        Args:
            part: what to answer, with the truth.
            data: what it is, for the eye.
            batch_size: rows computed at a time.
        """

    @abstractmethod
    def evaluate_source(
        self, source: Any, part: str | None = None, batch_size: int = 64, **changes: Any
    ) -> AnyReport:
        """Do as :meth:`evaluate`, with data that is read by name.

        Args:
            source: as in training.
            part: ``all``; or ``train``, ``valid`` or ``test``, as the model's own options split it.
            batch_size: rows computed at a time.
            **changes: options that say how to read, where they differ from the model's own.

        Raises:
            InputError: the data cannot be read, or is not of the model's form.
        """

    @abstractmethod
    def answer(self, request: Request) -> Iterator[str]:
        """Return the lines that ``cello predict`` prints, in batches, with bounded memory.

        Raises:
            InputError: an input is not of the model's form; what came before it is answered first.
        """

    def watch(self, text: str, place: str) -> Read:
        """Return what the model makes of a text, a :class:`cello.tasks.page.Read`.

        Args:
            text: what to read.
            place: where it is from, for messages.

        Raises:
            InputError: the model does not read texts, or there is nothing to read.
        """
        raise InputError("page: the model does not read texts")

    def exportable(self) -> Exportable:
        """Return what :meth:`export` writes.

        Raises:
            InputError: models of this kind have no such form.
        """
        raise InputError(f"export: a model of {self.name} has no form in ONNX")

    def export(self, path: str | os.PathLike[str]) -> tuple[Exportable, int]:
        """Write the model as an ONNX file, for programs without Python and PyTorch.

        Args:
            path: the file.

        Returns:
            What the file holds, with the names of its inputs and outputs, and its size in bytes.

        Raises:
            InputError: the task has no such form, a package is missing, or a step of the model's cell
                cannot be compiled.
        """
        model = self.exportable()
        return model, write(model, Path(path))

    def check_part(self, source: Any, part: str | None) -> None:
        """Refuse a part of other data than the run's own, where the run's parts were files.

        Raises:
            InputError: it is that.
        """
        own, options = self.config.data.get("source"), self.config.options
        named = [str(one) for one in (source, own) if is_name(one)]
        same = not named or (len(named) == 2 and len({Path(one).resolve() for one in named}) == 1)
        if part in (None, "all") or same:
            return
        for name in ("valid_data", "test_data"):
            if getattr(options, name, None) is not None:
                flag = name.replace("_", "-")
                raise InputError(
                    f"part: {source} has no part {part!r}, as the run on {own} had {flag} of its own"
                )

    def changed(self, changes: dict[str, Any]) -> AnyOptions:
        """Return the model's options with some changed; those that are ``None`` are left.

        Raises:
            InputError: the task has no such option, or the value is not allowed.
        """
        given = {name: value for name, value in changes.items() if value is not None}
        for name in given:
            if not hasattr(self._options, name):
                flag = name.replace("_", "-")
                raise InputError(f"{flag}: the task {self.name} has no such option")
        options: AnyOptions = replace(self._options, **given)
        return options


def fit(
    kind: type[AnyPredictor],
    data: Data[Any],
    config: Config,
    assets: Assets,
    checkpoints: Path,
    *,
    console: Console | None = None,
    resume: bool = False,
    begin: Callable[[], None] = lambda: None,
) -> tuple[AnyPredictor, dict[str, Any]]:
    """Train a model without a word on where it is kept.

    Args:
        kind: the task.
        data: what to learn from and to choose the best epoch on.
        config: what the model is.
        assets: further files, by name.
        checkpoints: the folder for checkpoints.
        console: where progress is shown; nowhere unless given.
        resume: go on from the last checkpoint, if there is one.
        begin: called when the data has proved sound, before the first step.

    Returns:
        The model, and the course of its training.

    Raises:
        InputError: the data or an option cannot be used.
        Interrupted: Ctrl-C was pressed.
    """
    from cello.tasks import trainer

    console = console if console is not None and is_first() else console_of(False)
    options = replace(config.options, device=find_device(config.options.device).type)
    check_nodes(options.nodes)
    torch.manual_seed(options.seed)
    predictor = kind(config, assets, "cpu")
    again, resume = resume, resume and (checkpoints / LAST).exists()
    begun = predictor.begin(resume)
    job = predictor.job(data)
    first = predictor.first_job(job)
    sizes, weights = data.sizes(), count_weights(predictor.model)
    say(
        console,
        f"{data.name}: {sizes['train']:,} {kind.unit} for training, {sizes['valid']:,} for "
        f"validation, {'none' if data.test is data.valid else format(sizes['test'], ',')} for testing; "
        f"{weights:,} weights",
    )
    notes = [*data.notes, *begun, *job.notes, *engines_of(predictor.model, options)]
    steps = options.epochs * -(-len(job.train) // options.batch_size)
    if steps < FEWEST_STEPS:
        notes.append(
            f"{steps} steps in all are few to learn from (epochs: {options.epochs}); "
            "more epochs or smaller batches give more"
        )
    for note in notes:
        say(console, note)
    begin()
    if (
        options.threads and options.devices > 1
    ):  # those that Lightning starts have no other word of it
        os.environ.setdefault("OMP_NUM_THREADS", str(options.threads))
    with measure.threads(options.threads or None):
        before = [] if first is None else _pretrain(first, options, checkpoints, console, again)
        epochs, engines = trainer.fit(job, options, checkpoints, console, resume=resume)
    predictor.device = torch.device(options.device)
    predictor.model.to(predictor.device).eval()
    predictor.calibrate(data.valid)
    predictor.history = history.columns(epochs)
    return predictor, {
        "kept_epoch": job.kept(epochs, options.keep),
        "epochs": epochs,
        kind.unit: sizes,
        "weights": weights,
        "metric": job.metric_name,
        "score": job.score,
        "higher_is_better": job.higher_is_better,
        "engines": engines,
        "pretraining": before,
        "seconds": sum(epoch["seconds"] for epoch in [*before, *epochs]),
        "notes": notes,
    }


def _pretrain(
    job: Any, options: Any, checkpoints: Path, console: Console, resume: bool
) -> list[history.Epoch]:
    """Let a network learn what comes before its own job; what each epoch gave.

    It has a folder of its own beside `checkpoints`, so that a resumed run finds what it has learnt.
    """
    from cello.tasks import trainer

    options = replace(options, epochs=job.epochs, keep="last", average=0.0)
    folder = checkpoints.parent / model_folder.PRETRAINING / checkpoints.name
    epochs, _ = trainer.fit(job, options, folder, console, resume=resume)
    return epochs


def count_weights(model: nn.Module) -> int:
    """Return how many numbers the parameters of a network are."""
    return sum(p.numel() for p in model.parameters())
