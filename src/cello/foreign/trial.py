"""The trial of a foreign cell: what state it takes, and what it returns.

Both are settled by steps on meta tensors (shapes, no numbers), in which the state that comes out must have
the structure and the shapes of the state that went in. Nothing is computed, and no random number is
drawn. A cell that needs numbers, in an `if` or for an operation without a rule of shapes, is tried on some.
Buffers, attributes, flags and sources of random numbers are afterwards as they were.

A state that was found must also be the only one possible: where the cell would take another width or
fewer tensors just as well, Cello asks rather than guesses.
"""

from __future__ import annotations

import inspect
import threading
from collections.abc import Iterator, Mapping
from contextlib import nullcontext, suppress
from dataclasses import dataclass, replace
from itertools import chain, count, product
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cello.cells.contract import Cell, CellError, state_dtype
from cello.foreign.adapt import CellForm, FunctionCell, cell_name, is_pair
from cello.foreign.hooks import Hooks
from cello.foreign.memoryless import (
    CarriedError,
    Memoryless,
    Meta,
    NeedsNumbersError,
    without_compiler,
    without_hooks,
    without_memory,
)
from cello.foreign.mistakes import is_of_code, progress, shapes, tell
from cello.foreign.path import Path
from cello.foreign.reach import Reach
from cello.foreign.structure import LEAF, Nested, Structure, describe
from cello.foreign.undo import Undo

TRIAL_LOCK = threading.RLock()
"""One trial at a time, and no thread runs a cell meanwhile: it holds parameters without memory."""

StateSize = Any
"""A width, a ``torch.Size``, or a tuple or dict of these, possibly nested."""

MAX_INFERRED_STATES = 4
"""How many tensors a state may have for its structure to be found without `state_size`."""

MAX_ROWS_HELD = 4
"""How many batch sizes are tried, of tensors that a cell holds."""

MAX_PAIRED_WIDTHS = 16
"""How many widths are tried in pairs that differ; there are as many pairs as the square of it."""


def learn_form(
    cell: nn.Module,
    x: Tensor,
    *,
    state_size: StateSize | None = None,
    state: Nested | None = None,
) -> CellForm:
    """Try one step of `cell` on tensors without memory and find out what its state looks like.

    Args:
        cell: a :class:`Cell`, or a module ``forward(x, state)`` that returns its state or
            ``(output, state)``.
        x: an input of one step, (B, F); only its shape without the batch, its dtype and its device
            count.
        state_size: the width of the state, or a tuple, a nested tuple or a dict (which also names
            the parts) of widths; a ``torch.Size`` stands for a state of several axes.
        state: a state of the cell, (B, ...) each, as an example instead of `state_size`.

    Returns:
        What was found.

    Raises:
        CellError: `cell` is not a cell; the message says which rule it breaks, or that its state
            cannot be found without `state_size`.
    """
    signature = _Signature(cell)
    if any(map(is_lazy, chain(cell.parameters(), cell.buffers()))):
        raise CellError(
            f"{cell_name(cell)} has lazy parameters, which its first call makes; call it once as "
            "cell(x, state) on a batch like those to come, before the layer is made or called"
        )
    with TRIAL_LOCK:
        trial = _Trial(cell, x)
        try:
            with trial:
                return _learn_for_any_rows(trial, signature, state_size, state)
        except (CellError, NeedsNumbersError):
            if not trial.needs_numbers:
                raise
        with _Trial(cell, x, has_numbers=True) as trial:
            return _learn_for_any_rows(trial, signature, state_size, state)


def _learn_for_any_rows(
    trial: _Trial, signature: _Signature, state_size: StateSize | None, state: Nested | None
) -> CellForm:
    try:
        return _learn(trial, signature, state_size, state)
    except _BrokenRuleError:
        raise
    except CellError:
        # The cell may hold tensors with a row for each row of one batch.
        for rows in trial.rows_held():
            trial.few = trial.many = rows
            try:
                return _learn(trial, signature, state_size, state)
            except _BrokenRuleError:
                raise
            except CellError:
                continue
        raise


