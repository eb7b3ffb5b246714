"""Training a tagger and what comes of it, on sentences whose tags only the neighbours tell."""

from __future__ import annotations

import gc
import os
import random
from collections.abc import Iterator
from itertools import islice
from pathlib import Path
from typing import Any

import pytest
import torch
from rich.console import Console
from sklearn.metrics import accuracy_score, f1_score, precision_recall_fscore_support

from cello.tasks import tag
from cello.tasks.batches import by_length
from cello.tasks.errors import InputError, Interrupted
from cello.tasks.tag import Sentence
from cello.tasks.tag.data import Sentences, read
from cello.tasks.tag.predictor import LARGEST_BATCH
from cello.tasks.task import Request

Tagged = list[tuple[str, str]]


def sentences(count: int, seed: int = 0) -> list[Tagged]:
    """Sentences such as `I walk` and `a big walk`: the last word is a verb or a noun."""
    generator = random.Random(seed)
    found = []
    for _ in range(count):
        stem = generator.choice(["walk", "talk", "drink", "call", "rest", "look"])
        if generator.random() < 0.5:
            found.append([(generator.choice(["I", "you", "they"]), "PRON"), (stem, "VERB")])
        else:
            middle = [(generator.choice(["big", "small"]), "ADJ")] * generator.randrange(3)
            found.append([(generator.choice(["a", "the"]), "DET"), *middle, (stem, "NOUN")])
    return found


def write(path: Path, content: list[Tagged]) -> str:
    path.write_text("".join("".join(f"{w}\t{t}\n" for w, t in one) + "\n" for one in content))
    return str(path)


def quick(**changes: object) -> tag.Options:
    options = {
        "hidden": 8, "embedding": 8, "character_embedding": 4, "character_hidden": 4, "layers": 1,
        "affix_embedding": 4, "epochs": 4, "warmup": 0.0, "learning_rate": 0.02,
        "batch_size": 8, "device": "cpu", **changes,
    }  # fmt: skip
    return tag.Options(**options)  # type: ignore[arg-type]  # values of several types


@pytest.fixture(scope="module")
def tagger(tmp_path_factory: pytest.TempPathFactory) -> tag.Tagger:
    folder = tmp_path_factory.mktemp("tag")
    source = write(folder / "train.txt", sentences(200))
    report = tag.train(source, folder / "run", quick(output="crf", epochs=8))
    assert report.accuracy == 1.0
    return tag.load(folder / "run")


def part(content: list[Tagged]) -> Sentences:
    columns = [zip(*one, strict=True) for one in content]
    return Sentences(
        [("\t".join(w), "\t".join(t), f"sentence {i}") for i, (w, t) in enumerate(columns)]
    )


def test_neighbours_tell_the_tag(tagger: tag.Tagger) -> None:
    found = list(tagger.predict([["they", "walk"], ["the", "big", "walk"], ["a", "walk"]]))
    assert [one.tags for one in found] == [
        ["PRON", "VERB"],
        ["DET", "ADJ", "NOUN"],
        ["DET", "NOUN"],
    ]
    assert all(0.5 < p <= 1.0 for one in found for p in one.probabilities)
    assert found[0].words == ["they", "walk"]


def test_batches_of_no_sentences_are_refused(tagger: tag.Tagger) -> None:
    with pytest.raises(InputError, match="batch_size: 0 is not positive"):
        list(tagger.predict([["a"]], batch_size=0))


def test_the_report_is_what_the_predictions_give(tagger: tag.Tagger) -> None:
    content = [*sentences(30, seed=1), [("the", "DET"), ("blork", "NOUN"), ("walks", "VERB")]]
    report = tagger.evaluate(part(content))
    true = [t for one in content for _, t in one]
    words = [w for one in content for w, _ in one]
    answers = tagger.predict([[w for w, _ in one] for one in content], batch_size=3)
    predicted = [t for one in answers for t in one.tags]
    known = [w in tagger.lexicon for w in words]
    assert (report.rows, report.sentences) == (len(words), 31)
    assert report.accuracy == pytest.approx(accuracy_score(true, predicted))
    for share, wanted in ((report.known, True), (report.unknown, False)):
        rows = [i for i, k in enumerate(known) if k is wanted]
        assert share["words"] == len(rows)
        right = accuracy_score([true[i] for i in rows], [predicted[i] for i in rows])
        assert share["accuracy"] == pytest.approx(right)
    assert report.unknown["words"] == 2
    assert report.macro_f1 == pytest.approx(
        f1_score(true, predicted, labels=report.labels, average="macro", zero_division=0.0)
    )
    figures = precision_recall_fscore_support(true, predicted, labels=["NOUN"], zero_division=0.0)
    noun = report.classes["NOUN"]
    assert [noun[k] for k in ("precision", "recall", "f1", "rows")] == [x[0] for x in figures]


