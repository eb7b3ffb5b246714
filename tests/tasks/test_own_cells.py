"""Models whose cell is not Cello's, in every task: what they compute, and what their folders hold."""

from __future__ import annotations

import copy
import io
import json
import linecache
import math
import pickle
import re
import subprocess
import sys
import warnings
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import torch
from rich.console import Console
from sklearn.base import clone
from torch import nn

from cello.tasks import TASKS, compare, find, options_of, own
from cello.tasks import folder as model_folder
from cello.tasks.errors import InputError, Interrupted
from cello.tasks.folder import Config
from cello.tasks.own import CellWarning
from cello.tasks.page import page
from cello.tasks.task import Predictor, Request

WORDS = ["fine", "great", "dull", "awful"]

MINE = '''
"""A cell with one weight matrix for each gate, and gates made of straight lines."""
import torch
from torch import nn

with open("imported", "a") as file:  # so that a test can tell
    file.write(".")


def hard(x):
    return torch.clamp(0.2 * x + 0.5, 0, 1)


class Mine(nn.Module):
    def __init__(self, input_size, hidden_size, scale=1.0):
        super().__init__()
        self.hidden_size, self.scale = hidden_size, scale
        for gate in "ifgo":
            self.register_parameter(f"W_{gate}", nn.Parameter(torch.empty(hidden_size, input_size)))
            self.register_parameter(f"U_{gate}", nn.Parameter(torch.empty(hidden_size, hidden_size)))
            self.register_parameter(f"b_{gate}", nn.Parameter(torch.empty(hidden_size)))
        for weight in self.parameters():
            nn.init.uniform_(weight, -(hidden_size**-0.5), hidden_size**-0.5)

    def forward(self, x, state):
        h, c = state
        i = hard(x @ self.W_i.T + h @ self.U_i.T + self.b_i)
        f = hard(x @ self.W_f.T + h @ self.U_f.T + self.b_f)
        g = nn.functional.hardtanh(x @ self.W_g.T + h @ self.U_g.T + self.b_g)
        o = hard(x @ self.W_o.T + h @ self.U_o.T + self.b_o)
        c = f * c + i * g
        h = o * nn.functional.hardtanh(c) * self.scale
        return h, c
'''


@pytest.fixture(autouse=True)
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.chdir(tmp_path)
    # Tests in this process may have left folders with a file of this name.
    others = [place for place in sys.path if not Path(place, "mine.py").exists()]
    monkeypatch.setattr(sys, "path", others)
    Path("mine.py").write_text(MINE)
    yield
    sys.modules.pop("mine", None)


def source(task: str) -> Path:
    """Write a little data for a task."""
    path = Path(f"{task}.csv")
    if task == "tag":
        lines = [
            f"the\tDET\n{word}\t{'NOUN' if i % 2 else 'VERB'}\n\n" for i, word in enumerate(WORDS)
        ]
        path = Path("tag.txt")
        path.write_text("".join(lines * 15))
    elif task == "forecast":
        days = np.datetime64("2024-01-01") + np.arange(180)
        rows = [f"{day},{math.sin(i / 3):.4f}\n" for i, day in enumerate(days)]
        path.write_text("date,x\n" + "".join(rows))
    elif task == "language":
        path = Path("language.txt")
        path.write_text("".join(f"a {WORDS[i % 4]} film\n" for i in range(60)))
    else:
        rows = [
            f"{'neg' if i % 4 > 1 else 'pos'},a {WORDS[i % 4]} film{' it was' * (i % 3)}\n"
            for i in range(60)
        ]
        path.write_text("label,text\n" + "".join(rows))
    return path


SMALL: dict[str, dict[str, Any]] = {
    "classify": {"embedding": 6},
    "ngrams": {"embedding": 6},
    "tag": {"embedding": 6, "character_embedding": 4, "character_hidden": 3, "output": "crf"},
    "forecast": {"window": 14, "horizon": 4, "season": 7, "patch": 2},
    "language": {"embedding": 6, "steps": 8, "batch_size": 4},
}


