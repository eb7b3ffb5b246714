"""Training any model of any task: best epoch, early stop, resume after an interrupt, several processes.

Nothing here knows what is being learnt: a task hands over a model, its loss on a batch, a metric and
examples (:class:`Job`). Lightning Fabric knows the devices, the processes and mixed precision.
"""

from __future__ import annotations

import logging
import math
import time
import warnings
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

import torch
import torch.distributed
from lightning.fabric import Fabric
from lightning.fabric.loggers.logger import Logger
from lightning.fabric.loggers.tensorboard import TensorBoardLogger
from rich.console import Console
from rich.progress import (
    BarColumn,
    MofNCompleteColumn,
    Progress,
    TextColumn,
    TimeRemainingColumn,
)
from torch import Tensor, nn
from torch.optim.swa_utils import AveragedModel, get_ema_multi_avg_fn
from torchmetrics import Metric

from cello.engines import Choice, observe
from cello.tasks import history
from cello.tasks.batches import Examples, training_batches, validation_batches
from cello.tasks.errors import InputError, Interrupted, say
from cello.tasks.files import BEST, LAST, written_beside
from cello.tasks.folder import fill
from cello.tasks.history import Epoch
from cello.tasks.options import TrainingOptions


@dataclass
class Carried:
    """What a loss hands on from one batch of training to the next; checkpoints hold it.

    Attributes:
        tensors: it, on any device; none at the beginning.
    """

    tensors: list[Tensor] = field(default_factory=list)


@dataclass
class Job:
    """What to train: the model, how it is judged, and the examples.

    Args:
        model: what is trained.
        loss: of a batch, summed over whatever counts in it (rows, words, numbers), and how many
            those are; a step follows the mean over the batch of all processes.
        judge: adds a batch of the validation set to the metric, and returns what `loss` does, from the
            same outputs of the model.
        metric: of the validation set.
        metric_name: for the eye.
        higher_is_better: of the metric.
        train: the examples to learn from.
        valid: the examples on which the best epoch is chosen.
        collate: puts examples into a batch: a tensor, or any nest of tuples of tensors.
        notes: what there is to say about the examples before the first step.
        carried: what `loss` hands on from batch to batch, if anything.
        name: what an epoch is called, for the eye.
        is_partial: whether the loss leaves parameters of the model unused.
        epochs: how many, where that is not the option.
    """

    model: nn.Module
    loss: Callable[[Any], tuple[Tensor, int]]
    judge: Callable[[Metric, Any], tuple[Tensor, int]]
    metric: Metric
    metric_name: str
    higher_is_better: bool
    train: Examples
    valid: Examples
    collate: Callable[[list[Any]], Any]
    notes: list[str] = field(default_factory=list)
    carried: Carried = field(default_factory=Carried)
    name: str = "epoch"
    is_partial: bool = False
    epochs: int | None = None

    @property
    def of_what(self) -> str:
        """What is said behind an epoch's number where it is not one of the task itself."""
        return "" if self.name == "epoch" else f" of {self.name}"

    @property
    def score(self) -> str:
        """The name of the metric in the course of the training, as ``valid_accuracy``."""
        return f"valid_{self.metric_name.lower().replace(' ', '_')}"

    def kept(self, epochs: list[Epoch], keep: str) -> int:
        """Return the number, from 1, of the epoch whose weights are kept."""
        if keep == "last":
            return len(epochs)
        sign = 1.0 if self.higher_is_better else -1.0
        valid = [sign * epoch[self.score] for epoch in epochs]
        return valid.index(max(valid)) + 1


def fit(
    job: Job, options: TrainingOptions, folder: Path, console: Console, *, resume: bool = False
) -> tuple[list[Epoch], dict[str, list[str]]]:
    """Train until the last epoch or, where the best is kept, until the metric stops improving.

    A checkpoint is written to `folder` every `options.checkpoint_every` steps and at the end of
    each epoch; training can go on from it, and ends at the same weights as a run that was never
    stopped.

    Args:
        job: what to train; its model holds the weights of the epoch that is kept afterwards.
        options: how long and how; `options.device` is not ``auto``.
        folder: where the checkpoints are; ``history.csv`` and logs are beside it.
        console: where progress is shown.
        resume: go on from the last checkpoint, if there is one.

    Returns:
        What each epoch gave, see :mod:`cello.tasks.history`. And the engines that ran the recurrent layers,
        each with the reasons why those before it did not.

    Raises:
        Interrupted: Ctrl-C was pressed.
        InputError: the loss was not finite, or a checkpoint cannot be read.
    """
    torch.manual_seed(options.seed)
    with _quiet():
        training = Training(job, options, folder, console)
        if resume and training.last.exists():
            training.load()
        try:
            training.run()
        except KeyboardInterrupt as error:
            for process in getattr(training.fabric.strategy.launcher, "procs", ()):
                process.kill()  # it may wait for this one
            count = len(training.epochs)
            raise Interrupted(
                f"interrupted after {count} epoch{'' if count == 1 else 's'}{job.of_what}"
            ) from error
        finally:
            if training.logger is not None:
                training.logger.finalize("done")
    return training.epochs, training.engines or training.engines_before


