"""The trial of a foreign cell: what state it takes, and what it returns.

Both are settled by steps on meta tensors (shapes, no numbers), in which the state that comes out must have
the structure and the shapes of the state that went in. Nothing is computed, and no random number is
drawn. A cell that needs numbers, in an `if` or for an operation without a rule of shapes, is tried on some.
Buffers, attributes, flags and sources of random numbers are afterwards as they were.

A state that was found must also be the only one possible: where the cell would take another width or
fewer tensors just as well, Cello asks rather than guesses.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from contextlib import nullcontext
from dataclasses import replace
from itertools import chain, combinations, product
from operator import ne

import torch
from torch import Tensor, nn
from torch.nn.parameter import is_lazy

from cello.cells.contract import Cell, CellError
from cello.foreign.adapt import CellForm, cell_name, is_pair
from cello.foreign.apart import TRIAL_LOCK
from cello.foreign.checks import Checks, MeantError, UndecidedError
from cello.foreign.guess import (
    SAY_STATE_SIZE,
    Guess,
    Signature,
    StateSize,
    candidate_widths,
    read_state_size,
)
from cello.foreign.memoryless import NeedsNumbersError, each_tensor
from cello.foreign.steps import BrokenRuleError
from cello.foreign.structure import LEAF, Nested, Structure, describe

MAX_INFERRED_STATES = 4
"""How many tensors a state may have for its structure to be found without `state_size`."""

SEVERAL = 7
"""Rows for a cell that cannot take one: more than a tuple of states has parts."""

MAX_PAIRED_WIDTHS = 16
"""How many widths are tried in pairs that differ; there are as many pairs as the square of it."""


def learn_form(
    cell: nn.Module,
    x: Tensor,
    *,
    state_size: StateSize | None = None,
    state: Nested | None = None,
    width: object = None,
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
        width: the width that the cell was made with, if anyone has said it; it is tried first.

    Returns:
        What was found. If the cell does not take `state`, what it takes without that: whoever has the
        state then sees that it is another one.

    Raises:
        CellError: `cell` is not a cell; the message says which rule it breaks, or that its state
            cannot be found without `state_size`.
    """
    try:
        return _learn_form(cell, x, state_size, state, width)
    except (BrokenRuleError, MeantError):  # of the cell itself, whatever its state is
        raise
    except CellError as error:
        if isinstance(cell, Cell) or (state_size is None and state is None):
            raise
        try:  # is it what the caller said that is wrong, or the cell?
            found = _learn_form(cell, x, state_size if state is not None else None, None, width)
        except CellError:
            raise error from error.__cause__
        if state is not None:
            return found
        raise CellError(
            f"state_size: {cell_name(cell)} takes the state {_written(found)}, got {state_size!r}"
        ) from error


def _written(form: CellForm) -> str:
    """The state of a form as it is said by `state_size`."""
    sizes = [shape[0] if len(shape) == 1 else torch.Size(shape) for shape in form.shapes]
    return repr(form.structure.unflatten(sizes))


def _learn_form(
    cell: nn.Module,
    x: Tensor,
    state_size: StateSize | None,
    state: Nested | None,
    width: object,
) -> CellForm:
    signature = Signature(cell)
    if any(map(is_lazy, chain(cell.parameters(), cell.buffers()))):
        raise CellError(
            f"{cell_name(cell)} has lazy parameters, which its first call makes; call it once as "
            "cell(x, state) on a batch like those to come, before the layer is made or called"
        )
    with TRIAL_LOCK:
        trial = _Trial(cell, x)
        try:
            with trial:
                return _learn_for_any_rows(trial, signature, state_size, state, width)
        except (CellError, NeedsNumbersError):
            if not trial.needs_numbers:
                raise
        with _Trial(cell, x, has_numbers=True) as trial:
            return _learn_for_any_rows(trial, signature, state_size, state, width)


def _learn_for_any_rows(
    trial: _Trial,
    signature: Signature,
    state_size: StateSize | None,
    state: Nested | None,
    width: object,
) -> CellForm:
    try:
        return _learn(trial, signature, state_size, state, width)
    except BrokenRuleError:
        raise
    except CellError:
        # The cell may hold tensors with a row for each row of one batch, or need several rows; as a
        # guess, several rows of a tensor would pass for a tuple of states.
        said = (SEVERAL,) if state_size is not None or state is not None else ()
        for rows in (*trial.rows_held(), *said):
            trial.few = trial.many = rows
            try:
                return _learn(trial, signature, state_size, state, width)
            except BrokenRuleError:
                raise
            except CellError:
                continue
        raise


