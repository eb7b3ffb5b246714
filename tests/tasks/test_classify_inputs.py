"""Inputs of other forms: one step a row, images, characters; and how the network reads them."""

from __future__ import annotations

import gzip
import json
import struct
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from cello.tasks import classify
from cello.tasks.batches import pad
from cello.tasks.classify import Classifier, InputError, Options
from cello.tasks.classify.data import read
from cello.tasks.classify.text import encode, train_tokenizer
from cello.tasks.folder import Config

SMALL = {"hidden": 8, "embedding": 8, "epochs": 2, "device": "cpu"}


def steps(path: Path, count: int = 60, extra: str = "") -> Path:
    """Sequences of 2 to 5 steps whose class is the sign of their numbers."""
    lines = ["seq,label,group,a,b"]
    for i in range(count):
        sign = 1 if i % 2 else -1
        lines += [f"{i},{sign},{i // 3},{sign * (t + 1)},{0.5 * i}" for t in range(2 + i % 4)]
    path.write_text("\n".join(lines) + "\n" + extra)
    return path


def test_one_step_a_row(tmp_path: Path) -> None:
    options = Options(sequence_column="seq", group_column="group")
    source = read(str(steps(tmp_path / "x.csv")), options)
    assert source.format == "steps"
    part = source.parts["train"]
    assert len(part) == 60
    assert part[5].input.dtype == np.float64
    assert part[5].input.tolist() == [[1, 2.5], [2, 2.5], [3, 2.5]]
    assert (part[5].label, part[5].group) == ("1", "1")
    options = Options(sequence_column="seq", feature_columns="b")
    assert read(str(tmp_path / "x.csv"), options).parts["train"][5].input.shape == (3, 1)


def test_rows_that_stand_twice(tmp_path: Path) -> None:
    (tmp_path / "x.csv").write_text("label,text\na,one\nb,one\na,one\na,two\nb,one\n")
    for distinct, count in ((False, 5), (True, 3)):
        part = read(str(tmp_path / "x.csv"), Options(distinct=distinct)).parts["train"]
        assert len(part) == count
    assert [(row.label, row.input) for row in part] == [("a", "one"), ("b", "one"), ("a", "two")]


@pytest.mark.parametrize(
    ("extra", "expected"),
    [
        ("3,1,9,1,1\n", "line 212: the rows of the sequence '3' do not stand together"),
        ("70,1,9,1,1\n70,-1,9,1,1\n", "line 213: 'label' is '-1' here, and '1' in an earlier step"),
        ("70,1,9,one,1\n", "line 212: 'a' is 'one', not a number"),
        ("70,1,9,,1\n", "line 212: 'a' is '', not a number"),
        ("70,1,9,nan,1\n", "line 212: 'a' is 'nan', not finite in float32"),
        ("70,1,9,1e39,1\n", "line 212: 'a' is '1e39', not finite in float32"),
    ],
)
def test_broken_steps(tmp_path: Path, extra: str, expected: str) -> None:
    path = steps(tmp_path / "x.csv", extra=extra)
    with pytest.raises(InputError, match=expected):
        read(str(path), Options(sequence_column="seq", group_column="group"))


def test_a_part_of_steps_needs_no_group_and_has_columns_by_name(tmp_path: Path) -> None:
    path = steps(tmp_path / "x.csv")
    (tmp_path / "t.csv").write_text("b,label,seq,a,more\n0.5,1,0,7,9\n0.25,1,0,8,9\n,,1,,\n")
    options = Options(
        sequence_column="seq", group_column="group", test_data=str(tmp_path / "t.csv")
    )
    with pytest.raises(InputError, match=r"t.csv, line 4: 'a' is '', not a number"):
        read(str(path), options)
    (tmp_path / "t.csv").write_text("b,label,seq,a,more\n0.5,1,0,7,9\n0.25,1,0,8,9\n3,,1,2,3\n")
    source = read(str(path), options)
    (row,) = source.parts["test"]
    assert (row.input.tolist(), row.label) == ([[7, 0.5], [8, 0.25]], "1")
    place = f"{tmp_path / 't.csv'}, line 4"
    missing = f"1 row is left out where something is missing ({place} has no label)"
    assert source.notes == [f"{tmp_path / 't.csv'}: {missing}"]


def test_steps_from_training_to_prediction(tmp_path: Path) -> None:
    from cello.tasks.task import Request

    path = steps(tmp_path / "x.csv")
    quick = {**SMALL, "epochs": 30, "learning_rate": 0.02}
    options = Options(**quick, sequence_column="seq", feature_columns="a")
    assert classify.train(str(path), tmp_path / "run", options).accuracy == 1.0
    classifier = classify.load(tmp_path / "run")
    assert classifier.config.options.feature_columns == "a"
    lines = [line.split("\t")[0] for line in classifier.answer(Request(file=path))]
    assert lines == ["-1", "1"] * 30
    assert classifier.evaluate_source(str(path)).accuracy == 1.0