def options(task: str, **changes: Any) -> Any:
    small = {"hidden": 5, "epochs": 1, "device": "cpu", "threads": 1, **SMALL[task]}
    if task == "language":  # which reads forward only
        changes.pop("bidirectional", None)
    return options_of(task)(**{**small, **changes})


def numbers(predictor: Predictor[Any, Any, Any], data: Path) -> list[float]:
    """All numbers of a model's answers."""
    if predictor.name == "forecast":
        request = Request(file=data, json=True)
    else:
        request = Request(
            texts=["the fine film", "dull", "a great great dull film it was"], json=True
        )
    text = "\n".join(predictor.answer(request))
    return [float(number) for number in re.findall(r"-?\d+\.\d+(?:e-?\d+)?", text)]


def renamed(name: str, kind: str) -> str:
    """The name of a weight of `lstm` in a network of another kind of layer."""
    match = re.fullmatch(r"(.*\.)(weight|bias)_(ih|hh)_(l\d+(?:_reverse)?)", name)
    if match is None:
        return name
    if kind == "own":
        return f"{match[1]}cells.{match[4]}.{match[2]}_{match[3]}"
    return f"{match[1]}layer.{match[2]}_{match[3]}_{match[4]}"


@pytest.mark.parametrize("bidirectional", [True, False])
@pytest.mark.parametrize("task", TASKS)
def test_every_task_computes_the_same_with_every_layer_of_the_same_cell(
    task: str, bidirectional: bool
) -> None:
    """Cello's LSTM, torch's cell as a custom cell, and torch's own layer, with the same weights."""
    data = source(task)
    for pooling in ("last", "mean-max") if task == "classify" else (None,):
        changes = {"layers": 2, "bidirectional": bidirectional}
        changes |= {} if pooling is None else {"pooling": pooling}
        kind = find(task)
        kind.train(data, "stock", options(task, cell="lstm", **changes), overwrite=True)
        stock = kind.load("stock", device="cpu")
        expected = numbers(stock, data)
        assert len(expected) > 3
        for name, cell in (("own", nn.LSTMCell), ("torch", "torch-lstm")):
            config = stock.config
            other = kind(
                Config(task, replace(config.options, cell=cell), config.facts, {}, config.assets),
                model_folder.load_assets(Path("stock"), config),
                "cpu",
            )
            weights = stock.model.state_dict()
            own_crf = {key for key in weights if key.startswith("crf.")}
            other.model.load_state_dict(
                {key if key in own_crf else renamed(key, name): w for key, w in weights.items()}
            )
            other.model.eval()
            assert numbers(other, data) == pytest.approx(expected, abs=2e-5)


@pytest.mark.parametrize("task", TASKS)
def test_a_cell_of_a_file_is_trained_kept_and_loaded(task: str) -> None:
    data, kind = source(task), find(task)
    chosen = options(task, cell="mine.py:Mine", cell_args=["scale=0.5"], layers=2)
    kind.train(data, "run", chosen)
    config = json.loads(Path("run/config.json").read_text())
    assert config["options"]["cell"] == config["cell"]["name"] == "mine.py:Mine"
    assert config["options"]["cell_args"] == {"scale": 0.5}
    assert list(config["cell"]["files"]) == ["mine.py"]
    first = kind.load("run", cells=chosen.cell)
    for cells in ({"Mine": chosen.cell}, {"mine.py:Mine": chosen.cell}, "mine.py:Mine"):
        assert numbers(Predictor.load("run", cells=cells), data) == numbers(first, data)
    assert {m.scale for m in first.model.modules() if type(m) is chosen.cell} == {0.5}
    copied = copy.deepcopy(first)
    assert numbers(copied, data) == numbers(first, data)
    assert numbers(pickle.loads(pickle.dumps(first)), data) == numbers(first, data)