def _learn(
    trial: _Trial, signature: _Signature, state_size: StateSize | None, state: Nested | None
) -> CellForm:
    cell = trial.cell
    if isinstance(cell, Cell):
        return trial.of_contract(cell)
    if state_size is not None or state is not None:
        if state_size is not None:
            guess = _read_state_size(state_size, trial.state_dtype)
            if state is not None:  # which shows its dtypes
                guess = guess.in_dtypes_of(_Guess.like(state))
        else:
            guess = _Guess.like(state)
        form = trial.check(guess)
        # A cell may still make its first state itself: a learned one must not become zero.
        starts = signature.state_is_optional and trial.starts_itself(guess, form)
        return trial.starts_anew(replace(form, makes_initial_state=starts))
    found = trial.of_optional_state() if signature.state_is_optional else None
    form = trial.of_unknown_state() if found is None else found
    if form.structure == LEAF and form.returns_output and signature.third:
        raise CellError(
            f"{cell_name(cell)} returned two tensors, and beside x and its state it has the argument "
            f"{signature.third!r}: if that is a second state, cello needs both as one tuple, "
            f"forward(x, state). If it is not: {_SAY_STATE_SIZE}"
        )
    return trial.starts_anew(form)


@dataclass(frozen=True)
class _Guess:
    """A state as the cell may expect it: everything but the number of rows."""

    structure: Structure
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[torch.dtype, ...]
    names: tuple[str, ...] | None = None

    @classmethod
    def like(cls, state: Nested) -> _Guess:
        structure = Structure.of(state)
        leaves = structure.flatten(state)
        shapes = tuple(tuple(leaf.shape[1:]) for leaf in leaves)
        return cls(structure, shapes, tuple(leaf.dtype for leaf in leaves))

    def in_dtypes_of(self, other: _Guess) -> _Guess:
        return replace(self, dtypes=other.dtypes) if len(other.dtypes) == len(self.dtypes) else self

    def with_shape(self, index: int, shape: tuple[int, ...]) -> _Guess:
        return replace(self, shapes=(*self.shapes[:index], shape, *self.shapes[index + 1 :]))

    def without_last(self) -> _Guess:
        structure = replace(self.structure, children=self.structure.children[:-1])
        count = len(structure)
        return _Guess(structure, self.shapes[:count], self.dtypes[:count])


def _read_state_size(state_size: StateSize, dtype: torch.dtype) -> _Guess:
    names = None
    if isinstance(state_size, Mapping):
        names, state_size = tuple(state_size), tuple(state_size.values())
    try:
        structure = Structure.of(state_size, is_leaf=_is_size)
    except TypeError:
        raise TypeError(
            "state_size must be a width above zero, a torch.Size, or a tuple or dict of these, "
            f"got {state_size!r}"
        ) from None
    sizes = structure.flatten(state_size)
    shapes = tuple((size,) if isinstance(size, int) else tuple(size) for size in sizes)
    if names is not None and len(names) != len(shapes):
        raise TypeError(f"state_size as a dict must not nest, got {state_size!r}")
    return _Guess(structure, shapes, (dtype,) * len(shapes), names)


def _is_size(size: Any) -> bool:
    return isinstance(size, torch.Size) or (type(size) is int and size > 0)


class _Signature:
    """What the parameters of a cell's ``forward`` say about it.

    Attributes:
        state_is_optional: whether the cell may be called with its input alone.
        third: the name of an argument after the state that may be left out, or ``None``.
    """

    state_is_optional = False
    third: str | None = None

    def __init__(self, cell: nn.Module) -> None:
        function = cell.function if isinstance(cell, FunctionCell) else cell.forward
        try:
            signature = inspect.signature(function)
        except (TypeError, ValueError):  # some built-in functions have no signature
            return
        shown = f"{cell_name(cell)} is not a cell: it is called as cell(x, state)"
        try:
            signature.bind(None, None)
        except TypeError as error:
            written = next(
                iter(inspect.signature(getattr(function, "__func__", len)).parameters), ""
            )
            if inspect.ismethod(function) and written not in ("", "self"):
                shown = f"{shown} (its first parameter is {written!r}: is `self` missing?)"
            raise CellError(f"{shown}, but it has the arguments {signature}: {error}") from None
        kinds = (inspect.Parameter.POSITIONAL_ONLY, inspect.Parameter.POSITIONAL_OR_KEYWORD)
        positional = [p for p in signature.parameters.values() if p.kind in kinds]
        if len(positional) < 2:  # the rest goes to *args
            return
        default = positional[1].default
        self.state_is_optional = default is None or isinstance(default, tuple | list)
        if not self.state_is_optional and default is not inspect.Parameter.empty:
            raise CellError(
                f"{shown}, but its second argument is {str(positional[1])!r}; "
                "a state has no default but None"
            )
        self.third = positional[2].name if len(positional) > 2 else None