def test_columns_are_known_by_name(tmp_path: Path) -> None:
    from cello.tasks.task import Request

    path = steps(tmp_path / "x.csv")
    options = Options(**SMALL, sequence_column="seq", group_column="group")
    classify.train(str(path), tmp_path / "run", options)
    made = classify.load(tmp_path / "run")
    answers = list(made.answer(Request(file=path)))
    lines = [line.split(",") for line in path.read_text().splitlines()]
    swapped = [",".join([line[4], line[0], "new", line[3]]) for line in lines]
    swapped[0] = "b,seq,more,a"
    (tmp_path / "y.csv").write_text("\n".join(swapped))
    assert list(made.answer(Request(file=tmp_path / "y.csv"))) == answers


@pytest.mark.parametrize("precision", ["float32", "bfloat16"])
def test_precision(tmp_path: Path, precision: str) -> None:
    options = Options(**{**SMALL, "hidden": 32, "epochs": 6}, precision=precision, clip=0.5)
    assert classify.train("digits", tmp_path / "run", options).accuracy > 0.8


def idx(path: Path, array: np.ndarray) -> None:
    head = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    content = head + array.astype(np.uint8).tobytes()
    path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)


def test_images_by_rows(tmp_path: Path) -> None:
    images = np.arange(20 * 3 * 4).reshape(20, 3, 4)
    idx(tmp_path / "train-images-idx3-ubyte.gz", images)
    idx(tmp_path / "train-labels-idx1-ubyte.gz", np.arange(20) % 2)
    idx(tmp_path / "t10k-images-idx3-ubyte", images[:3])
    idx(tmp_path / "t10k-labels-idx1-ubyte", np.arange(3) % 2)
    source = read(str(tmp_path), Options())
    assert {name: len(part) for name, part in source.parts.items()} == {"train": 20, "test": 3}
    assert source.parts["train"][7].input.tolist() == images[7].tolist()
    assert source.parts["train"][7].label == "1"
    alone = read(str(tmp_path / "t10k-images-idx3-ubyte"), Options())
    assert len(alone.parts["train"]) == 3
    whole = (tmp_path / "t10k-images-idx3-ubyte").read_bytes()
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(whole[:-1])
    with pytest.raises(InputError, match="35 bytes behind the head, not 3 x 3 x 4"):
        read(str(tmp_path), Options())
    (tmp_path / "t10k-images-idx3-ubyte").write_bytes(b"\0\0\x09\3" + whole[4:])
    with pytest.raises(InputError, match="not an idx file of bytes with 3 axes"):
        read(str(tmp_path), Options())
    idx(tmp_path / "t10k-images-idx3-ubyte", images[:2])
    with pytest.raises(InputError, match="2 images, but 3 labels beside it"):
        read(str(tmp_path), Options())
    (tmp_path / "t10k-labels-idx1-ubyte").unlink()
    with pytest.raises(InputError, match="t10k-labels-idx1-ubyte: no such file"):
        read(str(tmp_path), Options())
    (tmp_path / "train-images-idx3-ubyte.gz").write_bytes(b"\x1f\x8b broken")
    with pytest.raises(InputError, match="not a whole gzip file"):
        read(str(tmp_path), Options())


@pytest.mark.parametrize(
    ("images", "labels"),
    [
        ("train-images.idx3-ubyte", "train-labels.idx1-ubyte"),
        ("train-images.idx3-ubyte.gz", "train-labels.idx1-ubyte.gz"),
        ("train-images.idx3-ubyte", "train-labels-idx1-ubyte.gz"),
        ("train-images-idx3-ubyte.gz", "train-labels.idx1-ubyte"),
        ("train-images-idx3.ubyte", "train-labels-idx1.ubyte"),
    ],
)
def test_other_names_of_images(tmp_path: Path, images: str, labels: str) -> None:
    idx(tmp_path / images, np.arange(24).reshape(2, 3, 4))
    idx(tmp_path / labels, np.array([7, 9]))
    (tmp_path / "train-images-idx3-ubyte").mkdir(exist_ok=True)  # as one of the copies unpacks
    idx(tmp_path / "t10k-images.idx3-ubyte", np.zeros((1, 3, 4)))
    idx(tmp_path / "t10k-labels.idx1-ubyte", np.array([3]))
    source = read(str(tmp_path), Options())
    assert source.format == "idx"
    assert {name: part.labels for name, part in source.parts.items()} == {
        "train": ["7", "9"],
        "test": ["3"],
    }
    assert read(str(tmp_path / images), Options()).parts["train"].labels == ["7", "9"]