class Wide(nn.Module):
    """The output is three wide, whatever the hidden size, and the state holds a step counter."""

    def __init__(self, input_size: int) -> None:
        super().__init__()
        self.cell, self.out, self.hidden_size = nn.GRUCell(input_size, 4), nn.Linear(4, 3), 4

    def forward(self, x: torch.Tensor, state: Any) -> Any:
        n, (h,) = state
        h = self.cell(x, h)
        return self.out(h) + 0 * n, (n + 1, (h,))


@pytest.mark.parametrize("task", TASKS)
def test_the_width_of_the_layer_is_the_cells(task: str) -> None:
    data, kind = source(task), find(task)
    changes = {"pooling": "last"} if task == "classify" else {}
    seen = Console(record=True, file=io.StringIO(), width=10_000)
    arguments = {"state_size": [1, [4]]}
    chosen = options(task, cell=Wide, cell_args=arguments, layers=2, bidirectional=True, **changes)
    kind.train(data, "run", chosen, console=seen)
    lines = seen.export_text()
    assert lines.count("Wide runs on the native engine") == 1
    assert lines.count("the cell Wide has a width of its own; the option hidden is not used") == 1
    loaded = kind.load("run", cells={"Wide": Wide})
    assert all(map(math.isfinite, numbers(loaded, data)))


class Branches(nn.GRUCell):
    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:  # type: ignore[override]
        h = super().forward(x, h)
        return h if h.detach().sum().item() < 1e9 else h * 0


def notes(chosen: Any) -> str:
    console = Console(record=True, file=io.StringIO(), width=10_000)
    find("classify").train(source("classify"), "run", chosen, overwrite=True, console=console)
    return console.export_text()


def test_it_is_said_which_engine_runs_and_why_no_other() -> None:
    line = next(n for n in notes(options("classify", cell=Branches)).split("\n") if "Branches" in n)
    assert line.startswith(
        "Branches is not compiled and runs step by step in Python, slowly: native: "
    )
    assert "test_own_cells.py" in line
    assert "engine" not in notes(options("classify", cell="gru"))


def untouched() -> bool:
    """Whether mine.py was not imported since this was asked last."""
    file = Path("imported")
    was = file.exists()
    file.unlink(missing_ok=True)
    return not was


def test_a_folder_never_has_code_imported() -> None:
    data = source("classify")
    find("classify").train(data, "run", options("classify", cell="mine.py:Mine"))
    sys.modules.pop("mine")
    assert not untouched()
    expected = (
        "run: its cell Mine is not one of Cello's, and a model folder holds no code; give the cell: "
        "--cell mine.py:Mine, or in Python cells={'Mine': Mine}"
    )
    for act in (Predictor.load, find("classify").load):
        with pytest.raises(InputError) as caught:
            act("run")
        assert str(caught.value) == expected
    Path("run/report.json").unlink()
    with pytest.raises(InputError, match=r"give the cell: --cell mine\.py:Mine"):
        Predictor.resume("run")
    with pytest.raises(InputError, match="the model in run needs 'Mine'; given is 'Other'"):
        Predictor.load("run", cells={"Other": nn.GRUCell})
    for name in ("Mine", "mine.py"):
        with pytest.raises(
            InputError, match=r"names no class; .* trained with --cell mine\.py:Mine"
        ):
            Predictor.load("run", cells=name)
    path = Path("run/config.json")
    for name in ("mine.py:Mine", "mine:Mine", "./mine.py:Mine", "mine.py:hard", "os:system"):
        content = json.loads(path.read_text())
        content["options"]["cell"], content["cell"] = name, None
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match="a model folder holds no code"):
            Predictor.load("run")
    for name in ("mine.py", "mine", "mine.Mine", "./mine", ["mine.py:Mine"], {"a": "mine.py:Mine"}):
        content["options"]["cell"] = name
        path.write_text(json.dumps(content))
        with pytest.raises(InputError, match="cell"):
            Predictor.load("run")
    content["options"] |= {"cell": "gru", "cell_args": {"activation": "mine.py:hard"}}
    path.write_text(json.dumps(content))
    with pytest.raises(InputError, match=r"'mine\.py:hard' is not known"):
        Predictor.load("run")
    with pytest.raises(InputError, match="has the cell gru, which Cello has itself"):
        Predictor.load("run", cells={"gru": nn.GRUCell})
    assert untouched()
    assert "mine" not in sys.modules


