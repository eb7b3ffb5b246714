"""Language models: what is learnt and measured, against long forward passes and numbers by hand."""

from __future__ import annotations

import gzip
import json
import math
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import pandas as pd
import pytest
import torch
from torch import Tensor, nn

import cello
from cello.foreign.structure import Structure
from cello.tasks import compare, language, tag
from cello.tasks.errors import InputError, Interrupted
from cello.tasks.language.network import LanguageNetwork, nats
from cello.tasks.language.streams import Windows, collate
from cello.tasks.language.text import END_ID
from cello.tasks.task import Predictor
from cello.tasks.trainer import Carried, Training

SMALL = language.Options(
    hidden=8, embedding=6, steps=5, batch_size=3, epochs=2, dropout=0.0, embedding_dropout=0.0,
    device="cpu", threads=1,
)  # fmt: skip
TEXT = "the cat sat on the mat.\nthe dog sat on the log.\n" * 12


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> language.LanguageModel:
    """A small model of characters that has learnt a little."""
    folder = tmp_path_factory.mktemp("language")
    (folder / "text.txt").write_text(TEXT)
    options = replace(SMALL, epochs=5, learning_rate=0.02)
    language.train(folder / "text.txt", folder / "run", options)
    return language.load(folder / "run", device="cpu")


def made(text: str, folder: Path, **changes: Any) -> language.LanguageModel:
    """A model after an epoch of training, which says little."""
    (folder / "made.txt").write_text(text, encoding="utf-8")
    options = replace(SMALL, epochs=1, **changes)
    language.train(folder / "made.txt", folder / "made", options, overwrite=True)
    return language.load(folder / "made", device="cpu")


def long_pass(network: LanguageNetwork, ids: Tensor) -> Tensor:
    """The nats of each token, in one forward pass over all of them, with torch's own functions."""
    start = torch.cat([torch.tensor([END_ID]), ids.long()])[:-1]
    logits, _ = network(start[:, None])
    return -logits[:, 0].double().log_softmax(-1)[torch.arange(len(ids)), ids.long()]


def test_windows_hold_each_token_once_and_go_on_in_the_next_batch() -> None:
    ids = torch.arange(3, 40, dtype=torch.int32)  # 37 tokens in 4 streams of 9 or 10
    windows = Windows(ids, 4, 3)
    assert len(windows) == 4 * 4
    batches = [collate(windows[k : k + 4]) for k in range(0, 16, 4)]
    assert [int(number) for number, _, _ in batches] == [0, 1, 2, 3]
    assert [tuple(x.shape) for _, x, _ in batches] == [(3, 4)] * 3 + [(1, 4)]
    y = torch.cat([y for _, _, y in batches])
    x = torch.cat([x for _, x, _ in batches])
    streams = [column[column >= 0] for column in y.unbind(1)]
    assert torch.cat(streams).tolist() == ids.tolist()
    assert [len(one) for one in streams] == [9, 9, 9, 10]
    told = y >= 0
    assert x[told].tolist() == [END_ID if t == 3 else t - 1 for t in y[told].tolist()]


class Moments(NamedTuple):
    mean: Tensor
    rest: tuple[Tensor, Tensor]


class NestedCell(nn.Module):
    """A cell whose state is nested, with parts of different widths."""

    def __init__(self, input_size: int, hidden_size: int) -> None:
        super().__init__()
        self.a, self.b = nn.Linear(input_size + 3, hidden_size), nn.Linear(hidden_size, 3)
        self.hidden_size = hidden_size

    def forward(self, x: Tensor, state: Moments) -> tuple[Tensor, Moments]:
        h = torch.tanh(self.a(torch.cat([x, state.mean], -1)) + state.rest[0])
        mean = 0.5 * (state.mean + self.b(h))
        return h + state.rest[1], Moments(mean, (0.5 * h, state.rest[1] * 0.9 + h))

    def initial_state(self, size: int) -> Moments:
        zeros = torch.zeros(size, self.hidden_size)
        return Moments(torch.zeros(size, 3), (zeros, zeros))


def with_nested_cell(network: LanguageNetwork) -> LanguageNetwork:
    torch.manual_seed(1)
    width = network.embedding.embedding_dim
    network.recurrent = cello.Recurrent(  # type: ignore[assignment]  # any layer of Cello will do
        NestedCell(width, SMALL.hidden),
        state_size=Moments(3, (SMALL.hidden, SMALL.hidden)),  # type: ignore[arg-type]
    )
    _, state = network.recurrent(torch.zeros(1, 1, width))
    network.structure = Structure.of(state)
    return network


