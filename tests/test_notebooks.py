"""The notebooks of the guide hold what their pages hold, and run from top to bottom."""

import contextlib
import importlib.util
import io
import json
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
from test_docs import blocks_of

ROOT = Path(__file__).parents[1]
NOTEBOOKS = sorted((ROOT / "docs/guide").glob("*.ipynb"))


def code_of(notebook: Path) -> list[tuple[str, str]]:
    """The code cells of a notebook, each with what it has printed."""
    cells = json.loads(notebook.read_text("utf-8"))["cells"]
    return [
        ("".join(cell["source"]), "".join(line for out in cell["outputs"] for line in out["text"]))
        for cell in cells
        if cell["cell_type"] == "code"
    ]


def made_of(page: Path) -> str:
    place = ROOT / "docs/make_notebooks.py"
    spec = importlib.util.spec_from_file_location("make_notebooks", place)
    assert spec is not None
    assert spec.loader is not None
    module: Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return str(module.notebook_of(page.read_text("utf-8")))


def test_there_is_one_in_each_language() -> None:
    assert [path.name for path in NOTEBOOKS] == ["own-lstm.ipynb", "own-lstm.zh.ipynb"]


@pytest.mark.parametrize("notebook", NOTEBOOKS, ids=lambda path: path.stem)
def test_it_has_the_programs_of_its_page(notebook: Path) -> None:
    page = notebook.with_suffix(".md")
    expected = []
    blocks = [*blocks_of(page), ("", "", False)]
    for (language, text, _), (follows, printed, adjoins) in pairwise(blocks):
        if language == "python":
            expected.append((text.strip(), printed if follows == "text" and adjoins else ""))
    assert code_of(notebook) == expected
    is_up_to_date = notebook.read_text("utf-8") == made_of(page)  # with its prose
    assert is_up_to_date, "python docs/make_notebooks.py makes it again"


def test_it_runs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("lightning", reason="needs the packages of cello[tasks]")
    monkeypatch.setenv("MPLBACKEND", "Agg")
    monkeypatch.chdir(tmp_path)
    namespace: dict[str, object] = {"__name__": "__main__"}
    for number, (code, expected) in enumerate(code_of(NOTEBOOKS[0])):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile(code, f"cell {number}", "exec"), namespace)
        assert printed.getvalue() == expected, code
