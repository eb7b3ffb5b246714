"""Every Python block of the README and of the pages runs, in order, in one namespace a page."""

import re
import warnings
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "README.zh-CN.md", *sorted((ROOT / "docs").glob("*.md"))]

WORDS = {"fine": "pos", "good": "pos", "dull": "neg", "poor": "neg"}


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.stem)
def test_blocks_run(page: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    blocks = re.findall(r"^```python\n(.*?)^```", page.read_text("utf-8"), re.DOTALL | re.MULTILINE)
    assert blocks or page.stem == "benchmarks"  # a page of figures
    monkeypatch.chdir(tmp_path)  # where a page may train a model on a table of reviews
    rows = [f"{word} film {n},{label}" for n in range(30) for word, label in WORDS.items()]
    (tmp_path / "reviews.csv").write_text("\n".join(["text,label", *rows]))
    namespace: dict[str, object] = {"__name__": page.stem}
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for number, block in enumerate(blocks):
            exec(compile(block, f"{page.name}, block {number}", "exec"), namespace)


def test_both_readmes_show_the_same_code() -> None:
    blocks = [
        re.sub(
            r"\s*#.*", "", "".join(re.findall(r"^```.*?^```", page.read_text("utf-8"), re.S | re.M))
        )
        for page in PAGES[:2]
    ]
    assert blocks[0] == blocks[1]
