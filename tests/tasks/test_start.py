"""Fine-tuning, word vectors, and what is said about them."""

from __future__ import annotations

import gzip
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cello.tasks import Classifier, ClassifierOptions, Tagger, TaggerOptions
from cello.tasks.classify.cooccurrence import vectors_of
from cello.tasks.errors import InputError, Interrupted
from cello.tasks.start import look_up, vectors, width_of

# With so small a learning rate the weights after training are those before, up to rounding.
STILL: dict[str, Any] = {
    "hidden": 6, "embedding": 4, "epochs": 1, "device": "cpu", "learning_rate": 1e-8,
}  # fmt: skip
WORDS = ("fine", "great", "dull", "poor")
ROWS = [(f"the film was {WORDS[i % 4]}", "ab"[i % 4 // 2]) for i in range(80)]
OTHER = [(f"the {WORDS[i % 4]} weather", "abc"[i % 3]) for i in range(80)]
SENTENCES = [(["a", "fine", "day"], ["D", "A", "N"]), (["we", "go"], ["P", "V"])] * 15


def train(rows: Any, folder: Path, kind: Any = Classifier, **changes: Any) -> tuple[Any, list[str]]:
    options = (ClassifierOptions if kind is Classifier else TaggerOptions)(**{**STILL, **changes})
    report = kind.train(rows, folder, options)
    return kind.load(folder), report.training["notes"]


def near(one: torch.Tensor, other: torch.Tensor) -> bool:
    return torch.allclose(one, other, atol=1e-6)


@pytest.fixture(scope="module")
def first(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("first") / "run"
    train(ROWS, folder, seed=1)
    return folder


def test_weights_of_another_classifier(tmp_path: Path, first: Path) -> None:
    made, notes = train(OTHER, tmp_path / "run", start_from=str(first))
    old = Classifier.load(first)
    there, here = (dict(one.model.named_parameters()) for one in (old, made))
    for name in here:
        if name.startswith("recurrent."):
            assert near(here[name], there[name]), name
    numbers, old_numbers = (one.tokenizer.get_vocab() for one in (made, old))  # type: ignore[union-attr]
    assert numbers["fine"] != old_numbers["fine"]  # or the rows would be matched by their number
    vectors, old_vectors = here["embedding.weight"], there["embedding.weight"]
    for word in ("the", *WORDS):
        assert near(vectors[numbers[word]], old_vectors[old_numbers[word]])
    assert here["linear.weight"].shape[0] == 3
    alone, _ = train(OTHER, tmp_path / "alone")
    assert near(alone.model.linear.weight, here["linear.weight"])  # new, as without start_from
    assert near(alone.model.embedding.weight[numbers["weather"]], vectors[numbers["weather"]])
    assert notes[0] == (
        f"weights from {first}: embedding (5 of 6 tokens), recurrent; "
        "new: linear ((2, 24) there, (3, 24) here)"
    )


def test_the_same_labels_keep_their_layer_and_others_do_not(tmp_path: Path, first: Path) -> None:
    old = Classifier.load(first)
    same, notes = train(ROWS, tmp_path / "same", start_from=str(first))
    assert near(same.model.linear.weight, old.model.linear.weight)
    assert notes[0] == f"weights from {first}: embedding (7 of 7 tokens), recurrent, linear"
    texts = [text for text, _ in ROWS[:4]]
    for one, other in zip(same.predict(texts), old.predict(texts), strict=True):
        assert one.probabilities == pytest.approx(other.probabilities, abs=1e-5)
    renamed = [(text, {"a": "x", "b": "y"}[label]) for text, label in ROWS]
    other, notes = train(renamed, tmp_path / "other", start_from=str(first))
    assert not near(other.model.linear.weight, old.model.linear.weight)
    assert notes[0].endswith("recurrent; new: linear (other labels)")


def test_another_cell_of_the_same_shapes_is_not_taken(tmp_path: Path, first: Path) -> None:
    """The weights of two cells may have one shape and another meaning."""
    train(ROWS, tmp_path / "gru", cell="gru")
    _, notes = train(ROWS, tmp_path / "lstm", start_from=str(tmp_path / "gru"))
    assert "new: recurrent ((18, 4) there, (24, 4) here)" in notes[0]
    model = Classifier.load(first).model
    changed = type("Other", (type(model.recurrent),), {})
    from cello.tasks import start

    other, new = Classifier.load(first), Classifier.load(first)
    other.model.recurrent.__class__ = changed
    said = start.take(new, other, "there")
    assert (
        said
        == "weights from there: embedding (7 of 7 tokens), linear; new: recurrent (another cell)"
    )


def test_more_layers_take_what_there_is(tmp_path: Path, first: Path) -> None:
    made, notes = train(ROWS, tmp_path / "run", start_from=str(first), layers=2)
    old = Classifier.load(first).model.recurrent
    assert near(made.model.recurrent.weight_ih_l0_reverse, old.weight_ih_l0_reverse)
    assert "part of recurrent" in notes[0]
    assert "new: recurrent (not in that model)" in notes[0]


def test_a_model_of_another_task_gives_what_has_the_same_names(tmp_path: Path, first: Path) -> None:
    with pytest.raises(InputError, match=r"start-from: no weight of .* fits: words \(not in that"):
        train(SENTENCES, tmp_path / "tag", Tagger, start_from=str(first), layers=1)
    # A task whose network has an `embedding` and `recurrent` layers, as a language model has.
    from cello.tasks import start

    class Network(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.embedding = torch.nn.Embedding(4, 4)
            self.recurrent = Classifier.load(first).model.recurrent
            self.recurrent.weight_hh_l0.data.fill_(0.25)

    class Other:
        name = "language"
        model = Network()

        def tokens(self) -> dict[str, list[str]]:
            return {"embedding.weight": ["[PAD]", "[UNK]", "unheard", "dull"]}

    new = Classifier.load(first)
    said = start.take(new, Other(), "there")
    assert said == (
        "weights from there: embedding (1 of 7 tokens), recurrent; new: linear (not in that model)"
    )
    assert new.tokenizer is not None
    row = new.model.embedding.weight[new.tokenizer.token_to_id("dull")]  # type: ignore[union-attr]
    assert torch.equal(row, Other.model.embedding.weight[3])
    assert bool((new.model.recurrent.weight_hh_l0 == 0.25).all())


def test_a_tagger_goes_on_from_a_tagger(tmp_path: Path) -> None:
    old, _ = train(SENTENCES, tmp_path / "old", Tagger, output="crf", seed=1)
    more = [*SENTENCES, *[(["a", "dull", "day"], ["D", "A", "N"])] * 5]
    made, notes = train(
        more, tmp_path / "new", Tagger, output="crf", start_from=str(tmp_path / "old")
    )
    there, here = (dict(one.model.named_parameters()) for one in (old, made))
    for name in here:
        if name.startswith(("sentences", "characters", "linear", "crf")):
            assert near(here[name], there[name]), name
    assert near(
        here["words.weight"][made.encoder.words["fine"]],
        there["words.weight"][old.encoder.words["fine"]],
    )
    assert "words (5 of 6 tokens)" in notes[0]
    assert "linear, crf" in notes[0]


def test_a_resumed_run_needs_the_other_model_only_before_its_first_checkpoint(
    tmp_path: Path, first: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from cello.tasks import trainer

    step = trainer.Training.step

    def interrupted(self: trainer.Training, batch: Any) -> Any:
        if len(self.epochs) == stop_in:
            raise KeyboardInterrupt
        return step(self, batch)

    options = ClassifierOptions(
        **{**STILL, "epochs": 2, "learning_rate": 0.01}, start_from=str(first)
    )
    Classifier.train(ROWS, tmp_path / "whole", options)
    monkeypatch.setattr(trainer.Training, "step", interrupted)
    whole = Classifier.load(tmp_path / "whole").model.state_dict()
    for stop_in in (0, 1):
        folder = tmp_path / str(stop_in)
        with pytest.raises(Interrupted):
            Classifier.train(ROWS, folder, options)
    stop_in = -1
    for name in ("0", "1"):
        if name == "1":
            first.rename(first.with_name("away"))
        try:
            Classifier.resume(tmp_path / name, ROWS)
        finally:
            if name == "1":
                first.with_name("away").rename(first)
        parts = Classifier.load(tmp_path / name).model.state_dict()
        assert all(torch.equal(whole[key], parts[key]) for key in whole)


VECTORS = {"fine": [1, 2, 3], "Great": [4, 5, 6], "great": [7, 8, 9], "DULL": [0.5, -1, 2e-3]}


@pytest.mark.parametrize("header", [False, True])
@pytest.mark.parametrize("ending", ["txt", "vec.gz"])
def test_word_vectors(tmp_path: Path, header: bool, ending: str) -> None:
    lines = [f"{word} {' '.join(map(str, vector))} \n" for word, vector in VECTORS.items()]
    lines += [". . . 1 2 3\n", "unheard 1 2 3\n", "fine 0 0 0\n", "\n"]
    text = "".join(([f"{len(lines) - 1} 3\n"] if header else []) + lines)
    path = tmp_path / f"v.{ending}"
    path.write_bytes(gzip.compress(text.encode()) if ending.endswith("gz") else text.encode())
    made, notes = train(ROWS, tmp_path / "run", vectors=str(path))
    assert made.config.options.embedding == 3
    weight = made.model.embedding.weight
    for word, expected in {**VECTORS, "dull": VECTORS["DULL"]}.items():
        if word.islower():
            assert weight[made.tokenizer.token_to_id(word)].tolist() == pytest.approx(
                expected, abs=1e-6
            )
    assert bool((weight[0] == 0).all())
    assert notes[0] == f"{path}: vectors of 3 of the 7 tokens of the vocabulary (43%)"
    tagger, notes = train(SENTENCES, tmp_path / "tag", Tagger, vectors=str(path))
    assert tagger.model.words.weight[tagger.encoder.words["fine"]].tolist() == pytest.approx(
        [1, 2, 3]
    )
    assert notes[0] == f"{path}: vectors of 1 of the 5 tokens of the vocabulary (20%)"


@pytest.mark.parametrize("frozen", [False, True])
def test_vectors_are_trained_or_not(tmp_path: Path, frozen: bool) -> None:
    (tmp_path / "v.txt").write_text("fine 1 2 3\ndull 3 2 1\n")
    changes: dict[str, Any] = {"vectors": str(tmp_path / "v.txt"), "freeze_embedding": frozen}
    made, _ = train(ROWS, tmp_path / "run", learning_rate=0.01, weight_decay=0.1, **changes)
    row = made.model.embedding.weight[made.tokenizer.token_to_id("fine")]
    assert (row.tolist() == [1.0, 2.0, 3.0]) == frozen
    tagger, _ = train(SENTENCES, tmp_path / "tag", Tagger, learning_rate=0.01, **changes)
    row = tagger.model.words.weight[tagger.encoder.words["fine"]]
    assert (row.tolist() == [1.0, 2.0, 3.0]) == frozen


def test_adversarial_training_with_frozen_vectors(tmp_path: Path) -> None:
    (tmp_path / "v.txt").write_text("fine 1 2 3\n")
    made, _ = train(
        ROWS, tmp_path / "run", vectors=str(tmp_path / "v.txt"), freeze_embedding=True,
        adversarial=0.5, learning_rate=0.01,
    )  # fmt: skip
    row = made.model.embedding.weight[made.tokenizer.token_to_id("fine")]
    assert row.tolist() == [1.0, 2.0, 3.0]


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (b"", "vectors: .* holds no vectors"),
        (b"2 3\n", "vectors: .* holds no vectors"),
        (b"fine 1 2 x\n", "line 1: not a word and its numbers"),
        (b"fine 1 2 3\ndull 1 2\n", "line 2: 2 numbers, not 3 as in the first line"),
        (b"fine 1 2 nan\n", "line 1: a number is not finite"),
        (b"other 1 2 3\n", "none of the 7 tokens of the vocabulary"),
        (b"3 3\nfine 1 2 3\n\xff 1 2 3\n", "line 3: not UTF-8"),
    ],
)
def test_files_that_hold_no_vectors(tmp_path: Path, content: bytes, expected: str) -> None:
    (tmp_path / "v.txt").write_bytes(content)
    with pytest.raises(InputError, match=expected):
        train(ROWS, tmp_path / "run", vectors=str(tmp_path / "v.txt"))
    assert not (tmp_path / "run").exists()


def test_options_that_do_not_go_together(tmp_path: Path, first: Path) -> None:
    with pytest.raises(InputError, match=r"vectors: .*: no such file"):
        train(ROWS, tmp_path / "run", vectors="there/is/none.txt")
    with pytest.raises(InputError, match="freeze-embedding: needs vectors or start-from"):
        ClassifierOptions(freeze_embedding=True)
    with pytest.raises(InputError, match="vectors: start-from brings vectors of its own"):
        TaggerOptions(vectors="v.txt", start_from="there")
    numbers = [([[i % 3, 1.0]], "ab"[i % 2]) for i in range(40)]
    (tmp_path / "v.txt").write_text("fine 1 2 3\n")
    for changes in ({"vectors": str(tmp_path / "v.txt")},
                    {"start_from": str(first), "freeze_embedding": True}):  # fmt: skip
        with pytest.raises(InputError, match=r"only a model of texts|no weight of"):
            train(numbers, tmp_path / "run", **changes)
    with pytest.raises(InputError, match=r"start-from: .* no such model folder"):
        train(ROWS, tmp_path / "run", start_from="nowhere")
    assert not (tmp_path / "run").exists()


def test_reading_vectors(tmp_path: Path) -> None:
    path = tmp_path / "v.txt"
    path.write_text("2 2\n7 1 2\na\t3\t4\n")  # a word may be a number, but in a header
    assert [(word, numbers) for word, numbers, _ in vectors(str(path))] == [
        ("7", "1 2"), ("a", "3 4"),
    ]  # fmt: skip
    assert width_of(str(path)) == 2
    weight = torch.zeros(4, 2)
    look_up([weight], ["[PAD]", "[UNK]", "a", "b"], str(path))
    assert weight.tolist() == [[0, 0], [0, 0], [3, 4], [0, 0]]
    path.write_text("3 2\n7 1 2\na 3 4\n")
    with pytest.raises(InputError, match="cut short, it has 2 of the 3 words"):
        look_up([weight], ["[PAD]", "[UNK]", "a", "b"], str(path))
    path.write_text("2 3\n7 1 2\na 3 4\n")
    with pytest.raises(InputError, match="line 2: 2 numbers, where the first line says 3"):
        width_of(str(path))


TEXTS = [[2, 3, 4, 2, 3], [4, 1, 2], [0, 5], [5], [6, 3, 3, 6]]


def test_vectors_of_texts_are_those_of_counts_by_hand() -> None:
    """Of singular value decomposition in full, of a matrix that is counted pair by pair."""
    V, window = 8, 2
    counts = np.zeros((V, V))
    for text in TEXTS:
        for i, a in enumerate(text):
            for j, b in enumerate(text):
                if 0 < abs(i - j) <= window and a > 1 and b > 1:
                    counts[a, b] += 1 / abs(i - j)
    share = counts.sum(1) ** 0.75
    with np.errstate(divide="ignore", invalid="ignore"):
        surprise = np.log(counts / (counts.sum(1)[:, None] * (share / share.sum())))
    surprise = np.where(counts > 0, np.maximum(surprise, 0), 0)
    left, values, _ = np.linalg.svd(surprise)
    rows = (left * np.sqrt(values))[:, : V - 1]
    known = surprise.any(1)
    rows -= rows[known].mean(0)
    rows /= np.sqrt((rows**2).mean(1, keepdims=True))
    found = vectors_of(map(torch.tensor, TEXTS), V, 9, window, seed=0).double().numpy()
    assert (found.any(1) == known).all()
    assert not found[:, V - 1 :].any()
    # Vectors may be turned and mirrored; what lies between them stays.
    products, expected = found[known] @ found[known].T, rows[known] @ rows[known].T
    np.testing.assert_allclose(products, expected, atol=1e-4)


def test_a_model_begins_with_vectors_of_its_texts(tmp_path: Path) -> None:
    rows = [(f"{a} film was {b}", label) for a in ("the", "this") for b, label in
            (("fine", "a"), ("great", "a"), ("dull", "b"), ("poor", "b"))] * 10  # fmt: skip
    made, notes = train(rows, tmp_path / "run", text_vectors=3, vocabulary=100)
    assert notes[0] == "vectors of the training texts: 8 of 8 tokens"
    weight = made.model.embedding.weight.detach()

    def near(one: str, other: str) -> float:
        pair = [weight[made.tokenizer.token_to_id(word)] for word in (one, other)]
        return float(torch.cosine_similarity(*pair, dim=0))

    assert near("fine", "great") > 0.9 > near("fine", "film")
    assert near("the", "this") > 0.9 > near("the", "was")
    with pytest.raises(InputError, match="text-vectors: only texts have it, not numbers"):
        train([([[1.0]], label) for label in "ab" * 20], tmp_path / "numbers", text_vectors=3)
    with pytest.raises(InputError, match="text-vectors: start-from brings vectors of its own"):
        ClassifierOptions(text_vectors=5, start_from="there")