def test_the_baseline_is_the_most_frequent_tag_of_each_word(tmp_path: Path) -> None:
    train = [[("a", "X"), ("b", "Y")]] * 5 + [[("a", "Y"), ("b", "Y"), ("c", "Z")]] * 2
    test = [[("a", "X"), ("a", "Y"), ("b", "Y"), ("c", "Z"), ("new", "Y"), ("new", "X")]]
    options = quick(
        epochs=1,
        valid_data=write(tmp_path / "valid.txt", test),
        test_data=write(tmp_path / "test.txt", test),
    )
    report = tag.train(write(tmp_path / "train.txt", train), tmp_path / "run", options)
    assert report.baseline == pytest.approx(4 / 6)  # Y is the most frequent tag of all words
    assert report.known["words"] == 4
    assert report.unknown["words"] == 2


def test_tags_that_training_has_not_seen_are_wrong(tagger: tag.Tagger) -> None:
    report = tagger.evaluate(part([[("they", "PRON"), ("walk", "AUX")], [("a", "DET")]]))
    assert report.accuracy == pytest.approx(2 / 3)
    assert report.labels[-1] == "AUX"
    assert report.classes["AUX"]["recall"] == 0.0


def test_another_set_of_tags_is_refused(tagger: tag.Tagger) -> None:
    content = [[("a", "DT"), ("walk", "NN"), ("walk", "VERB")]]
    complaint = (
        "data: 2 of 3 words have a tag that the model does not know, as 'DT', 'NN'; it knows"
    )
    with pytest.raises(InputError, match=complaint):
        tagger.evaluate(part(content), "data")


def test_one_sentence_has_one_answer_and_several_a_list(tagger: tag.Tagger) -> None:
    one = tagger.predict(" the big  walk ")
    assert (one.words, one.tags) == (["the", "big", "walk"], ["DET", "ADJ", "NOUN"])
    for several in ([one.words], (tuple(one.words),), iter([one.words])):
        found = tagger.predict(several)
        assert isinstance(found, list)
        assert [answer.tags for answer in found] == [one.tags]
    with pytest.raises(InputError, match=r"sentence 1: 'the' is not a list of words, as \['A', "):
        tagger.predict(["the", "big", "walk"])
    with pytest.raises(InputError, match="one text, where lists of words are expected"):
        next(tagger.predict_stream("the big walk"))


def test_words_in_other_encodings_and_with_other_delimiters(tmp_path: Path) -> None:
    content = [*sentences(40), [("ü", "ADJ"), (";", "PUNCT"), ("早", "NOUN")]]
    plain = write(tmp_path / "plain.txt", content)
    lines = Path(plain).read_text().replace("\t", ";")
    (tmp_path / "x.txt").write_bytes(lines.encode("gb18030"))
    found = read(str(tmp_path / "x.txt"), quick(encoding="gb18030", delimiter=";"))
    expected = read(plain, quick())
    assert [(x.words, x.tags) for x in found] == [(x.words, x.tags) for x in expected]
    with pytest.raises(InputError, match=r"line \d+: not UTF-8 at byte .*--encoding says how"):
        read(str(tmp_path / "x.txt"), quick(delimiter=";"))
    with pytest.raises(InputError, match="delimiter: in CoNLL-U tabs part the columns"):
        quick(format="conllu", delimiter=";")
    options = quick(encoding="gb18030", delimiter=";", epochs=1)
    tag.train(tmp_path / "x.txt", tmp_path / "run", options)
    (tmp_path / "y.tsv").write_bytes("早;X\n;;X\n".encode("gb18030"))
    answers = list(tag.load(tmp_path / "run").answer(Request(file=tmp_path / "y.tsv")))
    assert [line[:2] for line in answers] == ["早;", ";;", ""]


