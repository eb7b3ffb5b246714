"""What importing cello costs, and which package may import which."""

from __future__ import annotations

import ast
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

import cello

ROOT = Path(cello.__file__).parent

ABOVE = ("cells", "foreign", "compile", "engines", "layers", "nn", "tasks", "cli")
"""The packages from the ground up: each may import itself and those before it."""
ALLOWED = {package: set(ABOVE[: k + 1]) for k, package in enumerate(ABOVE)}
ALLOWED["inspect"] = {"foreign", "cells", "compile", "engines", "layers", "nn", "inspect"}
ALLOWED["onnx"] = {*ALLOWED["nn"], "onnx"}
ALLOWED["tasks"] |= {"inspect", "onnx"}
ALLOWED["cli"] |= {"inspect"}


def imported_packages(source: str) -> set[str]:
    """The packages of cello that a module imports, anywhere in it; "" stands for cello itself."""
    names = []
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            names += [alias.name for alias in node.names]
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, "imports inside cello are absolute"
            names += [f"{node.module}.{alias.name}" for alias in node.names]
    parts = [name.split(".") for name in names if name.split(".")[0] == "cello"]
    known = {path.name for path in ROOT.iterdir() if path.is_dir()}
    return {part[1] if len(part) > 1 and part[1] in known else "" for part in parts}


MODULES = sorted(path for path in ROOT.rglob("*.py") if path.parent != ROOT)


@pytest.mark.parametrize("path", MODULES, ids=lambda path: str(path.relative_to(ROOT)))
def test_packages_import_one_way(path: Path):
    package = path.relative_to(ROOT).parts[0]
    assert package in ALLOWED, "a new package: say what it may import"
    packages = imported_packages(path.read_text(encoding="utf-8"))
    outermost = {""} if package in ("tasks", "cli") else set()
    assert packages <= ALLOWED[package] | outermost


LATE = {"tasks", "cli"}
"""Rooms in which a file may import another one late: the list of the tasks does, which they read."""


def test_files_import_one_way():
    """No file needs another one that needs it; below the tasks not for types or in functions either."""
    files = {
        ".".join(path.relative_to(ROOT.parent).with_suffix("").parts).removesuffix(
            ".__init__"
        ): path
        for path in ROOT.rglob("*.py")
    }

    def imports(node: ast.AST, is_late: bool) -> Iterator[ast.Import | ast.ImportFrom]:
        for child in ast.iter_child_nodes(node):
            if isinstance(child, ast.Import | ast.ImportFrom):
                yield child
            elif is_late or not isinstance(child, ast.FunctionDef | ast.If):
                yield from imports(child, is_late)

    def needs(file: str) -> set[str]:
        found = set()
        is_late = file.split(".")[1:2] != [] and file.split(".")[1] not in LATE
        for node in imports(ast.parse(files[file].read_text("utf-8")), is_late):
            if isinstance(node, ast.Import):
                found |= {alias.name for alias in node.names}
            else:
                for alias in node.names:
                    inner = f"{node.module}.{alias.name}"
                    if not alias.name.startswith("_"):  # the extension module
                        found.add(inner if inner in files else str(node.module))
        return (found & files.keys()) - {file}

    waiting = {file: needs(file) for file in files}
    while free := [file for file, needed in waiting.items() if not needed & waiting.keys()]:
        for file in free:
            del waiting[file]
    assert waiting == {}


def test_the_check_sees_every_kind_of_import():
    assert imported_packages("import cello.nn\ndef f():\n    from cello import engines, nn") == {
        "nn", "engines",
    }  # fmt: skip
    assert imported_packages("from cello import Recurrent\nimport torch.nn") == {""}
    assert imported_packages("from cello.cells.rnn import RNN") == {"cells"}


def fresh(code: str) -> str:
    """Run code in a process of its own."""
    path = [str(ROOT.parent), *sys.path]
    full = f"import sys; sys.path[:0] = {path!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", full], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""
    return done.stdout


def test_importing_cello_needs_torch_and_nothing_else():
    code = (
        "import torch; before = set(sys.modules); import cello; print(*set(sys.modules) - before)"
    )
    new = set(fresh(code).split())
    assert {name.split(".")[0] for name in new} == {"cello"}
    assert not any(name.startswith(("cello.tasks", "cello.cli")) for name in new)


def test_cello_works_where_nothing_but_torch_can_be_imported():
    """Everything that the tasks need is hidden; layers, foreign cells and explain work without."""
    code = """
hidden = ("lightning", "datasets", "sklearn", "matplotlib", "rich", "typer", "tokenizers",
          "torchmetrics", "safetensors", "onnx", "hypothesis")
for name in hidden:
    sys.modules[name] = None
import torch, cello
x = torch.zeros(3, 2, 4)
cello.nn.LSTM(4, 5)(x)
class MyCell(torch.nn.GRUCell):
    pass
layer = cello.Recurrent(MyCell(4, 5))
print(cello.explain(layer, x))
"""
    assert "MyCell on 'native'" in fresh(code)