def test_a_file_with_an_error_is_no_older_version_of_itself() -> None:
    Path("unsure.py").write_text(MINE)
    assert own.load("unsure.py:Mine").__name__ == "Mine"
    Path("unsure.py").write_text(MINE + "\n  oops")
    for _ in range(2):
        with pytest.raises(InputError, match="IndentationError"):
            own.load("unsure.py:Mine")
    Path("unsure.py").write_text(MINE + "\nMORE = 1\n")
    assert sys.modules[own.load("unsure.py:Mine").__module__].MORE == 1


def test_code_that_has_changed_is_said() -> None:
    data = source("classify")
    find("classify").train(data, "run", options("classify", cell="mine.py:Mine"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        Predictor.load("run", cells="mine.py:Mine")
    for old, new, expected in (
        ("0.2 * x", "0.25 * x", r"mine\.py: has changed since .*; the cell Mine in it has not"),
        (
            "c = f * c",
            "c = c * f",
            "the source of the cell Mine has changed since the model in run",
        ),
    ):
        Path("mine.py").write_text(MINE.replace(old, new))
        with pytest.warns(CellWarning, match=expected):
            Predictor.load("run", cells="mine.py:Mine")
    with (
        pytest.warns(
            CellWarning, match=r"trained with the cell Mine, not torch\.nn\.modules\.rnn:LST"
        ),
        pytest.raises(
            InputError,
            match=r"they lack recurrent\.cells\.l0\.bias_hh, .* and 5 more; the model has no .*\.U_f,",
        ),
    ):
        Predictor.load("run", cells="torch.nn:LSTMCell")
    Path("mine.py").write_text(MINE.replace("U_", "V_"))
    with (
        pytest.warns(CellWarning, match="has changed"),
        pytest.raises(
            InputError,
            match=r"the weights do not fit config\.json: they lack recurrent\.cells\.l0\.V_f,",
        ),
    ):
        Predictor.load("run", cells="mine.py:Mine")


def test_a_class_of_a_notebook(monkeypatch: pytest.MonkeyPatch) -> None:
    """It has no file, and Python finds the text of its methods only."""
    notebook = ModuleType("__main__")
    monkeypatch.setitem(sys.modules, "__main__", notebook)

    def enter(number: int, text: str) -> Any:
        name = f"<cell {number}>"
        lines = text.splitlines(keepends=True)
        monkeypatch.setitem(linecache.cache, name, (len(text), None, lines, name))
        exec(compile(text, name, "exec"), vars(notebook))
        return notebook

    text = MINE.partition("def hard")[2]
    text = "import torch\nfrom torch import nn\n\n\ndef hard" + text
    cell = enter(1, text).Mine
    data, kind = source("classify"), find("classify")
    kind.train(data, "run", options("classify", cell=cell))
    answers = numbers(Predictor.load("run", cells={"Mine": cell}), data)
    same = enter(2, "# the same again\n\n" + text).Mine
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        loaded = Predictor.load("run", cells={"Mine": same})
    assert numbers(loaded, data) == answers
    changed = enter(3, text.replace("c = f * c", "c = c * f")).Mine
    with pytest.warns(CellWarning, match="the source of the cell Mine has changed since"):
        Predictor.load("run", cells={"Mine": changed})
    Path("mine.py").write_text(text)  # and the same class in a file
    kind.train(data, "filed", options("classify", cell="mine.py:Mine"))
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert numbers(Predictor.load("filed", cells={"Mine": same}), data) == answers
    compare(data, "compared", {"Mine": cell}, seeds=1, options=options("classify"))
    with pytest.raises(InputError, match="Mine"):
        compare(data, "compared", {"Mine": changed}, seeds=1, options=options("classify"))


def test_a_stopped_run_goes_on_with_the_same_cell(interrupt: Any) -> None:
    data, kind = source("classify"), find("classify")
    chosen = options("classify", cell="mine.py:Mine", epochs=3)
    whole = kind.train(data, "whole", chosen)
    interrupt.at_step(4)
    with pytest.raises(Interrupted):
        kind.train(data, "half", chosen)
    with pytest.raises(InputError, match=r"--resume half --cell mine\.py:Mine continues it"):
        kind.load("half", cells=chosen.cell)
    with pytest.raises(InputError, match=r"--resume half --cell mine\.py:Mine continues it"):
        kind.train(data, "half", chosen)
    again = Predictor.resume("half", cells={"Mine": chosen.cell})
    assert again.confusion == whole.confusion
    first, second = (
        kind.load(name, cells=chosen.cell).model.state_dict() for name in ("whole", "half")
    )
    assert all(torch.equal(first[name], second[name]) for name in first)


def test_a_run_does_not_go_on_with_weights_that_do_not_fit(monkeypatch: pytest.MonkeyPatch) -> None:
    kind, chosen = find("classify"), options("classify", cell="mine.py:Mine", epochs=2)
    monkeypatch.setattr(kind, "evaluate", lambda *_: (_ for _ in ()).throw(KeyboardInterrupt))
    with pytest.raises(Interrupted):
        kind.train(source("classify"), "run", chosen)
    with pytest.warns(CellWarning), pytest.raises(InputError, match="the weights do not fit"):
        kind.resume("run", cells=nn.LSTMCell)


def test_folders_of_earlier_versions_are_loaded() -> None:
    data = source("classify")
    for cell in ("rnn", "lstm", "peephole-lstm"):
        find("classify").train(data, "run", options("classify", cell=cell), overwrite=True)
        now = numbers(find("classify").load("run"), data)
        path = Path("run/config.json")
        content = json.loads(path.read_text())
        del content["cell"], content["options"]["cell_args"]
        named = {"activation": "tanh", "gate_activation": "sigmoid"}
        content["options"] |= {"cell": cell.replace("-", ""), **named}
        path.write_text(json.dumps(content))
        assert numbers(find("classify").load("run"), data) == now


def test_estimators_take_any_cell() -> None:
    from cello.tasks.estimators import ForecastRegressor, RecurrentClassifier

    small = {"hidden": 4, "epochs": 2, "device": "cpu"}
    texts, labels = ["a fine film", "a dull film"] * 20, ["good", "bad"] * 20
    for cell in (Wide, "mine.py:Mine", "torch-gru"):
        arguments = {"state_size": [1, [4]]} if cell is Wide else None
        model = clone(RecurrentClassifier(cell=cell, cell_args=arguments, embedding=4, **small))
        assert model.get_params()["cell"] is cell
        found = model.fit(texts, labels).predict_proba(texts)
        np.testing.assert_array_equal(pickle.loads(pickle.dumps(model)).predict_proba(texts), found)
    X = np.sin(np.arange(200) / 3).reshape(40, 5)
    regressor = ForecastRegressor(cell=nn.LSTMCell, cell_args={"bias": False}, **small)
    assert regressor.fit(X, X[:, :2]).predict(X).shape == (40, 2)
    assert "bias_ih" not in str(regressor.network_.state_dict().keys())


@pytest.mark.parametrize("task", ["classify", "tag"])
def test_pages_show_cells_of_ones_own(task: str) -> None:
    find(task).train(source(task), "run", options(task, cell="mine.py:Mine"))
    html = page(Predictor.load("run", cells="mine.py:Mine"), ["a fine film"])
    data = json.loads(re.search(r">(\{.*\})<", html)[1])  # type: ignore[index]  # there is one
    assert {"i", "f", "g", "o", "c", "h"} <= set(data["names"])
    assert set(data["meanings"]) == {""}
    find(task).train(source(task), "torch", options(task, cell="torch-gru"))
    with pytest.raises(InputError, match="torch's own layer shows no states and gates"):
        page(Predictor.load("torch"), ["a fine film"])


SHARES = """
import torch
from torch import nn


class Shares(nn.Module):
    def __init__(self, input_size, hidden_size):
        super().__init__()
        self.x = nn.Linear(input_size, hidden_size)
        self.one, self.other = (nn.Linear(hidden_size, hidden_size) for _ in range(2))
        self.other.weight = self.one.weight
        self.norm = self.same_norm = nn.LayerNorm(hidden_size)
        self.register_buffer("mask", torch.ones(1).expand(hidden_size))
        self.register_buffer("same_mask", self.mask)
        self.register_buffer("row", torch.eye(4)[0].expand(3, 4))
        self.register_buffer("near", torch.eye(4).to_sparse(), persistent=False)
        square = nn.Parameter(torch.randn(hidden_size, hidden_size))
        self.square, self.turned = square, nn.Parameter(square.data.t())
        self.turn = nn.Parameter(torch.polar(torch.ones(hidden_size), torch.rand(hidden_size)))

    def forward(self, x, h):
        z = self.norm(self.x(x)) + self.same_norm(self.one(h) + self.other(h * self.mask))
        z = z + h @ self.square + h @ self.turned
        return torch.tanh(z * self.turn.real + self.turn.imag * self.same_mask)
"""


@pytest.mark.parametrize("task", TASKS)
def test_weights_that_share_memory_and_complex_ones_are_kept(task: str) -> None:
    Path("mine.py").write_text(SHARES)
    data = source(task)
    find(task).train(data, "run", options(task, cell="mine.py:Shares", epochs=2))
    once, again = (Predictor.load("run", cells="mine.py:Shares") for _ in range(2))
    for cell in (m for m in once.model.modules() if type(m).__name__ == "Shares"):
        assert cell.one.weight is cell.other.weight
        assert cell.turn.is_complex()
    assert numbers(once, data) == numbers(again, data)


def squashed(squash: Any, scale: float) -> Any:
    def make(size: int) -> Any:
        cell = nn.GRUCell(size, 5)
        cell.squash, cell.scale = squash, scale
        return cell

    return make


def test_functions_in_a_partial_or_closure_are_told_apart_in_every_process() -> None:
    """By their code and not by where they lie in memory."""
    first, same, other = (
        own.record(partial(squashed, squash))["source"]
        for squash in (torch.relu, torch.relu, torch.tanh)
    )
    assert first == same != other
    lines = "import torch, functools, mine; from cello.tasks import own; print(own.record({})['source'])"
    Path("mine.py").write_text("import torch\n\ndef cell(squash, n): pass\n")
    given = lines.format("functools.partial(mine.cell, torch.relu)")
    found = {
        subprocess.run(
            [sys.executable, "-c", given], capture_output=True, text=True, check=True
        ).stdout
        for _ in range(2)
    }
    assert len(found) == 1
    closures = [own.record(squashed(torch.relu, scale))["source"] for scale in (1.0, 1.0, -3.0)]
    assert closures[0] == closures[1] != closures[2]
    for one, other in (
        (nn.LeakyReLU(0.1), nn.LeakyReLU(0.2)),
        (partial(torch.clamp, min=0.1), partial(torch.clamp, min=0.2)),
        (squashed(torch.relu, 1), squashed(torch.relu, 2)),
        ({"f": torch.relu}, {"f": torch.tanh}),
        (torch.Tensor.tanh, torch.Tensor.sin),
    ):
        sources = [own.record(partial(squashed, given))["source"] for given in (one, one, other)]
        assert sources[0] == sources[1] != sources[2]


def test_a_closure_that_is_not_whole() -> None:
    def make(size: int) -> Any:
        return nn.GRUCell(size, later)

    assert own.record(make)["source"]
    later = 3
    assert make(2).hidden_size == later


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_refused(number: float) -> None:
    data = source("classify")
    find("classify").train(data, "run", options("classify"))
    weights = model_folder.load_weights(Path("run"))
    weights["linear.weight"][0, 0] = number
    model_folder.save_weights(Path("run"), weights)
    with pytest.raises(InputError, match=r"damaged, linear\.weight is NaN or infinite in places"):
        Predictor.load("run")


class Reservoir(nn.Module):
    """An echo state network, whose fixed weights are `kept` in some way."""

    def __init__(self, input_size: int, hidden_size: int, kept: str = "buffer"):
        super().__init__()
        self.x, w = nn.Linear(input_size, hidden_size), torch.randn(hidden_size, hidden_size) * 0.1
        self.scale = torch.full((1,), 0.5)  # the same one in each cell, which is no harm
        if kept == "attribute":
            self.w = w
        else:
            self.register_buffer("w", w, persistent=kept == "buffer")

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.x(x) + h @ self.w.T + self.scale)


class InAList(nn.Module):
    def __init__(self, input_size: int, hidden_size: int):
        super().__init__()
        self.layers = [nn.Linear(input_size + hidden_size, hidden_size)]

    def forward(self, x: torch.Tensor, h: torch.Tensor) -> torch.Tensor:
        return torch.tanh(self.layers[0](torch.cat([x, h], -1)))


@pytest.mark.parametrize(
    ("cell", "arguments", "told"),
    [
        (Reservoir, {"kept": "attribute"}, r"Reservoir holds w, which is another one each time"),
        (Reservoir, {"kept": "not"}, r'register_buffer\("w", \.\.\.\) makes it one'),
        (InAList, {}, r"InAList holds layers\.0\.weight, a weight that is no parameter of it"),
    ],
)
def test_a_cell_of_which_a_folder_would_not_hold_all(cell, arguments, told) -> None:
    chosen = replace(options("classify"), cell=cell, cell_args=arguments)
    with pytest.raises(InputError, match=told):
        find("classify").train(source("classify"), "run", chosen)
    assert not Path("run").exists()


def test_a_buffer_is_held() -> None:
    data = source("classify")
    find("classify").train(data, "run", replace(options("classify"), cell=Reservoir))
    loaded = [Predictor.load("run", cells={"Reservoir": Reservoir}) for _ in range(2)]
    assert all(map(torch.equal, *(one.model.state_dict().values() for one in loaded)))


class Spikes(nn.Module):
    def __init__(self, input_size: int, hidden_size: int, dtype: str = "bool"):
        super().__init__()
        self.x, self.kind = nn.Linear(input_size, hidden_size), getattr(torch, dtype)

    def forward(self, x: torch.Tensor, v: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        v = 0.9 * v + self.x(x)
        fired = v > 1
        return fired.to(self.kind), v - fired.to(v.dtype)


@pytest.mark.parametrize("task", ["classify", "tag", "language", "forecast"])
def test_spikes_that_are_truth_values(task: str) -> None:
    find(task).train(source(task), "run", replace(options(task), cell=Spikes, layers=1))
    assert Predictor.load("run", cells={"Spikes": Spikes})


@pytest.mark.parametrize("dtype", ["int64", "float64"])
def test_an_output_that_no_linear_layer_reads(dtype: str) -> None:
    chosen = replace(options("classify"), cell=Spikes, cell_args={"dtype": dtype})
    with pytest.raises(InputError, match=rf"the output of Spikes is of dtype {dtype}"):
        find("classify").train(source("classify"), "run", chosen)
    assert not Path("run").exists()