def test_a_tagger_no_better_than_a_table_of_words_is_said(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    content = [[("a", "X"), ("b", "Y")], [("c", "X"), ("d", "Y")]] * 30
    options = quick(epochs=8, learning_rate=0.05)
    found = tag.train(write(tmp_path / "x.txt", content), tmp_path / "run", options)
    assert (found.accuracy, found.baseline, found.majority) == (1.0, 1.0, 0.5)
    found.show(Console(width=200))
    assert "no better than: the most frequent tag of each word\n" in capsys.readouterr().out
    found.accuracy = 0.4
    found.show(Console(width=200))
    both = "always the most frequent class, the most frequent tag of each word"
    assert f"no better than: {both}\n" in capsys.readouterr().out


def test_little_data_gets_more_passes(tmp_path: Path) -> None:
    data = tag.Tagger.read(write(tmp_path / "x.txt", sentences(100)), tag.Options())
    for given, expected in ((None, 100), (3, 3)):  # 81 sentences, three steps a pass
        assert tag.Tagger.describe(data, tag.Options(epochs=given))[0].epochs == expected


def test_sentences_are_read_as_they_are_answered(tagger: tag.Tagger) -> None:
    read = 0

    def endless() -> Iterator[list[str]]:
        nonlocal read
        while True:
            read += 1
            yield ["they", "walk"]

    assert len(list(islice(tagger.predict_stream(endless(), batch_size=4), 6))) == 6
    assert read == 8


def test_lines_of_a_stream_are_read_as_they_are_answered(tagger: tag.Tagger) -> None:
    read = 0

    def endless() -> Iterator[bytes]:
        nonlocal read
        while True:
            read += 1
            yield b"a small walk\n"

    answers = tagger.answer(Request(stream=endless(), batch_size=1))
    assert next(answers) == "a/DET small/ADJ walk/NOUN"
    assert read == 1


def test_answers_leave_nothing_behind(tagger: tag.Tagger) -> None:
    def live_tensors() -> int:
        for _ in tagger.predict([["the", "small", "walk"][:n] for n in (1, 2, 3)], batch_size=1):
            pass
        gc.collect()
        return sum(type(found) is torch.Tensor for found in gc.get_objects())

    live_tensors()
    before = live_tensors()
    assert live_tensors() == before


def test_a_sentence_without_words_has_no_tags(tagger: tag.Tagger) -> None:
    found = list(tagger.predict([[], ["they"], []]))
    assert [one.tags for one in found] == [[], ["PRON"], []]
    assert list(tagger.predict([])) == []


@pytest.mark.parametrize("wrong", ["they walk", ["they", ""], ["they", 1]])
def test_what_is_not_a_list_of_words_is_refused(tagger: tag.Tagger, wrong: list[str]) -> None:
    with pytest.raises(InputError, match=r"sentence 2: .* is not a list of words"):
        list(tagger.predict([["they"], wrong]))


def test_batches_are_bounded_and_whole() -> None:
    lengths = [0, 3, 900, 1, 7_000, 9_000, 2, 0, 3, 10_000, 30_000]
    groups = list(by_length(lengths, 4, LARGEST_BATCH))
    assert sorted(i for group in groups for i in group) == [i for i, n in enumerate(lengths) if n]
    for group in groups:
        assert len(group) <= 4
        size = len(group) * max(lengths[i] for i in group)
        assert size <= LARGEST_BATCH or len(group) == 1


def test_parts_are_whole_sentences_and_follow_from_their_seed(tmp_path: Path) -> None:
    content = [[(f"w{i}", "XY"[i % 2])] for i in range(100)]
    source = write(tmp_path / "all.txt", content)

    def parts(split_seed: int, seed: int = 0) -> list[list[str]]:
        options = quick(split_seed=split_seed, seed=seed, test_fraction=0.2)
        data = tag.Tagger.read(source, options)
        return [[one.words[0] for one in p] for p in (data.train, data.valid, data.test)]

    first = parts(0)
    assert [len(p) for p in first] == [72, 8, 20]
    assert sorted(w for p in first for w in p) == sorted(w for [(w, _)] in content)
    assert parts(0) == parts(0, seed=1) == first
    assert parts(1) != first


def test_words_of_the_other_parts_are_unknown(tmp_path: Path) -> None:
    train, other = sentences(20), [[("blork", "NOUN")]]
    options = quick(
        epochs=1,
        valid_data=write(tmp_path / "valid.txt", other),
        test_data=write(tmp_path / "test.txt", other),
    )
    report = tag.train(write(tmp_path / "train.txt", train), tmp_path / "run", options)
    assert report.unknown["words"] == 1
    assert set(tag.load(tmp_path / "run").lexicon) == {w for one in train for w, _ in one}


@pytest.mark.parametrize("output", ["linear", "crf"])
def test_tags_of_the_validation_set_may_be_unknown(tmp_path: Path, output: str) -> None:
    train, other = sentences(20), [[("they", "PRON"), ("walk", "AUX")], [("a", "DET")]]
    options = quick(epochs=2, output=output, valid_data=write(tmp_path / "valid.txt", other))
    report = tag.train(write(tmp_path / "train.txt", train), tmp_path / "run", options)
    assert "AUX" not in report.labels
    losses = [epoch["valid_loss"] for epoch in report.training["epochs"]]
    assert all(0 < loss < 10 for loss in losses)


def test_from_disk_the_same_is_learnt(tmp_path: Path) -> None:
    source = write(tmp_path / "train.txt", sentences(60))
    for name, stream in (("memory", False), ("disk", True)):
        tag.train(source, tmp_path / name, quick(epochs=2, stream=stream))
    memory, disk = (tag.load(tmp_path / n).model.state_dict() for n in ("memory", "disk"))
    assert memory.keys() == disk.keys()
    for name in memory:
        assert torch.equal(memory[name], disk[name]), name


@pytest.mark.parametrize("output", ["linear", "crf"])
def test_an_interrupted_run_ends_at_the_same_weights(
    tmp_path: Path, interrupt: Any, output: str
) -> None:
    source, options = write(tmp_path / "train.txt", sentences(80)), quick(output=output)
    whole = tag.train(source, tmp_path / "whole", options)
    interrupt.at_step(13)  # of 9 batches an epoch
    with pytest.raises(Interrupted):
        tag.train(source, tmp_path / "parts", options)
    report = tag.resume(tmp_path / "parts")
    assert report.confusion == whole.confusion
    one, other = (tag.load(tmp_path / n).model.state_dict() for n in ("whole", "parts"))
    for name in one:
        assert torch.equal(one[name], other[name]), name


@pytest.mark.parametrize(
    "changes",
    [
        {"cell": "gru", "layers": 2, "average": 0.9, "output": "crf"},
        {"cell": "rnn", "bidirectional": False, "affixes": 0},
        {"gate_activation": "hardsigmoid", "vocabulary": 3, "longest_word": 2, "unknown": 0.0},
        {"precision": "bfloat16", "output": "crf"},
    ],
)
def test_choices_of_model(tmp_path: Path, changes: dict[str, object]) -> None:
    source = write(tmp_path / "train.txt", sentences(40))
    report = tag.train(source, tmp_path / "run", quick(epochs=1, **changes))
    loaded = tag.load(tmp_path / "run")
    again = loaded.evaluate_source(source, "test")
    assert again.confusion == report.confusion


@pytest.mark.parametrize(
    ("content", "complaint"),
    [
        ("", "holds no sentences"),
        ("\n \n\n", "holds no sentences"),
        ("a\tX\n\nb\tX\n\nc\tX\n\nd\tX\n\ne\tX\n", "every tag is 'X'; two are needed at least"),
        ("a\tX\nb\tY\n", r"too few sentences to split off a test set \(1\)"),
    ],
)
def test_data_that_nothing_can_be_learnt_from(tmp_path: Path, content: str, complaint: str) -> None:
    (tmp_path / "x.txt").write_text(content)
    with pytest.raises(InputError, match=complaint):
        tag.train(str(tmp_path / "x.txt"), tmp_path / "run", quick())
    assert not (tmp_path / "run").exists()


@pytest.mark.slow
def test_a_real_treebank(tmp_path: Path) -> None:
    """Three passes over a Chinese treebank: far better than the most frequent tag of each word."""
    data = os.environ.get("CELLO_DATA")
    if not data:
        pytest.skip("CELLO_DATA does not name a folder with ud_chinese_gsd/zh-ud-dev.conllu.gz")
    folder = Path(data, "ud_chinese_gsd")
    dev = str(folder / "zh-ud-dev.conllu.gz")
    options = tag.Options(epochs=3, valid_data=dev, test_data=dev, device="cpu")
    report = tag.train(str(folder / "zh-ud-train.conllu.gz"), tmp_path / "run", options)
    assert report.rows == 12_663
    assert report.baseline == pytest.approx(0.840, abs=0.001)
    assert report.accuracy > 0.87


def test_a_sentence_says_where_it_was_read(tmp_path: Path) -> None:
    source = write(tmp_path / "x.txt", [[("a", "X"), ("b", "Y")], [("c", "X")]])
    found = read(source, quick())
    assert list(found) == [
        Sentence(["a", "b"], ["X", "Y"], f"{source}, line 1"),
        Sentence(["c"], ["X"], f"{source}, line 4"),
    ]
