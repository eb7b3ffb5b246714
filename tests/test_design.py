"""DESIGN.md names every source file, once, in the list of its folder under *Files*."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src" / "cello"


def folders() -> dict[str, list[str]]:
    """The files of each folder as the page names them; a header and its source are one name."""
    found: dict[str, list[str]] = {}
    for path in sorted(SOURCES.rglob("*.py")):
        folder = f"{path.parent.relative_to(SOURCES).as_posix()}/"
        if path.name != "__init__.py":
            found.setdefault(folder, []).append(path.name)
    native = Counter(path.stem for path in (ROOT / "csrc").glob("*.*"))
    found["csrc/"] = [
        f"{path.stem}.h/.cc" if native[path.stem] == 2 else path.name
        for path in sorted((ROOT / "csrc").glob("*.*"))
        if path.suffix == ".h" or native[path.stem] == 1
    ]
    return found


def lists() -> dict[str, str]:
    """What the page says of each folder."""
    section = (ROOT / "DESIGN.md").read_text(encoding="utf-8").split("\n## Files\n")[1]
    parts = section.split("\n## ")[0].split("\n### ")[1:]
    return {part.split("`")[1]: part.partition("\n")[2] for part in parts}


@pytest.mark.parametrize("folder", folders())
def test_the_page_names_every_file_once(folder: str) -> None:
    named = re.findall(
        r"^- `([\w/]+\.(?:py|h|cc|h/\.cc))`: ", lists().get(folder, ""), re.MULTILINE
    )
    assert sorted(named) == sorted(folders()[folder])


def test_the_page_has_no_other_folder() -> None:
    assert lists().keys() == folders().keys()
