"""Cells that are not Cello's: their code is imported when a user asks for it, and told apart by hashes.

A cell is named ``package.module:Class`` or ``file.py:Class``. A model folder holds this name and the
hashes; it never has code imported.
"""

from __future__ import annotations

import ast
import functools
import importlib
import importlib.util
import inspect
import os
import re
import sys
import traceback
from collections.abc import Callable, Iterable, Mapping
from difflib import get_close_matches
from hashlib import sha256
from pathlib import Path
from types import ModuleType
from typing import Any

from cello.tasks.errors import InputError

HOW = "package.module:Class or file.py:Class"
"""How a cell of one's own is named."""

_NOT_OWN = ("builtins", "cello", "torch")
"""Packages whose code a model folder has no hashes of: it has their versions."""


class CellWarning(UserWarning):
    """The code of a cell is not that with which a model was trained."""


def load(name: str) -> Any:
    """Import the class or function with a name such as ``file.py:Class``.

    Raises:
        InputError: there is no such file, module or class, or importing it failed.
    """
    place, colon, inside = name.rpartition(":")
    if not colon or not inside:
        raise InputError(f"cell: {name!r} names no class{_suggested(inside or place)}")
    is_file = place.endswith(".py") or "/" in place or os.sep in place
    module = _file(Path(place)) if is_file else _module(place)
    found: Any = module
    for part in inside.split("."):
        if not hasattr(found, part):
            names = [key for key, one in vars(found).items() if is_candidate(key, one)]
            raise InputError(f"cell: {place} has no {part!r}{_near(part, names)}")
        found = getattr(found, part)
    return found


def is_candidate(name: str, value: Any) -> bool:
    """Return whether something in a module may be a cell, for messages."""
    return not name.startswith("_") and (isinstance(value, type) or inspect.isfunction(value))


def name_of(cell: Any) -> str:
    """Return the name by which :func:`load` finds a cell, as far as there is one."""
    code = code_of(cell)
    module, inside = code.__module__, code.__qualname__
    file = _source_file(code)
    is_script = module == "__main__" or module.startswith(_PREFIX)
    # A file beside the user's script is a module too; as a file it is found from anywhere.
    is_beside = "." not in module and file is not None and "site-packages" not in file.parts
    if file is not None and (is_script or is_beside) and file.suffix == ".py":
        return f"{_shown(file)}:{inside}"
    return f"{module}:{inside}"


def label_of(cell: Any) -> str:
    """Return the short name of a cell, for messages."""
    return str(code_of(cell).__qualname__).rpartition(".")[2]


def code_of(cell: Any) -> Any:
    """Return the class or function that a cell is, or is made of: that of a ``functools.partial``."""
    while not hasattr(cell, "__qualname__"):
        cell = getattr(cell, "func", type(cell))
    return cell


def record(cell: Any) -> dict[str, Any]:
    """Return what a model folder says of a cell: its name, and the hashes of its code."""
    code = code_of(cell)
    classes = code.__mro__ if isinstance(code, type) else (code,)
    own = [c for c in classes if c.__module__.partition(".")[0] not in _NOT_OWN]
    files = dict.fromkeys(file for file in map(_source_file, own) if file is not None)
    return {
        "name": name_of(cell),
        "source": _hash("".join([*map(_source, own), *_bound(cell)]).encode()),
        "files": {file.name: _hash(file.read_bytes()) for file in files},
    }


def given(
    folder: Path, name: str, cells: Any, recorded: Mapping[str, Any] | None
) -> tuple[Any, list[str]]:
    """Return the cell of a model out of those that its user gave.

    Args:
        folder: the model folder, for messages.
        name: the cell's name in it.
        cells: cells by name; or one cell, or its name; or ``None``.
        recorded: what :func:`record` returned when the model was trained.

    Returns:
        The cell, and what there is to say about it.

    Raises:
        InputError: it is not given, or cannot be used.
    """
    label = name.rpartition(":")[2].rpartition(".")[2]
    if cells is None:
        option = "" if "<" in name else f"--cell {name}, or "  # of what was made in a function
        raise InputError(
            f"{folder}: its cell {label} is not one of Cello's, and a model folder holds no code; "
            f"give the cell: {option}in Python cells={{{label!r}: {label}}}"
        )
    cell = cells
    if isinstance(cells, Mapping):
        fitting = [key for key in (name, label) if key in cells]
        if not fitting:
            there = ", ".join(map(repr, cells)) or "none"
            raise InputError(f"cells: the model in {folder} needs {label!r}; given is {there}")
        cell = cells[fitting[0]]
    if isinstance(cell, str):
        if ":" not in cell:
            raise InputError(
                f"cell: {cell!r} names no class; the model in {folder} was trained with --cell {name}"
            )
        cell = load(cell)
    if not callable(cell):
        raise InputError(f"cells: {cell!r} is no class or function that makes cells")
    notes, now = [], record(cell)
    if label_of(cell) != label:
        notes.append(f"the model in {folder} was trained with the cell {label}, not {now['name']}")
    elif recorded is not None:
        files = recorded.get("files")
        changed = now["files"] if files is None else now["files"].items() - dict(files).items()
        if recorded.get("source") != now["source"]:
            notes.append(
                f"the source of the cell {label} has changed since the model in {folder} was trained"
            )
        elif changed:
            names = ", ".join(sorted(dict(changed)))
            notes.append(
                f"{names}: has changed since the model in {folder} was trained; the cell {label} in "
                "it has not"
            )
    return cell, notes


