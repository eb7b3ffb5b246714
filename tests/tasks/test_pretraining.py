"""Learning the neighbours of each token before the labels."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import nn

from cello.tasks import Classifier, ClassifierOptions, language
from cello.tasks.classify.network import SequenceClassifier
from cello.tasks.classify.pretraining import Neighbours, SampledSoftmax
from cello.tasks.errors import InputError, Interrupted

WORDS = ["the", "film", "was", "fine", "and", "great", "but", "dull", "or", "poor"]
ROWS = [(" ".join(WORDS[(i * k) % 10] for k in range(2, 9)), "ab"[i % 2]) for i in range(60)]
QUICK: dict[str, Any] = {"hidden": 5, "embedding": 4, "epochs": 2, "device": "cpu"}


def test_all_tokens_are_a_softmax() -> None:
    torch.manual_seed(0)
    softmax = SampledSoftmax(6, torch.arange(9), samples=9)
    x, targets = torch.randn(20, 6, requires_grad=True), torch.randint(9, (20,))
    nn.init.normal_(softmax.bias.weight)
    total = softmax(x, targets)
    scores = x @ softmax.weight.weight.T + softmax.bias.weight[:, 0]
    exact = nn.functional.cross_entropy(scores, targets, reduction="sum")
    assert total.item() == pytest.approx(exact.item(), rel=1e-5)
    weights = [x, softmax.weight.weight, softmax.bias.weight]
    for found, right in zip(
        torch.autograd.grad(total, weights), torch.autograd.grad(exact, weights), strict=True
    ):
        torch.testing.assert_close(found, right, rtol=1e-4, atol=1e-5)


def test_samples_are_about_a_softmax_over_all_tokens() -> None:
    """Over the tokens that the training set has; those without a count are never drawn."""
    torch.manual_seed(0)
    counts = torch.tensor([0, 0, *(1000 // k for k in range(1, 400))])
    softmax = SampledSoftmax(6, counts, samples=300)
    x, targets = torch.randn(50, 6), torch.randint(2, 401, (50,))
    nn.init.normal_(softmax.bias.weight)
    nn.init.normal_(softmax.weight.weight, std=0.3)
    scores = (x @ softmax.weight.weight.T + softmax.bias.weight[:, 0])[:, 2:]
    exact = nn.functional.cross_entropy(scores, targets - 2, reduction="sum").item()
    found = torch.stack([softmax(x, targets) for _ in range(200)]).mean().item()
    assert found == pytest.approx(exact, rel=0.01)


def classifier(**changes: Any) -> SequenceClassifier:
    torch.manual_seed(1)
    options = ClassifierOptions(**{**QUICK, **changes})
    return SequenceClassifier(options, 2, vocabulary=12, features=None).eval()


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("cell", ["lstm", "torch-lstm"])
def test_each_text_by_hand(bidirectional: bool, cell: str) -> None:
    model = classifier(bidirectional=bidirectional, cell=cell)
    neighbours = Neighbours(model, torch.ones(12)).eval()
    softmax, layer = neighbours.softmax, model.recurrent
    other = nn.LSTM(4, 5, bidirectional=bidirectional)
    other.load_state_dict({k.removeprefix("layer."): v for k, v in layer.state_dict().items()})
    texts = [torch.tensor(ids) for ids in ([5, 7, 3, 9], [4], [8, 2])]
    total, count = 0.0, 0
    for ids in texts:
        output, _ = other(model.embedding(ids))  # type: ignore[misc]  # there is one
        for here in range(len(ids)):
            for there, vector in ((here + 1, output[here, :5]), (here - 1, output[here, 5:])):
                if len(vector) and 0 <= there < len(ids):
                    scores = softmax.weight.weight @ vector + softmax.bias.weight[:, 0]
                    total -= scores.log_softmax(0)[ids[there]].item()
                    count += 1
    lengths = torch.tensor([4, 1, 2])
    found, predicted = neighbours.loss(nn.utils.rnn.pad_sequence(texts), lengths)
    assert predicted == count == (8 if bidirectional else 4)
    assert found.item() == pytest.approx(total, rel=1e-5)


def test_a_layer_that_reads_backwards_predicts_the_token_before() -> None:
    from cello.nn import LSTMCell, Recurrent

    model = classifier(bidirectional=False)
    model.recurrent = Recurrent(LSTMCell(4, 5), reverse=True)
    ids = torch.tensor([[3], [4], [5]])
    model(ids, torch.tensor([3]))  # its sizes are known from now on
    neighbours = Neighbours(model, torch.ones(12)).eval()
    found, count = neighbours.loss(ids, torch.tensor([3]))
    output, _ = model.recurrent(model.embedding(ids))  # type: ignore[misc]
    scores = output[1:, 0] @ neighbours.softmax.weight.weight.T
    exact = nn.functional.cross_entropy(scores, ids[:-1, 0], reduction="sum")
    assert count == 2
    assert found.item() == pytest.approx(exact.item(), rel=1e-5)


def test_texts_of_one_token_have_nothing_to_predict() -> None:
    found, count = Neighbours(classifier(), torch.ones(12)).loss(
        torch.tensor([[3, 4]]), torch.tensor([1, 1])
    )
    assert (found.item(), count) == (0.0, 1)


def test_it_learns_which_tokens_follow(tmp_path: Path) -> None:
    rows = [("one two three four five six", "a"), ("six five four three two one", "b")] * 40
    options = ClassifierOptions(**{**QUICK, "hidden": 16, "batch_size": 8}, pretrain=25)
    report = Classifier.train(rows, tmp_path / "run", options)
    losses = [epoch["valid_loss"] for epoch in report.training["pretraining"]]
    assert len(losses) == 25
    assert losses[-1] < 0.5 * losses[0]
    assert (tmp_path / "run" / "pretraining" / "history.csv").exists()
    assert not list(tmp_path.rglob("*.ckpt"))
    Classifier.train(rows, tmp_path / "run", ClassifierOptions(**QUICK), overwrite=True)
    assert not (tmp_path / "run" / "pretraining").exists()


@pytest.mark.parametrize("stop", [3, 7])
def test_resuming_before_and_after(tmp_path: Path, interrupt: Any, stop: int) -> None:
    """Two epochs of two steps each, then two of the labels: stopped in the second and in the fourth."""
    options = ClassifierOptions(**QUICK, pretrain=2, checkpoint_every=1, valid_fraction=0.02)
    Classifier.train(ROWS, tmp_path / "whole", options)
    interrupt.at_step(stop)
    with pytest.raises(Interrupted, match="1 epoch of pretraining" if stop == 3 else "1 epoch$"):
        Classifier.train(ROWS, tmp_path / "parts", options)
    with pytest.raises(InputError, match="training is not finished"):
        Classifier.load(tmp_path / "parts")
    report = Classifier.resume(tmp_path / "parts", ROWS)
    assert interrupt.calls == 9  # the stopped one again
    assert len(report.training["pretraining"]) == 2
    whole, parts = (Classifier.load(tmp_path / f).model.state_dict() for f in ("whole", "parts"))
    for name in whole:
        assert torch.equal(whole[name], parts[name]), name


def test_what_cannot_be_pretrained(tmp_path: Path) -> None:
    with pytest.raises(InputError, match=r"pretrain: the second of 2 bidirectional layers"):
        ClassifierOptions(pretrain=1, layers=2)
    ClassifierOptions(pretrain=1, layers=2, bidirectional=False)
    with pytest.raises(InputError, match=r"pretrain: only texts have it"):
        Classifier.train("digits", tmp_path / "run", ClassifierOptions(**QUICK, pretrain=1))
    model = classifier()
    model.recurrent.merge = "sum"  # type: ignore[union-attr]
    with pytest.raises(InputError, match=r"two directions are not side by side"):
        Neighbours(model, torch.ones(12))


def test_a_classifier_goes_on_from_a_language_model(tmp_path: Path) -> None:
    """Whose tokens have the space before a word, and upper case."""
    text = tmp_path / "text.txt"
    text.write_text("The film was dull.\nWe saw a dull film.\nThe Dull film was fine.\n" * 30)
    options = language.Options(tokenizer="word", hidden=5, embedding=4, epochs=1, steps=8)
    language.train(str(text), tmp_path / "language", options)
    still = ClassifierOptions(
        **{**QUICK, "epochs": 1}, learning_rate=1e-8, start_from=str(tmp_path / "language")
    )
    report = Classifier.train(ROWS, tmp_path / "run", still)
    assert "embedding (5 of 10 tokens), part of recurrent" in report.training["notes"][0]
    old, new = language.load(tmp_path / "language"), Classifier.load(tmp_path / "run")
    assert new.tokenizer is not None
    for word, token in (("dull", " dull"), ("film", " film"), ("was", " was")):
        there = old.model.embedding.weight[old.tokenizer.token_to_id(token)]
        here = new.model.embedding.weight[new.tokenizer.token_to_id(word)]  # type: ignore[union-attr]
        torch.testing.assert_close(here, there, atol=1e-6, rtol=0.0)
    torch.testing.assert_close(
        new.model.recurrent.weight_hh_l0, old.model.recurrent.weight_hh_l0, atol=1e-6, rtol=0.0
    )


def test_a_language_model_goes_on_from_a_language_model(tmp_path: Path) -> None:
    """The same characters, more or less frequent: each has its own row of the output layer too."""
    for name, text in (("old", "aaaabbbc\n" * 60), ("new", "cccbbaaac\n" * 60)):
        (tmp_path / f"{name}.txt").write_text(text)
    sizes: dict[str, Any] = {"hidden": 5, "embedding": 4, "epochs": 1, "steps": 8}
    old_folder, new_folder = str(tmp_path / "old"), str(tmp_path / "new")
    language.train(str(tmp_path / "old.txt"), old_folder, language.Options(**sizes))
    options = language.Options(**sizes, learning_rate=1e-8, start_from=old_folder)
    language.train(str(tmp_path / "new.txt"), new_folder, options)
    old, new = language.load(old_folder), language.load(new_folder)
    numbers, old_numbers = new.tokenizer.get_vocab(), old.tokenizer.get_vocab()
    assert numbers["a"] != old_numbers["a"]
    for character in "abc":
        for name in ("embedding.weight", "linear.weight", "linear.bias"):
            here, there = new.model.get_parameter(name), old.model.get_parameter(name)
            torch.testing.assert_close(
                here[numbers[character]], there[old_numbers[character]], atol=1e-6, rtol=0.0
            )
