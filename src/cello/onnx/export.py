"""Exporting a model to ONNX with torch's own exporter, which is told what a layer of Cello is there."""

from __future__ import annotations

import logging
import os
import warnings
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from importlib.util import find_spec
from itertools import chain, count
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import TYPE_CHECKING, Any

import torch
from torch import nn

from cello.engines import EngineError, engine, observe
from cello.foreign.adapt import Adapted, begins_at_zero, known_to_begin_at_zero

if TYPE_CHECKING:
    from torch.onnx import ONNXProgram


def export(
    model: nn.Module,
    args: tuple[Any, ...],
    path: str | os.PathLike[str] | None = None,
    **options: Any,
) -> ONNXProgram:
    r"""Export a model that may contain layers of Cello, with any cells, to ONNX.

    A layer becomes a ``Scan`` for each direction: the equations of its step in ONNX's own operators, for
    any number of steps and sequences. Products of the input, which need no state, are in front of it. To
    run, the file needs nothing of Cello or torch. Everything else of the model is exported by
    :func:`torch.onnx.export`, which this function calls.

    The model is exported as it is in evaluation mode, without gradients. First it is run once with `args`,
    so that a :class:`cello.Recurrent` knows its state.

    Args:
        model: the model, on the CPU.
        args: its arguments, as an example. `lengths` may be one of them: it becomes an input of the file.
        path: the file to write; ``None`` for none.
        **options: those of ``torch.onnx.export``, such as `dynamic_shapes` for the axes whose sizes may
            differ from the example, `input_names` and `output_names`. The weights are in the file itself
            unless ``external_data=True``, which those of more than 2 GB need.

    Returns:
        What ``torch.onnx.export`` returns, an ``ONNXProgram``.

    Raises:
        ModuleNotFoundError: the packages onnx and onnxscript are not there; ``pip install cello[onnx]``.
        EngineError: the step of a cell cannot be compiled; the message says why.
        OnnxExporterError: torch cannot export another part of the model.
        TypeError: `model` is not a module, or `args` is not a tuple.
        ValueError: the model is not on the CPU, or ``dynamo=False``.
        RuntimeError: as the model raises it for `args`, such as tensors on another device.
        FileNotFoundError: the folder of `path` is not there.
        IsADirectoryError: `path` is a folder.

    Example:
        >>> import torch, cello
        >>> layer, x = cello.nn.GRU(3, 4, batch_first=True), torch.randn(2, 5, 3)
        >>> axes = {0: "batch", 1: "time"}
        >>> program = cello.onnx.export(layer, (x,), dynamic_shapes=(axes,))
        >>> [node.op_type for node in program.model.graph].count("Scan")
        1

    References:
        `ONNX's operators <https://onnx.ai/onnx/operators/onnx__Scan.html>`_.
    """
    _need_packages()
    if not isinstance(model, nn.Module):
        raise TypeError(f"model must be a torch.nn.Module, got {type(model).__name__}")
    if not isinstance(args, tuple):
        raise TypeError(f"args must be a tuple of the model's arguments, got {type(args).__name__}")
    if not options.pop("dynamo", True):
        raise ValueError(
            "dynamo must be True: torch's older exporter, torch.onnx.export(..., dynamo=False), knows no "
            "cells"
        )
    place = None if path is None else Path(path).absolute()
    if place is not None and not place.parent.is_dir():
        raise FileNotFoundError(f"path: {place.parent} is not a folder")
    if place is not None and place.is_dir():
        raise IsADirectoryError(f"path: {place} is a folder; expected the name of a file in it")
    for name, tensor in chain(model.named_parameters(), model.named_buffers()):
        if not tensor.is_cpu:
            raise ValueError(f"model must be on the CPU, got {name} on {tensor.device}")
    table = {**translations(), **(options.pop("custom_translation_table", None) or {})}
    is_apart = options.pop("external_data", False)
    with _evaluating(model), torch.no_grad(), engine("native"), _quiet():
        with observe() as seen:
            model(*args, **(options.get("kwargs") or {}))
        starts = [
            direction.cell.cell
            for scan, _ in seen
            for direction in scan.directions
            if isinstance(direction.cell, Adapted)
            and begins_at_zero(direction.cell, scan.sequence.data)
        ]
        try:
            with known_to_begin_at_zero(starts):
                program = torch.onnx.export(
                    model,
                    args,
                    **{"verbose": False, **options},
                    dynamo=True,
                    custom_translation_table=table,
                )
        except torch.onnx.OnnxExporterError as error:
            cause = _cause(error)
            if not isinstance(cause, EngineError):
                raise
            raise cause from None  # which torch's message has behind a long one of its own
    if place is not None:
        _save(program, place, is_apart)
    return program  # type: ignore[return-value]


