"""What the author of a cell is told when a step of it raises an error: where, and on what shapes."""

from __future__ import annotations

import linecache
import re
from collections.abc import Iterator
from types import FrameType, TracebackType

import torch

from cello.foreign.scope import is_constant, place
from cello.foreign.structure import Nested, Structure

_MAX_NAMES = 8
"""How many tensors of a line are shown."""


_OF_LAYERS = r"^For (un)?batched \d-D input, hx|^Expected hidden(\[\d\])? size"
"""What nn.GRU, nn.LSTM and nn.RNN say of a state of another shape than their own."""

_BATCH_FIRST = (
    "  A state has its batch first in Cello, (B, layers, H), and in torch's layers second. Say "
    "state_size=torch.Size([layers, H]), and write hidden.transpose(0, 1).contiguous() in the step before "
    "and after the layer, of an LSTM for both parts."
)


def is_of_code(error: Exception) -> bool:
    """Whether an error is one of the code alone, which no other state would avoid."""
    if isinstance(error, AttributeError):
        return not isinstance(error.obj, torch.Tensor | tuple | list)
    return isinstance(error, NameError | ImportError | SyntaxError)


def progress(error: BaseException) -> tuple[tuple[int, ...], bool]:
    """How far a step came before it raised an error, for comparing runs of the same code.

    An operation that complains of shapes has been given operands of the right types.
    """
    return tuple(traceback.tb_lasti for traceback in _own(error)), isinstance(error, RuntimeError)


def tell(error: Exception) -> str:
    """Write an error with the line that raised it, and the shapes of the tensors there.

    Its traceback becomes what the cell's author would see in a loop of their own.
    """
    told = [f"{type(error).__name__}: {error}"]
    own = list(_own(error))
    if not own:  # a cell of torch's own
        return told[0]
    shown = None
    for traceback in reversed(own):
        shown = TracebackType(shown, traceback.tb_frame, traceback.tb_lasti, traceback.tb_lineno)
    error.__traceback__ = shown
    last = next(t for t in reversed(own) if _is_users(t.tb_frame))
    code = last.tb_frame.f_code
    told.append(f"  {place(code, last.tb_lineno)}, in {code.co_name}")
    line = linecache.getline(code.co_filename, last.tb_lineno, last.tb_frame.f_globals).strip()
    if line:
        told.append(f"    {line}")
    there = list(_tensors_of(last.tb_frame))
    if there:
        told.append(f"  where the shapes are: {', '.join(there[:_MAX_NAMES])}")
    if re.search(_OF_LAYERS, str(error)):
        told.append(_BATCH_FIRST)
    return "\n".join(told)


def _own(error: BaseException) -> Iterator[TracebackType]:
    """The part of a traceback from the first to the last line that is not Cello's, nor torch's ahead."""
    frames: list[TracebackType] = []
    traceback = error.__traceback__
    while traceback is not None:
        if frames or _is_users(traceback.tb_frame):
            frames.append(traceback)
        traceback = traceback.tb_next
    while frames and _module(frames[-1].tb_frame).partition(".")[0] == "cello":
        frames.pop()
    yield from frames


def _is_users(frame: FrameType) -> bool:
    return not is_constant(_module(frame))


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _tensors_of(frame: FrameType) -> Iterator[str]:
    for name, value in frame.f_locals.items():
        try:
            has_tensors = len(Structure.of(value)) > 0
        except TypeError:
            continue
        if has_tensors:
            yield f"{name} {shapes(value)}"


def shapes(nested: Nested) -> object:
    """The shapes of tensors, nested as they are."""
    if isinstance(nested, torch.Tensor):
        return tuple(nested.shape)
    if isinstance(nested, dict):
        return {key: shapes(item) for key, item in nested.items()}
    return tuple(shapes(item) for item in nested)
