"""Training any model of any task with Lightning: best epoch, early stop, resume after an interrupt.

Nothing here knows what is being learnt: a task hands over a model, its loss on a batch, a metric and
examples (:class:`Job`).
"""

from __future__ import annotations

import logging
import math
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningModule, Trainer
from lightning.pytorch.callbacks import LearningRateMonitor
from lightning.pytorch.loggers import CSVLogger, Logger, TensorBoardLogger
from lightning.pytorch.plugins import TorchCheckpointIO
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

from cello.tasks.batches import Examples, Loader, training_batches, validation_batches
from cello.tasks.errors import InputError, Interrupted
from cello.tasks.files import BEST, LAST, written_beside
from cello.tasks.options import TrainingOptions

MONITOR = "valid"


@dataclass
class Job:
    """What to train: the model, how it is judged, and the examples.

    Args:
        model: what is trained.
        loss: of a batch, summed over whatever counts in it (rows, words, numbers), and how many
            those are; a step follows the mean over the batch of all processes.
        update: adds a batch of the validation part to the metric.
        metric: of the validation part.
        metric_name: for the eye.
        higher_is_better: of the metric.
        train: the examples to learn from.
        valid: the examples on which the best epoch is chosen.
        collate: puts examples into a batch: a tensor, or any nest of tuples of tensors.
        notes: what there is to say about the examples before the first step.
    """

    model: nn.Module
    loss: Callable[[Any], tuple[Tensor, int]]
    update: Callable[[Metric, Any], None]
    metric: Metric
    metric_name: str
    higher_is_better: bool
    train: Examples
    valid: Examples
    collate: Callable[[list[Any]], Any]
    notes: list[str] = field(default_factory=list)


