"""Any module or function in the style of ``nn.LSTMCell``, seen through the contract of a cell.

What a foreign cell expects as its state, and whether it returns the state alone or an output beside
it, is settled by a trial: one step on fake tensors (shapes without numbers), in which the state that
comes out must have the structure and the shapes of the state that went in. Nothing is computed, no
random number is drawn and no buffer is written.
"""

from __future__ import annotations

import inspect
import logging
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import chain, product
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import (
    DataDependentOutputException,
    DynamicOutputShapeException,
    FakeTensorMode,
)

from cello.cells.contract import Cell, CellError, State, state_dtype
from cello.cells.structure import LEAF, Nested, Structure, describe

_LOG = logging.getLogger(FakeTensorMode.__module__)

StateSize = Any
"""A width, a ``torch.Size``, or a tuple or dict of these, possibly nested."""

MAX_INFERRED_STATES = 4
"""How many tensors a state may have for its structure to be found without `state_size`."""


class FunctionCell(nn.Module):
    """A plain function as a module, so that everything after this point deals in modules."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)

    def extra_repr(self) -> str:
        return getattr(self.function, "__name__", repr(self.function))


@dataclass(frozen=True)
class CellForm:
    """What the trial of a foreign cell found.

    Attributes:
        structure: how the cell nests its state.
        shapes: the shape of each tensor of the state, without the batch.
        names: the name of each tensor of the state.
        returns_output: whether the cell returns ``(output, state)`` rather than its state alone.
        makes_initial_state: whether the cell takes no state at the first step and makes its own.
        input_shape: the shape of the input, without the batch.
        output_shape: the shape of the output, without the batch.
    """

    structure: Structure
    shapes: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    returns_output: bool
    makes_initial_state: bool
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]

    def split(self, returned: Nested) -> tuple[Tensor, State]:
        """Part what the cell returned into its output and its flat state.

        Raises:
            CellError: it does not have the structure that the trial found.
        """
        output, nested = returned if self.returns_output else (None, returned)
        try:
            state = self.structure.flatten(nested)
        except TypeError as error:
            raise CellError(f"the cell changed the structure of its state: {error}") from None
        # A cell without an output of its own is read like nn.LSTMCell: the first state is the output.
        return (state[0] if output is None else output), state


class Adapted(Cell):
    """A foreign cell as a :class:`Cell`; the foreign cell itself stays untouched."""

    def __init__(self, cell: nn.Module, form: CellForm) -> None:
        super().__init__()
        self.cell = cell
        self.form = form

    @property
    def label(self) -> str:
        return _name(self.cell)

    @property
    def state_sizes(self) -> dict[str, int | tuple[int, ...]]:
        return dict(zip(self.form.names, self.form.shapes, strict=True))

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> State | None:
        if self.form.makes_initial_state:
            return None
        return super().initial_state(batch_size, dtype=dtype, device=device)

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        if state is None:
            return self.form.split(self.cell(x))
        return self.form.split(self.cell(x, self.form.structure.unflatten(state)))


def adapt(cell: nn.Module, form: CellForm) -> Cell:
    """Return `cell` itself where it is a :class:`Cell`, else an :class:`Adapted` view of it."""
    return cell if isinstance(cell, Cell) else Adapted(cell, form)


def own_initial_state(cell: Adapted, batch_size: int, like: Tensor) -> State:
    """Find the state that a cell makes for itself at its first step, if it is zero.

    Args:
        cell: a cell whose form says that it makes its own initial state.
        batch_size: B.
        like: an input of the layer, for its dtype and device.

    Returns:
        Zeros (B, ...), after a step without a state and one from zeros have given the same.

    Raises:
        CellError: they differ; then the initial state cannot be read off the cell.
    """
    zeros = Cell.initial_state(cell, batch_size, dtype=state_dtype(like.dtype), device=like.device)
    assert zeros is not None
    x = torch.ones(batch_size, *cell.form.input_shape, dtype=like.dtype, device=like.device)
    ends = []
    for start in (None, zeros):
        with torch.no_grad(), torch.random.fork_rng():
            torch.manual_seed(0)
            ends.append(cell(x, start)[1])
    alone, from_zeros = ends
    if not all(torch.equal(a, b) for a, b in zip(alone, from_zeros, strict=True)):
        raise CellError(
            f"{_name(cell.cell)} makes its own initial state, which is not zero, so the state of a "
            "sequence of length 0 is unknown. Give hx, or derive from cello.Cell and override "
            "initial_state."
        )
    return zeros


def learn_form(
    cell: nn.Module,
    x: Tensor,
    *,
    state_size: StateSize | None = None,
    state: Nested | None = None,
) -> CellForm:
    """Try one step of `cell` on fake tensors and find out what its state looks like.

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
    with _Trial(cell, x) as trial:
        if isinstance(cell, Cell):
            return trial.of_contract(cell)
        if state_size is not None:
            structure, shapes, names = _read_state_size(state_size)
            return trial.of_state(structure, shapes, names)
        if state is not None:
            structure = Structure.of(state)
            shapes = tuple(tuple(leaf.shape[1:]) for leaf in structure.flatten(state))
            return trial.of_state(structure, shapes, structure.names())
        if _state_is_optional(cell):
            return trial.of_optional_state()
        return trial.of_unknown_state()