def test_characters() -> None:
    tokenizer = train_tokenizer(["Ann a", "Bob 你好"] * 2, kind="char", vocabulary=50, max_length=9)
    (ids,) = encode(tokenizer, ["ab 你x"], ["here"])
    assert [tokenizer.id_to_token(i) for i in ids.tolist()] == ["a", "b", " ", "你", "[UNK]"]


def classifier(**changes: object) -> tuple[Classifier, tuple[torch.Tensor, ...]]:
    """A classifier of texts of seven words, and a batch for it."""
    tokenizer = train_tokenizer(["a b c d e"] * 2, kind="word", vocabulary=50, max_length=9)
    options = Options(**{**SMALL, "dropout": 0.0, **changes})  # type: ignore[arg-type]
    facts = {"labels": ["x", "y"], "features": None}
    torch.manual_seed(0)
    made = Classifier(
        Config("classify", options, facts, {}), {"tokenizer.json": tokenizer.to_str()}, "cpu"
    )
    x, lengths = pad([torch.tensor(ids) for ids in ([2, 3, 4, 5], [6, 2], [3, 3, 3])])
    made.model.train()
    return made, (x, lengths, torch.tensor([0, 1, 0]))


def test_adversarial_training_against_its_definition() -> None:
    made, (x, lengths, targets) = classifier(adversarial=0.7)
    model = made.model
    loss, count = made._loss((x, lengths, targets))
    loss.backward()
    found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}

    model.zero_grad()
    vectors = model.embed(x)
    vectors.retain_grad()
    first = nn.functional.cross_entropy(model.read(vectors, lengths), targets, reduction="sum")
    first.backward()
    assert vectors.grad is not None
    move = torch.zeros_like(vectors)
    for b in range(3):
        move[:, b] = 0.7 * vectors.grad[:, b] / vectors.grad[:, b].norm()
    moved = model.read(model.embed(x) + move, lengths)
    second = nn.functional.cross_entropy(moved, targets, reduction="sum")
    second.backward()
    assert count == 3
    torch.testing.assert_close(loss, first + second)
    assert second > first
    for name, p in model.named_parameters():
        assert p.grad is not None
        torch.testing.assert_close(found[name], p.grad, msg=name)


def test_adversarial_training_of_numbers(tmp_path: Path) -> None:
    weights = []
    for adversarial in (0.0, 0.1):
        folder = tmp_path / f"run-{adversarial}"
        classify.train("digits", folder, Options(**SMALL, adversarial=adversarial))
        weights.append((folder / "model.safetensors").read_bytes())
    assert weights[0] != weights[1]


@pytest.mark.parametrize("scaling", ["feature", "all"])
@pytest.mark.parametrize("stream", [True, False])
def test_scaling_against_numpy(tmp_path: Path, scaling: str, stream: bool) -> None:
    random = np.random.default_rng(0)
    rows = [random.normal(5, [1, 10, 0], (n, 3)).round(3).tolist() for n in (1, 5, 9) * 10]
    lines = [json.dumps({"text": row, "label": i % 2}) + "\n" for i, row in enumerate(rows)]
    (tmp_path / "x.jsonl").write_text("".join(lines))
    options = Options(**SMALL, scaling=scaling, stream=stream)
    data = Classifier.read(str(tmp_path / "x.jsonl"), options)
    options, facts, assets = Classifier.describe(data, options)
    made = Classifier(Config("classify", options, facts, {}), assets, "cpu")
    made.job(data)
    steps = np.concatenate([row.input for row in data.train])
    mean, spread = steps.mean(0), steps.std(0)
    spread[2] = 1.0  # a feature that is always the same is left as it is
    if scaling == "all":
        mean, spread = np.full(3, steps.mean()), np.full(3, steps.std())
    np.testing.assert_allclose(made.model.mean.numpy(), mean, rtol=1e-5)
    np.testing.assert_allclose(made.model.scale.numpy(), spread, rtol=1e-5)


def test_hidden_words_and_dropout_of_vectors() -> None:
    made, (x, lengths, _) = classifier(word_dropout=0.5)
    model, seen = made.model, []
    model.recurrent.register_forward_pre_hook(lambda _, inputs: seen.append(inputs[0]))
    for _ in range(200):
        model.read(model.embed(x), lengths)
    whole = model.embed(x)
    hidden = torch.stack([(v == 0).all(-1) for v in seen]).float()[:, lengths[1] :, 0]
    assert 0.4 < hidden.mean() < 0.6
    for v in seen:
        kept = ~(v == 0).all(-1)
        torch.testing.assert_close(v[kept], whole[kept])  # not scaled: a word is there or not
    model.eval()
    model.read(model.embed(x), lengths)
    torch.testing.assert_close(seen[-1], whole)
    assert classifier(embedding_dropout=0.3)[0].model.embedding_dropout.p == 0.3
    assert classifier(dropout=0.2)[0].model.embedding_dropout.p == 0.2