def fit(
    job: Job, options: TrainingOptions, folder: Path, console: Console, *, resume: bool = False
) -> list[dict[str, float]]:
    """Train until the last epoch or, where the best is kept, until the metric stops improving.

    A checkpoint is written to `folder` every `options.checkpoint_every` steps and at the end of
    each epoch; training can go on from it, and ends at the same weights as a run that was never
    stopped.

    Args:
        job: what to train; its model holds the weights of the epoch that is kept afterwards.
        options: how long and how; `options.device` is not ``auto``.
        folder: where the checkpoints are; logs are in ``logs`` beside it.
        console: where progress is shown.
        resume: go on from the last checkpoint, if there is one.

    Returns:
        For each epoch its number from 1, the mean loss, the metric on the validation part, and
        seconds.

    Raises:
        Interrupted: Ctrl-C was pressed.
        InputError: the loss was not finite, or a checkpoint cannot be read.
    """
    torch.manual_seed(options.seed)
    last = folder / LAST
    average = _Average(job.model, options.average)
    history = _History(job, average, options, folder, console)
    handler = signal.getsignal(signal.SIGINT)
    callbacks = [_Bar(job.metric_name, options.epochs, console), average, history]
    logger = _logger(options.log, folder.parent)
    if logger is not None:
        callbacks.append(LearningRateMonitor("step"))
    with _quiet():
        trainer = Trainer(
            accelerator="gpu" if options.device == "cuda" else options.device,
            devices=options.devices,
            num_nodes=options.nodes,
            strategy="ddp" if options.devices * options.nodes > 1 else "auto",
            use_distributed_sampler=False,  # the batches know their process: see Buckets
            precision="bf16-mixed" if options.precision == "bfloat16" else "32-true",
            max_epochs=options.epochs,
            callbacks=callbacks,
            plugins=[_CheckpointIO()],
            logger=logger if logger is not None else False,
            log_every_n_steps=min(50, -(-len(job.train) // options.batch_size)),
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            default_root_dir=folder,
        )
        try:
            begun = resume and last.exists()
            trainer.fit(_Learner(job, options), ckpt_path=last if begun else None)
        except SystemExit as error:  # how Lightning ends after Ctrl-C, which it then ignores
            signal.signal(signal.SIGINT, handler)
            count = len(history.epochs)
            raise Interrupted(
                f"interrupted after {count} epoch{'' if count == 1 else 's'}"
            ) from error
    job.model.load_state_dict(_load(folder / BEST))
    trainer.strategy.barrier()  # before any process removes the file
    return history.epochs


def kept(epochs: list[dict[str, float]], keep: str, higher_is_better: bool) -> int:
    """Return the number, from 1, of the epoch whose weights are kept."""
    if keep == "last":
        return len(epochs)
    sign = 1.0 if higher_is_better else -1.0
    valid = [sign * epoch["valid"] for epoch in epochs]
    return valid.index(max(valid)) + 1


class _Learner(LightningModule):
    def __init__(self, job: Job, options: TrainingOptions) -> None:
        super().__init__()
        self.model, self.metric = job.model, job.metric
        self.job, self.options = job, options

    def train_dataloader(self) -> Loader:
        return training_batches(
            self.job.train, self.job.collate, self.options, self.current_epoch,
            self.trainer.global_rank, self.trainer.world_size,
        )  # fmt: skip

    def val_dataloader(self) -> Loader:
        return validation_batches(
            self.job.valid, self.job.collate, self.options.batch_size,
            self.trainer.global_rank, self.trainer.world_size,
        )  # fmt: skip

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.AdamW(
            self.model.parameters(),
            lr=self.options.learning_rate,
            weight_decay=self.options.weight_decay,
            fused=True,  # one pass over the weights: with large embeddings, most of a step otherwise
        )
        # Not trainer.estimated_stepping_batches, which makes the loader before a checkpoint is read.
        steps = self.options.epochs * -(-len(self.job.train) // self.options.batch_size)
        factor = torch.optim.lr_scheduler.LambdaLR(optimizer, _course(self.options, steps))
        return [optimizer], [{"scheduler": factor, "interval": "step"}]

    def configure_gradient_clipping(
        self, optimizer: Any, gradient_clip_val: Any = None, gradient_clip_algorithm: Any = None
    ) -> None:
        # Not the Trainer's, which refuses to clip for a fused optimizer in mixed precision.
        nn.utils.clip_grad_norm_(self.model.parameters(), self.options.clip)

    def on_train_batch_start(self, batch: Any, batch_idx: int) -> None:
        # Dropout depends on seed, step and process alone: a resumed run draws what it would have.
        step = self.global_step * self.trainer.world_size + self.trainer.global_rank
        torch.manual_seed(self.options.seed * 1_000_003 + step)

    def training_step(self, batch: Any) -> dict[str, Any]:
        if _is_empty(batch):
            loss, count = torch.stack([p.sum() for p in self.model.parameters()]).sum() * 0.0, 0
        else:
            loss, count = self.job.loss(batch)
        total, counted = float(loss.detach()), float(count)
        if self.trainer.world_size > 1:
            sums = torch.tensor([total, counted], dtype=torch.float64, device=self.device)
            total, counted = self.trainer.strategy.reduce(sums, reduce_op="sum").tolist()
        if not math.isfinite(total):
            raise InputError(
                f"the loss is not finite in epoch {self.current_epoch + 1};"
                " try a smaller learning-rate or clip"
            )
        # Processes average their gradients; the batch's is the sum, over all that counts in it.
        return {"loss": loss * (self.trainer.world_size / counted), "sums": (total, counted)}

    def validation_step(self, batch: Any) -> None:
        if not _is_empty(batch):
            self.job.update(self.metric, batch)

    def on_validation_epoch_end(self) -> None:
        self.log(MONITOR, self.metric.compute())
        self.metric.reset()


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


class _Average(Callback):
    """A moving average of the weights (Polyak and Juditsky, 1992), for validation and to keep."""

    def __init__(self, model: nn.Module, decay: float) -> None:
        self.model = model
        self.average = None
        if decay > 0:
            self.average = AveragedModel(model, multi_avg_fn=partial(_moving, decay))

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        if self.average is not None:
            self.average.to(pl_module.device)

    def weights(self) -> dict[str, Tensor]:
        """Return the weights to keep."""
        return (self.model if self.average is None else self.average.module).state_dict()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if self.average is not None:
            self.average.update_parameters(self.model)

    def on_validation_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap()

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._swap()

    def _swap(self) -> None:
        if self.average is not None:
            for a, b in zip(self.model.parameters(), self.average.module.parameters(), strict=True):
                a.data, b.data = b.data, a.data

    def state_dict(self) -> dict[str, Any]:
        return {} if self.average is None else self.average.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        if self.average is not None:
            self.average.load_state_dict(state_dict)


def _moving(decay: float, averages: Any, weights: Any, count: Any) -> None:
    # Short at first, or the average would be of the first weights for long.
    now = min(decay, (1.0 + int(count)) / (10.0 + int(count)))
    get_ema_multi_avg_fn(now)(averages, weights, count)


class _History(Callback):
    """What each epoch gave: kept and printed, and what becomes of it: checkpoints, early stop.

    Both follow from the epochs alone, which are saved with each checkpoint.
    """

    def __init__(
        self,
        job: Job,
        average: _Average,
        options: TrainingOptions,
        folder: Path,
        console: Console,
    ) -> None:
        self.metric_name, self.higher_is_better = job.metric_name, job.higher_is_better
        self.average, self.options, self.folder, self.console = average, options, folder, console
        self.epochs: list[dict[str, float]] = []
        self._begin_epoch()

    def _begin_epoch(self) -> None:
        self.loss, self.count, self.seconds = 0.0, 0.0, 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_early(trainer)  # where the run was resumed after its last epoch
        self.since = time.perf_counter()

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        total, count = outputs["sums"]
        self.loss, self.count = self.loss + total, self.count + count
        pl_module.log("train", total / count)
        if trainer.global_step % self.options.checkpoint_every == 0 and not trainer.is_last_batch:
            self._tick()
            trainer.save_checkpoint(self.folder / LAST)

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._tick()
        epoch = {
            "epoch": trainer.current_epoch + 1,
            "loss": self.loss / self.count,
            "valid": float(trainer.callback_metrics[MONITOR]),
            "seconds": self.seconds,
        }
        self.epochs.append(epoch)
        self._begin_epoch()
        # LAST comes last: until it is there, a resumed run does these steps again.
        if self._since_kept() == 0 and trainer.is_global_zero:
            with written_beside(self.folder / BEST) as stream:
                torch.save(self.average.weights(), stream)
        trainer.save_checkpoint(self.folder / LAST)  # waits for all processes
        self.console.print(
            f"epoch {epoch['epoch']}/{self.options.epochs}  loss {epoch['loss']:.4f}"
            f"  valid {self.metric_name} {epoch['valid']:.4f}  {epoch['seconds']:.1f} s",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        self._stop_early(trainer)

    def _tick(self) -> None:
        now = time.perf_counter()
        self.seconds += now - self.since
        self.since = now

    def _since_kept(self) -> int:
        if not self.epochs:
            return 0
        return len(self.epochs) - kept(self.epochs, self.options.keep, self.higher_is_better)

    def _stop_early(self, trainer: Trainer) -> None:
        if self._since_kept() >= self.options.patience:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {
            "epochs": list(self.epochs),
            "running": [self.loss, self.count, self.seconds],
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = list(state_dict["epochs"])
        self.loss, self.count, self.seconds = state_dict["running"]


class _Bar(Callback):
    """A progress bar for the running epoch, on a console to which others print as well."""

    def __init__(self, metric_name: str, most: int, console: Console) -> None:
        self.metric_name, self.most = metric_name, most
        self.bar = Progress(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TimeRemainingColumn(),
            TextColumn("{task.fields[shown]}"),
            console=console,
            transient=True,
            disable=not console.is_terminal,
        )
        self.valid = ""

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.start()

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int
    ) -> None:
        if not self.bar.task_ids or batch_idx == 0:  # the first epoch after a resume begins late
            for task in self.bar.task_ids:
                self.bar.remove_task(task)
            name = f"epoch {trainer.current_epoch + 1}/{self.most}"
            self.bar.add_task(
                name, total=trainer.num_training_batches, completed=batch_idx, shown=""
            )

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
    ) -> None:
        if not self.bar.disable:
            total, count = outputs["sums"]
            shown = f"loss {total / count:.4f}{self.valid}"
            self.bar.update(self.bar.task_ids[0], advance=1, shown=shown)

    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.valid = f"  valid {self.metric_name} {float(trainer.callback_metrics[MONITOR]):.4f}"

    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self.bar.stop()

    def on_exception(
        self, trainer: Trainer, pl_module: LightningModule, exception: BaseException
    ) -> None:
        self.bar.stop()


class _CheckpointIO(TorchCheckpointIO):
    """Checkpoints that are never half written, and never run code when they are read."""

    def save_checkpoint(
        self, checkpoint: dict[str, Any], path: str | os.PathLike[str], storage_options: Any = None
    ) -> None:
        with written_beside(Path(path)) as stream:
            torch.save(checkpoint, stream)

    def load_checkpoint(
        self, path: str | os.PathLike[str], map_location: Any = None, weights_only: Any = None
    ) -> dict[str, Any]:
        return _load(Path(path))


def _logger(kind: str, folder: Path) -> Logger | None:
    if kind == "csv":
        return CSVLogger(folder, name="logs")
    if kind == "tensorboard":
        return TensorBoardLogger(folder, name="logs")
    return None


def _load(path: Path) -> dict[str, Any]:
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file shows itself in many ways
        raise InputError(f"{path}: not a whole checkpoint") from error
    return checkpoint


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice and banners off the screen."""
    loggers = [logging.getLogger(name) for name in ("lightning.pytorch", "lightning.fabric")]
    levels = [logger.level for logger in loggers]
    for logger in loggers:
        logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        # Lightning up to 2.6 asks PyTorch in a way that PyTorch 2.13 calls old.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        try:
            yield
        finally:
            for logger, level in zip(loggers, levels, strict=True):
                logger.setLevel(level)