def _learn(
    trial: _Trial,
    signature: Signature,
    state_size: StateSize | None,
    state: Nested | None,
    width: object,
) -> CellForm:
    cell = trial.cell
    if isinstance(cell, Cell):
        return trial.of_contract(cell)
    if state_size is not None or state is not None:
        if state_size is not None:
            guess = read_state_size(state_size, trial.state_dtype)
            if state is not None:  # which shows its dtypes
                guess = guess.in_dtypes_of(Guess.like(state))
        else:
            guess = Guess.like(state)
        if state is not None:
            leaves = Structure.of(state).flatten(state)
            trial.example = [leaf for leaf in leaves if len(leaf) and type(leaf) is Tensor]
        try:
            form = trial.check_in_any_dtypes(guess)
        except CellError as error:
            if guess.names is None:
                raise
            try:  # names may be those of a tuple's parts, or the keys of a dict
                form = trial.check_in_any_dtypes(guess.as_dict())
            except CellError:
                raise error from error.__cause__
        # A cell may still make its first state itself: a learned one must not become zero.
        starts = signature.state_is_optional and trial.starts_itself(guess, form)
        return trial.starts_anew(replace(form, makes_initial_state=starts))
    found = trial.of_optional_state() if signature.state_is_optional else None
    form = trial.of_unknown_state(width) if found is None else found
    if form.structure == LEAF and form.returns_output and signature.third:
        raise CellError(
            f"{cell_name(cell)} returned two tensors, and beside x and its state it has the argument "
            f"{signature.third!r}: if that is a second state, cello needs both as one tuple, "
            f"forward(x, state). If it is not: {SAY_STATE_SIZE}"
        )
    return trial.starts_anew(form)


