"""The model folder: weights, options and what else a task needs, in files that hold no code."""

from __future__ import annotations

import json
import platform
import warnings
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from shlex import quote
from types import UnionType
from typing import Any, Union, get_args, get_origin, get_type_hints, is_typeddict

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save
from torch import Tensor, nn

import cello
from cello.tasks import own
from cello.tasks.errors import InputError
from cello.tasks.files import BEST, LAST, REPORT, written_beside
from cello.tasks.options import AnyOptions, from_mapping, to_yaml

FORMAT = 2
"""The version of the folder's format."""

CONFIG, OPTIONS, WEIGHTS = "config.json", "options.yaml", "model.safetensors"
CHECKPOINTS = "checkpoints"
PRETRAINING = "pretraining"
"""The folder of what a network learnt before its own job: its course and, until the run is finished, its
checkpoints."""

MOST = 3
"""The number of weights of a kind that a message names."""

Assets = dict[str, str]
"""Further files of a model by name, with their text; a tokenizer, for one."""


@dataclass(frozen=True)
class Config:
    """What a model is, apart from its weights; the content of ``config.json``.

    Attributes:
        task: the name of the task.
        options: all options of the run, of the task's class.
        facts: what the task has to know again, as its labels: plain values, for JSON.
        data: what the run was trained on.
        assets: the names of further files.
    """

    task: str
    options: Any
    facts: dict[str, Any]
    data: dict[str, Any]
    assets: Sequence[str] = ()


def place(name: str, folder: Any) -> Path:
    """Return the path of a folder that was given as an argument.

    Raises:
        InputError: it is no path, or an empty one.
    """
    if not isinstance(folder, str | Path) or not str(folder):
        raise InputError(f"{name}: {folder!r}, where the path of a folder is expected")
    return Path(folder)


def check_free(folder: Path, overwrite: bool, others: Iterable[str] = ()) -> None:
    """Refuse a folder that is in use.

    Args:
        folder: where a model is to be written.
        overwrite: whether what is there may be replaced.
        others: the names of further files that the model would have.

    Raises:
        InputError: it holds a model or a run, and `overwrite` is false; or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: not a folder")
    if overwrite:
        return
    if (folder / WEIGHTS).exists():
        raise InputError(
            f"{folder}: already holds a model; overwrite replaces it (--overwrite, overwrite=True)"
        )
    if (folder / CONFIG).exists():
        raise InputError(
            f"{folder}: holds an unfinished run; {resuming(folder)} continues it, "
            "overwrite replaces it (--overwrite, overwrite=True)"
        )
    for name in (OPTIONS, REPORT, *others):
        if (folder / name).exists():
            raise InputError(
                f"{folder}: holds a file {name}, which the model's would replace; choose another "
                "folder, or --overwrite"
            )


def begin(folder: Path, config: Config, assets: Assets, pictures: Iterable[str] = ()) -> None:
    """Write all but the weights, and remove what an earlier run left, `pictures` too."""
    content = {
        "format": FORMAT,
        "task": config.task,
        "options": config.options.plain(),
        "facts": config.facts,
        "data": config.data,
        "assets": list(assets),
        "cell": own.record(cell)
        if callable(cell := getattr(config.options, "cell", None))
        else None,
        "versions": _versions(),
    }
    texts = {
        **assets,
        OPTIONS: to_yaml(config.options),
        CONFIG: json.dumps(content, indent=2, ensure_ascii=False),
    }
    for name in (CONFIG, OPTIONS, WEIGHTS, REPORT, *pictures, *assets):
        (folder / name).unlink(missing_ok=True)
    drop_checkpoints(folder)
    for name, text in texts.items():
        with written_beside(folder / name, "w") as stream:
            stream.write(text)


def save_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    """Write the weights, which makes the folder a model; shared ones are written under each name."""
    taken: set[int] = set()
    apart = {}
    for name, weight in weights.items():
        place = weight.untyped_storage().data_ptr()
        apart[name] = (
            weight.clone(memory_format=torch.contiguous_format)
            if place in taken
            else weight.contiguous()
        )
        taken.add(place)
    with written_beside(folder / WEIGHTS) as stream:
        stream.write(save(apart))


def has_checkpoint(folder: Path) -> bool:
    """Return whether a run was stopped after its first checkpoint, of its own job or the one before."""
    return any((place / CHECKPOINTS / LAST).exists() for place in (folder, folder / PRETRAINING))


def has_own_cell(folder: Path) -> bool:
    """Return whether the model of a folder was trained with a cell that is not one of Cello's.

    Raises:
        InputError: the folder holds no model.
    """
    return isinstance(_content(folder).get("cell"), dict)


def resuming(folder: Path) -> str:
    """Return the options that continue a run, with its cell if the code of that is in no folder."""
    words = f"--resume {quote(str(folder))}"
    try:
        cell = _content(folder).get("cell")
    except InputError:  # which whoever resumes the run is told
        return words
    if not isinstance(cell, dict) or "name" not in cell:
        return words
    return f"{words} --cell {quote(str(cell['name']))}"


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run that is finished, half written ones of a killed run too."""
    for checkpoints in (folder / CHECKPOINTS, folder / PRETRAINING / CHECKPOINTS):
        for name in (LAST, BEST):
            for path in (checkpoints / name, *checkpoints.glob(f".{name}.*")):
                path.unlink(missing_ok=True)
        for empty in (checkpoints, checkpoints.parent):
            if empty != folder and empty.is_dir() and not any(empty.iterdir()):
                empty.rmdir()