_PREFIX = "cello_cell_"
"""With this the modules begin that are made of a file that no import statement could name."""


_DEEPEST = 8
"""How far into values a hash looks; a function may hold itself."""

_ADDRESS = re.compile(r" at 0x[0-9a-f]+")

_contents: dict[Path, str] = {}
"""The hash of each file when it was imported."""


def _file(path: Path) -> ModuleType:
    """Import a file: as the module that an import statement would give, where there is one."""
    if not path.is_file():
        near = sorted(one.name for one in path.parent.glob("*.py")) if path.parent.is_dir() else []
        raise InputError(f"cell: {path}: no such file{_near(path.name, near)}")
    path = path.resolve()
    main = getattr(sys.modules.get("__main__"), "__file__", None)
    if main is not None and Path(main).resolve() == path:  # which would train again if imported
        return sys.modules["__main__"]
    root, name = path.parent, path.stem
    while (root / "__init__.py").exists() and root.name.isidentifier():  # for relative imports
        root, name = root.parent, f"{root.name}.{name}"
    _reachable(root)
    content = _hash(path.read_bytes())
    has_changed = _contents.get(path, content) != content  # as in a notebook, beside an editor
    module = _run(path, name, has_changed)
    _contents[path] = content  # which a file with an error in it has not become
    return module


def _run(path: Path, name: str, has_changed: bool) -> ModuleType:
    """The module of a file, run anew if the file has changed; `name` is that for an import statement."""
    if all(part.isidentifier() for part in name.split(".")) and _found(name) == path:
        module = _imported(lambda: importlib.import_module(name), path)
        return _imported(lambda: importlib.reload(module), path) if has_changed else module
    name = f"{_PREFIX}{re.sub(r'[^0-9A-Za-z]', '_', path.stem)}_{_hash(bytes(path))[:8]}"
    if name in sys.modules and not has_changed:
        return sys.modules[name]
    spec = importlib.util.spec_from_file_location(name, path)
    assert spec is not None  # of a file that ends in .py
    assert spec.loader is not None
    module, loader = importlib.util.module_from_spec(spec), spec.loader
    sys.modules[name] = module  # where pickle and inspect look for it

    def execute() -> ModuleType:
        loader.exec_module(module)
        return module

    try:
        return _imported(execute, path)
    except InputError:
        del sys.modules[name]
        raise


def _found(name: str) -> Path | None:
    """Return the file that an import statement would read."""
    module = sys.modules.get(name)
    try:
        spec = importlib.util.find_spec(name) if module is None else module.__spec__
    except (ImportError, ValueError):
        return None
    origin = None if spec is None else spec.origin
    return None if origin is None else Path(origin).resolve()


def _module(name: str) -> ModuleType:
    if not all(part.isidentifier() for part in name.split(".")):
        raise InputError(f"cell: {name!r} is not the name of a module; write {HOW}")
    _reachable(Path.cwd())
    try:
        is_there = importlib.util.find_spec(name.partition(".")[0]) is not None
    except ValueError:  # __main__ in an interactive session
        is_there = name in sys.modules
    if not is_there:
        file = Path(*name.split(".")).with_suffix(".py")
        hint = f"; did you mean {file}:?" if file.is_file() else ""
        raise InputError(f"cell: there is no module {name!r}{hint}")
    return _imported(lambda: importlib.import_module(name), name)


def _reachable(folder: Path) -> None:
    """Let modules of a folder be imported, behind all others, here and in processes that begin here."""
    if str(folder) not in sys.path and not (folder == Path.cwd() and "" in sys.path):
        sys.path.append(str(folder))


def _imported(run: Callable[[], ModuleType], place: object) -> ModuleType:
    try:
        importlib.invalidate_caches()  # the file may be new
        return run()
    except ImportError as error:
        hint = ""
        if "relative import" in str(error):
            hint = "; a relative import needs a package: name the cell package.module:Class"
        raise InputError(f"cell: importing {place} failed: {_told(error, place)}{hint}") from error
    except (Exception, SystemExit) as error:  # whatever the user's code does
        raise InputError(f"cell: importing {place} failed: {_told(error, place)}") from error


