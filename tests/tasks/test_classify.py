from __future__ import annotations

import csv
import json
import math
import os
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cello.tasks import classify, history
from cello.tasks.classify.data import read
from cello.tasks.classify.splits import split
from cello.tasks.devices import find_device
from cello.tasks.errors import InputError, Interrupted
from cello.tasks.folder import drop_checkpoints


def quick(**changes: object) -> classify.Options:
    options = {"hidden": 8, "epochs": 4, "device": "cpu", **changes}
    return classify.Options(**options)  # type: ignore[arg-type]  # values of several types


def test_round_trip_of_the_model_folder(tmp_path: Path) -> None:
    report = classify.train("digits", tmp_path / "a", quick())
    classifier = classify.load(tmp_path / "a")
    test = read("digits", classify.Options()).parts["test"]
    again = classifier.evaluate(test)
    assert again.confusion == report.confusion
    labels = [one.label for one in classifier.predict((row.input for row in test), batch_size=7)]
    hits = sum(a == b for a, b in zip(labels, test.labels, strict=True))
    assert hits / len(test) == report.accuracy
    with pytest.raises(InputError, match="input 2: 2 numbers in a step, not 8"):
        list(classifier.predict([np.zeros((3, 8), np.float32), np.zeros((3, 2), np.float32)]))
    with pytest.raises(InputError, match="input 1: the model reads numbers"):
        list(classifier.predict(["text"]))


def test_numbers_are_scaled_with_the_training_part_only(tmp_path: Path) -> None:
    classify.train("digits", tmp_path / "a", quick(epochs=1))
    classifier = classify.load(tmp_path / "a")
    data = read("digits", classifier.config.options)
    train = split(data, classifier.config.options, classifier.config.options.seed).train
    steps = np.concatenate([row.input for row in train])
    np.testing.assert_allclose(classifier.model.mean.numpy(), steps.mean(0), rtol=1e-4)


def test_the_best_epoch_is_the_one_that_is_kept(tmp_path: Path) -> None:
    report = classify.train("digits", tmp_path / "a", quick(epochs=20, learning_rate=0.02))
    accuracies = [epoch["valid_accuracy"] for epoch in report.training["epochs"]]
    assert accuracies.index(max(accuracies)) + 1 == report.training["kept_epoch"]
    assert report.training["kept_epoch"] < len(accuracies)
    classifier = classify.load(tmp_path / "a")
    parts = split(read("digits", classifier.config.options), classifier.config.options, 0)
    assert classifier.evaluate(parts.valid).accuracy == pytest.approx(max(accuracies), abs=1e-6)


@pytest.mark.parametrize("average", [0.0, 0.9])
def test_resuming_again_and_again(tmp_path: Path, interrupt: Any, average: float) -> None:
    """Ctrl-C in the middle of every epoch but the first: the same weights as without it."""
    options = quick(average=average)
    classify.train("digits", tmp_path / "whole", options)
    interrupt.at_step(60)  # of 41 batches an epoch
    with pytest.raises(Interrupted, match=r"after 1 epoch$"):
        classify.train("digits", tmp_path / "parts", options)
    for epoch in (2, 3):
        interrupt.at_step(60)
        with pytest.raises(Interrupted, match=f"after {epoch} epochs"):
            classify.resume(tmp_path / "parts")
    report = classify.resume(tmp_path / "parts")
    assert len(report.training["epochs"]) == 4
    whole, parts = (classify.load(tmp_path / f).model.state_dict() for f in ("whole", "parts"))
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