def task_of(folder: Path) -> str:
    """Return the name of the task that a model is for.

    Raises:
        InputError: the folder holds no model, or one of another version.
    """
    return str(_content(folder)["task"])


def load_config(folder: Path, options: type[AnyOptions], facts: Any, cells: Any = None) -> Config:
    """Read ``config.json``. No code is imported that `cells` does not name.

    Args:
        folder: the model folder.
        options: the options of the model's task.
        facts: the form of its facts, a ``TypedDict``.
        cells: the cell of the model, if it is not one of Cello's; see :func:`cello.tasks.own.given`.

    Raises:
        InputError: there is none, or it is not whole or of another version; or `cells` lacks its cell.

    Warns:
        CellWarning: the code of the cell has changed.
    """
    path, content = folder / CONFIG, _content(folder)
    forms = {"options": dict, "facts": dict, "data": dict, "assets": list}
    for name, form in forms.items():
        if not isinstance(content.get(name), form):
            raise InputError(f"{path}: {name} is not as it should be")
    for name in content["assets"]:
        if not isinstance(name, str) or name in ("", "..") or Path(name).name != name:
            raise InputError(f"{path}: assets is not as it should be")
    for name, form in get_type_hints(facts).items():
        if name not in content["facts"] or not fits(content["facts"][name], form):
            raise InputError(f"{path}: {name} is not as it should be")
    values = dict(content["options"])
    if values.get("log") == "csv":  # what it wrote is history.csv now
        values["log"] = "none"
    if "split_seed" in {f.name for f in fields(options)}:  # once one seed was for both
        values.setdefault("split_seed", values.get("seed", 0))
    if "cell" in values:
        values["cell"] = _cell(folder, values["cell"], content.get("cell"), cells)
    return Config(
        content["task"],
        from_mapping(options, values, str(path)),
        content["facts"],
        content["data"],
        tuple(content["assets"]),
    )


def _cell(folder: Path, name: Any, recorded: Any, cells: Any) -> Any:
    """Return the cell of a model: its name, if it is one of Cello's, else the one that is given."""
    if not isinstance(name, str):
        raise InputError(f"{folder / CONFIG}: cell is not as it should be")
    if ":" not in name:
        if cells is not None:
            raise InputError(
                f"cells: the model in {folder} has the cell {name}, which Cello has itself"
            )
        return name
    cell, notes = own.given(folder, name, cells, recorded if isinstance(recorded, dict) else None)
    for note in notes:
        warnings.warn(note, own.CellWarning, stacklevel=2)
    return cell