class _BrokenRuleError(CellError):
    """A cell broke a rule that it would break with any state, so that no other is to be tried."""


class _MeantError(CellError):
    """A cell returned something else than it should, and the message says what its author meant."""


class _UndecidedError(CellError):
    """A cell takes more than one state, as far as a trial can tell."""


class _Trial:
    """Steps of one cell, tried with different states.

    While it is entered, the cell is in evaluation mode (one row is enough for a batch norm, and no
    dropout mask is drawn) and calls no hooks (they may keep what they see). Afterwards
    everything in it is as before.

    Args:
        cell: the cell.
        x: an input of one step.
        has_numbers: whether it is tried on numbers, and not on meta tensors.

    Attributes:
        needs_numbers: whether the cell has failed in a way in which it may not fail on numbers.
    """

    def __init__(self, cell: nn.Module, x: Tensor, *, has_numbers: bool = False) -> None:
        self.cell, self.has_numbers, self.needs_numbers = cell, has_numbers, False
        self.device = x.device if has_numbers else Meta
        self.mode = Memoryless()
        self.feature_shape, self.dtype = tuple(x.shape[1:]), x.dtype
        self.state_dtype = state_dtype(x.dtype, cell)
        self.failures: list[tuple[_Guess | None, Exception]] = []
        # No other size, so that an axis of as many counts rows.
        sizes = {size for t in chain(cell.parameters(), cell.buffers(), [x]) for size in t.shape}
        self.few, self.many = 1, next(rows for rows in count(3) if rows not in sizes)

    def rows_held(self) -> list[int]:
        """The batch sizes that tensors which the cell holds, and does not train, may be made for."""
        trained = {id(parameter) for parameter in self.cell.parameters()}
        held = [t for t in self.undo.reach.tensors if t.dim() > 1 and id(t) not in trained]
        return sorted({len(tensor) for tensor in held} - {0, 1})[:MAX_ROWS_HELD]

    def __enter__(self) -> _Trial:
        # A batch norm that counts its calls counts in copies of its buffers.
        self.tensors: dict[str, Tensor] = {
            name: self._copied(parameter) for name, parameter in self.cell.named_parameters()
        }
        for name, buffer in self.cell.named_buffers():
            self.tensors[name] = self.mode.own(buffer.detach().clone())
        self.undo = Undo(self.cell)
        registered = {id(t) for t in chain(self.cell.parameters(), self.cell.buffers())}
        self.held = [
            (tensor, tensor.detach().clone())
            for tensor in (self.undo.reach.tensors if self.has_numbers else ())
            if id(tensor) not in registered
        ]
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
        return copy

    def _restore(self) -> None:
        """Put back what steps have changed."""
        self.undo.restore()
        with torch.no_grad():
            for tensor, before in self.held:
                if not torch.equal(tensor, before):
                    tensor.copy_(before)

    def _make_quiet(self) -> None:
        self.cell.eval()
        self.hooks.put_off()

    def __exit__(self, _: object = None, error: object = None, __: object = None) -> None:
        self.hooks.put_back()
        self._restore()
        if isinstance(error, CellError) and type(error) is not CellError:  # a matter of this file
            raise CellError(str(error)) from error.__cause__

    def call(self, *state: Nested, rows: int | None = None) -> Nested:
        rows = self.few if rows is None else rows
        x = self.input(rows)
        given = [x, *_tensors(state)]
        versions = [tensor._version for tensor in given]
        try:
            returned = self._call(rows, x, *state)
        except CarriedError as error:
            raise self._carried(error.tensor) from error
        if [tensor._version for tensor in given] != versions:
            raise _BrokenRuleError(
                f"{cell_name(self.cell)} is not a cell: it writes into its input or its state in place, "
                "which other steps still need. Make new tensors: h * 0.5 + x, not h.mul_(0.5).add_(x)."
            )
        return returned

    def _call(self, rows: int, x: Tensor, *state: Nested) -> Nested:
        """Call the cell, under the modes of the caller's."""
        self.mode.begin(rows, [x, *_tensors(state)])
        try:
            world = nullcontext() if self.has_numbers else self.mode
            with world, without_hooks(), without_compiler():
                if isinstance(self.cell, torch.jit.ScriptModule):  # whose tensors cannot be changed
                    return self.cell(x, *state)
                return torch.func.functional_call(self.cell, self.tensors, (x, *state))
        except CarriedError:
            raise
        except NeedsNumbersError as error:
            self.needs_numbers = True
            raise _BrokenRuleError(f"{cell_name(self.cell)} needs numbers") from error
        except Exception as error:
            carried = self.mode.carried
            if carried is not None and rows > 1:  # which met rows of another batch
                raise self._carried(carried) from error
            self.mode.forget()  # what is left behind may be of no state that the cell takes
            self._restore()
            self._make_quiet()
            self.needs_numbers |= _is_about_meta(error)
            raise

    def _carried(self, tensor: Tensor) -> _BrokenRuleError:
        places = [name for name, held in self.tensors.items() if held is tensor]
        path = Reach(self.cell).path(tensor)
        if path is not None:
            places.append(Path(step for step in path if type(step) is not int).readable)
        if not places:  # something else is there by now
            changed = self.undo.restore()
            places = [place for place in changed if not place.endswith("training")]
        where = places[0].removeprefix("its attribute ") if places else "a tensor"
        return _BrokenRuleError(
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

    def state(self, guess: _Guess, rows: int) -> Nested:
        return guess.structure.unflatten(
            [
                torch.zeros(rows, *shape, dtype=dtype, device=self.device)
                for shape, dtype in zip(guess.shapes, guess.dtypes, strict=True)
            ]
        )

    def guess(self, parts: int | None, *widths: int) -> _Guess:
        """A tuple of `parts` tensors, or a bare tensor for ``None``."""
        structure = LEAF if parts is None else Structure(tuple, (LEAF,) * parts)
        dtypes = (self.state_dtype,) * len(widths)
        return _Guess(structure, tuple((width,) for width in widths), dtypes)

    def of_contract(self, cell: Cell) -> CellForm:
        sizes = cell.state_sizes
        if not isinstance(sizes, Mapping):
            raise CellError(
                f"{cell_name(cell)} is not a cell: its state_sizes must be a dict of names and sizes, "
                f"got {sizes!r}"
            )
        if not sizes:
            raise CellError(f"{cell_name(cell)} is not a cell: its state_sizes are empty")
        names = tuple(sizes)
        shapes = tuple((s,) if isinstance(s, int) else tuple(s) for s in sizes.values())
        structure = Structure(tuple, (LEAF,) * len(names))
        guess = _Guess(structure, shapes, (self.state_dtype,) * len(names), names)
        guess = guess.in_dtypes_of(self._started(cell) or guess)
        returned = self._call_or_explain(self.state(guess, self.few))
        if not is_pair(returned):
            raise CellError(
                f"{cell_name(cell)} is not a cell: a cello.Cell returns (output, state), "
                f"it returned {describe(returned)}"
            )
        form = self.check(guess, returned, returns_output=True)
        return replace(form, structure=structure)  # whatever it returns: the contract is a tuple

    def _started(self, cell: Cell) -> _Guess | None:
        """The state that a cell of the contract begins with, if it makes one that is like a state."""
        if type(cell).initial_state is Cell.initial_state:
            return None
        try:
            with nullcontext() if self.has_numbers else self.mode:
                start = cell.initial_state(self.few, dtype=self.state_dtype, device=self.device)
            return _Guess.like(start)
        except Exception:  # the layer calls it once more, and says what is wrong with it
            return None

    def of_optional_state(self) -> CellForm | None:
        """The form of a cell that makes its first state itself; ``None`` if it does not."""
        try:
            returned = self.call()
        except CellError:
            raise
        except Exception as error:  # the state has a default, but it must be given all the same
            self.failures.append((None, error))
            return None
        # The state that a cell makes for itself has the structure that it gives back and takes again:
        # all of what it returned, or the second part of that.
        for has_output in (False, True) if is_pair(returned) else (False,):
            try:
                guess = _Guess.like(returned[1] if has_output else returned)
            except TypeError:
                continue
            form = self._accepted(guess)
            if form is None or form.returns_output != has_output:
                continue
            if self._is_whole(guess):
                return replace(form, makes_initial_state=True)
        why = self._misunderstood()
        if why.__cause__ is not None:
            raise why
        raise CellError(
            f"{cell_name(self.cell)} returned {describe(returned)} without a state, and takes neither that "
            f"nor its second part as its next state: {why}"
        )

    def of_unknown_state(self) -> CellForm:
        widths = _candidate_widths(self.cell, self.feature_shape)
        for guess in self._guesses(widths):
            form = self._accepted(guess)
            if form is not None and self._is_whole(guess):
                self._refuse_loose(guess, form, widths)
                return form
        self._refuse_width_of_input()
        raise self._misunderstood()

    def _misunderstood(self) -> CellError:
        """What to say of a cell that has failed with every state that was tried."""
        failures = self._telling()
        error = next((error for _, error in failures if isinstance(error, CellError)), None)
        if isinstance(error, _UndecidedError):
            return CellError(
                f"cannot find out what state {cell_name(self.cell)} takes: {error}.\n{_SAY_STATE_SIZE}"
            )
        if error is not None:  # that it returned the wrong thing says more than that it raised
            if isinstance(error, _MeantError):
                return error
            failed = CellError(f"{error}.\n{_GUESSED}")
            failed.__cause__ = error.__cause__
            return failed
        furthest = max(progress(error) for _, error in failures)
        best, *others = [failure for failure in failures if progress(failure[1]) == furthest]
        hint = ""
        if len({f"{type(error).__name__}: {error}" for _, error in self.failures}) == 1:
            hint = "It raises this with every state that was tried."
        elif others and not is_of_code(best[1]):  # no state comes further than others
            hint = _GUESSED
        state = None if best[0] is None else self.state(best[0], self.few)
        return self._failed(best[1], state, hint)

    def _telling(self) -> list[tuple[_Guess | None, Exception]]:
        """The failures that say most: those with a state that the cell itself says that it has."""
        guess, error = self.failures[0]
        if isinstance(error, _UndecidedError):
            return self.failures
        if guess is None and "NoneType" not in str(error):  # it made its state, and went on
            return self.failures[:1]
        width = getattr(self.cell, "hidden_size", None)
        said = [f for f in self.failures if f[0] is not None and set(f[0].shapes) == {(width,)}]
        return said or self.failures

    def _failed(self, error: Exception, state: Nested | None, hint: str = "") -> CellError:
        """What to say of an error that the cell raised."""
        rows = "one row" if self.few == 1 else f"{self.few} rows"
        kind = (
            "made-up tensors"
            if self.has_numbers
            else "meta tensors, which have shapes and no values,"
        )
        failed = CellError(
            f"{cell_name(self.cell)} raised {tell(error)}\n"
            f"It was given {kind} of {rows}: x {(self.few, *self.feature_shape)}, and "
            f"{'no state' if state is None else f'as its state {describe(state)}'}. {hint}".rstrip()
        )
        failed.__cause__ = error
        return failed

    def _guesses(self, widths: list[int]) -> Iterator[_Guess]:
        # Tuples first: on one row, a tensor cannot pass for a tuple of two states.
        for width in widths:
            for parts in range(2, MAX_INFERRED_STATES + 1):
                yield self.guess(parts, *[width] * parts)
            yield self.guess(1, width)
            yield self.guess(None, width)
        for pair in product(widths[:MAX_PAIRED_WIDTHS], repeat=2):
            if pair[0] != pair[1]:
                yield self.guess(2, *pair)

    def starts_itself(self, guess: _Guess, form: CellForm) -> bool:
        """Whether the cell, called without a state, gives what it gives with one."""
        try:
            return self._form(guess, self.call(), form.returns_output, rows=self.few) == form
        except Exception:
            return False

    def starts_anew(self, form: CellForm) -> CellForm:
        """Return the form of a cell whose sequences do not begin where the last one ended.

        Called without a state, a cell may go on with what it kept of its last call. That is no initial
        state: such a cell is given zeros.
        """
        if form.makes_initial_state:
            try:
                for _ in range(2):
                    self.call(rows=self.many)
            except _BrokenRuleError:
                return replace(form, makes_initial_state=False)
            except Exception:  # what a step raises is told when the layer runs
                pass
        return form

    def _call_or_explain(self, state: Nested) -> Nested:
        try:
            return self.call(state)
        except CellError:
            raise
        except Exception as error:  # whatever the user's code raises, shown with what it was given
            self._refuse_width_of_input(error)
            raise self._failed(error, state) from error

    def _refuse_width_of_input(self, error: Exception | None = None) -> None:
        """Blame the input, once the cell has failed, where the cell says that it was made for another.

        Raises:
            CellError: its ``input_size`` differs from the features of x.
        """
        made_for = getattr(self.cell, "input_size", None)
        if type(made_for) is int and self.feature_shape != (made_for,):
            features = " x ".join(map(str, self.feature_shape)) or "no"
            raise CellError(
                f"the input has {features} features and {cell_name(self.cell)} was made for "
                f"input_size={made_for}"
            ) from error

    def check(
        self, guess: _Guess, returned: Nested | None = None, *, returns_output: bool | None = None
    ) -> CellForm:
        """Return the form of the cell, given a state that it must take.

        Args:
            guess: the state.
            returned: what the cell returns for one row, if it has been called already.
            returns_output: whether it returns (output, state); found out if not given.

        Raises:
            CellError: it does not take that state, or does not return one like it.
        """
        if returned is None:
            returned = self._call_or_explain(self.state(guess, self.few))
        if returns_output is None:
            returns_output = self._has_output(guess, returned)
        form = self._form(guess, returned, returns_output, rows=self.few)
        guess = self._with_dtypes(guess, form, returned)
        # What holds for one row must hold for several: nn.LSTM, say, takes them for steps.
        try:
            several = self.call(self.state(guess, self.many), rows=self.many)
        except _BrokenRuleError:
            raise
        except Exception as error:
            raise CellError(
                f"{cell_name(self.cell)} is not a cell: it takes one row, but for {self.many} rows "
                f"it raised {tell(error)}"
            ) from error
        if self._form(guess, several, returns_output, rows=self.many) != form:
            raise CellError(
                f"{cell_name(self.cell)} is not a cell: for one row it returned {describe(returned)}, "
                f"for {self.many} rows {describe(several)}"
            )
        self.cell.train()  # what it computes then may break a rule, too, and what it keeps
        try:
            for _ in range(2):
                self.call(self.state(guess, self.many), rows=self.many)
        except _BrokenRuleError:
            raise
        except Exception:  # it may need more than this to train, and never be trained
            pass
        finally:
            self.cell.eval()
        return form

    def _with_dtypes(self, guess: _Guess, form: CellForm, returned: Nested) -> _Guess:
        """The guess in the dtypes that came out, in which the state goes into the next step.

        Raises:
            CellError: the cell does not take it in these.
        """
        after = replace(guess, dtypes=tuple(leaf.dtype for leaf in form.split(returned)[1]))
        if after.dtypes == guess.dtypes:
            return guess
        try:
            self.call(self.state(after, self.few))
        except CellError:
            raise
        except Exception as error:
            changed = [
                f"its state {name!r} went in as {old} and came out as {new}"
                for name, old, new in zip(form.names, guess.dtypes, after.dtypes, strict=True)
                if old != new
            ]
            raise _MeantError(
                f"{cell_name(self.cell)} is not a cell: {' and '.join(changed)}, and given that it "
                f"raised {tell(error)}\nA state keeps its dtype: return it as `h.to(x.dtype)`."
            ) from error
        return after

    def _accepted(self, guess: _Guess) -> CellForm | None:
        """The form of the cell if it takes the state and gives one like it back, else ``None``."""
        try:
            return self.check(guess, self.call(self.state(guess, self.few)))
        except _BrokenRuleError:
            raise
        except CellError as error:
            self.failures.append((guess, error))
        except Exception as error:  # any error means: this is not the state that the cell takes
            self.failures.append((guess, error))
        return None

    def _is_whole(self, guess: _Guess) -> bool:
        """Whether a state that was guessed is all that the cell takes, and no more than that.

        A cell that indexes its state (``state[0]``) takes longer tuples too, and the rows of a
        tensor for the parts of a tuple; what it returns may then fit by accident.
        """
        if guess.structure.container is None:
            if self._reads_rows(guess):
                error = _UndecidedError(
                    "given a tensor it takes single rows of it, as if it were a tuple"
                )
                self.failures.insert(0, (guess, error))
                return False
            return True
        shorter = guess.without_last()
        try:
            returned = self.call(self.state(shorter, self.few))
        except Exception:
            return True
        if not self._fits(shorter, returned) and self._depends_on_last(guess):
            return True
        given = f"given {describe(self.state(guess, self.few))} it does not need the last part"
        self.failures.insert(0, (guess, _UndecidedError(given)))
        return False

    def _fits(self, guess: _Guess, returned: Nested) -> bool:
        try:
            self.check(guess, returned)
        except CellError:
            return False
        return True

    def _differentiate(self, guess: _Guess, state_rows: int) -> tuple[Nested, list[Tensor]]:
        """Call the cell on one row of x; return what it returns and the leaves of its state."""
        with torch.enable_grad():
            leaves = [
                leaf.requires_grad_(leaf.is_floating_point())
                for leaf in guess.structure.flatten(self.state(guess, state_rows))
            ]
            state = guess.structure.unflatten(leaves)
            return self._call(self.few, self.input(self.few), state), leaves

    def _depends_on_last(self, guess: _Guess) -> bool:
        """Whether the last tensor of the state matters to what the cell returns."""
        returned, leaves = self._differentiate(guess, self.few)
        return not leaves[-1].requires_grad or self._matters(leaves[-1], list(_tensors(returned)))

    def _reads_rows(self, guess: _Guess) -> bool:
        """Whether a cell takes single rows out of its state, as if that were a tuple.

        Many rows of state and one of x make many rows, or an error; one row that comes of them has
        left the others out.
        """
        try:
            returned, (state,) = self._differentiate(guess, self.many)
        except Exception:
            return False
        return any(
            len(tensor) < self.many and self._matters(state, [tensor])
            for tensor in _tensors(returned)
            if tensor.dim() > 0
        )

    def _matters(self, leaf: Tensor, results: list[Tensor]) -> bool:
        results = [tensor for tensor in results if tensor.requires_grad]
        if not results:
            return False
        with self.mode:
            seeds = [torch.ones_like(tensor) for tensor in results]
            (gradient,) = torch.autograd.grad(results, [leaf], seeds, allow_unused=True)
        return gradient is not None

    def _refuse_loose(self, guess: _Guess, form: CellForm, widths: list[int]) -> None:
        """Refuse a state of which a part, or all together, could be wider, or 1 wide, just as well."""
        if set(guess.shapes) == {(1,)} and getattr(self.cell, "hidden_size", None) == 1:
            return  # one unit, which broadcasts and so would pass for any number of them
        parts = len(guess.shapes)
        for other in (1, max(widths) + 1):
            changes = [guess.with_shape(index, (other,)) for index in range(parts)]
            changes.append(replace(guess, shapes=((other,),) * parts))
            for index, changed in enumerate(changes):
                if changed == guess:
                    continue
                try:
                    self.check(changed, self.call(self.state(changed, self.few)))
                except Exception:
                    continue
                part = f" {form.names[index]!r}" if index < parts else ""
                width = ", ".join(str(shape[0]) for shape in dict.fromkeys(guess.shapes))
                raise CellError(
                    f"cannot find out how wide the state{part} of {cell_name(self.cell)} is: "
                    f"{width} fits as well as {other}.\n{_SAY_STATE_SIZE}"
                )

    def _has_output(self, guess: _Guess, returned: Nested) -> bool:
        """Tell `state` from `(output, state)`: no structure contains itself, so only one can fit."""
        try:
            if guess.structure.same_as(Structure.of(returned)):
                return False
            if is_pair(returned) and guess.structure.same_as(Structure.of(returned[1])):
                return True
        except TypeError:
            pass
        meant = self._what_is_meant(guess, returned)
        raise (_MeantError if meant else CellError)(
            f"{cell_name(self.cell)} is not a cell: it must return a state like the one it was given, or "
            f"(output, state); given {describe(self.state(guess, self.few))} it returned "
            f"{describe(returned)}{meant}"
        )

    def _what_is_meant(self, guess: _Guess, returned: Nested) -> str:
        """What the author of a cell probably wanted to return; for messages."""
        parts = guess.structure

        def is_state(value: Nested) -> bool:
            try:
                return parts.same_as(Structure.of(value)) and shapes(value) == shapes(state)
            except TypeError:
                return False

        state = self.state(guess, self.few)
        if returned is None:
            return ". Is the line with `return` missing?"
        if isinstance(returned, Tensor):
            return ". Does it return its output alone? Write `return output, state`."
        if isinstance(returned, tuple | list):
            if len(returned) == 2 and is_state(returned[0]):
                return ". Are the two exchanged? Write `return output, state`."
            if len(returned) == 1 and is_state(returned[0]):
                return ". Write `return state`, without brackets around it."
            if len(returned) > 2 and is_state(tuple(returned[1:])):
                return ". Put the state in brackets: `return output, (h, c)`."
        return ""

    def _form(
        self, guess: _Guess, returned: Nested, returns_output: bool, *, rows: int
    ) -> CellForm:
        names = guess.names or guess.structure.names()
        form = CellForm(
            guess.structure, guess.shapes, names, returns_output, False, self.feature_shape, ()
        )
        output, state = form.split(returned)
        for name, shape, leaf in zip(names, guess.shapes, state, strict=True):
            if not isinstance(leaf, Tensor) or tuple(leaf.shape) != (rows, *shape):
                meant = self._what_is_meant(guess, returned) if rows == self.few else ""
                raise (_MeantError if meant else CellError)(
                    f"{cell_name(self.cell)} is not a cell: its state {name!r} went in as a tensor "
                    f"{(rows, *shape)} and came out as {describe(leaf)}; a cell keeps the shapes of its "
                    f"state{meant}"
                )
        if not isinstance(output, Tensor) or output.dim() < 2 or output.shape[0] != rows:
            raise CellError(
                f"{cell_name(self.cell)} is not a cell: for a batch of {rows} rows its output must be a "
                f"tensor ({rows}, ...), it is {describe(output)}"
            )
        dtypes = tuple(
            None if leaf.is_floating_point() or leaf.is_complex() else leaf.dtype for leaf in state
        )
        structure = guess.structure
        if not structure.has_names():  # a plain tuple that goes in may come out as a named one
            structure = Structure.of(returned[1] if returns_output else returned)
        return replace(
            form,
            structure=structure,
            names=guess.names or structure.names(),
            output_shape=tuple(output.shape[1:]),
            dtypes=dtypes,
        )


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
    "Tensor.__format__",
)

