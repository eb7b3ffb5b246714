"""DESIGN.md names every source file, once, in the row of its folder in the table under *Rooms*."""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
SOURCES = ROOT / "src" / "cello"


def folders() -> dict[str, list[str]]:
    """The files of each folder as the table names them; a header and its source are one name."""
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


def rooms() -> dict[str, str]:
    """What the table says of each folder."""
    section = (ROOT / "DESIGN.md").read_text(encoding="utf-8").split("\n## Rooms\n")[1]
    table = section.split("\n#")[0]
    return dict(re.findall(r"^\| `([\w/]+/)` \| (.*) \|$", table, re.MULTILINE))


@pytest.mark.parametrize("folder", folders())
def test_the_table_of_rooms_names_every_file_once(folder: str) -> None:
    named = re.findall(r"`([\w/]+\.(?:py|h|cc|h/\.cc))`", rooms().get(folder, ""))
    assert sorted(named) == sorted(folders()[folder])


def test_the_table_of_rooms_has_no_other_folder() -> None:
    assert rooms().keys() == folders().keys()
