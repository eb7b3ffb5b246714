"""Every Python block of the README and of the pages runs, in order, in one namespace a page.

In the guide a block called `text` right behind a Python block is what that one prints. Its two languages
hold the same code, so it runs once: their syntax trees are compared, which know no comments.
"""

import ast
import contextlib
import io
import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
READMES = [ROOT / "README.md", ROOT / "README.zh-CN.md"]
GUIDE = sorted(
    page for page in (ROOT / "docs/guide").glob("*.md") if not page.name.endswith(".zh.md")
)
PAGES = [*READMES, *sorted((ROOT / "docs").glob("*.md")), *GUIDE]
WITHOUT_CODE = [
    ROOT / f"docs/{name}.md"
    for name in ("benchmarks", "packages", "results", "guide/index", "install")
]

WORDS = {"fine": "pos", "good": "pos", "dull": "neg", "poor": "neg"}


def blocks_of(page: Path) -> list[tuple[str, str, bool]]:
    """Each fenced block: its language, its text, and whether it stands right behind another one."""
    found = re.finditer(
        r"^```(\w*)\n(.*?)^```\n?", page.read_text("utf-8"), re.DOTALL | re.MULTILINE
    )
    blocks, end = [], -1
    for match in found:
        between = match.string[end : match.start()] if end >= 0 else "."
        blocks.append((match[1], match[2], not between.strip()))
        end = match.end()
    return blocks


@pytest.mark.parametrize("page", PAGES, ids=lambda page: "-".join(page.parts[len(ROOT.parts) :]))
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = blocks_of(page)
    assert any(language == "python" for language, _, _ in blocks) or page in WITHOUT_CODE
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)  # where a page may train a model on a table of reviews
    rows = [f"{word} film {n},{label}" for n in range(30) for word, label in WORDS.items()]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *rows]))
    namespace: dict[str, object] = {"__name__": page.stem}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, (language, code, _) in enumerate(blocks):
            if language != "python":
                continue
            printed = io.StringIO()
            with contextlib.redirect_stdout(printed):
                exec(compile(code, f"{page.name}, block {number}", "exec"), namespace)
            follows, text, adjoins = [*blocks, ("", "", False)][number + 1]
            if page not in GUIDE:
                continue
            if follows == "text" and adjoins:
                assert [line.rstrip() for line in printed.getvalue().splitlines()] == [
                    line.rstrip() for line in text.splitlines()
                ], f"{page.name}, block {number}:\n{code}"
            else:  # what a reader would see stands on the page
                assert printed.getvalue() == "", f"{page.name}, block {number}:\n{code}"


def test_both_readmes_show_the_same_code() -> None:
    blocks = [
        re.sub(r"\s*#.*", "", "".join(text for _, text, _ in blocks_of(page))) for page in READMES
    ]
    assert blocks[0] == blocks[1]


@pytest.mark.parametrize("page", GUIDE, ids=lambda page: page.stem)
def test_both_languages_of_the_guide_show_the_same_code(page: Path) -> None:
    def bare(block: tuple[str, str, bool]) -> tuple[str, str, bool]:
        language, text, adjoins = block
        if language == "python":
            text = ast.dump(ast.parse(text))
        elif language == "console":
            text = re.sub(r"\s*#.*", "", text)
        return language, text, adjoins

    ours, theirs = (
        [bare(block) for block in blocks_of(one)] for one in (page, page.with_suffix(".zh.md"))
    )
    assert ours == theirs


def test_the_site_has_every_page() -> None:
    """`mkdocs build --strict` says so too; this one needs no mkdocs."""
    docs = ROOT / "docs"
    listed = set(re.findall(r"^ *- (\S+/\S+\.md)$", (ROOT / "mkdocs.yml").read_text("utf-8"), re.M))
    pages = {str(page.relative_to(docs)) for page in docs.glob("*/*.md")}
    assert {page for page in pages if not page.endswith(".zh.md")} == listed
