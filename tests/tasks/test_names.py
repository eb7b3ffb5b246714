"""The names that a user finds in ``cello.tasks``: all of them, with their types, and without torch."""

from __future__ import annotations

import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

import cello
from cello import tasks
from cello.tasks import TASKS, find, options_of

SOURCES = str(Path(cello.__file__).parent.parent)


def fresh(code: str) -> str:
    """Run code in a process of its own, and return what it prints."""
    full = f"import sys; sys.path[:0] = {[SOURCES, *sys.path]!r}\n{code}"
    done = subprocess.run([sys.executable, "-c", full], capture_output=True, text=True, check=False)
    assert done.returncode == 0, done.stderr
    return done.stdout


def test_every_task_is_among_the_names() -> None:
    assert dir(tasks) == sorted(tasks.__all__)
    for task, predictor in TASKS.items():
        assert {task, predictor, f"{predictor}Options"} <= set(dir(tasks))
        package = getattr(tasks, task)
        assert package is import_module(f"cello.tasks.{task}")
        assert getattr(tasks, predictor) is getattr(package, predictor) is find(task)
        assert getattr(tasks, f"{predictor}Options") is package.Options is options_of(task)
        assert dir(package) == sorted(package.__all__)
        for name in dir(package):
            getattr(package, name)
    with pytest.raises(AttributeError, match=r"module 'cello.tasks' has no attribute 'Clasifier'"):
        tasks.Clasifier  # noqa: B018
    with pytest.raises(AttributeError, match=r"module 'cello.tasks.tag' has no attribute 'x'"):
        tasks.tag.x  # noqa: B018


def test_the_names_come_with_import_star() -> None:
    space: dict[str, object] = {}
    exec("from cello.tasks import *", space)
    assert set(tasks.__all__) <= space.keys()


def test_the_options_of_the_command_need_no_torch() -> None:
    """As for the help: the process is the command, and reads packages, options and names."""
    code = """
sys.argv = ["cello"]
import cello.tasks
from cello.tasks import classify, forecast, ngrams, tag, options_of, ClassifierOptions, InputError
print(ClassifierOptions.purpose, options_of("tag").purpose, dir(classify) == classify.__all__)
print(sorted({name.split(".")[0] for name in sys.modules} & {"torch", "numpy", "rich", "yaml"}))
"""
    out = fresh(code)
    assert out.splitlines()[0].startswith("Train a classifier of texts")
    assert out.splitlines()[1] == "[]"


def test_types(tmp_path: Path) -> None:
    api = pytest.importorskip("mypy.api")
    (tmp_path / "use.py").write_text(
        "from cello.tasks import Classifier, ClassifierOptions, Tagger, classify, tag\n"
        'reveal_type(Classifier.train([("a", "b")], "x", ClassifierOptions(hidden=3), verbose=1))\n'
        'reveal_type(classify.load("x").predict("a text"))\n'
        'reveal_type(Classifier.load("x").predict(["a text"]))\n'
        'reveal_type(tag.load("x").predict([["a", "text"]]))\n'
        'reveal_type(Tagger.load("x").history)\n'
        "ClassifierOptions(hiden=3)\n"
    )
    import os

    before = os.environ.get("MYPYPATH")
    os.environ["MYPYPATH"] = SOURCES
    try:
        out, err, _ = api.run([
            str(tmp_path / "use.py"), "--follow-imports=silent", "--ignore-missing-imports",
            "--cache-dir", str(tmp_path / "cache"),
        ])  # fmt: skip
    finally:
        del os.environ["MYPYPATH"]
        if before is not None:
            os.environ["MYPYPATH"] = before
    for expected in (
        "cello.tasks.confusion.ClassReport", "cello.tasks.classify.answers.Prediction",
        "list[cello.tasks.classify.answers.Prediction]", "list[cello.tasks.tag.predictor.Tagged]",
        "dict[str, list[float]]", 'Unexpected keyword argument "hiden"',
    ):  # fmt: skip
        assert expected in out.replace("builtins.", ""), (out, err)