def test_more_is_read_in_use_than_in_training(tmp_path: Path) -> None:
    rows = "".join(f"{'xy'[i % 2]},{['fine', 'dull'][i % 2]} a b c d e\n" for i in range(40))
    (tmp_path / "x.csv").write_text("label,text\n" + rows)
    options = Options(**SMALL, max_length=2, read_length=4)
    classify.train(str(tmp_path / "x.csv"), tmp_path / "run", options)
    made = classify.load(tmp_path / "run")
    assert [len(x) for x in made.encode(["fine a b c d e", "fine"], ["1", "2"])] == [4, 1]
    data = made.read(str(tmp_path / "x.csv"), options)
    job = made.job(data)
    assert set(job.train.lengths) == {2}
    assert set(job.valid.lengths) == {4}


def test_a_page_of_less_than_is_learnt_from(tmp_path: Path) -> None:
    from cello.tasks.page import page

    rows = "".join(f"{'xy'[i % 2]},{['fine', 'dull'][i % 2]} a b c d e\n" for i in range(40))
    (tmp_path / "x.csv").write_text("label,text\n" + rows)
    options = Options(**SMALL, max_length=6, read_length=3)
    classify.train(tmp_path / "x.csv", tmp_path / "run", options)  # a Path will do
    html = page(classify.load(tmp_path / "run"), ["fine a b c d e"])
    assert '"pieces":[["","fine"],[" ","a"],[" ","b"]],"rest":" c d e"' in html


def test_wrong_numbers_and_sizes() -> None:
    options, facts = Options(**SMALL), {"labels": ["x", "y"], "features": 2}
    made = Classifier(Config("classify", options, facts, {}), {}, "cpu")
    (one,) = made.predict([np.zeros((3, 2))])  # float64 will do
    assert one.label in ("x", "y")
    assert made.predict([[[0.0, 0.0]] * 3, torch.zeros(3, 2, requires_grad=True)]) == [one, one]
    empty, same = made.predict([np.zeros((0, 2)), np.zeros((3, 2))])
    assert (empty.label, empty.probabilities, same.label) == (None, None, one.label)
    for wrong, expected in [
        (np.zeros(3), "input 1: 1 numbers in a step, not 2"),
        (np.zeros((3, 2, 1)), r"input 1: the sequence has the shape \(3, 2, 1\), not \(T, F\)"),
        (np.full((3, 2), np.nan), "input 1: a number is not finite"),
        (np.zeros((3, 1)), "input 1: 1 numbers in a step, not 2"),
        ("", "input 1: the model reads numbers"),
        ([[1.0, 2.0], [1.0]], r"input 1: neither a text nor numbers, \(T, F\) or \(T,\)"),
    ]:
        with pytest.raises(InputError, match=expected):
            list(made.predict([wrong]))
    with pytest.raises(InputError, match="batch_size: 0 is not positive"):
        made.predict([], batch_size=0)


@pytest.mark.parametrize("offset", [1e6, 1.7e9])
def test_numbers_far_from_zero_keep_what_tells_them_apart(tmp_path: Path, offset: float) -> None:
    """In single precision 1.7e9 has steps of 128, as times in seconds have; the mean goes first."""
    random, y = np.random.default_rng(0), np.array([0, 1] * 60)
    x = random.normal(size=(120, 4, 1)) + 2 * y[:, None, None]
    options = Options(hidden=8, epochs=2, device="cpu", threads=1)
    lines = [
        f"{i},{step!r},{label}\n"
        for i, (steps, label) in enumerate(zip((x + offset).tolist(), y, strict=True))
        for (step,) in steps
    ]
    (tmp_path / "steps.csv").write_text("id,value,label\n" + "".join(lines))
    near = classify.train((x, y), tmp_path / "near", options)
    sources = {
        "far": ((x + offset, y), options),
        "steps": (tmp_path / "steps.csv", replace(options, sequence_column="id")),
    }
    for name, (source, chosen) in sources.items():
        far = classify.train(source, tmp_path / name, chosen)
        assert abs(far.accuracy - near.accuracy) < 0.1
        losses = [one["train_loss"] for one in far.training["epochs"]]
        expected = [one["train_loss"] for one in near.training["epochs"]]
        np.testing.assert_allclose(losses, expected, rtol=1e-4)
    again = classify.load(tmp_path / "far").predict(list(x + offset))
    before = classify.load(tmp_path / "near").predict(list(x))
    assert [one.label for one in again] == [one.label for one in before]
    with pytest.raises(InputError, match=r"row \d: a number is not finite in float32"):
        classify.train((x * 1e200, y), tmp_path / "large", options)