def test_the_last_epoch_can_be_kept(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Where every epoch is judged to be worse than the one before."""
    from cello.tasks import trainer

    options = quick(epochs=6, learning_rate=0.02, schedule="constant", patience=1, keep="last")
    report = classify.train("digits", tmp_path / "a", options)
    valid = split(read("digits", options), options, 0).valid
    accuracy = classify.load(tmp_path / "a").evaluate(valid).accuracy
    assert accuracy == pytest.approx(report.training["epochs"][-1]["valid_accuracy"], abs=1e-6)

    def judged(self: trainer.Training) -> tuple[float, float]:
        return 1.0, 0.9 - 0.1 * len(self.epochs)

    monkeypatch.setattr(trainer.Training, "validate", judged)
    report = classify.train("digits", tmp_path / "b", options)
    assert report.training["kept_epoch"] == len(report.training["epochs"]) == 6
    classify.train("digits", tmp_path / "c", replace(options, keep="best"))
    a, b, c = (classify.load(tmp_path / f).model.state_dict() for f in "abc")
    assert torch.equal(a["linear.weight"], b["linear.weight"])
    assert not torch.equal(a["linear.weight"], c["linear.weight"])


def test_resuming_within_an_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Each run gets a few steps further than its last checkpoint; dropout and averages go on."""
    from cello.tasks import trainer

    options = quick(checkpoint_every=10, epochs=2, average=0.9, schedule="cosine", warmup=0.3)
    whole = classify.train("digits", tmp_path / "whole", options)
    step, calls, seen = trainer.Training.step, 0, []

    def interrupted(self: trainer.Training, batch: Any) -> Any:
        nonlocal calls
        calls += 1
        if calls == 17:  # of 41 batches an epoch
            raise KeyboardInterrupt
        seen.append(self.steps)
        return step(self, batch)

    monkeypatch.setattr(trainer.Training, "step", interrupted)
    with pytest.raises(Interrupted, match="after 0 epochs"):
        classify.train("digits", tmp_path / "parts", options)
    for _ in range(20):
        calls = 0
        try:
            parts = classify.resume(tmp_path / "parts")
            break
        except Interrupted:
            continue
    assert seen[:18] == [*range(16), 10, 11]
    assert seen.count(11) == 2
    assert sorted(set(seen)) == list(range(82))
    assert [e["train_loss"] for e in whole.training["epochs"]] == [
        e["train_loss"] for e in parts.training["epochs"]
    ]
    one, other = (classify.load(tmp_path / f).model.state_dict() for f in ("whole", "parts"))
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_an_average_of_weights_is_judged_and_kept(tmp_path: Path) -> None:
    """With one step, the average is the weights; with more, neither the first nor the last."""
    plain = classify.train("digits", tmp_path / "a", quick(epochs=1))
    average = classify.train("digits", tmp_path / "b", quick(epochs=1, average=0.99))
    assert plain.training["epochs"][0]["train_loss"] == average.training["epochs"][0]["train_loss"]
    options = quick(epochs=1, average=0.99, batch_size=2000)
    classify.train("digits", tmp_path / "c", options)
    classify.train("digits", tmp_path / "d", replace(options, average=0.0))
    a, b, c, d = (classify.load(tmp_path / f).model.state_dict() for f in "abcd")
    assert torch.equal(c["linear.weight"], d["linear.weight"])
    assert not torch.equal(a["linear.weight"], b["linear.weight"])


@pytest.mark.parametrize("schedule", ["linear", "cosine", "constant"])
def test_schedules_against_torch(schedule: str) -> None:
    from torch.optim import lr_scheduler

    from cello.tasks.trainer import _course

    share = _course(quick(schedule=schedule, warmup=0.2), 50)
    assert [share(i) for i in range(10)] == pytest.approx([(i + 1) / 10 for i in range(10)])
    optimizer = torch.optim.SGD([torch.zeros(1, requires_grad=True)], lr=1.0)
    expected = {
        "linear": lambda: lr_scheduler.LinearLR(optimizer, 1.0, 0.0, total_iters=40),
        "cosine": lambda: lr_scheduler.CosineAnnealingLR(optimizer, 40),
        "constant": lambda: lr_scheduler.ConstantLR(optimizer, 1.0),
    }[schedule]()
    for i in range(10, 51):
        assert share(i) == pytest.approx(expected.get_last_lr()[0], abs=1e-9)
        optimizer.step()
        expected.step()


def test_logs(tmp_path: Path) -> None:
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    report = classify.train(
        "digits", tmp_path / "a", quick(epochs=2, batch_size=64, log="tensorboard")
    )
    (file,) = (tmp_path / "a" / "logs").rglob("events.*")
    events = EventAccumulator(str(file)).Reload()
    assert {"train_loss", "learning_rate"} <= set(events.Tags()["scalars"])
    for name in ("valid_loss", "valid_accuracy"):
        logged = [event.value for event in events.Scalars(name)]
        assert logged == pytest.approx([epoch[name] for epoch in report.training["epochs"]])
    with pytest.raises(InputError, match=r"log: csv is always written, history.csv in the model"):
        quick(log="csv")


def test_the_course_of_the_training(tmp_path: Path) -> None:
    """In a file, in Python, and as computed again with the weights of the last epoch."""
    options = quick(epochs=3, batch_size=64, keep="last", learning_rate=0.01, schedule="linear")
    report = classify.train("digits", tmp_path / "a", options)
    with (tmp_path / "a" / "history.csv").open() as stream:
        rows = list(csv.DictReader(stream))
    names = ["epoch", "train_loss", "valid_loss", "valid_accuracy", "learning_rate", "seconds"]
    assert [[*row] for row in rows] == [names] * 3
    made = classify.load(tmp_path / "a")
    assert [*made.history] == names
    assert made.history["epoch"] == [1, 2, 3]
    for i, epoch in enumerate(report.training["epochs"]):
        for name, value in epoch.items():
            assert float(rows[i][name]) == made.history[name][i] == value
    valid = split(read("digits", options), options, 0).valid
    loss, right = 0.0, 0
    for row, answer in zip(valid, made.predict([row.input for row in valid]), strict=True):
        assert answer.probabilities is not None
        loss -= math.log(answer.probabilities[row.label])
        right += answer.label == row.label
    assert made.history["valid_loss"][-1] == pytest.approx(loss / len(valid), rel=1e-4)
    assert made.history["valid_accuracy"][-1] == pytest.approx(right / len(valid))
    # 1,437 images, of which a tenth is for validation: 21 steps an epoch; the rate falls to zero.
    assert made.history["learning_rate"] == pytest.approx(
        [0.01 * (1 - step / 63) for step in (20, 41, 62)]
    )
    assert (tmp_path / "a" / "curves.png").read_bytes().startswith(b"\x89PNG")
    (tmp_path / "a" / "history.csv").unlink()
    assert classify.load(tmp_path / "a").history == {}


@pytest.mark.parametrize("content", ["epoch,x\n1,a\n", "epoch,x\n1\n", "x\n1\n", "epoch\n\xff"])
def test_a_damaged_history_is_said_and_nothing_else_depends_on_it(
    tmp_path: Path, content: str
) -> None:
    (tmp_path / "history.csv").write_bytes(content.encode("latin-1"))
    with pytest.warns(UserWarning, match=r"history\.csv: not whole"):
        assert history.read(tmp_path) == {}


def test_rows_on_disk_give_the_same_model(tmp_path: Path) -> None:
    a = classify.train("digits", tmp_path / "a", quick(epochs=1))
    b = classify.train("digits", tmp_path / "b", quick(epochs=1, stream=True))
    assert a.confusion == b.confusion
    one, other = (classify.load(tmp_path / f).model.state_dict() for f in "ab")
    for name in one:
        assert torch.equal(one[name], other[name]), name
    assert not (tmp_path / "b" / "checkpoints").exists()


def test_a_run_goes_on_in_a_folder_that_was_moved(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The best epoch is before the interrupt, and no later one comes near it."""
    from cello.tasks import trainer

    step, stop_in = trainer.Training.step, 2

    def interrupted(self: trainer.Training, batch: Any) -> Any:
        if len(self.epochs) == stop_in:
            raise KeyboardInterrupt
        return step(self, batch)

    def judged(self: trainer.Training) -> tuple[float, float]:
        return 1.0, (0.9, 0.4, 0.5, 0.6)[len(self.epochs)]

    monkeypatch.setattr(trainer.Training, "step", interrupted)
    monkeypatch.setattr(trainer.Training, "validate", judged)
    with pytest.raises(Interrupted, match="after 2 epochs"):
        classify.train("digits", tmp_path / "here", quick())
    (tmp_path / "here").rename(tmp_path / "there")
    stop_in = 4
    report = classify.resume(tmp_path / "there")
    assert report.training["kept_epoch"] == 1
    classify.train("digits", tmp_path / "whole", quick())
    whole, moved = (classify.load(tmp_path / f).model.state_dict() for f in ("whole", "there"))
    for name in whole:
        assert torch.equal(whole[name], moved[name]), name


def test_training_and_prediction_agree_on_the_device() -> None:
    trained = find_device("auto").type
    assert trained == ("cuda" if torch.cuda.is_available() else "cpu")


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    checkpoints = tmp_path / "checkpoints"
    checkpoints.mkdir()
    for name in ("best.ckpt", "last.ckpt", ".best.ckpt.12", ".last.ckpt.34", "mine"):
        (checkpoints / name).touch()
    drop_checkpoints(tmp_path)
    assert [path.name for path in checkpoints.iterdir()] == ["mine"]
    (checkpoints / "mine").unlink()
    (checkpoints / ".last.ckpt.56").touch()
    drop_checkpoints(tmp_path)
    assert not checkpoints.exists()


def test_a_loss_that_is_not_finite_is_an_input_error(tmp_path: Path) -> None:
    lines = [json.dumps({"text": [[i % 2]] * 400, "label": i % 2}) + "\n" for i in range(60)]
    (tmp_path / "x.jsonl").write_text("".join(lines))
    wild = quick(cell="rnn", activation="relu", learning_rate=10.0, clip=1e6, epochs=30)
    with pytest.raises(InputError, match="not finite"):
        classify.train(str(tmp_path / "x.jsonl"), tmp_path / "run", wild)


@pytest.mark.slow
def test_real_reviews(tmp_path: Path) -> None:
    """A few thousand real sentences: far better than guessing, within a minute."""
    data = os.environ.get("CELLO_DATA")
    if not data:
        pytest.skip("CELLO_DATA does not name a folder with text/rt_polarity.tsv.gz")
    options = classify.Options(hidden=32, embedding=50, epochs=3, batch_size=64, device="cpu")
    report = classify.train(str(Path(data, "text", "rt_polarity.tsv.gz")), tmp_path / "a", options)
    assert report.majority < 0.51
    assert report.accuracy > 0.70