def _save(program: Any, path: Path, is_apart: bool) -> None:
    """Write a file, and one of the weights if these are to be apart; each appears when it is complete."""
    with TemporaryDirectory(prefix=f".{path.name}.", dir=path.parent) as folder:
        program.save(Path(folder, path.name), external_data=is_apart)
        for written in sorted(Path(folder).iterdir(), key=lambda file: file.name == path.name):
            os.replace(
                written, path.with_name(written.name)
            )  # the model, which names the other, last


def translations() -> dict[Callable[..., Any], Callable[..., Any]]:
    """Return what ``torch.onnx.export`` needs to know of Cello, as its `custom_translation_table`.

    :func:`export` uses it. Take it yourself to export a program that ``torch.export.export`` has made.

    Returns:
        Functions by the operators that they write in ONNX.

    Raises:
        ModuleNotFoundError: the packages onnx and onnxscript are not there.

    Example:
        >>> import torch, cello
        >>> layer, x = cello.nn.LSTM(3, 4).requires_grad_(False), torch.randn(5, 2, 3)
        >>> exported = torch.export.export(layer, (x,))
        >>> table = cello.onnx.translations()
        >>> program = torch.onnx.export(  # doctest: +SKIP
        ...     exported, custom_translation_table=table
        ... )
    """
    _need_packages()
    import numpy as np
    import onnx_ir as ir
    from onnxscript import evaluator

    from cello.onnx.scan import write_scan

    scan_numbers = count()

    def scan(
        program: str,
        inputs: list[Any],
        statics: list[Any],
        states: list[Any],
        batch_sizes: Any,
        rows: Any,
        descending: bool,
        lengths: Any = None,
    ) -> list[Any]:
        if batch_sizes is not None:
            raise ValueError(
                "ONNX has no packed sequences: give the layer padded ones, and lengths="
            )
        prefix = f"scan{next(scan_numbers)}"
        nodes, found = write_scan(
            prefix, program, inputs, statics, states, rows, descending, lengths
        )
        recorder: Any = evaluator.default()
        recorder.nodes.extend(nodes)
        return found

    def constant(numbers: list[float], shape: list[int], dtype: int, device: Any) -> Any:
        kind = ir.DataType(dtype)
        if kind in (ir.DataType.COMPLEX64, ir.DataType.COMPLEX128):
            raise ValueError("ONNX has no complex numbers")
        array = np.array(numbers, np.float64).reshape(shape).astype(kind.numpy())
        node = ir.node("Constant", [], {"value": ir.tensor(array)})
        recorder: Any = evaluator.default()
        recorder.nodes.append(node)
        return node.outputs[0]

    return {torch.ops.cello.scan.default: scan, torch.ops.cello.constant.default: constant}


def _cause(error: BaseException) -> BaseException:
    """What an error of torch's exporter comes from in the end."""
    while error.__cause__ is not None:
        error = error.__cause__
    return error


def _need_packages() -> None:
    missing = [name for name in ("onnx", "onnxscript") if find_spec(name) is None]
    if missing:
        raise ModuleNotFoundError(
            f"exporting to ONNX needs {' and '.join(missing)}: pip install 'cello[onnx]'"
        )


@contextmanager
def _quiet() -> Iterator[None]:
    """Leave out what the exporter says of packages that are not there, and of its own code."""
    about = logging.getLogger("torch.onnx._internal.exporter._registration")
    level = about.level
    about.setLevel(logging.ERROR)
    try:
        with warnings.catch_warnings():
            warnings.filterwarnings("ignore", r".*LeafSpec", FutureWarning)
            warnings.filterwarnings("ignore", r".*The axis name: .* will not be used", UserWarning)
            yield
    finally:
        about.setLevel(level)


@contextmanager
def _evaluating(model: nn.Module) -> Iterator[None]:
    training = [module for module in model.modules() if module.training]
    model.eval()
    try:
        yield
    finally:
        for module in training:
            module.training = True
