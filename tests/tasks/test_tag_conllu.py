"""Reading tagged sentences and filling tags in: what is read, what is kept, what is refused."""

from __future__ import annotations

import os
from itertools import chain
from pathlib import Path

import pytest

from cello.tasks.errors import InputError
from cello.tasks.tables import open_text
from cello.tasks.tag.conllu import LONGEST, Conllu, Format, Lines, TwoColumns, WordALine, recognised

CONLLU = """\
# sent_id = 1
# text = I don't know.
1\tI\tI\tPRON\tPRP\tCase=Nom|Number=Sing\t3\tnsubj\t_\t_
2-3\tdon't\t_\t_\t_\t_\t_\t_\t_\t_
2\tdo\tdo\tAUX\tVBP\tMood=Ind\t3\taux\t_\t_
3\tn't\tnot\tPART\tRB\t_\t0\troot\t_\t_
3.1\tknow\tknow\tVERB\tVB\t_\t_\t_\t0:root\t_
4\t.\t.\tPUNCT\t.\t_\t3\tpunct\t_\tSpaceAfter=No

# sent_id = 2
1\tYes\tyes\tINTJ\tUH\t_\t0\troot\t_\t_

"""


def blocks(file_format: Format, text: str) -> list[tuple[list[str], str]]:
    return [(b.words, b.places[0]) for b in file_format.blocks(text.splitlines(keepends=True), "f")]


def test_conllu_has_words_without_ranges_and_empty_words() -> None:
    assert blocks(Conllu(), CONLLU) == [
        (["I", "do", "n't", "."], "f, line 3"),
        (["Yes"], "f, line 11"),
    ]


@pytest.mark.parametrize("ends", ["\n", "\r\n"])
@pytest.mark.parametrize("behind", ["", "\n", "\n\n\n"])
def test_line_ends_and_the_end_of_the_file_do_not_matter(ends: str, behind: str) -> None:
    text = (CONLLU.rstrip("\n") + behind).replace("\n", ends)
    assert blocks(Conllu(), text) == blocks(Conllu(), CONLLU)


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        ("upos", ["PRON", "AUX", "PART", "PUNCT"]),
        ("xpos", ["PRP", "VBP", "RB", "."]),
        ("feats", ["Case=Nom|Number=Sing", "Mood=Ind", "_", "_"]),
        ("feats:Number", ["Sing", "_", "_", "_"]),
        ("deprel", ["nsubj", "aux", "root", "punct"]),
    ],
)
def test_the_tag_may_be_in_any_column(column: str, expected: list[str]) -> None:
    file_format = Conllu(column)
    block = next(file_format.blocks(CONLLU.splitlines(), "f"))
    assert file_format.tags(block) == expected


@pytest.mark.parametrize(
    ("column", "tags", "before", "after"),
    [
        ("upos", ["A", "B", "C", "D"], "\tAUX\t", "\tB\t"),
        ("feats:Number", ["Plur", "_", "_", "_"], "Case=Nom|Number=Sing", "Case=Nom|Number=Plur"),
        ("feats:Aspect", ["Imp", "_", "_", "_"], "Case=Nom", "Aspect=Imp|Case=Nom"),
        ("feats:Mood", ["_", "_", "_", "_"], "\tMood=Ind\t", "\t_\t"),
    ],
)
def test_filling_in_changes_the_tags_alone(
    column: str, tags: list[str], before: str, after: str
) -> None:
    file_format = Conllu(column)
    block = next(file_format.blocks(CONLLU.splitlines(), "f"))
    lines = "\n".join(file_format.filled(block, tags))
    if column == "upos":
        for old, new in zip(["PRON", "AUX", "PART", "PUNCT"], tags, strict=True):
            lines = lines.replace(f"\t{new}\t", f"\t{old}\t")
        assert lines + "\n" == CONLLU.partition("# sent_id = 2")[0]
    else:
        assert lines + "\n" == CONLLU.partition("# sent_id = 2")[0].replace(before, after)


@pytest.mark.parametrize("name", ["ud_english_ewt/en_ewt-ud-dev", "ud_chinese_gsd/zh-ud-dev"])
def test_a_real_file_comes_out_as_it_went_in(name: str) -> None:
    data = os.environ.get("CELLO_DATA")
    if not data:
        pytest.skip(f"CELLO_DATA does not name a folder with {name}.conllu.gz")
    lines = list(open_text(Path(data) / f"{name}.conllu.gz"))
    file_format = Conllu("xpos")
    filled = chain.from_iterable(
        file_format.filled(b, file_format.tags(b)) for b in file_format.blocks(lines, name)
    )
    assert [f"{line}\n" for line in filled] == lines


