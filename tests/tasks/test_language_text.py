"""The texts of a language model: how they are read, cut into parts and into tokens."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from cello.tasks import language
from cello.tasks.errors import InputError
from cello.tasks.language.data import Text, read
from cello.tasks.language.predictor import LanguageModel
from cello.tasks.language.text import END, LONGEST, encode, read_tokenizer, train_tokenizer

OPTIONS = language.Options()

MIXED = (
    "It's  a\ttest, isn't it?\n\n  Yes [END] of [UNK] words.\n"
    "床前明月光，疑是地上霜。举头望明月，低头思故乡。mixed用iPhone\n"
    "naïve café — x_1 = 3.14; à\n"
)


@pytest.mark.parametrize("kind", ["char", "word", "bpe"])
def test_tokens_put_together_are_the_text(kind: str) -> None:
    text = MIXED * 2 + "no end of line"
    tokenizer = train_tokenizer([text], kind=kind, vocabulary=300)
    tokenizer = read_tokenizer(tokenizer.to_str(), "tokenizer.json")
    ids = encode(tokenizer, [MIXED, MIXED]).tolist()
    spelt = "".join(tokenizer.id_to_token(i) for i in ids)
    assert spelt == MIXED + END + MIXED
    assert ids.count(2) == 1  # what is written as [END] in the text is none
    assert 1 not in ids


def test_what_a_word_is() -> None:
    tokenizer = train_tokenizer([MIXED * 2], kind="word", vocabulary=300)
    ids = encode(
        read_tokenizer(tokenizer.to_str(), "t"), ["It's  a\ttest\n用iPhone, 明月"]
    ).tolist()
    tokens = [tokenizer.id_to_token(i) for i in ids]
    # A tab is not part of a word, and "test" has been seen behind one.
    assert tokens == [
        "It", "'", "s", " ", " a", "\t", "test", "\n", "用", "iPhone", ",", " ", "明", "月",
    ]  # fmt: skip


def test_rare_characters_are_known_and_rare_words_are_not() -> None:
    text = "aaa bbb aaa ccc aaa"
    chars = train_tokenizer([text], kind="char", vocabulary=300).get_vocab()
    words = train_tokenizer([text], kind="word", vocabulary=300).get_vocab()
    assert chars.keys() == {"[PAD]", "[UNK]", "[END]", "a", "b", "c", " "}
    assert words.keys() == {"[PAD]", "[UNK]", "[END]", " aaa"}


def test_long_lines_are_cut_between_words() -> None:
    """A line that is tokenized in pieces has the tokens of the whole line."""
    words = ["alpha", "beta", "gamma"] * (2 * LONGEST // 5)
    text = " ".join(words)
    tokenizer = train_tokenizer([text], kind="word", vocabulary=300)
    tokenizer = read_tokenizer(tokenizer.to_str(), "t")
    ids = encode(tokenizer, [text]).tolist()
    assert ids == tokenizer.encode(text, add_special_tokens=False).ids
    assert len(ids) == len(words)
    assert len(encode(tokenizer, ["明" * (3 * LONGEST)])) == 3 * LONGEST


def test_a_text_is_cut_at_a_white_space() -> None:
    left, right = Text(["one two three four"]).cut(0.5)
    assert (left.documents, right.documents) == (["one two three "], ["four"])
    left, right = Text(["床前明月光疑是地上霜"]).cut(0.5)
    assert (left.documents, right.documents) == (["床前明月光"], ["疑是地上霜"])
    left, right = Text(["ab", "cd", "ef gh", "ij"]).cut(0.4)
    assert (left.documents, right.documents) == (["ab", "cd", "ef "], ["gh", "ij"])
    assert len(left) + len(right) == len(Text(["ab", "cd", "ef gh", "ij"]))
    left, right = Text(["ab", "cd"]).cut(0.5)  # 5 characters, of which one is the end of "ab"
    assert (left.documents, right.documents) == (["ab"], ["cd"])


def test_the_parts_are_in_the_order_of_the_text(tmp_path: Path) -> None:
    text = "".join(f"{i:03}\n" for i in range(500))
    (tmp_path / "x.txt").write_text(text)
    options = replace(OPTIONS, valid_fraction=0.1, test_fraction=0.2)
    data = LanguageModel.read(str(tmp_path / "x.txt"), options)
    parts = ["".join(part.documents) for part in (data.train, data.valid, data.test)]
    assert "".join(parts) == text
    assert [len(part) for part in parts] == pytest.approx([1400, 200, 400], abs=8)
    data = LanguageModel.read(str(tmp_path / "x.txt"), OPTIONS)
    assert "".join([*data.train.documents, *data.valid.documents]) == text
    assert data.test is data.valid
    assert data.notes == ["there is no test set: the figures at the end are of the validation set"]
    other = LanguageModel.read(str(tmp_path / "x.txt"), replace(options, valid_fraction=0.2))
    assert other.fingerprint != data.fingerprint
    (tmp_path / "v.txt").write_text("of its own\n")
    options = replace(OPTIONS, valid_data=str(tmp_path / "v.txt"))
    data = LanguageModel.read(str(tmp_path / "x.txt"), options)
    assert ["".join(part.documents) for part in (data.train, data.valid)] == [text, "of its own\n"]


@pytest.mark.parametrize("encoding", ["utf-8", "utf-16", "gb18030"])
def test_encodings_and_ends_of_lines(tmp_path: Path, encoding: str) -> None:
    (tmp_path / "x.txt").write_bytes("床前明月光\r\n疑是地上霜\r低头\n".encode(encoding))
    options = replace(OPTIONS, encoding="gb18030" if encoding == "gb18030" else "utf-8")
    assert read(str(tmp_path / "x.txt"), options)[1].documents == ["床前明月光\n疑是地上霜\n低头\n"]


def test_folders_and_tables_are_documents(tmp_path: Path) -> None:
    (tmp_path / "texts" / "deep").mkdir(parents=True)
    (tmp_path / "texts" / "b.txt").write_text("second")
    (tmp_path / "texts" / "a.txt").write_text("first")
    (tmp_path / "texts" / "deep" / "c.txt").write_text("third")
    (tmp_path / "texts" / "notes.md").write_text("no")
    (tmp_path / "t.csv").write_text('label,text\n1,first\n2,\n3,"sec\r\nond"\n')
    (tmp_path / "t.jsonl").write_text('{"text": "first"}\n{"text": [[1.0]]}\n')
    assert read(str(tmp_path / "texts"), OPTIONS) == ("folder", Text(["first", "second", "third"]))
    kind, text = read(str(tmp_path / "t.csv"), OPTIONS)
    assert (kind, text.documents) == ("table", ["first", "sec\nond"])
    assert text.notes == [f"{tmp_path / 't.csv'}: 1 empty texts are left out"]
    with pytest.raises(InputError, match="line 2: numbers, where a text is expected"):
        read(str(tmp_path / "t.jsonl"), OPTIONS)
    assert read(str(tmp_path / "t.csv"), replace(OPTIONS, format="text"))[0] == "text"


def test_what_cannot_be_read(tmp_path: Path) -> None:
    (tmp_path / "empty.txt").write_text("")
    (tmp_path / "short.txt").write_text("a")
    (tmp_path / "latin.txt").write_bytes(b"caf\xe9 " * 9)
    (tmp_path / "folder").mkdir()
    for name, message in [
        ("", "DATA is empty"),
        ("no.txt", "no such file or folder"),
        ("empty.txt", "there is no text in it"),
        ("short.txt", "too short to split off a valid part"),
        ("latin.txt", "line 1: not UTF-8 at byte 3"),
        ("folder", "no files .txt"),
    ]:
        with pytest.raises(InputError, match=message):
            LanguageModel.read(str(tmp_path / name) if name else "", OPTIONS)
    with pytest.raises(InputError, match=r"is a folder, which cannot be read as 'text'"):
        read(str(tmp_path / "folder"), replace(OPTIONS, format="text"))


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"bidirectional": True}, "bidirectional: a language model reads forward only"),
        ({"stream": True}, "stream: a language model keeps its text in memory"),
        ({"tokenizer": "byte"}, "tokenizer: 'byte' is not one of word, bpe, char"),
        ({"steps": 0}, "steps: 0 is not between"),
        ({"valid_fraction": 0.5, "test_fraction": 0.5}, "leave nothing to learn from"),
    ],
)
def test_wrong_options(values: dict[str, object], message: str) -> None:
    with pytest.raises(InputError, match=message):
        language.Options(**values)  # type: ignore[arg-type]
