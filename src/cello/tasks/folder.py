"""The model folder: weights, options and tokenizer, in files that hold no code."""

from __future__ import annotations

import json
import platform
from dataclasses import asdict, dataclass, fields
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

from safetensors import SafetensorError
from safetensors.torch import load_file, save
from tokenizers import Tokenizer
from torch import Tensor

import cello
from cello.tasks.errors import InputError
from cello.tasks.files import BEST, LAST, written_beside
from cello.tasks.options import Options

FORMAT = 1
"""The version of the folder's format."""

CONFIG, TOKENIZER, WEIGHTS = "config.json", "tokenizer.json", "model.safetensors"
REPORT, PICTURE, CHECKPOINTS = "report.json", "confusion.png", "checkpoints"


@dataclass(frozen=True)
class Config:
    """What a model is, apart from its weights; the content of ``config.json``."""

    kind: str
    features: int | None
    labels: list[str]
    options: Options
    data: dict[str, Any]


def check_free(folder: Path, overwrite: bool) -> None:
    """Refuse a folder that is in use.

    Raises:
        InputError: it holds a model or a run, and `overwrite` is false; or it is a file.
    """
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: not a folder")
    if overwrite:
        return
    if (folder / WEIGHTS).exists():
        raise InputError(f"{folder}: already holds a model; --overwrite replaces it")
    if (folder / CONFIG).exists():
        raise InputError(
            f"{folder}: holds an unfinished run; --resume {folder} continues it, "
            "--overwrite replaces it"
        )


def begin(folder: Path, config: Config, tokenizer: Tokenizer | None) -> None:
    """Write all but the weights, and remove what an earlier run left."""
    for name in (CONFIG, TOKENIZER, WEIGHTS, REPORT, PICTURE):
        (folder / name).unlink(missing_ok=True)
    drop_checkpoints(folder)
    if tokenizer is not None:
        with written_beside(folder / TOKENIZER, "w") as stream:
            stream.write(tokenizer.to_str())
    content = {
        "format": FORMAT,
        "task": "classify",
        **{f.name: getattr(config, f.name) for f in fields(config) if f.name != "options"},
        "options": asdict(config.options),
        "versions": _versions(),
    }
    with written_beside(folder / CONFIG, "w") as stream:
        json.dump(content, stream, indent=2, ensure_ascii=False)


def save_weights(folder: Path, weights: dict[str, Tensor]) -> None:
    """Write the weights, which makes the folder a model."""
    with written_beside(folder / WEIGHTS) as stream:
        stream.write(save({name: w.contiguous() for name, w in weights.items()}))


def drop_checkpoints(folder: Path) -> None:
    """Remove the checkpoints of a run that is finished, half written ones of a killed run too."""
    checkpoints = folder / CHECKPOINTS
    for name in (LAST, BEST):
        for path in (checkpoints / name, *checkpoints.glob(f".{name}.*")):
            path.unlink(missing_ok=True)
    if checkpoints.is_dir() and not any(checkpoints.iterdir()):
        checkpoints.rmdir()


def load_config(folder: Path) -> Config:
    """Read ``config.json``.

    Raises:
        InputError: there is none, or it is not whole or of another version.
    """
    path = folder / CONFIG
    if not folder.is_dir():
        raise InputError(f"{folder}: no such model folder")
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{folder}: not a model folder, it has no {CONFIG}") from error
    except (ValueError, RecursionError) as error:
        raise InputError(f"{path}: not whole, it cannot be read as JSON") from error
    if not isinstance(content, dict) or content.get("task") != "classify":
        raise InputError(f"{path}: not the description of a classifier")
    if content.get("format") != FORMAT:
        found = content.get("format")
        raise InputError(f"{path}: has format {found!r}; this version of Cello reads {FORMAT}")
    try:
        config = Config(
            **{f.name: content[f.name] for f in fields(Config) if f.name != "options"},
            options=Options(**content["options"]),
        )
        labels, features = config.labels, config.features
        sound = (
            config.kind in ("text", "numbers")
            and isinstance(config.data, dict)
            and isinstance(labels, list)
            and len(labels) == len(set(labels)) > 1
            and all(isinstance(label, str) for label in labels)
            and (config.kind == "text" or (isinstance(features, int) and features > 0))
        )
    except (KeyError, TypeError, InputError) as error:
        raise InputError(f"{path}: not as it should be ({error})") from error
    if not sound:
        raise InputError(f"{path}: kind, labels or features are not as they should be")
    return config


def load_tokenizer(folder: Path) -> Tokenizer:
    """Read ``tokenizer.json``.

    Raises:
        InputError: there is none, or it is not whole.
    """
    path = folder / TOKENIZER
    try:
        return Tokenizer.from_str(path.read_text(encoding="utf-8"))
    except FileNotFoundError as error:
        raise InputError(f"{path}: no such file") from error
    except Exception as error:  # the tokenizers library raises nothing narrower
        raise InputError(f"{path}: not a whole tokenizer") from error


def load_weights(folder: Path) -> dict[str, Tensor]:
    """Read ``model.safetensors``.

    Raises:
        InputError: there is none, or it is not whole.
    """
    path = folder / WEIGHTS
    try:
        return load_file(path)
    except FileNotFoundError as error:
        if (folder / CHECKPOINTS / LAST).exists():
            hint = f"training is not finished; cello train --resume {folder} continues it"
            raise InputError(f"{folder}: {hint}") from error
        raise InputError(f"{path}: no such file") from error
    except (SafetensorError, ValueError, OSError) as error:
        raise InputError(f"{path}: cut short or damaged") from error


def _versions() -> dict[str, str]:
    versions = {"python": platform.python_version(), "cello": cello.__version__}
    for name in ("torch", "lightning", "tokenizers", "safetensors", "numpy"):
        try:
            versions[name] = version(name)
        except PackageNotFoundError:
            versions[name] = "unknown"
    return versions