def test_two_columns() -> None:
    file_format = TwoColumns()
    lines = ["#\tSYM\n", " one   NUM \n", " \n", "a b\tX\n", "\u3000 SPACE\n"]
    found = list(file_format.blocks(lines, "f"))
    assert [(b.words, file_format.tags(b)) for b in found] == [
        (["#", "one"], ["SYM", "NUM"]),
        (["a b", "\u3000"], ["X", "SPACE"]),
    ]
    assert file_format.filled(found[0], ["A", "B"]) == ["#\tA", "one\tB", ""]


def test_without_tags_a_line_is_a_word() -> None:
    file_format = TwoColumns(tagged=False)
    [block] = file_format.blocks(["A", "day\tOLD"], "f")
    assert file_format.filled(block, ["DET", "NOUN"]) == ["A\tDET", "day\tNOUN", ""]


def test_lines_keep_their_number_where_they_are_empty() -> None:
    found = list(Lines().blocks(["a  fine day\n", "\n", "yes\n"], "f"))
    tags = [["DET", "ADJ", "NOUN"], [], ["INTJ"]]
    filled = [Lines().filled(block, t) for block, t in zip(found, tags, strict=True)]
    assert filled == [["a/DET fine/ADJ day/NOUN"], [""], ["yes/INTJ"]]


def conllu_line(number: str = "1", word: str = "a", tag: str = "X", feats: str = "_") -> str:
    return f"{number}\t{word}\t_\t{tag}\t_\t{feats}\t_\t_\t_\t_"


@pytest.mark.parametrize(
    ("file_format", "text", "complaint"),
    [
        (Conllu(), "1\ta\tX", "f, line 1: 3 columns, not the 10 of CoNLL-U"),
        (Conllu(), "# c\nword", "f, line 2: 1 column, not the 10 of CoNLL-U"),
        (Conllu(), conllu_line("x"), "f, line 1: 'x' is not the number of a word"),
        (
            Conllu(),
            f"{conllu_line()}\n{conllu_line()}",
            "f, line 2: word 1 where word 2 is expected; an empty line must end each sentence",
        ),
        (Conllu(), conllu_line(word=""), "f, line 1: the word is empty"),
        (Conllu(), conllu_line(tag="_"), "f, line 1: the word has no tag in the column upos"),
        (Conllu(), conllu_line(tag=" "), "f, line 1: the word has no tag in the column upos"),
        (
            Conllu("feats:Number"),
            conllu_line(feats="Sing"),
            "f, line 1: 'Sing' are no features, as Case=Nom|Number=Sing",
        ),
        (TwoColumns(), "a X\nb", "f, line 2: 1 column, not 2, a word and its tag"),
        (TwoColumns(), "a b X", "f, line 1: 3 columns, not 2, a word and its tag"),
        (TwoColumns(), "\tX", "f, line 1: the word is empty"),
        (TwoColumns(), "a\t", "f, line 1: the tag is empty"),
        (
            TwoColumns(),
            "a X\n" * (LONGEST + 1),
            f"f, line {LONGEST + 1}: more than 10,000 lines without an empty one; "
            "an empty line must end each sentence",
        ),
    ],
)
def test_what_is_not_as_it_should_be_is_named(
    file_format: WordALine, text: str, complaint: str
) -> None:
    with pytest.raises(InputError) as info:
        [file_format.tags(block) for block in file_format.blocks(text.splitlines(), "f")]
    assert str(info.value) == complaint


def test_a_line_of_too_many_words_is_refused() -> None:
    with pytest.raises(InputError, match="f, line 2: more than 10,000 words in a line"):
        list(Lines().blocks(["yes", "a " * (LONGEST + 1)], "f"))


@pytest.mark.parametrize("column", ["pos", "upos:Case", "feat:Case", ""])
def test_an_unknown_column_is_refused(column: str) -> None:
    with pytest.raises(InputError, match=f"label-column: '{column}' is not one of upos, xpos"):
        Conllu(column)


@pytest.mark.parametrize(
    ("text", "conllu"),
    [(CONLLU, True), ("# no comment\nA fine day\n", False), ("a\tX\n", False), ("", False)],
)
def test_conllu_is_recognised_and_no_line_is_lost(text: str, conllu: bool) -> None:
    lines = text.splitlines(keepends=True)
    file_format, again = recognised(lines, "xpos", Lines())
    assert isinstance(file_format, Conllu if conllu else Lines)
    assert list(again) == lines


def test_recognising_reads_no_further_than_it_must() -> None:
    lines = iter(["# c", "", "1 word", "the next line"])
    recognised(lines, "upos", Lines())
    assert next(lines) == "the next line"