@pytest.mark.parametrize(("nested", "layers"), [(False, 1), (False, 2), (True, 1)])
def test_the_loss_with_a_carried_state_is_that_of_a_long_pass(
    model: language.LanguageModel, nested: bool, layers: int
) -> None:
    own = language.LanguageModel(
        replace(model.config, options=replace(SMALL, layers=layers)),
        {"tokenizer.json": model.tokenizer.to_str()},
        "cpu",
    )
    if nested:
        with_nested_cell(own.model)
    own.model.double()
    ids = torch.randint(3, 12, (53,), dtype=torch.int32)
    windows, carried, total, count = Windows(ids, 2, 5), Carried(), 0.0, 0
    for first in range(0, len(windows), 2):
        loss, number = own._loss(carried, collate(windows[first : first + 2]))
        total, count = total + loss.item(), count + number
        assert not any(part.requires_grad for part in carried.tensors)
        assert len(carried.tensors) == (3 if nested else 2)
    # Two streams: the second begins with an empty state, and reads the last token of the first.
    logits, _ = own.model(torch.cat([torch.tensor([END_ID]), ids[:25].long()])[:, None])
    first_half = nats(logits, ids[:26, None], reduction="sum")
    logits, _ = own.model(ids[25:52, None])
    second_half = nats(logits, ids[26:, None], reduction="sum")
    assert count == 53
    assert total == pytest.approx((first_half + second_half).item(), rel=1e-6)
    # In an evaluation there is one stream; pieces of 1,000 steps do not show.
    longer = torch.randint(3, 12, (2503,), dtype=torch.int32)
    torch.testing.assert_close(own.nats(longer), long_pass(own.model, longer), rtol=1e-5, atol=1e-5)


def test_gradients_do_not_leave_the_batch(model: language.LanguageModel) -> None:
    """The gradient of the second batch is that of its own steps, from a state taken as given."""
    network, carried = model.model, Carried()
    windows = Windows(torch.randint(3, 12, (20,), dtype=torch.int32), 1, 10)
    model._loss(carried, collate(windows[0:1]))
    state = tuple(part.clone() for part in carried.tensors)
    network.zero_grad()
    loss, _ = model._loss(carried, collate(windows[1:2]))
    loss.backward()
    found = network.recurrent.weight_hh_l0.grad.clone()
    network.zero_grad()
    _, x, y = windows[1]
    logits, _ = network(x[:, None], state)
    nn.functional.cross_entropy(logits[:, 0], y.long(), reduction="sum").backward()
    torch.testing.assert_close(found, network.recurrent.weight_hh_l0.grad)


def test_the_report_is_of_all_tokens(model: language.LanguageModel, tmp_path: Path) -> None:
    (tmp_path / "other.txt").write_text(TEXT[:201])
    report = model.evaluate_source(str(tmp_path / "other.txt"))
    ids = torch.tensor([model.tokenizer.token_to_id(c) for c in TEXT[:201]])
    with torch.no_grad():
        expected = long_pass(model.model, ids)
    assert (report.tokens, report.characters, report.unknown) == (201, 201, 0.0)
    assert report.nats == report.nats_per_character == pytest.approx(expected.mean().item())
    assert report.perplexity == report.score == pytest.approx(math.exp(expected.mean().item()))
    assert report.bits_per_character == pytest.approx(expected.sum().item() / 201 / math.log(2))
    assert len(report.course) <= 100
    assert min(report.course) <= report.bits_per_character <= max(report.course)
    # How often each character is in the training part, by hand, with one added to each.
    train = TEXT[: int(len(TEXT) * 0.9)]
    train = TEXT[: TEXT.index(" ", len(train)) + 1] if TEXT[len(train) - 1] not in " \n" else train
    counts = {c: train.count(c) + 1 for c in set(TEXT)}
    size = model.tokenizer.get_vocab_size()
    assert size == len(counts) + 3
    whole = sum(counts.values()) + 3
    bits = sum(math.log2(whole / counts[c]) for c in TEXT[:201]) / 201
    assert report.baseline["bits_per_character"] == pytest.approx(bits, rel=0.01)
    assert report.perplexity < report.baseline["perplexity"]


