"""Help and version: quick, without torch, and in panels."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from dataclasses import fields
from pathlib import Path
from typing import Any

import pytest

import cello as package
from cello.tasks import TASKS, options_of
from cello.tasks.options import PANELS

Cello = Callable[..., Any]
ROOT = Path(package.__file__).parent.parent
OPTIONS = {name: options_of(name) for name in TASKS}
HEAVY = [
    "torch",
    "lightning",
    "numpy",
    "sklearn",
    "matplotlib",
    "tokenizers",
    "safetensors",
    "pyarrow",
    "pandas",
    "scipy",
]


def fresh(*words: str) -> tuple[str, list[str]]:
    """Run a command in a process of its own, as the script that pip writes; what it imported of HEAVY."""
    code = (
        f"import sys, json; sys.path[:0] = {[str(ROOT), *sys.path]!r}\n"
        f"sys.argv = {['/usr/bin/cello', *words]!r}\n"
        "from cello.cli.main import main\n"
        "code = main()\n"
        f"print('\\n' + json.dumps([n for n in {HEAVY!r} if n in sys.modules]))\n"
        "sys.exit(code)"
    )
    environment = {**os.environ, "COLUMNS": "100"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment
    )
    assert (done.returncode, done.stderr) == (0, "")
    out, _, last = done.stdout.rstrip("\n").rpartition("\n")
    return out, json.loads(last)


@pytest.mark.parametrize(
    "words",
    [
        "", "--help", "--version", "train --help", "train classify --help", "train forecast --help",
        "train tag --help", "train ngrams --help", "train language --help", "compare --help",
        "compare forecast --help", "evaluate --help", "predict --help", "generate --help",
        "bench --help", "page --help", "export --help",
    ],
)  # fmt: skip
def test_help_is_shown_without_torch(words: str) -> None:
    out, heavy = fresh(*words.split())
    assert heavy == []
    assert package.__version__ in out if words == "--version" else "Usage: cello" in out


@pytest.mark.parametrize("task", OPTIONS)
def test_options_are_in_panels(task: str) -> None:
    out, _ = fresh("train", task, "--help")
    titles = [f"─ {panel} ─" for panel in PANELS]
    places = [out.index(title) for title in titles]
    assert places == sorted(places)
    bounds = [*places, len(out)]
    sections = {panel: out[a:b] for panel, a, b in zip(PANELS, bounds, bounds[1:], strict=False)}
    kind = OPTIONS[task]
    for f in fields(kind):
        flag = f.metadata["flag"] or f" --{f.name.replace('_', '-')} "
        within = [panel for panel, text in sections.items() if flag in text]
        assert within == [kind.panel_of(f.name)], f.name
    for name, panel in {
        "valid_fraction": "Data", "hidden": "Network", "dropout": "Network", "epochs": "Training",
        "learning_rate": "Training", "seed": "Training", "log": "Output",
    }.items():  # fmt: skip
        assert kind.panel_of(name) == panel
    for flag in ("--out", "--overwrite", "--resume", "--options"):
        assert f" {flag} " in sections["Output"]


def test_the_library_is_whole_in_the_command_s_process() -> None:
    """Names that the package has are loaded when they are asked for."""
    code = (
        f"import sys; sys.path[:0] = {[str(ROOT), *sys.path]!r}; sys.argv = ['/usr/bin/cello']\n"
        "import cello; assert 'torch' not in sys.modules\n"
        "for name in cello.__all__: assert getattr(cello, name) is not None, name\n"
        "assert not hasattr(cello, 'no_such_name')\n"
        "print(cello.nn.LSTM(2, 3).hidden_size, cello.draw.__name__, cello.record.__name__)"
    )  # fmt: skip
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.stdout, done.stderr) == ("3 draw record\n", "")
