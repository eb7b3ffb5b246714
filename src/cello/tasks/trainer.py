"""Training any model of any task with Lightning: best epoch, early stop, resume after an interrupt.

Nothing here knows what is being learnt: a model maps the inputs of a batch to predictions, a loss and
a metric compare those with the batch's last element.
"""

from __future__ import annotations

import logging
import os
import signal
import time
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from lightning.fabric.utilities.warnings import PossibleUserWarning
from lightning.pytorch import Callback, LightningModule, Trainer
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
from torch.utils.data import DataLoader
from torchmetrics import Metric

from cello.tasks.errors import InputError, Interrupted
from cello.tasks.files import BEST, LAST, written_beside

MONITOR = "valid"


@dataclass(frozen=True)
class Schedule:
    """How long and how to train."""

    epochs: int
    patience: int
    learning_rate: float
    clip: float
    seed: int
    device: str


@dataclass
class Job:
    """What to train: the model, how it is judged, and the batches.

    Args:
        model: maps all elements of a batch but the last one to predictions.
        loss: of predictions and the last element of a batch.
        metric: larger is better; of predictions and the last element of a batch.
        metric_name: for the eye.
        train: the batches of the epoch with that number.
        valid: the batches on which the best epoch is chosen.
    """

    model: nn.Module
    loss: Callable[[Tensor, Tensor], Tensor]
    metric: Metric
    metric_name: str
    train: Callable[[int], DataLoader[Any]]
    valid: DataLoader[Any]


def fit(job: Job, schedule: Schedule, folder: Path, console: Console) -> list[dict[str, float]]:
    """Train until the last epoch or until the metric stops improving.

    At the end of each epoch a checkpoint is written to `folder`; where there is one, training goes
    on from it, and ends at the same weights as a run that was never stopped.

    Args:
        job: what to train; its model holds the weights of the best epoch afterwards.
        schedule: how long and how.
        folder: where the checkpoints are.
        console: where progress is shown.

    Returns:
        For each epoch its number from 1, the mean loss, the metric on the validation part, and
        seconds.

    Raises:
        Interrupted: Ctrl-C was pressed.
        InputError: the loss was not finite, or a checkpoint cannot be read.
    """
    torch.manual_seed(schedule.seed)
    last = folder / LAST
    history = _History(job.metric_name, schedule, folder, console)
    handler = signal.getsignal(signal.SIGINT)
    with _quiet():
        trainer = Trainer(
            accelerator="gpu" if schedule.device == "cuda" else schedule.device,
            devices=1,
            max_epochs=schedule.epochs,
            gradient_clip_val=schedule.clip,
            callbacks=[_Bar(job.metric_name, schedule.epochs, console), history],
            plugins=[_CheckpointIO()],
            logger=False,
            enable_checkpointing=False,
            enable_model_summary=False,
            enable_progress_bar=False,
            num_sanity_val_steps=0,
            reload_dataloaders_every_n_epochs=1,
            default_root_dir=folder,
        )
        try:
            trainer.fit(_Learner(job, schedule), ckpt_path=last if last.exists() else None)
        except SystemExit as error:  # how Lightning ends after Ctrl-C, which it then ignores
            signal.signal(signal.SIGINT, handler)
            count = len(history.epochs)
            raise Interrupted(
                f"interrupted after {count} epoch{'' if count == 1 else 's'}"
            ) from error
    job.model.load_state_dict(
        {
            name.removeprefix("model."): value
            for name, value in _load(folder / BEST)["state_dict"].items()
            if name.startswith("model.")
        }
    )
    return history.epochs


