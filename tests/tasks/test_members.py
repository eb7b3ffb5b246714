"""Several networks that learn side by side: what they answer, and what each of them learns."""

from __future__ import annotations

import math
from datetime import date, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors import safe_open
from torch import Tensor

from cello.tasks import (
    Classifier,
    ClassifierOptions,
    Forecaster,
    ForecasterOptions,
    Tagger,
    TaggerOptions,
    ngrams,
)  # fmt: skip
from cello.tasks.batches import pad
from cello.tasks.classify.network import Classifiers, SequenceClassifier
from cello.tasks.errors import InputError, Interrupted
from cello.tasks.members import each, mean_of_probabilities, plain

WORDS = ["the", "film", "was", "fine", "and", "great", "but", "dull", "or", "poor"]
ROWS = [(" ".join(WORDS[(i * k) % 10] for k in range(2, 9)), "abc"[i % 3]) for i in range(60)]
QUICK: dict[str, Any] = {"hidden": 5, "embedding": 4, "epochs": 2, "device": "cpu"}
SENTENCES = [
    [("I", "PRON"), ("walk", "VERB"), ("a", "DET"), ("walk", "NOUN")],
    [("big", "ADJ"), ("talk", "NOUN")],
] * 20
TAGGER: dict[str, Any] = {
    "hidden": 4, "embedding": 3, "character_embedding": 3, "character_hidden": 3,
    "affix_embedding": 2, "epochs": 2, "device": "cpu",
}  # fmt: skip


def test_the_mean_is_of_probabilities_not_of_logits() -> None:
    logits = [torch.tensor([[10.0, 0.0]]), torch.tensor([[0.0, 1.0]])]
    right = sum(np.exp(one[0].numpy()) / np.exp(one[0].numpy()).sum() for one in logits) / 2
    np.testing.assert_allclose(mean_of_probabilities(logits, 1).exp()[0], right, rtol=1e-6)


def probabilities_of_each(model: Classifier, texts: list[str]) -> list[Tensor]:
    model.model.eval()
    x, lengths = pad(model.encode(texts, texts))
    with torch.inference_mode():
        return [one(x, lengths).softmax(1) for one in each(model.model)]


@pytest.mark.parametrize("changes", [{}, {"adversarial": 0.5}, {"pretrain": 1}], ids=str)
def test_classifiers(tmp_path: Path, changes: dict[str, Any]) -> None:
    options = ClassifierOptions(**QUICK, members=3, **changes)
    report = Classifier.train(ROWS, tmp_path / "run", options)
    model = Classifier.load(tmp_path / "run")
    apart = probabilities_of_each(model, [text for text, _ in ROWS[:5]])
    assert len(apart) == 3
    assert not torch.allclose(apart[0], apart[1])
    answers = model.predict([text for text, _ in ROWS[:5]])
    for row, answer in zip((apart[0] + apart[1] + apart[2]) / 3, answers, strict=True):
        assert list(answer.probabilities.values()) == pytest.approx(row.tolist(), rel=1e-5)  # type: ignore[union-attr]
    assert report.training["weights"] == 3 * sum(
        p.numel() for p in model.model.members[0].parameters()
    )  # type: ignore[union-attr]


def test_each_learns_as_it_would_alone() -> None:
    """The gradient of each is that of its own loss, and its weights are its own."""
    torch.manual_seed(0)
    options = ClassifierOptions(**QUICK, dropout=0.0, embedding_dropout=0.0)

    def make() -> SequenceClassifier:
        return SequenceClassifier(options, 3, vocabulary=12, features=None)

    together = Classifiers(make, 2)
    x, lengths, targets = torch.randint(2, 12, (4, 6)), torch.full((6,), 4), torch.arange(6) % 3
    loss = together.loss(x, lengths, targets)
    loss.backward()
    losses = []
    for one in each(together):
        alone = make()
        alone.load_state_dict(one.state_dict())
        losses.append(alone.loss(x, lengths, targets))
        losses[-1].backward()
        for mine, its in zip(one.parameters(), alone.parameters(), strict=True):
            torch.testing.assert_close(2 * mine.grad, its.grad)
    torch.testing.assert_close(loss, (losses[0] + losses[1]) / 2)


def test_one_network_has_the_names_of_a_model_without_members(tmp_path: Path) -> None:
    names = []
    for count in (1, 2):
        folder = tmp_path / str(count)
        Classifier.train(ROWS, folder, ClassifierOptions(**QUICK, members=count))
        with safe_open(folder / "model.safetensors", "pt") as file:
            names.append(sorted(file.keys()))
    assert names[1] == sorted(f"members.{i}.{name}" for i in (0, 1) for name in names[0])
    assert {plain(name) for name in names[1]} == set(names[0])


def test_a_resumed_run_ends_as_one_that_was_not_stopped(tmp_path: Path, interrupt: Any) -> None:
    options = ClassifierOptions(**QUICK, members=2, checkpoint_every=1)
    Classifier.train(ROWS, tmp_path / "whole", options)
    interrupt.at_step(2)
    with pytest.raises(Interrupted):
        Classifier.train(ROWS, tmp_path / "parts", options)
    Classifier.resume(tmp_path / "parts", ROWS)
    whole, parts = (Classifier.load(tmp_path / f).model.state_dict() for f in ("whole", "parts"))
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