def _content(folder: Path) -> dict[str, Any]:
    path = folder / CONFIG
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model folder")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: not a model folder, it has no {CONFIG}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not whole, it cannot be read as JSON") from error
    if not isinstance(content, dict) or "task" not in content:
        raise InputError(f"{path}: not the description of a model")
    if content.get("format") != FORMAT:
        found = content.get("format")
        raise InputError(f"{path}: has format {found!r}; this version of Cello reads {FORMAT}")
    options = content.get("options")
    if content["task"] == "classify" and isinstance(options, dict) and options.get("ngrams"):
        content["task"] = "ngrams"  # which was an option of classifiers before it was a task
    return content


def load_assets(folder: Path, config: Config) -> Assets:
    """Read the further files of a model.

    Raises:
        InputError: one is missing, or is not UTF-8.
    """
    assets = {}
    for name in config.assets:
        path = folder / name
        try:
            assets[name] = path.read_text(encoding="utf-8")
        except FileNotFoundError as error:
            raise InputError(f"{path}: no such file") from error
        except UnicodeDecodeError as error:
            raise InputError(f"{path}: not UTF-8 at byte {error.start} of the file") from error
    return assets


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Read ``model.safetensors``.

    Raises:
        InputError: there is none, or it is not whole.
    """
    path = folder / WEIGHTS
    try:
        return load_file(path)
    except FileNotFoundError as error:
        if has_checkpoint(folder):
            raise InputError(
                f"{folder}: training is not finished; cello train {resuming(folder)} continues it"
            ) from error
        raise InputError(f"{path}: no such file") from error
    except PermissionError as error:
        raise InputError(f"{path}: {error.strerror}") from error
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(f"{path}: cut short or damaged") from error


def fill(model: nn.Module, weights: dict[str, Tensor], place: Path) -> None:
    """Put weights into a model.

    Raises:
        InputError: they do not fit; the message says which.
    """
    mine = model.state_dict()
    try:
        model.load_state_dict(weights)
    except RuntimeError as error:
        shapes = {
            f"{name} is {tuple(weights[name].shape)}, in the model {tuple(mine[name].shape)}"
            for name in mine.keys() & weights.keys()
            if weights[name].shape != mine[name].shape
        }
        lacking, unknown = mine.keys() - weights.keys(), weights.keys() - mine.keys()
        reason = (
            "; ".join(
                [
                    *([f"they lack {_few(lacking)}"] if lacking else []),
                    *([f"the model has no {_few(unknown)}"] if unknown else []),
                    *([_few(shapes)] if shapes else []),
                ]
            )
            or str(error).partition("\n")[0]
        )
        raise InputError(f"{place}: the weights do not fit {CONFIG}: {reason}") from error

    # A weight that is not trained may be a mask of infinite numbers.
    damaged = [
        name
        for name, weight in model.named_parameters()
        if weight.isnan().any() or (weight.requires_grad and weight.isinf().any())
    ]
    if damaged:
        raise InputError(f"{place}: damaged, {_few(damaged)} is NaN or infinite in places")


def _few(names: Iterable[str]) -> str:
    first = sorted(names)
    more = f" and {len(first) - MOST} more" if len(first) > MOST else ""
    return ", ".join(first[:MOST]) + more


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "cello": cello.__version__}
    for name in ("torch", "lightning", "tokenizers", "safetensors", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions


def fits(value: Any, form: Any) -> bool:
    """Return whether a value is of a type: of a plain one, a list, a union or a ``TypedDict``.

    Example:
        >>> fits(["neg", "pos"], list[str]), fits(["neg", 1], list[str]), fits(None, int | None)
        (True, False, True)
    """
    if is_typeddict(form):
        hints = get_type_hints(form)
        return (
            isinstance(value, dict)
            and value.keys() == hints.keys()
            and all(fits(value[name], hint) for name, hint in hints.items())
        )
    if get_origin(form) in (UnionType, Union):
        return any(fits(value, part) for part in get_args(form))
    if get_origin(form) is list:
        (part,) = get_args(form)
        return isinstance(value, list) and all(fits(one, part) for one in value)
    return isinstance(value, form) and (form is bool or not isinstance(value, bool))