class _Learner(LightningModule):
    def __init__(self, job: Job, schedule: Schedule) -> None:
        super().__init__()
        self.model, self.metric = job.model, job.metric
        self.job, self.schedule = job, schedule

    def train_dataloader(self) -> DataLoader[Any]:
        return self.job.train(self.current_epoch)

    def val_dataloader(self) -> DataLoader[Any]:
        return self.job.valid

    def configure_optimizers(self) -> Any:
        optimizer = torch.optim.Adam(self.model.parameters(), lr=self.schedule.learning_rate)
        steps = self.trainer.estimated_stepping_batches
        falling = torch.optim.lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=int(steps))
        return [optimizer], [{"scheduler": falling, "interval": "step"}]

    # At the first batch, as Lightning does not call on_train_epoch_start for the first epoch after a
    # resume.
    def on_train_batch_start(self, batch: list[Tensor], batch_idx: int) -> None:
        if batch_idx > 0:
            return
        # Dropout depends on seed and epoch alone, so that a resumed run draws what it would have.
        torch.manual_seed(self.schedule.seed * 1_000_003 + self.current_epoch)

    def training_step(self, batch: list[Tensor]) -> Tensor:
        *inputs, target = batch
        loss = self.job.loss(self.model(*inputs), target)
        if not torch.isfinite(loss):
            raise InputError(
                f"the loss is not finite in epoch {self.current_epoch + 1};"
                " try a smaller learning-rate or clip"
            )
        self.log("loss", loss, on_step=False, on_epoch=True, batch_size=len(target))
        return loss

    def validation_step(self, batch: list[Tensor]) -> None:
        *inputs, target = batch
        self.metric.update(self.model(*inputs), target)

    def on_validation_epoch_end(self) -> None:
        self.log(MONITOR, self.metric.compute())
        self.metric.reset()


class _History(Callback):
    """What each epoch gave: kept and printed, and what becomes of it: checkpoints, early stop.

    Both follow from the epochs alone, which are saved with each checkpoint.
    """

    def __init__(
        self, metric_name: str, schedule: Schedule, folder: Path, console: Console
    ) -> None:
        self.metric_name, self.schedule = metric_name, schedule
        self.folder, self.console = folder, console
        self.epochs: list[dict[str, float]] = []
        self.start = 0.0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        self._stop_early(trainer)  # where the run was resumed after its last epoch

    def on_train_batch_start(
        self, trainer: Trainer, pl_module: LightningModule, batch: list[Tensor], batch_idx: int
    ) -> None:
        if batch_idx == 0:
            self.start = time.perf_counter()

    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        epoch = {
            "epoch": trainer.current_epoch + 1,
            "loss": float(trainer.callback_metrics["loss"]),
            "valid": float(trainer.callback_metrics[MONITOR]),
            "seconds": time.perf_counter() - self.start,
        }
        self.epochs.append(epoch)
        # The last one comes last: until it is there, a resumed run does this epoch again.
        if self._since_best() == 0:
            trainer.save_checkpoint(self.folder / BEST, weights_only=True)
        trainer.save_checkpoint(self.folder / LAST)
        self.console.print(
            f"epoch {epoch['epoch']}/{self.schedule.epochs}  loss {epoch['loss']:.4f}"
            f"  valid {self.metric_name} {epoch['valid']:.4f}  {epoch['seconds']:.1f} s",
            highlight=False,
            markup=False,
            soft_wrap=True,
        )
        self._stop_early(trainer)

    def _since_best(self) -> int:
        valid = [epoch["valid"] for epoch in self.epochs]
        return len(valid) - 1 - valid.index(max(valid)) if valid else 0

    def _stop_early(self, trainer: Trainer) -> None:
        if self._since_best() >= self.schedule.patience:
            trainer.should_stop = True

    def state_dict(self) -> dict[str, Any]:
        return {"epochs": list(self.epochs)}

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        self.epochs = list(state_dict["epochs"])


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
        self, trainer: Trainer, pl_module: LightningModule, batch: list[Tensor], batch_idx: int
    ) -> None:
        if batch_idx == 0:
            for task in self.bar.task_ids:
                self.bar.remove_task(task)
            name = f"epoch {trainer.current_epoch + 1}/{self.most}"
            self.bar.add_task(name, total=trainer.num_training_batches, shown="")

    def on_train_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: list[Tensor],
        batch_idx: int,
    ) -> None:
        if not self.bar.disable:
            shown = f"loss {float(outputs['loss']):.4f}{self.valid}"
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


def _load(path: Path) -> dict[str, Any]:
    try:
        checkpoint: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # a damaged file shows itself in many ways
        raise InputError(f"{path}: not a whole checkpoint") from error
    return checkpoint


@contextmanager
def _quiet() -> Iterator[None]:
    """Keep Lightning's advice and banners off the screen."""
    logger = logging.getLogger("lightning.pytorch")
    level = logger.level
    logger.setLevel(logging.WARNING)
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", category=PossibleUserWarning)
        # Lightning up to 2.6 asks PyTorch in a way that PyTorch 2.13 calls old.
        warnings.filterwarnings("ignore", message=".*LeafSpec", category=FutureWarning)
        try:
            yield
        finally:
            logger.setLevel(level)
