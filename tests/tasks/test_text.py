"""How texts are cut, what the model does not know of them, and how long little data is learnt from."""

from __future__ import annotations

import io
import json
import random
import shutil
from pathlib import Path

import numpy as np
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from tokenizers import pre_tokenizers

from cello.tasks import classify
from cello.tasks.batches import enough
from cello.tasks.classify import InputError, Options
from cello.tasks.classify.text import encode, load_tokenizer, train_tokenizer
from cello.tasks.confusion import report
from cello.tasks.folder import CONFIG, REPORT

SMALL = {"hidden": 8, "embedding": 8, "epochs": 1, "device": "cpu"}


def tokens(text: str, kind: str = "word") -> list[str]:
    tokenizer = train_tokenizer([text] * 2, kind=kind, vocabulary=99, max_length=99)
    return list(tokenizer.encode(text).tokens)


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("我喜欢,电影。", ["我", "喜", "欢", ",", "电", "影", "。"]),
        ("コーヒーを飲む", ["コ", "ー", "ヒ", "ー", "を", "飲", "む"]),
        ("ｶﾞｲﾄﾞ", ["ガ", "イ", "ド"]),  # of half width, with marks apart
        ("人々〇", ["人", "々", "〇"]),
        ("ที่นี่ดี มาก", ["ที่", "นี่", "ดี", "ม", "า", "ก"]),  # a consonant keeps its marks
        ("ສະບາຍ", ["ສ", "ະ", "ບ", "າ", "ຍ"]),
        ("ကောင်း", ["ကော", "င်း"]),
        ("ខ្ញុំ", ["ខ្", "ញុំ"]),
        ("ㄅㄆ ꀀꀁ", ["ㄅ", "ㄆ", "ꀀ", "ꀁ"]),
        ("my iPhone15手机is好", ["my", "iphone15", "手", "机", "is", "好"]),
        ("한국어 문장", ["한국어", "문장"]),  # Korean has spaces
    ],
)
def test_scripts_without_spaces_are_cut_into_characters(text: str, expected: list[str]) -> None:
    assert tokens(text) == expected


def test_texts_with_spaces_are_cut_as_ever() -> None:
    text = "don't stop... naïve co-operation, x_1 über Привет שלום मैं 🙂!? 3.5"
    plain = [piece for piece, _ in pre_tokenizers.Whitespace().pre_tokenize_str(text.lower())]
    assert tokens(text) == plain


def test_pieces_of_words_are_learnt_across_characters() -> None:
    assert tokens("电影 电影 电影", "bpe") == ["电影"] * 3


def chinese(path: Path, count: int = 300) -> Path:
    """Sentences without spaces whose class one word of two characters tells."""
    generator = random.Random(0)
    words = {"好": ["喜欢", "精彩", "满意"], "差": ["讨厌", "无聊", "失望"]}
    filler = [
        "这个",
        "那部",
        "真的",
        "非常",
        "有点",
        "我们",
        "昨天",
        "觉得",
        "看完",
        "电影",
        "剧情",
    ]
    rows = []
    for i in range(count):
        label = "好差"[i % 2]
        text = [*generator.choices(filler, k=generator.randint(3, 9)), *words[label][i % 3 :][:1]]
        generator.shuffle(text)
        rows.append(f"{label},{''.join(text)}\n")
    path.write_text("label,text\n" + "".join(rows), encoding="utf-8")
    return path


def test_chinese_is_learnt_with_default_options(tmp_path: Path) -> None:
    options = Options(hidden=32, embedding=32, device="cpu")
    found = classify.train(chinese(tmp_path / "x.csv"), tmp_path / "run", options)
    assert found.majority == 0.5
    assert found.accuracy > 0.9
    assert found.notes == found.training["notes"] == []