_GUESSED = (
    "Cello guessed that state. Is it another one? Say it with state_size=, such as 20, (20, 20), "
    '((20, 20), 5) or {"h": 20, "c": 20}.'
)

_SAY_STATE_SIZE = (
    "Say it with state_size=: a width for a tensor, widths nested as the cell nests its state "
    "(20, 20), ((20, 20), 5) or MyNamedTuple(20, 20), or a dict to name the parts of a tuple: "
    'state_size={"h": 20, "c": 20}.'
)


def _candidate_widths(cell: nn.Module, feature_shape: tuple[int, ...]) -> list[int]:
    """The widths that a state may have, likely ones first; each is tried, none is trusted.

    They are `hidden_size`, other numbers among the cell's attributes, the sizes of its weights and
    buffers and of its input, and what is left of a weight over x and h side by side, or of one over
    several gates.
    """
    sizes = {size for t in chain(cell.parameters(), cell.buffers()) for size in t.shape}
    features = set(feature_shape[-1:])
    attributes = {value for value in vars(cell).values() if type(value) is int} & set(
        range(1, max(sizes | features, default=0) + 1)
    )
    beside_x = {size - f for size in sizes for f in features if size > f}
    per_gate = {size // gates for size in sizes for gates in (2, 3, 4) if size % gates == 0}
    hidden_size = getattr(cell, "hidden_size", None)
    first = [hidden_size] if type(hidden_size) is int else []
    groups = (attributes, sizes | features, beside_x, per_gate)
    return list(dict.fromkeys(chain(first, *(sorted(group) for group in groups))))


def _tensors(nested: Nested) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, tuple | list):
        for item in nested:
            yield from _tensors(item)