def has_bar(console: Console) -> bool:
    """Return whether a console can show a progress bar; a notebook needs ipywidgets for it."""
    widgets = console.is_jupyter and find_spec("ipywidgets") is not None
    return console.is_terminal or widgets


class Training:
    """A run: what :func:`fit` says, step by step.

    Attributes:
        epochs: what each finished epoch gave.
        steps: how many steps were taken.
        engines: what :func:`fit` returns of them, from the first step on.
        engines_before: the same of the run that this one goes on from, which may have no step left.
    """

    def __init__(self, job: Job, options: TrainingOptions, folder: Path, console: Console) -> None:
        self.job, self.options, self.folder, self.console = job, options, folder, console
        self.last = folder / LAST
        self.logger = _logger(options.log, folder.parent)
        processes = "ddp_find_unused_parameters_true" if job.is_partial else "ddp"
        self.fabric = Fabric(
            accelerator="gpu" if options.device == "cuda" else options.device,
            devices=options.devices,
            num_nodes=options.nodes,
            strategy=processes if options.devices * options.nodes > 1 else "auto",
            precision="bf16-mixed" if options.precision == "bfloat16" else "32-true",
        )
        self.fabric.launch()
        job.model.to(self.fabric.device)
        job.metric.to(self.fabric.device)
        self.average = None
        if options.average > 0:
            moving = partial(_moving, options.average)
            self.average = AveragedModel(job.model, multi_avg_fn=moving)
        self.learner = self.fabric.setup_module(_Learner(job))
        self.optimizer = torch.optim.AdamW(
            job.model.parameters(),
            lr=options.learning_rate,
            weight_decay=options.weight_decay,
            # One pass over the weights: with large embeddings, most of a step otherwise.
            fused=not any(weight.is_complex() for weight in job.model.parameters()),
        )
        self.epochs: list[Epoch] = []
        self.engines: dict[str, list[str]] | None = None
        self.engines_before: dict[str, list[str]] = {}
        self.steps, self.steps_an_epoch = 0, -(-len(job.train) // options.batch_size)
        self.share = _course(options, options.epochs * self.steps_an_epoch)
        self.loss, self.count, self.seconds = 0.0, 0.0, 0.0
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
            console=console,
            transient=True,
            disable=not has_bar(console),
        )

    def run(self) -> None:
        """Train from where the run is to its end."""
        self.since = time.perf_counter()
        with self.bar:
            while len(self.epochs) < self.options.epochs and not self._is_over():
                self._epoch()
        self.job.model.load_state_dict(_read(self.folder / BEST))
        self.fabric.barrier()  # before any process removes the file

    def _epoch(self) -> None:
        fabric, options = self.fabric, self.options
        number, done = len(self.epochs), self.steps % self.steps_an_epoch
        name = f"{self.job.name} {number + 1}/{options.epochs}"
        row = self.bar.add_task(name, total=self.steps_an_epoch, completed=done, shown="")
        batches = training_batches(
            self.job.train, self.job.collate, options, number,
            fabric.global_rank, fabric.world_size, done,
        )  # fmt: skip
        self.job.model.train()
        for batch in batches:
            total, count = self.step(fabric.to_device(batch))
            self.loss, self.count = self.loss + total, self.count + count
            self._log(number, total / count)
            self.bar.update(row, advance=1, shown=f"loss {total / count:.4f}{self._judged()}")
            ends = self.steps % self.steps_an_epoch == 0
            if self.steps % options.checkpoint_every == 0 and not ends:
                self._tick()
                self.save()
        self.bar.remove_task(row)
        valid_loss, valid = self.validate()
        if not (math.isfinite(valid_loss) and math.isfinite(valid)):
            raise InputError(
                f"the loss on the validation set is not finite in epoch {number + 1}{self.job.of_what};"
                " it may hold numbers that are far too large"
            )
        self._tick()
        epoch = {
            "epoch": number + 1,
            "train_loss": self.loss / self.count,
            "valid_loss": valid_loss,
            self.job.score: valid,
            "learning_rate": self._rate(),
            "seconds": self.seconds,
        }
        self.epochs.append(epoch)
        if self.logger is not None:
            self.logger.log_metrics(
                {k: v for k, v in epoch.items() if k.startswith(("epoch", "valid"))}, self.steps - 1
            )
        self.loss, self.count, self.seconds = 0.0, 0.0, 0.0
        # LAST comes last: until it is there, a resumed run does these steps again.
        if self._since_kept() == 0 and fabric.is_global_zero:
            model = self.job.model if self.average is None else self.average.module
            with written_beside(self.folder / BEST) as stream:
                torch.save(model.state_dict(), stream)
        if fabric.is_global_zero:
            history.write(self.epochs, self.folder.parent)
        self.save()
        say(
            self.console,
            f"{name}  loss {epoch['train_loss']:.4f}{self._judged()}  {epoch['seconds']:.1f} s",
        )

    def step(self, batch: Any) -> tuple[float, float]:
        """Take a step; return the loss of the whole batch, and how many it is the sum of."""
        options, world = self.options, self.fabric.world_size
        # Dropout depends on seed, step and process alone: a resumed run draws what it would have.
        torch.manual_seed(options.seed * 1_000_003 + self.steps * world + self.fabric.global_rank)
        for group in self.optimizer.param_groups:
            group["lr"] = options.learning_rate * self.share(self.steps)
        if self.engines is None:
            with observe() as seen:
                loss, found = self.learner(batch)
            self.engines = _reasons(choice for _, choice in seen)
        else:
            loss, found = self.learner(batch)
        total, count = self._of_all(float(loss.detach()), float(found))
        if not math.isfinite(total):
            raise self._diverged("loss")
        self.optimizer.zero_grad()
        # Processes average their gradients; the batch's is the sum, over all that counts in it.
        self.fabric.backward(loss * (world / count))
        norm = nn.utils.clip_grad_norm_(self.job.model.parameters(), options.clip)
        if not math.isfinite(norm):
            raise self._diverged("gradient")
        self.optimizer.step()
        if self.average is not None:
            self.average.update_parameters(self.job.model)
        self.steps += 1
        return total, count

    def _diverged(self, what: str) -> InputError:
        return InputError(
            f"the {what} is not finite in epoch {len(self.epochs) + 1}{self.job.of_what};"
            " try a smaller learning-rate or clip"
        )

    def _of_all(self, total: float, count: float) -> tuple[float, float]:
        """Return the sums of a loss and of what counts in it over all processes."""
        if self.fabric.world_size == 1:
            return total, count
        sums = torch.tensor([total, count], dtype=torch.float64, device=self.fabric.device)
        total, count = self.fabric.all_reduce(sums, reduce_op="sum").tolist()  # type: ignore[union-attr]  # one tensor gives one
        return total, count

    @torch.inference_mode()
    def validate(self) -> tuple[float, float]:
        """Return loss and metric on the validation set, of the averaged weights if there are such."""
        job, fabric = self.job, self.fabric
        total = count = 0.0
        batches = validation_batches(
            job.valid, job.collate, self.options.batch_size, fabric.global_rank, fabric.world_size
        )
        job.model.eval()
        self._swap()
        try:
            with fabric.autocast():
                for batch in batches:
                    if not _is_empty(batch):
                        batch = fabric.to_device(batch)
                        loss, weight = job.judge(job.metric, batch)
                        total, count = total + float(loss), count + weight
            found = float(job.metric.compute())
        finally:
            self._swap()
        job.metric.reset()
        if job.score == "valid_loss":  # the metric is a loss itself
            return found, found
        total, count = self._of_all(total, count)
        return total / count, found

    def _swap(self) -> None:
        """Exchange the weights with their average."""
        if self.average is not None:
            pairs = zip(self.job.model.parameters(), self.average.module.parameters(), strict=True)
            for a, b in pairs:
                a.data, b.data = b.data, a.data

    def save(self) -> None:
        """Write a checkpoint; the names in it are those of Lightning's Trainer, which wrote them once."""
        carried: list[Any] = [self.job.carried.tensors]
        if self.fabric.world_size > 1:
            carried *= self.fabric.world_size
            torch.distributed.all_gather_object(carried, self.job.carried.tensors)
        if self.fabric.is_global_zero:
            past = {
                "epochs": self.epochs,
                "running": [self.loss, self.count, self.seconds],
                "engines": self.engines or self.engines_before,
            }
            average = {} if self.average is None else self.average.state_dict()
            checkpoint = {
                "global_step": self.steps,
                "state_dict": {f"model.{k}": v for k, v in self.job.model.state_dict().items()},
                "optimizer_states": [self.optimizer.state_dict()],
                "callbacks": {"_History": past, "_Average": average, "_Carried": carried},
            }
            with written_beside(self.last) as stream:
                torch.save(checkpoint, stream)
        self.fabric.barrier()

    def load(self) -> None:
        """Go on from the last checkpoint.

        Raises:
            InputError: it cannot be read.
        """
        checkpoint = _read(self.last)
        weights = checkpoint["state_dict"].items()
        fill(self.job.model, {k.removeprefix("model."): v for k, v in weights}, self.folder.parent)
        self.optimizer.load_state_dict(checkpoint["optimizer_states"][0])
        self.steps, past = checkpoint["global_step"], checkpoint["callbacks"]["_History"]
        if any(self.job.score not in epoch for epoch in past["epochs"]):
            raise InputError(f"{self.last}: a checkpoint of another version of Cello")
        self.epochs = list(past["epochs"])
        self.loss, self.count, self.seconds = past["running"]
        self.engines_before = past.get("engines", {})  # earlier versions wrote none
        if self.average is not None:
            self.average.load_state_dict(checkpoint["callbacks"]["_Average"])
        if "_Carried" in checkpoint["callbacks"]:  # earlier versions wrote none
            self.job.carried.tensors = checkpoint["callbacks"]["_Carried"][self.fabric.global_rank]

    def _log(self, epoch: int, loss: float) -> None:
        if self.logger is not None and self.steps % min(50, self.steps_an_epoch) == 0:
            known = {"epoch": epoch + 1, "train_loss": loss, "learning_rate": self._rate()}
            self.logger.log_metrics(known, self.steps - 1)

    def _rate(self) -> float:
        """Return the learning rate of the last step."""
        rate: float = self.optimizer.param_groups[0]["lr"]
        return rate

    def _judged(self) -> str:
        """Return the score of the last epoch, for the eye."""
        if not self.epochs:
            return ""
        return f"  valid {self.job.metric_name} {self.epochs[-1][self.job.score]:.4f}"

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self.since
        self.since = now

    def _since_kept(self) -> int:
        if not self.epochs:
            return 0
        return len(self.epochs) - self.job.kept(self.epochs, self.options.keep)

    def _is_over(self) -> bool:
        return self._since_kept() >= self.options.patience