def _read_state_size(
    state_size: StateSize,
) -> tuple[Structure, tuple[tuple[int, ...], ...], tuple[str, ...]]:
    names = None
    if isinstance(state_size, Mapping):
        names, state_size = tuple(state_size), tuple(state_size.values())
    try:
        structure = Structure.of(state_size, is_leaf=lambda s: isinstance(s, int | torch.Size))
    except TypeError:
        raise TypeError(
            "state_size must be an int, a torch.Size, or a tuple or dict of these, "
            f"got {state_size!r}"
        ) from None
    sizes = structure.flatten(state_size)
    shapes = tuple((size,) if isinstance(size, int) else tuple(size) for size in sizes)
    if names is not None and len(names) != len(shapes):
        raise TypeError(f"state_size as a dict must not nest, got {state_size!r}")
    return structure, shapes, names or structure.names()


def _state_is_optional(cell: nn.Module) -> bool:
    function = cell.function if isinstance(cell, FunctionCell) else cell.forward
    try:
        parameters = list(inspect.signature(function).parameters.values())
    except ValueError:  # some built-in functions have no signature
        return False
    return len(parameters) >= 2 and parameters[1].default is not inspect.Parameter.empty


class _Trial:
    """One fake step of one cell, tried with different states."""

    def __init__(self, cell: nn.Module, x: Tensor) -> None:
        self.cell = cell
        self.mode = FakeTensorMode(allow_non_fake_inputs=True)
        self.feature_shape, self.dtype, self.device = tuple(x.shape[1:]), x.dtype, x.device

    def __enter__(self) -> _Trial:
        # Fake copies of the parameters and buffers: a batch norm that counts its calls counts there.
        with self.mode:
            self.tensors: dict[str, Tensor] = {
                name: self.mode.from_tensor(tensor.detach())
                for name, tensor in chain(self.cell.named_parameters(), self.cell.named_buffers())
            }
        # Evaluation mode: one row is enough for a batch norm, and no dropout mask is drawn.
        self.training = {module: module.training for module in self.cell.modules()}
        self.cell.eval()
        # torch logs a traceback for each call with shapes that do not fit; here they are only tried.
        self.silenced, _LOG.disabled = _LOG.disabled, True
        return self

    def __exit__(self, *_: object) -> None:
        for module, training in self.training.items():
            module.training = training
        _LOG.disabled = self.silenced

    def call(self, *state: Nested) -> Nested:
        # One row only: a tensor of one row cannot pass for a tuple of two states.
        x = self.input()
        try:
            with self.mode, torch.no_grad():
                return torch.func.functional_call(self.cell, self.tensors, (x, *state))
        except (DataDependentOutputException, DynamicOutputShapeException) as error:
            raise CellError(
                f"{_name(self.cell)} is not a cell: its computation depends on the values of tensors "
                f"({error}), by an `if`, a loop, `.item()` or boolean indexing, so that one step cannot "
                "stand for all. Use torch.where or a product with a mask instead."
            ) from error

    def input(self) -> Tensor:
        with self.mode:
            return torch.zeros(1, *self.feature_shape, dtype=self.dtype, device=self.device)

    def zeros(self, shape: tuple[int, ...]) -> Tensor:
        with self.mode:
            return torch.zeros(1, *shape, dtype=state_dtype(self.dtype), device=self.device)

    def of_contract(self, cell: Cell) -> CellForm:
        names = cell.state_names
        structure = Structure(tuple, (LEAF,) * len(names))
        shapes = tuple((s,) if isinstance(s, int) else tuple(s) for s in cell.state_sizes.values())
        state = tuple(self.zeros(shape) for shape in shapes)
        returned = self._call_or_explain(state)
        if not isinstance(returned, tuple) or len(returned) != 2:
            raise CellError(
                f"{_name(cell)} is not a cell: a cello.Cell returns (output, state), "
                f"it returned {describe(returned)}"
            )
        return self._form(structure, shapes, names, returned, returns_output=True)

    def of_state(
        self, structure: Structure, shapes: tuple[tuple[int, ...], ...], names: tuple[str, ...]
    ) -> CellForm:
        state = structure.unflatten([self.zeros(shape) for shape in shapes])
        returned = self._call_or_explain(state)
        return self._form(structure, shapes, names, returned, self._has_output(structure, returned))

    def of_optional_state(self) -> CellForm:
        returned = self._call_or_explain()
        # The state that a cell makes for itself has the structure that it gives back and takes again:
        # all of what it returned, or the second part of that.
        readings = [(returned, False)]
        if isinstance(returned, tuple | list) and len(returned) == 2:
            readings.append((returned[1], True))
        accepted = [(state, self._accepted(state, reads)) for state, reads in readings]
        forms = [(state, form) for state, form in accepted if form is not None]
        if len(forms) == 2:  # both fit when a cell indexes its state: the true one matters in full
            forms = [(state, form) for state, form in forms if self._depends_on(state)]
        if forms:
            return replace(forms[0][1], makes_initial_state=True)
        raise CellError(
            f"{_name(self.cell)} is not a cell: without a state it returned {describe(returned)}, but "
            f"it takes neither that nor its second part as its next state. {_SAY_STATE_SIZE}"
        )

    def of_unknown_state(self) -> CellForm:
        widths = _candidate_widths(self.cell)
        for count in (2, 3, MAX_INFERRED_STATES, 1, 0):  # 0: a bare tensor
            structure = LEAF if count == 0 else Structure(tuple, (LEAF,) * count)
            # Parts of one width first, and of different widths for a pair.
            options = [(width,) * max(count, 1) for width in widths]
            if count == 2:
                options += [pair for pair in product(widths, repeat=2) if pair[0] != pair[1]]
            for option in options:
                form = self._accepted(structure.unflatten([self.zeros((w,)) for w in option]))
                if form is not None:
                    return form
        tried = (
            f"with states of width {', '.join(map(str, widths))}"
            if widths
            else "as it has no weights"
        )
        raise CellError(
            f"cannot find out what state {_name(self.cell)} takes ({tried}; up to "
            f"{MAX_INFERRED_STATES} tensors). {_SAY_STATE_SIZE}"
        )

    def _call_or_explain(self, *state: Nested) -> Nested:
        try:
            return self.call(*state)
        except CellError:
            raise
        except Exception as error:  # whatever the user's code raises, shown with what it was given
            given = f"x {(1, *self.feature_shape)}"
            given += f" and state {describe(state[0])}" if state else " and no state"
            raise CellError(
                f"{_name(self.cell)} is not a cell that takes {given}: "
                f"it raised {type(error).__name__}: {error}"
            ) from error

    def _accepted(self, state: Nested, returns_output: bool | None = None) -> CellForm | None:
        """The form of the cell if it takes `state` and gives one like it back, else None."""
        try:
            structure = Structure.of(state)
            shapes = tuple(tuple(leaf.shape[1:]) for leaf in structure.flatten(state))
            returned = self.call(state)
            has_output = self._has_output(structure, returned)
            if returns_output is not None and has_output != returns_output:
                return None
            return self._form(structure, shapes, structure.names(), returned, has_output)
        except CellError as error:
            if isinstance(
                error.__cause__, DataDependentOutputException | DynamicOutputShapeException
            ):
                raise
            return None
        except Exception:  # any error means: this is not the state that the cell takes
            return None

    def _depends_on(self, state: Nested) -> bool:
        """Whether every floating part of `state` matters to what the cell returns."""
        structure = Structure.of(state)
        with self.mode, torch.enable_grad():
            leaves = [
                leaf.detach().requires_grad_(leaf.is_floating_point())
                for leaf in structure.flatten(state)
            ]
            x = self.input()
            returned = torch.func.functional_call(
                self.cell, self.tensors, (x, structure.unflatten(leaves))
            )
            outputs = [t for t in _tensors(returned) if t.requires_grad]
            inputs = [leaf for leaf in leaves if leaf.requires_grad]
            if not outputs:
                return not inputs
            gradients = torch.autograd.grad(
                outputs, inputs, [torch.ones_like(t) for t in outputs], allow_unused=True
            )
        return all(gradient is not None for gradient in gradients)

    def _has_output(self, structure: Structure, returned: Nested) -> bool:
        """Tell `state` from `(output, state)`: no structure contains itself, so only one can fit."""
        try:
            if structure.same_as(Structure.of(returned)):
                return False
            if len(returned) == 2 and structure.same_as(Structure.of(returned[1])):
                return True
        except TypeError:
            pass
        raise CellError(
            f"{_name(self.cell)} is not a cell: given {structure} as its state it must return the new "
            f"state, or (output, new state), it returned {describe(returned)}"
        )

    def _form(
        self,
        structure: Structure,
        shapes: tuple[tuple[int, ...], ...],
        names: tuple[str, ...],
        returned: Nested,
        returns_output: bool,
    ) -> CellForm:
        form = CellForm(structure, shapes, names, returns_output, False, self.feature_shape, ())
        output, state = form.split(returned)
        for name, shape, leaf in zip(names, shapes, state, strict=True):
            if not isinstance(leaf, Tensor) or tuple(leaf.shape) != (1, *shape):
                raise CellError(
                    f"{_name(self.cell)} is not a cell: its state {name!r} went in as a tensor "
                    f"{(1, *shape)} and came out as {describe(leaf)}; a cell keeps the shapes of its state"
                )
        if not isinstance(output, Tensor) or output.dim() < 2 or output.shape[0] != 1:
            raise CellError(
                f"{_name(self.cell)} is not a cell: for a batch of one row its output must be a tensor "
                f"(1, ...), it is {describe(output)}"
            )
        return replace(form, output_shape=tuple(output.shape[1:]))


_SAY_STATE_SIZE = (
    "Say it with state_size=: a width for a tensor, a tuple of widths for a tuple, "
    'a dict to name the parts: state_size={"h": 20, "c": 20}.'
)


def _candidate_widths(cell: nn.Module) -> list[int]:
    hidden_size = getattr(cell, "hidden_size", None)
    if isinstance(hidden_size, int):
        return [hidden_size]
    return sorted({size for parameter in cell.parameters() for size in parameter.shape})


def _tensors(nested: Nested) -> Iterator[Tensor]:
    if isinstance(nested, Tensor):
        yield nested
    elif isinstance(nested, tuple | list):
        for item in nested:
            yield from _tensors(item)


def _name(cell: nn.Module) -> str:
    if isinstance(cell, FunctionCell):
        return cell.extra_repr()
    return type(cell).__name__
