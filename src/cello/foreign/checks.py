"""Whether a foreign cell takes a state and returns one like it, and what to say where it does not."""

from __future__ import annotations

from dataclasses import replace

from torch import Tensor

from cello.cells.contract import CellError
from cello.foreign.adapt import CellForm, cell_name, is_pair
from cello.foreign.guess import SAY_STATE_SIZE, Guess
from cello.foreign.mistakes import is_of_code, progress, shapes, tell
from cello.foreign.steps import BrokenRuleError, Steps
from cello.foreign.structure import Nested, Structure, describe

GUESSED = (
    "Cello guessed that state. Is it another one? Say it with state_size=, such as 20, (20, 20), "
    '((20, 20), 5) or {"h": 20, "c": 20}.'
)


class MeantError(CellError):
    """A cell returned something else than it should, and the message says what its author meant."""


class UndecidedError(CellError):
    """A cell takes more than one state, as far as a trial can tell."""


class Checks(Steps):
    """What a cell does with a state."""

    def _misunderstood(self) -> CellError:
        """What to say of a cell that has failed with every state that was tried."""
        failures = self._telling()
        error = next((error for _, error in failures if isinstance(error, CellError)), None)
        if isinstance(error, UndecidedError):
            return CellError(
                f"cannot find out what state {cell_name(self.cell)} takes: {error}.\n{SAY_STATE_SIZE}"
            )
        if error is not None:  # that it returned the wrong thing says more than that it raised
            if isinstance(error, MeantError):
                return error
            failed = CellError(f"{error}.\n{GUESSED}")
            failed.__cause__ = error.__cause__
            return failed
        furthest = max(progress(error) for _, error in failures)
        best, *others = [failure for failure in failures if progress(failure[1]) == furthest]
        hint = ""
        if len({f"{type(error).__name__}: {error}" for _, error in self.failures}) == 1:
            hint = "It raises this with every state that was tried."
        elif others and not is_of_code(best[1]):  # no state comes further than others
            hint = GUESSED
        state = None if best[0] is None else self.state(best[0], self.few)
        return self._failed(best[1], state, hint)

    def _telling(self) -> list[tuple[Guess | None, Exception]]:
        """The failures that say most: those with a state that the cell itself says that it has."""
        guess, error = self.failures[0]
        if isinstance(error, UndecidedError):
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
        if isinstance(error, TypeError) and "tuple indices must be" in str(error):
            hint = (
                "A state with names is a tuple all the same: take it apart as `h, c = state`. Names in "
                f"state_size= are for hx and the states of all steps. {hint}"
            )
        failed = CellError(
            f"{cell_name(self.cell)} raised {tell(error)}\n"
            f"It was given {kind} of {rows}: x {(self.few, *self.feature_shape)}, and "
            f"{'no state' if state is None else f'as its state {describe(state)}'}. {hint}".rstrip()
        )
        failed.__cause__ = error
        return failed

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
        self, guess: Guess, returned: Nested | None = None, *, returns_output: bool | None = None
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
        except BrokenRuleError:
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
        except BrokenRuleError:
            raise
        except Exception:  # it may need more than this to train, and never be trained
            pass
        finally:
            self.cell.eval()
        return form

    def _with_dtypes(self, guess: Guess, form: CellForm, returned: Nested) -> Guess:
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
            raise MeantError(
                f"{cell_name(self.cell)} is not a cell: {' and '.join(changed)}, and given that it "
                f"raised {tell(error)}\nA state keeps its dtype: return it as `h.to(x.dtype)`."
            ) from error
        return after

    def _accepted(self, guess: Guess) -> CellForm | None:
        """The form of the cell if it takes the state and gives one like it back, else ``None``."""
        try:
            return self.check(guess, self.call(self.state(guess, self.few)))
        except BrokenRuleError:
            raise
        except CellError as error:
            self.failures.append((guess, error))
        except Exception as error:  # any error means: this is not the state that the cell takes
            self.failures.append((guess, error))
        return None

    def _fits(self, guess: Guess, returned: Nested) -> bool:
        try:
            self.check(guess, returned)
        except CellError:
            return False
        return True

    def _has_output(self, guess: Guess, returned: Nested) -> bool:
        """Tell `state` from `(output, state)`: no structure contains itself, so only one can fit."""
        try:
            if guess.structure.same_as(Structure.of(returned)):
                return False
            if is_pair(returned) and guess.structure.same_as(Structure.of(returned[1])):
                return True
        except TypeError:
            pass
        meant = self._what_is_meant(guess, returned)
        raise (MeantError if meant else CellError)(
            f"{cell_name(self.cell)} is not a cell: it must return a state like the one it was given, or "
            f"(output, state); given {describe(self.state(guess, self.few))} it returned "
            f"{describe(returned)}{meant}"
        )

    def _what_is_meant(self, guess: Guess, returned: Nested) -> str:
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

    def _form(self, guess: Guess, returned: Nested, returns_output: bool, *, rows: int) -> CellForm:
        names = guess.names or guess.structure.names()
        form = CellForm(
            guess.structure, guess.shapes, names, returns_output, False, self.feature_shape, ()
        )
        output, state = form.split(returned)
        for name, shape, leaf in zip(names, guess.shapes, state, strict=True):
            if not isinstance(leaf, Tensor) or tuple(leaf.shape) != (rows, *shape):
                meant = self._what_is_meant(guess, returned) if rows == self.few else ""
                raise (MeantError if meant else CellError)(
                    f"{cell_name(self.cell)} is not a cell: its state {name!r} went in as a tensor "
                    f"{(rows, *shape)} and came out as {describe(leaf)}; a cell keeps the shapes of its "
                    f"state{meant}"
                )
        if not isinstance(output, Tensor) or output.dim() < 2 or output.shape[0] != rows:
            raise CellError(
                f"{cell_name(self.cell)} is not a cell: for a batch of {rows} rows its output must be a "
                f"tensor ({rows}, ...), it is {describe(output)}{_one_number(output, rows)}"
            )
        dtypes = tuple(
            None if leaf.is_floating_point() or leaf.dtype == self.state_dtype else leaf.dtype
            for leaf in state
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


def _one_number(output: object, rows: int) -> str:
    """What to do about an output of one number a row, which has no axis of features."""
    is_one = isinstance(output, Tensor) and tuple(output.shape) == (rows,)
    return "; a number a row is (B, 1): return output.unsqueeze(-1)" if is_one else ""