class _Learner(nn.Module):
    """The loss of a batch as what a module computes, for which processes put their gradients together."""

    def __init__(self, job: Job) -> None:
        super().__init__()
        self.model, self._loss = job.model, job.loss

    def forward(self, batch: Any) -> tuple[Tensor, int]:
        if _is_empty(batch):
            return torch.stack([p.sum() for p in self.model.parameters()]).sum() * 0.0, 0
        return self._loss(batch)


def _is_empty(batch: Any) -> bool:
    """Return whether nothing of a short batch was left for this process."""
    return isinstance(batch, tuple) and not batch


def _course(options: TrainingOptions, steps: int) -> Callable[[int], float]:
    """Return the size of each step, as a share of the largest."""
    rising = round(options.warmup * steps)

    def share(step: int) -> float:
        if step < rising:
            return (step + 1) / rising
        if options.schedule == "constant":
            return 1.0
        done = min((step - rising) / max(steps - rising, 1), 1.0)
        return (1.0 + math.cos(math.pi * done)) / 2 if options.schedule == "cosine" else 1.0 - done

    return share


def _reasons(choices: Iterable[Choice]) -> dict[str, list[str]]:
    """Return the engines that were chosen, each with the reasons why those before it were not."""
    found: dict[str, dict[str, None]] = {}
    for engine, reasons in choices:
        known = found.setdefault(engine.name, {})
        known.update((f"{name}: {why}", None) for name in reasons for why in reasons[name])
    return {name: list(reasons) for name, reasons in found.items()}


def _moving(decay: float, averages: Any, weights: Any, count: Any) -> None:
    # A moving average (Polyak and Juditsky, 1992); short at first, or it would be of the first
    # weights for long.
    now = min(decay, (1.0 + int(count)) / (10.0 + int(count)))
    get_ema_multi_avg_fn(now)(averages, weights, count)


def _logger(kind: str, folder: Path) -> Logger | None:
    return TensorBoardLogger(folder, name="logs") if kind == "tensorboard" else None


def _read(path: Path) -> dict[str, Any]:
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file shows itself in many ways
        raise InputError(f"{path}: not a whole checkpoint") from error
    return checkpoint


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice and banners off the screen."""
    loggers = [logging.getLogger(f"lightning.{part}") for part in ("fabric", "pytorch")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        # Lightning up to 2.6 asks PyTorch in a way that PyTorch 2.13 calls old.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
