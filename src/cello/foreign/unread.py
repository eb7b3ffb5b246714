"""Names in the code of a step that it does not come to: ``if self.training and random.random() < p:``.

What such names stand for was not read, and will not be as long as all that was read is the same.
"""

from __future__ import annotations

import dis
import sys
from collections.abc import Iterable, Iterator
from types import CodeType, FrameType
from typing import TYPE_CHECKING, Any

from cello.foreign.scope import codes_in

if TYPE_CHECKING:
    from typing_extensions import Self

Unread = frozenset[tuple[CodeType, str]]
"""Pairs of code and a name in it."""


class Passed:
    """Notes which instructions of some code run; use as a context manager around them.

    Args:
        codes: the code, with the functions that it defines.
    """

    def __init__(self, codes: Iterable[CodeType]) -> None:
        self._ran: dict[CodeType, set[int]] = {
            part: set() for code in codes for part in codes_in(code)
        }
        self._called: set[CodeType] = set()
        self._before: Any = None

    def __enter__(self) -> Self:
        self._before = sys.gettrace()
        sys.settrace(self._see_call)
        return self

    def __exit__(self, *_: object) -> None:
        sys.settrace(self._before)

    def unread(self) -> Unread:
        """Return the names that only instructions have that did not run."""
        if not any(self._ran.values()):
            return frozenset()
        return frozenset(
            (code, name)
            for code, offsets in self._ran.items()
            if offsets or code not in self._called
            for name in _not_among(code, offsets)
        )

    def _see_call(self, frame: FrameType, *_: object) -> Any:
        if frame.f_code not in self._ran:
            return None
        self._called.add(frame.f_code)
        frame.f_trace_opcodes = True
        return self._see

    def _see(self, frame: FrameType, event: str, _: object) -> Any:
        if event == "opcode":
            self._ran[frame.f_code].add(frame.f_lasti)
        return self._see


def _not_among(code: CodeType, offsets: set[int]) -> set[str]:
    """The names of code that none of the instructions has that ran, nor one that may have."""
    read: set[str] = set()
    others: set[str] = set()
    for block in _blocks(code):
        has_run = any(instruction.offset in offsets for instruction in block)
        names = read if has_run else others
        names.update(i.argval for i in block if type(i.argval) is str)
    return others.difference(read).intersection(code.co_names)


def _blocks(code: CodeType) -> Iterator[list[dis.Instruction]]:
    """Instructions that run one after the other, unless one of them raises an error."""
    block: list[dis.Instruction] = []
    for instruction in dis.get_instructions(code):
        if instruction.is_jump_target and block:
            yield block
            block = []
        block.append(instruction)
        if instruction.opcode in _JUMPS or instruction.opname in _ENDS:
            yield block
            block = []
    if block:
        yield block


_JUMPS = frozenset((*dis.hasjrel, *dis.hasjabs))
_ENDS = frozenset(("RETURN_VALUE", "RETURN_CONST", "RAISE_VARARGS", "RERAISE"))


def line_with(name: str, codes: Iterable[CodeType], unread: Unread) -> tuple[CodeType, int] | None:
    """Return where code first has a name, if that may run."""
    parts = {part for code in codes for part in codes_in(code)}
    for part in sorted(parts, key=lambda code: (code.co_filename, code.co_firstlineno)):
        if (part, name) in unread:
            continue
        for instruction in dis.get_instructions(part):
            if instruction.argval == name and type(instruction.argval) is str:
                return part, _line_at(part, instruction.offset)
    return None


def _line_at(code: CodeType, offset: int) -> int:
    for start, end, line in code.co_lines():
        if start <= offset < end and line is not None:
            return line
    return code.co_firstlineno