def test_numbers_are_scaled_for_each(tmp_path: Path) -> None:
    options = ClassifierOptions(hidden=4, epochs=1, members=2, device="cpu")
    Classifier.train("digits", tmp_path / "run", options)
    one, other = each(Classifier.load(tmp_path / "run").model)
    assert torch.equal(one.mean, other.mean)
    assert one.scale.min() > 0
    assert one.mean.abs().sum() > 0


def test_word_vectors_are_for_each(tmp_path: Path) -> None:
    file = tmp_path / "vectors.txt"
    file.write_text("film 1 2 3 4\ndull 5 6 7 8\n")
    options = ClassifierOptions(
        **{**QUICK, "epochs": 1}, members=2, vectors=str(file), freeze_embedding=True
    )
    Classifier.train(ROWS, tmp_path / "run", options)
    model = Classifier.load(tmp_path / "run")
    row = model.tokenizer.token_to_id("dull")  # type: ignore[union-attr]
    for one in each(model.model):
        assert one.embedding.weight[row].tolist() == [5, 6, 7, 8]


@pytest.mark.parametrize("before", [1, 2])
@pytest.mark.parametrize("after", [1, 3])
def test_fine_tuning(tmp_path: Path, before: int, after: int) -> None:
    """Each goes on from its namesake, or from the first one."""
    Classifier.train(ROWS, tmp_path / "old", ClassifierOptions(**QUICK, members=before))
    still = ClassifierOptions(
        **{**QUICK, "epochs": 1},
        members=after,
        learning_rate=1e-8,
        start_from=str(tmp_path / "old"),
    )
    report = Classifier.train(ROWS, tmp_path / "new", still)
    assert report.training["notes"][0].endswith("embedding (10 of 10 tokens), recurrent, linear")
    old, new = (each(Classifier.load(tmp_path / name).model) for name in ("old", "new"))
    for i, one in enumerate(new):
        namesake = old[i] if i < len(old) else old[0]
        for here, there in zip(one.parameters(), namesake.parameters(), strict=True):
            torch.testing.assert_close(here, there, atol=1e-6, rtol=0.0)


def test_ngrams_are_counted_once(tmp_path: Path) -> None:
    options = ngrams.Options(**QUICK, members=2, ngram_bits=8)
    ngrams.train(ROWS, tmp_path / "run", options)
    model = ngrams.load(tmp_path / "run")
    first, second = each(model.model)
    assert not hasattr(second, "ngrams")
    x, lengths = pad(model.encode([ROWS[0][0]], ["here"]))
    with torch.inference_mode():
        apart = [one.read(one.embed(x), lengths).softmax(1) for one in (first, second)]
        right = ((apart[0] + apart[1]) / 2 * first.ngrams(x, lengths).softmax(1)).sqrt()
    answer = model.predict(ROWS[0][0])
    right = right[0] / right.sum()
    assert list(answer.probabilities.values()) == pytest.approx(right.tolist(), rel=1e-5)


@pytest.mark.parametrize("output", ["linear", "crf"])
def test_taggers(tmp_path: Path, output: str) -> None:
    Tagger.train(SENTENCES, tmp_path / "run", TaggerOptions(**TAGGER, output=output, members=2))
    model = Tagger.load(tmp_path / "run")
    words = [word for word, _ in SENTENCES[0]]
    batch = model.encoder.batch([words], [[0] * len(words)])
    with torch.inference_mode():
        apart = [one.probabilities(one(batch), batch.lengths) for one in each(model.model)]
    best = ((apart[0] + apart[1]) / 2)[:, 0].max(1)
    (answer,) = model.predict([words])
    assert answer.tags == [model.labels[i] for i in best.indices.tolist()]
    assert answer.probabilities == pytest.approx(best.values.tolist(), rel=1e-5)


def test_forecasters(tmp_path: Path) -> None:
    file = tmp_path / "waves.csv"
    days = (date(2020, 1, 1) + timedelta(i) for i in range(200))
    rows = (f"{day},{10 + math.sin(i / 3)}" for i, day in enumerate(days))
    file.write_text("\n".join(["time,value", *rows]))
    options = ForecasterOptions(
        hidden=6, epochs=2, window=14, horizon=5, patch=7, calendar=False, members=3, device="cpu"
    )
    Forecaster.train(str(file), tmp_path / "run", options)
    model = Forecaster.load(tmp_path / "run")
    inputs = torch.randn(14, 2, 1), torch.zeros(14, 2, 0), torch.zeros(5, 2, 0)
    with torch.inference_mode():
        apart = torch.stack([one(*inputs) for one in each(model.model)])
    assert not torch.allclose(apart[0], apart[1])
    np.testing.assert_allclose(model.outputs(*inputs)[..., 0], apart.mean(0)[..., 0], rtol=1e-5)
    # The intervals are those of the mean: measured on it, and kept with the first network.
    assert model.model.calibrated.item() > 0
    assert model.model.margins.abs().sum() > 0


@pytest.mark.parametrize("count", [0, 101])
def test_how_many(count: int) -> None:
    with pytest.raises(InputError, match="members"):
        ClassifierOptions(members=count)