def test_a_model_of_before_reads_texts_as_it_was_trained(tmp_path: Path) -> None:
    """Its tokenizer.json says how to cut, and its config.json has neither new option."""
    rows = "".join(f"{'xy'[i % 2]},{['fine', 'dull'][i % 2]} film\n" for i in range(60))
    (tmp_path / "x.csv").write_text("label,text\n" + rows)
    classify.train(tmp_path / "x.csv", tmp_path / "run", Options(**SMALL))
    content = json.loads((tmp_path / "run" / "tokenizer.json").read_text())
    content["pre_tokenizer"] = {"type": "Whitespace"}
    (tmp_path / "run" / "tokenizer.json").write_text(json.dumps(content))
    made = classify.load(tmp_path / "run")
    assert made.tokenizer is not None
    (ids,) = made.encode(["我喜欢 fine"], ["here"])
    assert [made.tokenizer.id_to_token(i) for i in ids.tolist()] == ["[UNK]", "fine"]


def test_a_run_of_before_keeps_its_split(tmp_path: Path) -> None:
    """Then one seed was for the split and for all else."""
    source = chinese(tmp_path / "x.csv", 100)
    run, old = tmp_path / "run", tmp_path / "old"
    before = classify.train(source, run, Options(**SMALL, seed=3, split_seed=3))
    shutil.copytree(run, old)
    config = json.loads((old / CONFIG).read_text("utf-8"))
    for name in ("split_seed", "encoding", "delimiter"):
        del config["options"][name]
    (old / CONFIG).write_text(json.dumps(config), "utf-8")
    again = classify.load(old).evaluate_source(str(source), "test")
    assert again.confusion == before.confusion
    (old / REPORT).unlink()
    (old / "model.safetensors").unlink()
    assert classify.resume(old).confusion == before.confusion
    one, other = (load_file(folder / "model.safetensors") for folder in (run, old))
    for name in one:
        assert torch.equal(one[name], other[name]), name


def test_the_seed_leaves_the_split_alone(tmp_path: Path) -> None:
    source = str(chinese(tmp_path / "x.csv", 100))

    def parts(**seeds: int) -> list[list[str]]:
        data = classify.Classifier.read(source, Options(**SMALL, **seeds))
        return [[row.place for row in part] for part in (data.train, data.valid, data.test)]

    assert parts(seed=1) == parts(seed=2) == parts()
    assert parts(split_seed=1) != parts()


def test_unknown_tokens_are_said_from_a_fifth_on(tmp_path: Path) -> None:
    rows = "".join(f"{'xy'[i % 2]},{['fine', 'dull'][i % 2]} a b c\n" for i in range(60))
    (tmp_path / "x.csv").write_text("label,text\n" + rows)
    for name, texts in (
        ("some", ["fine a b c", "dull a b c q q"]),
        ("many", ["fine q", "r a b c"]),
    ):
        (tmp_path / f"{name}.csv").write_text("text,label\n" + f"{texts[0]},x\n{texts[1]},y\n")
    options = Options(
        **SMALL, valid_data=str(tmp_path / "some.csv"), test_data=str(tmp_path / "many.csv")
    )
    found = classify.train(tmp_path / "x.csv", tmp_path / "run", options)
    said = f"{tmp_path / 'x.csv'}, test set: 33% of the tokens are unknown to the model"
    (note,) = [note for note in found.training["notes"] if "unknown" in note]  # a fifth of `some`
    assert note.startswith(said)


def test_unknown_tokens_of_predictions(tmp_path: Path) -> None:
    rows = "".join(f"{'xy'[i % 2]},{['fine', 'dull'][i % 2]} a b c\n" for i in range(60))
    (tmp_path / "x.csv").write_text("label,text\n" + rows)
    classify.train(tmp_path / "x.csv", tmp_path / "run", Options(**SMALL))
    answers = classify.load(tmp_path / "run").predict(["fine a b c", "fine q", "q r"])
    assert [one.unknown for one in answers] == [0.0, 0.5, 1.0]


def shown(true: list[int], predicted: list[int], notes: list[str]) -> list[str]:
    found = report("data", ["a", "b"], true, predicted, 0.0)
    found.notes = notes
    console = Console(record=True, width=200, file=io.StringIO())
    found.show(console)
    return console.export_text().splitlines()