@pytest.mark.parametrize("tokenizer", ["char", "word"])
def test_bits_per_character_of_a_model_that_knows_nothing(tmp_path: Path, tokenizer: str) -> None:
    """All V tokens are equally probable: log2 V bits for each token."""
    model = made(TEXT, tmp_path, tokenizer=tokenizer)
    with torch.no_grad():
        model.model.linear.weight.zero_()  # type: ignore[union-attr]
        model.model.linear.bias.zero_()  # type: ignore[union-attr]
    size = model.tokenizer.get_vocab_size()
    score = model.predict("the cat sat on the log.\n")
    assert score.characters == 24
    assert score.tokens == (24 if tokenizer == "char" else 8)  # "the", " cat", ..., ".", "\n"
    assert score.perplexity == pytest.approx(size)
    assert score.bits_per_character == pytest.approx(math.log2(size) * score.tokens / 24)


@pytest.mark.parametrize("prompt", ["the c", ""])
def test_greedy_text_is_the_argmax_of_a_long_pass(
    model: language.LanguageModel, prompt: str
) -> None:
    text, ids = prompt, [END_ID, *(model.tokenizer.token_to_id(c) for c in prompt)]
    for _ in range(30):
        with torch.no_grad():
            logits, _ = model.model(torch.tensor(ids)[:, None])
        logits[-1, 0, :2] = -math.inf
        ids.append(int(logits[-1, 0].argmax()))
        text += model.tokenizer.id_to_token(ids[-1])
    for options in ({"temperature": 0.0}, {"temperature": 1e-9}, {"top_k": 1}, {"top_p": 1e-9}):
        assert prompt + "".join(model.generate(prompt, length=30, **options)) == text  # type: ignore[arg-type]


def test_a_seed_gives_the_same_text_also_after_loading(tmp_path: Path) -> None:
    first = made(TEXT, tmp_path)
    texts = ["".join(first.generate("the", length=60, seed=seed)) for seed in (7, 7, 8)]
    assert texts[0] == texts[1] != texts[2]
    assert "".join(language.load(tmp_path / "made").generate("the", length=60, seed=7)) == texts[0]
    assert len(texts[0]) == 60


def test_a_document_ends_where_the_model_says_so(tmp_path: Path) -> None:
    """Only a model of several documents generates their end, which is not part of the text."""
    one = made(TEXT, tmp_path)
    (tmp_path / "texts").mkdir()
    for k in range(40):
        (tmp_path / "texts" / f"{k:02}.txt").write_text("ab" * (3 + k % 3))
    options = replace(SMALL, epochs=40, patience=40, learning_rate=0.05)
    language.train(tmp_path / "texts", tmp_path / "several", options)
    several = language.load(tmp_path / "several")
    for model in (one, several):
        with torch.no_grad():
            model.model.linear.bias[END_ID] += 3.0  # type: ignore[union-attr]
    assert len("".join(one.generate(length=100, seed=0))) == 100
    lengths = [len("".join(several.generate(length=100, seed=seed))) for seed in range(10)]
    assert max(lengths) < 20
    report = several.evaluate_source(str(tmp_path / "texts"))
    assert report.tokens == report.characters == sum(2 * (3 + k % 3) + 1 for k in range(40)) - 1


def test_tokens_are_drawn_as_often_as_they_are_probable() -> None:
    from cello.tasks.language.generate import Choice

    scores = torch.tensor([2.0, 0.0, 1.0, -math.inf])
    halved = torch.tensor([4.0, 0.0, 2.0, -math.inf]).double().softmax(0)
    torch.testing.assert_close(Choice(0.5).probabilities(scores), halved)
    p = scores.double().softmax(0)
    top = Choice(top_k=2).probabilities(scores)
    torch.testing.assert_close(top, torch.stack([p[0], p[1] * 0, p[2], p[3]]) / (p[0] + p[2]))
    assert Choice(top_p=float(p[0]) - 0.01).probabilities(scores).tolist() == [1.0, 0, 0, 0]
    torch.testing.assert_close(Choice(top_p=float(p[0]) + 0.01).probabilities(scores), top)
    generator = torch.Generator().manual_seed(0)
    drawn = torch.tensor([Choice().draw(scores, generator) for _ in range(4000)])
    torch.testing.assert_close(
        torch.bincount(drawn, minlength=4) / 4000, p.float(), atol=0.03, rtol=0
    )


