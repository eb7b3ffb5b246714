"""Data in memory gives the model that the same data in a file gives, and the same messages."""

from __future__ import annotations

import csv
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from cello.tasks import Classifier, ClassifierOptions, Tagger, TaggerOptions
from cello.tasks.errors import InputError, Interrupted
from cello.tasks.memory import names_of, plain, records

SMALL = {"hidden": 8, "embedding": 8, "epochs": 2, "device": "cpu"}
ROWS = [
    (f"the film was {('fine', 'great', 'dull', 'poor')[i % 4]} {i % 7}", "ab"[i % 4 // 2])
    for i in range(80)
]
TEXTS, LABELS = map(list, zip(*ROWS, strict=True))
SENTENCES = [(["a", "fine", "day"], ["D", "A", "N"]), (["we", "go"], ["P", "V"])] * 15


class Frame:
    """What pandas and polars have in common: names of columns, and columns by name."""

    def __init__(self, **columns: list[Any]) -> None:
        self.columns = list(columns)
        self._values = columns

    def __getitem__(self, name: str) -> list[Any]:
        return self._values[name]


def weights(folder: Path, kind: Any) -> dict[str, torch.Tensor]:
    state: dict[str, torch.Tensor] = kind.load(folder).model.state_dict()
    return state


def assert_same(one: dict[str, torch.Tensor], other: dict[str, torch.Tensor]) -> None:
    assert one.keys() == other.keys()
    for name in one:
        assert torch.equal(one[name], other[name]), name


def pandas_frame(**columns: list[Any]) -> Any:
    return pytest.importorskip("pandas").DataFrame(columns)


def arrow_table(**columns: list[Any]) -> Any:
    return pytest.importorskip("pyarrow").table(columns)


def hub_dataset(**columns: list[Any]) -> Any:
    return pytest.importorskip("datasets").Dataset.from_dict(columns)


TABLES = [Frame, dict, pandas_frame, arrow_table, hub_dataset]


@pytest.fixture(scope="module")
def from_file(tmp_path_factory: pytest.TempPathFactory) -> dict[str, torch.Tensor]:
    folder = tmp_path_factory.mktemp("file")
    with (folder / "x.csv").open("w") as stream:
        csv.writer(stream).writerows([("text", "label"), *ROWS])
    Classifier.train(folder / "x.csv", folder / "run", ClassifierOptions(**SMALL))
    return weights(folder / "run", Classifier)


@pytest.mark.parametrize("table", TABLES, ids=lambda f: f.__name__)
def test_tables(tmp_path: Path, from_file: dict[str, torch.Tensor], table: Any) -> None:
    given = table(text=TEXTS, label=LABELS)
    report = Classifier.train(given, tmp_path / "run", ClassifierOptions(**SMALL))
    assert_same(weights(tmp_path / "run", Classifier), from_file)
    made = Classifier.load(tmp_path / "run")
    assert made.predict(given) == made.predict(TEXTS)
    assert made.predict(table(text=TEXTS[:3], other=[1, 2, 3])) == made.predict(TEXTS[:3])
    assert made.evaluate(given).rows == 80
    again = made.evaluate_source(given, "test")
    assert (again.accuracy, again.confusion) == (report.accuracy, report.confusion)
    with pytest.raises(InputError, match=r"no column 'text'; there are: words"):
        made.predict(table(words=TEXTS))


@pytest.mark.parametrize(
    "form",
    [
        lambda: (TEXTS, LABELS),
        lambda: (np.array(TEXTS), np.array(LABELS)),
        lambda: (pytest.importorskip("pandas").Series(TEXTS), tuple(LABELS)),
        lambda: ROWS,
        lambda: [{"text": text, "label": label} for text, label in ROWS],
    ],
    ids=["lists", "arrays", "series", "pairs", "records"],
)
def test_lists(tmp_path: Path, from_file: dict[str, torch.Tensor], form: Any) -> None:
    Classifier.train(form(), tmp_path / "run", ClassifierOptions(**SMALL))
    assert_same(weights(tmp_path / "run", Classifier), from_file)
    made = Classifier.load(tmp_path / "run")
    right = sum(made.predict(text).label == label for text, label in ROWS)
    assert made.evaluate(form()).accuracy == pytest.approx(right / 80)


def test_parts(tmp_path: Path) -> None:
    parts = {"train": ROWS[:60], "validation": (TEXTS[60:70], LABELS[60:70]), "test": ROWS[70:]}
    report = Classifier.train(parts, tmp_path / "run", ClassifierOptions(**SMALL))
    assert report.training["rows"] == {"train": 60, "valid": 10, "test": 10}
    assert Classifier.load(tmp_path / "run").evaluate(parts).accuracy == report.accuracy
    tagged = {"train": SENTENCES[:10], "test": SENTENCES[10:12]}
    report_of_tags = Tagger.train(tagged, tmp_path / "tag", TaggerOptions(**SMALL))
    assert report_of_tags.training["sentences"] == {"train": 9, "valid": 1, "test": 2}
    found = Tagger.load(tmp_path / "tag").evaluate(tagged)
    assert (found.sentences, found.accuracy) == (2, report_of_tags.accuracy)


def test_missing_values_are_left_out_and_said(tmp_path: Path) -> None:
    pandas = pytest.importorskip("pandas")
    table = pandas.DataFrame({"text": TEXTS, "label": [i % 2 for i in range(80)]})
    table.loc[3, "text"] = None
    table["label"] = table["label"].astype("Int64")
    table.loc[5, "label"] = pandas.NA
    table.index = range(1000, 1080)  # rows are counted as in iloc, whatever the index says
    report = Classifier.train(table, tmp_path / "run", ClassifierOptions(**SMALL))
    assert sum(report.training["rows"].values()) == 78
    assert report.labels == ["0", "1"]
    said = "DataFrame, row 3 has no text, DataFrame, row 5 has no label"
    assert any(said in note for note in report.training["notes"])
    made = Classifier.load(tmp_path / "run")
    assert [one.label is None for one in made.predict(table.iloc[2:5])] == [False, True, False]


@pytest.mark.parametrize("shape", [(60, 5, 2), (60, 5)])
@pytest.mark.parametrize("kind", [np.asarray, torch.tensor, lambda x: x.tolist()])
def test_numbers(tmp_path: Path, shape: tuple[int, ...], kind: Any) -> None:
    x = np.random.default_rng(0).normal(size=shape)
    y = (x.reshape(60, -1).sum(1) > 0).astype(int)
    Classifier.train((kind(x), kind(y)), tmp_path / "run", ClassifierOptions(**SMALL))
    made = Classifier.load(tmp_path / "run")
    assert made.labels == ["0", "1"]
    assert made.features == (2 if len(shape) == 3 else 1)
    inputs = (x.reshape(60, 5, -1) - made.model.mean.numpy()).astype(np.float32)
    with torch.no_grad():
        logits = made.model(torch.tensor(inputs).transpose(0, 1), torch.full((60,), 5))
    expected = logits.softmax(1)[:, 1].tolist()
    found = [one.probabilities["1"] for one in made.predict(kind(x))]  # type: ignore[index]
    assert found == pytest.approx(expected, abs=1e-6)


def test_a_table_with_a_step_a_row(tmp_path: Path) -> None:
    x = np.random.default_rng(0).normal(size=(40, 3, 2)).round(3)
    columns = {
        "series": np.repeat(np.arange(40), 3).tolist(),
        "label": [f"c{i % 2}" for i in range(40) for _ in range(3)],
        "b": x[..., 0].ravel().tolist(),
        "a": x[..., 1].ravel().tolist(),
    }
    with (tmp_path / "x.csv").open("w") as stream:
        csv.writer(stream).writerows([columns.keys(), *zip(*columns.values(), strict=True)])
    options = ClassifierOptions(**SMALL, sequence_column="series")
    for name, source in (("file", tmp_path / "x.csv"), ("memory", Frame(**columns))):
        Classifier.train(source, tmp_path / name, options)
    assert_same(*(weights(tmp_path / name, Classifier) for name in ("file", "memory")))
    made = Classifier.load(tmp_path / "memory")
    assert made.config.options.feature_columns == "b,a"
    turned = Frame(**dict(reversed(columns.items())))  # columns are known by name
    assert made.predict(turned) == made.predict(tmp_path / "x.csv") == made.predict(x)
    columns["series"][4] = columns["series"][5] = float("nan")
    with pytest.raises(InputError, match="row 4: 'series' is empty, which tells sequences apart"):
        Classifier.train(Frame(**columns), tmp_path / "no", options)
    with pytest.raises(InputError, match="sequence-column: only a table"):
        Classifier.train(ROWS, tmp_path / "no", options)


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ((TEXTS, LABELS[1:]), "data: 79 labels, where there are 80 inputs"),
        ([TEXTS, LABELS], r"data, row 0: neither a pair.* as a tuple, \(inputs, labels\)"),
        (("a text", LABELS), "inputs: one text, where several are expected"),
        (7, "data: int, where a path, a table"),
        ([], "data: holds no rows"),
        ({"text": ["a"], "label": []}, r"columns of different lengths \(text 1, label 0\)"),
        (Frame(text=["a"]), "Frame: no column 'label'; there are: text"),
        ([{"text": "a"}], "data, row 0: no column 'label'; there are: text"),
        ([("a", "x"), (np.zeros((2, 2, 2)), "y")], "data, row 1: the sequence has the shape"),
        ([("a", "x"), (["b", "c"], "y")], "data, row 1: neither a text nor numbers"),
        ([("a", "x"), ([1.0, 2.0], "y")], "data, row 1: some rows are texts and some are numbers"),
        ([([1.0, float("inf")], c) for c in "xy" * 20], r"data, row \d+: a number is not finite"),
        ({"validation": ROWS, "test": ROWS}, "data: no part 'train'; there are: validation, test"),
        ([("a", ["x"]), ("b", "y")], "data, row 0: the label is not a word or number"),
        (
            {"train": ROWS, "valid": ROWS, "validation": ROWS},
            "'valid' and 'validation' are one part",
        ),
        ([("a\ud800", label) for label in "xy" * 20], "half of a surrogate pair"),
    ],
)
def test_what_is_no_data(tmp_path: Path, source: object, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Classifier.train(source, tmp_path / "run", ClassifierOptions(**SMALL))
    assert not (tmp_path / "run").exists()


@pytest.mark.parametrize(
    "form",
    [
        lambda: SENTENCES,
        lambda: tuple(map(list, zip(*SENTENCES, strict=True))),
        lambda: [list(zip(*sentence, strict=True)) for sentence in SENTENCES],
        lambda: Frame(words=[w for w, _ in SENTENCES], tags=[t for _, t in SENTENCES]),
        lambda: hub_dataset(tokens=[w for w, _ in SENTENCES], tags=[t for _, t in SENTENCES]),
        lambda: pandas_frame(
            sentence=[i for i, (words, _) in enumerate(SENTENCES) for _ in words],
            word=[word for words, _ in SENTENCES for word in words],
            tag=[tag for _, tags in SENTENCES for tag in tags],
        ),
        lambda: [{"words": words, "tags": tags} for words, tags in SENTENCES],
    ],
    ids=["pairs", "two lists", "pairs of words", "table", "tokens", "a word a row", "records"],
)
def test_sentences(tmp_path: Path, form: Any) -> None:
    lines = ["".join(f"{w}\t{t}\n" for w, t in zip(*s, strict=True)) for s in SENTENCES]
    (tmp_path / "x.tsv").write_text("\n".join(lines))
    options = TaggerOptions(**SMALL)
    Tagger.train(tmp_path / "x.tsv", tmp_path / "file", options)
    report = Tagger.train(form(), tmp_path / "memory", options)
    assert_same(*(weights(tmp_path / name, Tagger) for name in ("file", "memory")))
    made = Tagger.load(tmp_path / "memory")
    expected = made.predict([words for words, _ in SENTENCES])
    right = [a == b for one, (_, tags) in zip(expected, SENTENCES, strict=True)
             for a, b in zip(one.tags, tags, strict=True)]  # fmt: skip
    assert made.evaluate(form()).accuracy == pytest.approx(sum(right) / len(right))
    assert made.evaluate_source(form(), "test").accuracy == report.accuracy
    if names_of(form()) is not None:
        assert made.predict(form()) == expected
    assert made.predict(tmp_path / "x.tsv") == expected


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ([(["a"], ["X", "Y"])], "data, sentence 0: 1 words, but 2 tags"),
        ([("a b", "X Y")], "data, sentence 0: the words are 'a b', not a list"),
        ([(["a", None], ["X", "Y"])], "data, sentence 0, word 1: the word is empty"),
        ([(["a", "b"], ["X", ""])], "data, sentence 0, word 1: the tag is empty"),
        ([(["a\tb"], ["X"])], "data, sentence 0, word 0: the word holds a tab"),
        (([["a"]], []), "data: tags of 0 sentences, where there are 1"),
        ([["a", "b", "c"]], r"data, sentence 0: neither \(words, tags\) nor a list of pairs"),
        (7, "data: int, where a path, a table"),
        ([], "data: holds no sentences"),
        (Frame(text=["a"]), "Frame: no column 'words'; there are: text"),
        (
            Frame(sentence=[1, 2, 1], word=["a", "b", "c"], tag=["X", "Y", "X"]),
            "Frame, row 2: the words of the sentence 1 do not stand together",
        ),
        (
            Frame(sentence=[1, None], word=["a", "b"], tag=["X", "Y"]),
            "Frame, row 1: the word has no sentence",
        ),
    ],
)
def test_what_are_no_sentences(tmp_path: Path, source: object, expected: str) -> None:
    with pytest.raises(InputError, match=expected):
        Tagger.train(source, tmp_path / "run", TaggerOptions(**SMALL))


