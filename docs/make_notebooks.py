"""Make the notebooks of the guide: `python docs/make_notebooks.py`.

A notebook holds what its page holds: the programs are its cells, and the grey boxes below them are what the
cells have printed. So the tests that run the page test the notebook too.
"""

import json
import re
from pathlib import Path
from typing import Any

GUIDE = Path(__file__).resolve().parent / "guide"
PAGES = ("own-lstm.md", "own-lstm.zh.md")

PROGRAM = re.compile(r"^```python\n(.*?)^```\n(?:```text\n(.*?)^```\n)?", re.DOTALL | re.MULTILINE)
EQUATIONS = re.compile(r"^```math\n(.*?)^```$", re.DOTALL | re.MULTILINE)


def notebook_of(page: str) -> str:
    """Return the notebook of a page as the text of its file."""
    cells: list[dict[str, Any]] = []

    def add(kind: str, text: str, **more: Any) -> None:
        source = text.strip("\n").splitlines(keepends=True)
        if source:
            name = f"cell-{len(cells)}"
            cells.append({"cell_type": kind, "id": name, "metadata": {}, "source": source, **more})

    def add_prose(text: str) -> None:
        add("markdown", EQUATIONS.sub(lambda found: f"$$\n{found[1]}$$", text))

    end = 0
    for found in PROGRAM.finditer(page):
        add_prose(page[end : found.start()])
        printed = (found[2] or "").splitlines(keepends=True)
        output = {"name": "stdout", "output_type": "stream", "text": printed}
        add("code", found[1], execution_count=None, outputs=[output] if printed else [])
        end = found.end()
    add_prose(page[end:])
    metadata = {
        "kernelspec": {"display_name": "Python 3", "language": "python", "name": "python3"},
        "language_info": {"name": "python"},
    }
    content = {"cells": cells, "metadata": metadata, "nbformat": 4, "nbformat_minor": 5}
    return json.dumps(content, ensure_ascii=False, indent=1) + "\n"


if __name__ == "__main__":
    for name in PAGES:
        page = GUIDE / name
        page.with_suffix(".ipynb").write_text(notebook_of(page.read_text("utf-8")), "utf-8")
