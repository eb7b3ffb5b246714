"""Steps of a foreign cell on meta tensors or on numbers, which leave nothing behind."""

from __future__ import annotations

from contextlib import nullcontext, suppress
from itertools import chain, count
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn

from cello.cells.contract import CellError, state_dtype
from cello.foreign.adapt import cell_name
from cello.foreign.guess import Guess
from cello.foreign.hooks import Hooks
from cello.foreign.memoryless import (
    CarriedError,
    Memoryless,
    Meta,
    NeedsNumbersError,
    each_tensor,
    without_autocast,
    without_cache,
    without_compiler,
    without_hooks,
    without_memory,
    without_tracer,
)
from cello.foreign.path import Path
from cello.foreign.reach import Reach
from cello.foreign.structure import Nested
from cello.foreign.undo import Undo

if TYPE_CHECKING:
    from typing_extensions import Self

MAX_ROWS_HELD = 4
"""How many batch sizes are tried, of tensors that a cell holds."""


class BrokenRuleError(CellError):
    """A cell broke a rule that it would break with any state, so that no other is to be tried."""


class Steps:
    """Steps of one cell, tried with different states.

    While it is entered, the cell is in evaluation mode (one row is enough for a batch norm, and no
    dropout mask is drawn) and calls no hooks (they may keep what they see). Afterwards
    everything in it is as before.

    Args:
        cell: the cell.
        x: an input of one step.
        has_numbers: whether it is tried on numbers, and not on meta tensors.

    Attributes:
        example: the parts of a state that the user has given, if there is one.
        needs_numbers: whether the cell has failed in a way in which it may not fail on numbers.
    """

    def __init__(self, cell: nn.Module, x: Tensor, *, has_numbers: bool = False) -> None:
        self.cell, self.has_numbers, self.needs_numbers = cell, has_numbers, False
        self.kind, self.device = x.device.type, x.device if has_numbers else Meta
        self.mode = Memoryless()
        self.feature_shape, self.dtype = tuple(x.shape[1:]), x.dtype
        self.state_dtype = state_dtype(x.dtype, cell)
        self.example: list[Tensor] = []
        self.failures: list[tuple[Guess | None, Exception]] = []
        # No other size, so that an axis of as many counts rows.
        sizes = {size for t in chain(cell.parameters(), cell.buffers(), [x]) for size in t.shape}
        self.few, self.many = 1, next(rows for rows in count(3) if rows not in sizes)

    def rows_held(self) -> list[int]:
        """The batch sizes that tensors which the cell holds, and does not train, may be made for.

        Of one row are many buffers; what else has one, as the memory of a decoder, may be for one sequence.
        """
        trained = {id(parameter) for parameter in self.cell.parameters()}
        buffers = {id(buffer) for buffer in self.cell.buffers()}
        held = [t for t in self.undo.reach.tensors if t.dim() > 1 and id(t) not in trained]
        sizes = {len(t) for t in held if len(t) > 1 or id(t) not in buffers}
        return sorted(sizes - {0})[:MAX_ROWS_HELD]

    def __enter__(self) -> Self:
        # A batch norm that counts its calls counts in copies of its buffers.
        self.tensors: dict[str, Tensor] = {
            name: self._copied(parameter) for name, parameter in self.cell.named_parameters()
        }
        for name, buffer in self.cell.named_buffers():
            self.tensors[name] = self.mode.own(buffer.detach().clone())
        self.undo = Undo(self.cell, self.device if self.has_numbers else None)
        self.hooks = Hooks(self.cell)
        try:
            self._make_quiet()
        except BaseException:
            self.__exit__()
            raise
        return self

    def _copied(self, parameter: Tensor) -> Tensor:
        if not self.has_numbers and not parameter.requires_grad:
            return parameter.detach()
        copy = (
            parameter.detach().clone() if self.has_numbers else without_memory(parameter.detach())
        )
        # Within transforms of torch.func nothing may be marked so, and they do not go by it.
        with suppress(RuntimeError):
            copy.requires_grad_(parameter.requires_grad)
        vars(copy).update(vars(parameter))
        copy._is_param = True  # by which torch knows a parameter again
        return copy

    def _make_quiet(self) -> None:
        self.cell.eval()
        self.hooks.put_off()

    def __exit__(self, _: object = None, error: object = None, __: object = None) -> None:
        self.hooks.put_back()
        self.undo.restore()
        if isinstance(error, CellError) and type(error) is not CellError:  # a matter of this file
            raise CellError(str(error)) from error.__cause__

    def call(self, *state: Nested, rows: int | None = None) -> Nested:
        rows = self.few if rows is None else rows
        x = self.input(rows)
        given = [x, *each_tensor(state)]
        versions = [tensor._version for tensor in given]
        try:
            returned = self._call(rows, x, *state)
        except CarriedError as error:
            raise self._carried(error.tensor) from error
        if [tensor._version for tensor in given] != versions:
            raise BrokenRuleError(
                f"{cell_name(self.cell)} is not a cell: it writes into its input or its state in place, "
                "which other steps still need. Make new tensors: h * 0.5 + x, not h.mul_(0.5).add_(x)."
            )
        return returned

    def _call(self, rows: int, x: Tensor, *state: Nested) -> Nested:
        """Call the cell, under the modes of the caller's."""
        self.mode.begin(rows, [x, *each_tensor(state)])
        try:
            world = nullcontext() if self.has_numbers else self.mode
            autocast = nullcontext() if self.has_numbers else without_autocast(self.kind)
            with (
                world,
                autocast,
                without_hooks(),
                without_compiler(),
                without_tracer(),
                without_cache(),
            ):
                if isinstance(self.cell, torch.jit.ScriptModule):  # whose tensors cannot be changed
                    return self.cell(x, *state)
                return torch.func.functional_call(self.cell, self.tensors, (x, *state))
        except CarriedError:
            raise
        except NeedsNumbersError as error:
            self.needs_numbers = True
            raise BrokenRuleError(f"{cell_name(self.cell)} needs numbers") from error
        except Exception as error:
            carried = self.mode.carried
            if carried is not None and rows > 1:  # which met rows of another batch
                raise self._carried(carried) from error
            self.mode.forget()  # what is left behind may be of no state that the cell takes
            self.undo.restore()
            self._make_quiet()
            self.needs_numbers |= _is_about_meta(error)
            raise

    def _carried(self, tensor: Tensor) -> BrokenRuleError:
        places = [name for name, held in self.tensors.items() if held is tensor]
        path = Reach(self.cell).path(tensor)
        if path is not None:
            places.append(Path(step for step in path if type(step) is not int).readable)
        if not places:  # something else is there by now
            changed = self.undo.restore()
            places = [place for place in changed if not place.endswith("training")]
        where = places[0].removeprefix("its attribute ") if places else "a tensor"
        return BrokenRuleError(
            f"{cell_name(self.cell)} is not a cell: it computes {where} (B, ...) at one step and reads it "
            "at the next one, beside its state. Then nobody starts it anew for another sequence, or "
            "stops it where a sequence ends. Make it a part of the state: take it with the state, and "
            "return it with the state after the step."
        )

    def input(self, rows: int) -> Tensor:
        x = torch.zeros(rows, *self.feature_shape, dtype=self.dtype, device=self.device)
        if self.has_numbers and x.is_floating_point():
            x += torch.linspace(-1, 1, x.numel(), dtype=x.dtype, device=x.device).view_as(x)
        return x

    def state(self, guess: Guess, rows: int) -> Nested:
        """A state to begin with: zeros, or rows of the example where numbers count."""
        parts = [
            torch.zeros(rows, *shape, dtype=dtype, device=self.device)
            for shape, dtype in zip(guess.shapes, guess.dtypes, strict=True)
        ]
        shapes = tuple([tuple(leaf.shape[1:]) for leaf in self.example])
        if self.has_numbers and shapes == guess.shapes:  # a cell may refuse zeros, as probabilities
            for part, leaf in zip(parts, self.example, strict=True):
                part.copy_(leaf.detach()[:1])
        return guess.structure.unflatten(parts)


def _is_about_meta(error: Exception) -> bool:
    """Whether an error may be one of meta tensors alone."""
    told = str(error)
    return isinstance(error, NotImplementedError) or any(word in told for word in _ABOUT_META)


_ABOUT_META = (
    "meta",
    "Meta",
    "fake",
    "HigherOrderOperator",
    "numpy",
    "unallocated storage",  # what tolist says
    "of leaf variables",  # a copy without memory of a leaf is none
    "Tensor.__format__",
)