def test_a_run_on_data_in_memory_goes_on_with_the_data(
    tmp_path: Path, from_file: dict[str, torch.Tensor], monkeypatch: pytest.MonkeyPatch
) -> None:
    from cello.tasks import trainer

    step = trainer.Training.step

    def interrupted(self: trainer.Training, batch: Any) -> Any:
        if self.epochs:
            raise KeyboardInterrupt
        return step(self, batch)

    with monkeypatch.context() as patch:
        patch.setattr(trainer.Training, "step", interrupted)
        with pytest.raises(Interrupted):
            Classifier.train(ROWS, tmp_path / "run", ClassifierOptions(**SMALL))
    with pytest.raises(InputError, match=r"in memory; Classifier.resume\(folder, data\) continues"):
        Classifier.resume(tmp_path / "run")
    with pytest.raises(InputError, match="the data has changed since training began"):
        Classifier.resume(tmp_path / "run", ROWS[1:])
    Classifier.resume(tmp_path / "run", ROWS)
    assert_same(weights(tmp_path / "run", Classifier), from_file)


def test_a_limit_takes_rows_of_every_class_and_more_of_them_when_it_grows(tmp_path: Path) -> None:
    rows = [*ROWS, *[(f"rare {i}", "c") for i in range(12)]]
    options = ClassifierOptions(**SMALL)
    found = {}
    for limit in (3, 10, 60, None):
        data = Classifier.read(rows, ClassifierOptions(**SMALL, limit=limit))
        found[limit] = {row.place for row in data.train}
        notes = [f"limit: the first {limit} of 73 rows for training, in a random order"]
        assert data.notes == (notes if limit else [])
        assert set(data.train.labels) == {"a", "b", "c"}
        assert (len(data.valid), len(data.test)) == (9, 10)
    assert [len(places) for places in found.values()] == [3, 10, 60, 73]
    assert found[3] < found[10] < found[60] < found[None]
    with pytest.raises(InputError, match="limit: 2 rows cannot hold each of 3 labels"):
        Classifier.read(rows, ClassifierOptions(**SMALL, limit=2))
    report = Classifier.train(rows, tmp_path / "run", ClassifierOptions(**SMALL, limit=10))
    assert report.training["rows"] == {"train": 10, "valid": 9, "test": 10}
    made = Classifier.load(tmp_path / "run")
    assert made.evaluate_source(rows, "train").rows == 10
    assert made.evaluate_source(rows, "test").rows == 10
    assert Classifier.read(rows, options).notes == []
    sentences = Tagger.read(SENTENCES, TaggerOptions(**SMALL, limit=5))
    assert len(sentences.train) == 5
    assert sentences.notes == ["limit: the first 5 of 24 sentences for training, in a random order"]


def test_names_and_values() -> None:
    assert names_of([1]) is names_of("text") is names_of(np.zeros(3)) is names_of({"a": 1}) is None
    assert names_of({"a": [1], 2: [3]}) == ["a", "2"]
    assert [*records({"a": [1.5, float("nan")], 2: ["x", None]}, ["2", "a"])] == [
        ("data, row 0", {"2": "x", "a": 1.5}), ("data, row 1", {"2": None, "a": None}),
    ]  # fmt: skip
    values = [np.float32(0.5), torch.tensor(3), np.str_("a"), None, np.array(2)]
    assert [plain(value) for value in values] == [0.5, 3, "a", None, 2]