class _Trial(Checks):
    """The search for the state that a cell takes."""

    def guess(self, parts: int | None, *widths: int) -> Guess:
        """A tuple of `parts` tensors, or a bare tensor for ``None``."""
        structure = LEAF if parts is None else Structure(tuple, (LEAF,) * parts)
        dtypes = (self.state_dtype,) * len(widths)
        return Guess(structure, tuple((width,) for width in widths), dtypes)

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
        guess = Guess(structure, shapes, (self.state_dtype,) * len(names), names)
        guess = guess.in_dtypes_of(self._started(cell) or guess)
        returned = self._call_or_explain(self.state(guess, self.few))
        if not is_pair(returned):
            raise CellError(
                f"{cell_name(cell)} is not a cell: a cello.Cell returns (output, state), "
                f"it returned {describe(returned)}"
            )
        form = self.check(guess, returned, returns_output=True)
        return replace(form, structure=structure)  # whatever it returns: the contract is a tuple

    def _started(self, cell: Cell) -> Guess | None:
        """The state that a cell of the contract begins with, if it makes one that is like a state."""
        if type(cell).initial_state is Cell.initial_state:
            return None
        try:
            with nullcontext() if self.has_numbers else self.mode:
                start = cell.initial_state(self.few, dtype=self.state_dtype, device=self.device)
            return Guess.like(start)
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
                guess = Guess.like(returned[1] if has_output else returned)
            except TypeError:
                continue
            form = self._accepted(guess)
            if form is None or form.returns_output != has_output:
                continue
            # What is beside an output, the cell has made as its state.
            if has_output or self._is_whole(guess):
                return replace(form, makes_initial_state=True)
        if not self.failures:
            raise CellError(
                f"{cell_name(self.cell)} returned {describe(returned)} without a state, and neither that "
                "nor its second part can be a state: a tensor, or a tuple of tensors, which may have names "
                "and nest"
            )
        why = self._misunderstood()
        if why.__cause__ is not None:
            raise why
        raise CellError(
            f"{cell_name(self.cell)} returned {describe(returned)} without a state, and takes neither that "
            f"nor its second part as its next state: {why}"
        )

    def of_unknown_state(self, said: object) -> CellForm:
        widths = candidate_widths(self.cell, self.feature_shape, said)
        for guess in self._guesses(widths):
            form = self._accepted(guess)
            if form is not None and self._is_whole(guess):
                self._refuse_loose(guess, form, widths, said)
                return form
        self._refuse_width_of_input()
        raise self._misunderstood()

    def _guesses(self, widths: list[int]) -> Iterator[Guess]:
        if len(self.feature_shape) > 1:  # a state of an image is one of as many pixels
            for guess in self._vectors(widths):
                shapes = tuple((*shape, *self.feature_shape[1:]) for shape in guess.shapes)
                yield replace(guess, shapes=shapes)
        yield from self._vectors(widths)

    def _vectors(self, widths: list[int]) -> Iterator[Guess]:
        # Tuples first: on one row, a tensor cannot pass for a tuple of two states.
        for width in widths:
            for parts in range(2, MAX_INFERRED_STATES + 1):
                yield self.guess(parts, *[width] * parts)
            yield self.guess(1, width)
            yield self.guess(None, width)
        for pair in product(widths[:MAX_PAIRED_WIDTHS], repeat=2):
            if pair[0] != pair[1]:
                yield self.guess(2, *pair)

    def starts_itself(self, guess: Guess, form: CellForm) -> bool:
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
            except BrokenRuleError:
                return replace(form, makes_initial_state=False)
            except Exception:  # what a step raises is told when the layer runs
                pass
        return form

    def check_in_any_dtypes(self, guess: Guess) -> CellForm:
        """Check a state that was said, parts of which may have to be complex, integers or bools.

        Raises:
            CellError: it takes the state in no dtypes; the message is about those of the guess.
        """
        try:
            return self.check(guess)
        except CellError as error:
            if error.__cause__ is None or len(guess.dtypes) > MAX_INFERRED_STATES:
                raise
            others = torch.bool, torch.int64
            kinds = [
                (own, own.to_complex(), *others) if own.is_floating_point else (own, *others)
                for own in guess.dtypes
            ]
            for dtypes in sorted(product(*kinds), key=lambda d: sum(map(ne, d, guess.dtypes)))[1:]:
                try:
                    return self.check(replace(guess, dtypes=dtypes))
                except BrokenRuleError:
                    raise
                except CellError:
                    continue
            raise

    def _is_whole(self, guess: Guess) -> bool:
        """Whether a state that was guessed is all that the cell takes, and no more than that.

        A cell that indexes its state (``state[0]``) takes longer tuples too, and the rows of a
        tensor for the parts of a tuple; what it returns may then fit by accident.
        """
        if guess.structure.container is None:
            if self._reads_rows(guess):
                error = UndecidedError(
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
        self.failures.insert(0, (guess, UndecidedError(given)))
        return False

    def _differentiate(self, guess: Guess, state_rows: int) -> tuple[Nested, list[Tensor]]:
        """Call the cell on one row of x; return what it returns and the leaves of its state."""
        with torch.enable_grad():
            leaves = [
                leaf.requires_grad_(leaf.is_floating_point())
                for leaf in guess.structure.flatten(self.state(guess, state_rows))
            ]
            state = guess.structure.unflatten(leaves)
            return self._call(self.few, self.input(self.few), state), leaves

    def _depends_on_last(self, guess: Guess) -> bool:
        """Whether the last tensor of the state matters to what the cell returns."""
        returned, leaves = self._differentiate(guess, self.few)
        return not leaves[-1].requires_grad or self._matters(
            leaves[-1], list(each_tensor(returned))
        )

    def _reads_rows(self, guess: Guess) -> bool:
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
            for tensor in each_tensor(returned)
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

    def _refuse_pixels(self, guess: Guess, form: CellForm) -> None:
        """Refuse a state of images of which one, or all, could be a single pixel just as well."""
        single = tuple((shape[0], *(1 for _ in shape[1:])) for shape in guess.shapes)
        for index, changed in enumerate(guess.changed_to(single)):
            if changed == guess or not self._takes(changed):
                continue
            part = f" {form.names[index]!r}" if index < len(single) else ""
            shapes = " and ".join(
                str(each.shapes[index % len(single)]) for each in (guess, changed)
            )
            raise CellError(
                f"cannot find out how large the state{part} of {cell_name(self.cell)} is: "
                f"{shapes} fit alike.\n{SAY_STATE_SIZE}"
            )

    def _takes(self, guess: Guess) -> bool:
        """Whether the cell takes a state and returns one like it."""
        try:
            self.check(guess, self.call(self.state(guess, self.few)))
        except Exception:
            return False
        return True

    def _refuse_loose(self, guess: Guess, form: CellForm, widths: list[int], said: object) -> None:
        """Refuse a state of which a part, two, or all together, could be wider, or 1 wide, just as well.

        All together they may be as wide as somebody has said.
        """
        self._refuse_pixels(guess, form)
        found = {shape[0] for shape in guess.shapes}
        if found == {1} and getattr(self.cell, "hidden_size", None) == 1:
            return  # one unit, which broadcasts and so would pass for any number of them
        parts = len(guess.shapes)
        for other in (1, max(widths) + 1):
            others = tuple((other, *shape[1:]) for shape in guess.shapes)
            changes = guess.changed_to(others)
            if found == {said}:
                changes = changes[:-1] if parts > 1 else []
            if parts > 2:  # two parts may have one width, whatever that is
                changes += [
                    guess.with_shape(i, others[i]).with_shape(j, others[j])
                    for i, j in combinations(range(parts), 2)
                ]
            for index, changed in enumerate(changes):
                if changed == guess or not self._takes(changed):
                    continue
                part = f" {form.names[index]!r}" if index < parts else ""
                width = ", ".join(str(shape[0]) for shape in dict.fromkeys(guess.shapes))
                raise CellError(
                    f"cannot find out how wide the state{part} of {cell_name(self.cell)} is: "
                    f"{width} fits as well as {other}.\n{SAY_STATE_SIZE}"
                )