def _told(error: BaseException, place: object) -> str:
    """An error of the user's code with the line of the file where it is from."""
    if isinstance(error, SyntaxError):
        return f"{type(error).__name__}: {error.msg}, line {error.lineno}"
    lines = [
        f.lineno for f in traceback.extract_tb(error.__traceback__) if f.filename == str(place)
    ]
    where = f", line {lines[-1]}" if lines else ""
    return f"{type(error).__name__}: {error}{where}"


def _suggested(text: str) -> str:
    """What to write in the place of a name without a class."""
    path = Path(text)
    if text.endswith(".py"):
        if not path.is_file():
            return f"; write {HOW}"
        try:
            tree = ast.parse(path.read_bytes())
        except (SyntaxError, ValueError):
            return f"; write {HOW}"
        names = [node.name for node in tree.body if isinstance(node, ast.ClassDef)]
        return f"; write {text}:{names[0]}" if names else f"; {text} has no class"
    module, dot, inside = text.rpartition(".")
    return f"; write {module}:{inside}" if dot else f"; write {HOW}"


def _near(name: str, names: Iterable[str]) -> str:
    there = list(names)
    close = get_close_matches(name, there, n=3)
    if close:
        return f"; did you mean {' or '.join(close)}?"
    return f"; there are: {', '.join(there)}" if there else ""


def _shown(file: Path) -> str:
    """A path as seen from the current folder, where it is below it."""
    return str(file.relative_to(Path.cwd())) if file.is_relative_to(Path.cwd()) else str(file)


def _source_file(code: Any) -> Path | None:
    try:
        file = inspect.getsourcefile(code)
    except (OSError, TypeError):  # of what is built in, or made where no file is, as in a notebook
        return None
    return Path(file).resolve() if file is not None and Path(file).is_file() else None


def _source(code: Any) -> str:
    try:
        return inspect.getsource(code)
    except (OSError, TypeError):
        return _source_by_methods(code) if isinstance(code, type) else ""


def _source_by_methods(kind: type) -> str:
    """The source of a class without a file: a notebook's functions know their text, its classes do not."""
    for one in vars(kind).values():
        if not inspect.isfunction(one) or one.__qualname__ != f"{kind.__qualname__}.{one.__name__}":
            continue
        try:
            text = "".join(inspect.findsource(one)[0])
            nodes = list(ast.walk(ast.parse(text)))
        except (OSError, SyntaxError):
            continue
        line = one.__code__.co_firstlineno
        for node in reversed(nodes):  # the innermost class around the function first
            if isinstance(node, ast.ClassDef) and node.lineno <= line <= (node.end_lineno or 0):
                first = min([node.lineno, *(one.lineno for one in node.decorator_list)])
                lines = text.splitlines(keepends=True)[first - 1 : node.end_lineno]
                return "".join(lines).rstrip("\n") + "\n"  # as `inspect` does of a class in a file
    return ""


def _bound(cell: Any) -> list[str]:
    """The arguments of a ``functools.partial`` and of those inside it; the variables of a closure."""
    found = []
    while not hasattr(cell, "__qualname__") and hasattr(cell, "func"):
        found += [_told_apart(cell.args), _told_apart(sorted(cell.keywords.items()))]
        cell = cell.func
    held = _held(cell)
    return [*found, _told_apart(sorted(held.items()))] if held else found


def _held(function: Any) -> dict[str, Any]:
    """The variables of a closure that have a value."""
    found = {}
    names = getattr(getattr(function, "__code__", None), "co_freevars", ())
    for name, cell in zip(names, getattr(function, "__closure__", None) or (), strict=True):
        try:
            found[name] = cell.cell_contents
        except ValueError:  # not assigned yet
            continue
    return found


def _told_apart(value: Any, depth: int = 0) -> str:
    """A value in words that are the same in every process."""
    if depth > _DEEPEST:
        return "..."
    if isinstance(value, list | tuple):
        inside = ", ".join(_told_apart(one, depth + 1) for one in value)
        return f"[{inside}]" if isinstance(value, list) else f"({inside}{',' * (len(value) == 1)})"
    if isinstance(value, dict):
        pairs = (f"{key!r}: {_told_apart(one, depth + 1)}" for key, one in value.items())
        return f"{{{', '.join(pairs)}}}"
    if isinstance(value, functools.partial):
        parts = (value.func, value.args, sorted(value.keywords.items()))
        return f"partial{_told_apart(parts, depth + 1)}"
    if isinstance(value, type) or (callable(value) and hasattr(value, "__qualname__")):
        module = getattr(value, "__module__", None) or ""
        source = "" if module.partition(".")[0] in _NOT_OWN else _source(value)
        held = _held(value)
        inside = _told_apart(sorted(held.items()), depth + 1) if held else ""
        return f"{module}.{value.__qualname__} {source}{inside}"
    return _ADDRESS.sub("", repr(value))


def _hash(content: bytes) -> str:
    return sha256(content).hexdigest()