@pytest.mark.parametrize(
    ("keywords", "message"),
    [
        ({"temperature": -0.5}, "temperature: -0.5"),
        ({"temperature": math.nan}, "temperature: nan"),
        ({"top_k": 0}, "top-k: 0"),
        ({"top_p": 1.5}, "top-p: 1.5"),
        ({"length": -1}, "length: -1"),
        ({"seed": -1}, "seed: -1"),
        ({"seed": 2**31}, "seed: 2147483648"),
        ({"prompt": 3}, "prompt: int"),
        ({"length": "3"}, "length: '3' is not a whole number"),
        ({"temperature": "1"}, "temperature: '1' is not a number"),
        ({"top_k": 2.0}, "top-k: 2.0 is not a whole number"),
        ({"seed": 1.0}, "seed: 1.0 is not a whole number"),
    ],
)
def test_wrong_values_are_refused_at_once(
    model: language.LanguageModel, keywords: dict[str, Any], message: str
) -> None:
    with pytest.raises(InputError, match=message):
        model.generate(**keywords)


def test_reading_backward_is_refused(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    for changes in ({"cell_args": {"reverse": True}}, {"bidirectional": True}):
        with pytest.raises(InputError, match="a language model reads forward only"):
            language.train(tmp_path / "text.txt", tmp_path / "run", replace(SMALL, **changes))
    assert not (tmp_path / "run").exists()


def test_unknown_characters_are_counted_and_never_generated(model: language.LanguageModel) -> None:
    assert model.unknown("the ŷ") == 0.2
    assert "[" not in "".join(model.generate("ŷŷŷ", length=200, temperature=5.0, seed=0))
    score = model.predict("ŷŷŷŷ")
    assert (score.unknown, score.characters) == (1.0, 4)


def test_empty_texts_have_no_score(model: language.LanguageModel) -> None:
    empty, some = model.predict(["", "a"])
    assert (empty.tokens, empty.perplexity, empty.bits_per_character) == (0, None, None)
    assert some.perplexity is not None
    with pytest.raises(InputError, match="text 1: int"):
        model.predict([3])  # type: ignore[list-item]


def test_tied_weights(tmp_path: Path) -> None:
    plain = made(TEXT, tmp_path, embedding=8)
    tied = made(TEXT, tmp_path, embedding=8, tied=True)
    projected = made(TEXT, tmp_path, embedding=6, tied=True)
    size = plain.tokenizer.get_vocab_size()
    sizes = [sum(p.numel() for p in one.model.parameters()) for one in (plain, tied, projected)]
    layer = [4 * 8 * (width + 8) + 8 * 8 for width in (8, 8, 6)]
    assert sizes == [
        8 * size + layer[0] + 8 * size + size,
        8 * size + layer[1] + size,
        6 * size + layer[2] + (8 * 6 + 6) + size,
    ]
    output = torch.randn(1, 1, 8)
    expected = output @ tied.model.embedding.weight.T + tied.model.bias
    torch.testing.assert_close(tied.model._scores(output), expected)
    assert {"embedding.weight", "recurrent.weight_hh_l0"} <= tied.model.state_dict().keys()


def test_bfloat16_carries_its_state_too(tmp_path: Path) -> None:
    model = made(TEXT, tmp_path, precision="bfloat16")
    assert model.evaluate_source(str(tmp_path / "made.txt")).perplexity < 30


def test_a_run_stopped_within_an_epoch_ends_at_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    options = replace(SMALL, layers=2, dropout=0.2, checkpoint_every=1)
    language.train(tmp_path / "text.txt", tmp_path / "whole", options)
    step, steps = Training.step, 0

    def stopped(self: Training, batch: Any) -> Any:
        nonlocal steps
        steps += 1
        if steps == 4:  # of 35: the state of three batches is in the checkpoint
            raise KeyboardInterrupt
        return step(self, batch)

    monkeypatch.setattr(Training, "step", stopped)
    with pytest.raises(Interrupted):
        language.train(tmp_path / "text.txt", tmp_path / "stopped", options)
    language.resume(tmp_path / "stopped")
    whole, resumed = (language.load(tmp_path / name).model for name in ("whole", "stopped"))
    for name, weight in whole.state_dict().items():
        assert torch.equal(weight, resumed.state_dict()[name]), name


def test_a_state_begins_anew_in_each_epoch(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    given: list[bool] = []
    forward = LanguageNetwork.forward

    def watched(self: LanguageNetwork, ids: Tensor, state: Any = None) -> Any:
        if self.training:
            given.append(state is not None)
        return forward(self, ids, state)

    monkeypatch.setattr(LanguageNetwork, "forward", watched)
    language.train(tmp_path / "text.txt", tmp_path / "run", SMALL)
    batches = len(given) // 2
    assert batches > 30
    assert given == 2 * ([False] + [True] * (batches - 1))


def test_the_folder_and_the_picture(tmp_path: Path) -> None:
    made(TEXT, tmp_path)
    names = {path.name for path in (tmp_path / "made").iterdir()}
    assert names == {
        "config.json", "history.csv", "curves.png",
        "options.yaml", "model.safetensors", "tokenizer.json", "report.json",
        "language.png",
    }  # fmt: skip
    report = json.loads((tmp_path / "made" / "report.json").read_text())
    assert report["training"]["characters"]["train"] + report["characters"] == len(TEXT)
    assert isinstance(Predictor.load(tmp_path / "made"), language.LanguageModel)


def test_a_gzip_file_is_the_same_text(tmp_path: Path) -> None:
    (tmp_path / "text.txt").write_text(TEXT)
    (tmp_path / "text.txt.gz").write_bytes(gzip.compress(TEXT.encode()))
    options = replace(SMALL, epochs=1)
    reports = [
        language.train(tmp_path / name, tmp_path / f"{name}.run", options)
        for name in ("text.txt", "text.txt.gz")
    ]
    assert reports[0].nats == reports[1].nats


def test_texts_in_memory_are_read_as_those_of_a_file(tmp_path: Path) -> None:
    documents = [TEXT, "", "the cat sat.\r\n"]
    lines = [json.dumps({"text": text}) + "\n" for text in documents]
    (tmp_path / "texts.jsonl").write_text("".join(lines))
    options = replace(SMALL, epochs=1)
    reports = [
        language.train(source, tmp_path / str(i), options)
        for i, source in enumerate(
            [
                tmp_path / "texts.jsonl",
                documents,
                pd.DataFrame({"text": [TEXT, None, documents[2]], "other": 1}),
                {"text": np.array(documents)},
            ]
        )
    ]
    assert len({report.nats for report in reports}) == 1
    parts = {"train": [TEXT], "validation": ["the cat"], "test": ["the dog sat"]}
    report = language.train(parts, tmp_path / "parts", options)
    assert (report.characters, report.data) == (len("the dog sat"), "data, test set")
    model = language.load(tmp_path / "parts")
    assert model.evaluate(parts).nats == model.evaluate(["the dog sat"]).nats == report.nats
    resumed = tmp_path / "resumed"
    with pytest.raises(InputError, match=r"data, text 1: int, where a text is expected"):
        language.train(["a", 1], resumed, options)
    with pytest.raises(InputError, match="a text in memory goes in a list"):
        language.train(TEXT * 10, resumed, options)
    with pytest.raises(InputError, match="data: there is no text in it"):
        language.train([""], resumed, options)
    with pytest.raises(
        InputError, match=r"options: cello.tasks.tag.options.Options, where cello.tasks.language"
    ):
        language.train([TEXT], resumed, tag.Options())  # type: ignore[arg-type]
    assert not resumed.exists()


def test_scores_of_a_table_are_those_of_its_texts(
    model: language.LanguageModel, tmp_path: Path
) -> None:
    texts = ["the cat", "the dog sat on the mat", ""]
    expected = model.predict(texts)
    frame = pd.DataFrame({"id": [1, 2, 3], "text": [*texts[:2], None]})
    assert model.predict(frame) == model.predict({"text": texts}) == expected
    assert model.predict(np.array(texts)) == expected
    (tmp_path / "texts.jsonl").write_text("".join(json.dumps({"text": t}) + "\n" for t in texts))
    assert model.predict(tmp_path / "texts.jsonl") == expected
    for wrong, message in [(None, "texts: NoneType"), (5, "texts: int"), ([5], "text 1: int")]:
        with pytest.raises(InputError, match=message):
            model.predict(wrong)


@pytest.mark.parametrize("folder", ["", None, 5, b"run"])
def test_a_folder_is_a_path(folder: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """An empty one is an unset variable, and not the folder where the program runs."""
    monkeypatch.chdir(tmp_path)
    for name, act in [
        ("out", lambda: language.train([TEXT], folder, SMALL)),
        ("out", lambda: language.resume(folder)),
        ("folder", lambda: language.load(folder)),
        ("out", lambda: compare([TEXT], folder, "lstm", task="language")),
    ]:
        with pytest.raises(InputError, match=rf"{name}: .* where the path of a folder is expected"):
            act()
    assert not list(tmp_path.iterdir())