def test_a_model_no_better_than_the_most_frequent_class_is_said() -> None:
    line = "no better than: always the most frequent class"
    assert line in shown([0, 0, 0, 1], [0, 0, 0, 0], [])
    assert line in shown([0, 0, 0, 1], [0, 1, 1, 1], [])
    assert line not in shown([0, 0, 0, 1, 1], [0, 0, 0, 0, 1], [])
    assert line not in shown([0, 0, 0], [0, 0, 1], [])  # of one class there is no baseline
    assert shown([0, 1], [0, 1], ["two rows"])[-1] == "two rows"


def test_little_data_gets_more_epochs(tmp_path: Path) -> None:
    assert [enough(4, n, 32) for n in (1, 50, 320, 3_200, 32_000)] == [100, 100, 40, 4, 4]
    source = str(chinese(tmp_path / "x.csv", 100))
    for given, expected in ((None, (100, 33)), (7, (7, 33))):
        options = Options(hidden=8, epochs=given)
        data = classify.Classifier.read(source, options)
        options, _, _ = classify.Classifier.describe(data, options)
        assert (options.epochs, options.patience) == expected


def test_few_steps_are_said(tmp_path: Path) -> None:
    source = chinese(tmp_path / "x.csv", 100)
    found = classify.train(source, tmp_path / "a", Options(**SMALL))  # 81 rows
    assert any(
        note.startswith("3 steps in all are few to learn from (epochs: 1)")
        for note in found.training["notes"]
    )
    found = classify.train(source, tmp_path / "b", Options(**{**SMALL, "epochs": 17}))
    assert found.training["notes"] == []


def test_one_text_has_one_answer_and_several_a_list(tmp_path: Path) -> None:
    rows = "".join(f"{'xy'[i % 2]},{['fine', 'dull'][i % 2]} film\n" for i in range(60))
    (tmp_path / "x.csv").write_text("label,text\n" + rows)
    classify.train(tmp_path / "x.csv", tmp_path / "run", Options(**SMALL))
    made = classify.load(tmp_path / "run")
    one = made.predict("a fine film")
    assert isinstance(one, classify.Prediction)
    texts = ["a fine film", "dull"]
    for several in (texts, tuple(texts), iter(texts), dict.fromkeys(texts)):
        found = made.predict(several)
        assert isinstance(found, list)
        assert [x.label for x in found] == [made.predict(text).label for text in texts]
    assert made.predict([]) == []
    stream = made.predict_stream(texts, batch_size=1)
    assert next(stream).probability == pytest.approx(one.probability)
    assert len(list(stream)) == 1
    with pytest.raises(InputError, match="one text, where several are expected"):
        made.predict_stream("a fine film")
    # What holds nothing to read has no answer, and changes no other's.
    none = classify.Prediction(None, None, None, None)
    for batch_size in (1, 2, 64):
        found = made.predict(["", texts[0], " \u3000\n", "<br />", texts[1]], batch_size=batch_size)
        assert [x == none for x in found] == [True, False, True, True, False]
        for x, text in zip((found[1], found[4]), texts, strict=True):
            alone = made.predict(text)
            assert x.label == alone.label
            assert x.probability == pytest.approx(alone.probability)
    assert made.predict("") == none
    assert made.predict(["fine", None, float("nan")])[1:] == [none, none]  # missing, as in a table
    with pytest.raises(InputError, match="input 2: the model reads text"):
        made.predict(["fine", np.zeros((0, 2), np.float32)])


def test_a_tokenizer_is_the_same_when_read_again() -> None:
    tokenizer = train_tokenizer(["手机 good"] * 2, kind="word", vocabulary=50, max_length=9)
    again = load_tokenizer(tokenizer.to_str(), "tokenizer.json")
    text = ["good手机手"]
    assert encode(again, text, ["1"])[0].tolist() == encode(tokenizer, text, ["1"])[0].tolist()
