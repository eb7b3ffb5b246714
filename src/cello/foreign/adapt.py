"""Any module or function in the style of ``nn.LSTMCell``, seen through the contract of a cell.

What such a cell expects and returns is its :class:`CellForm`, which :mod:`cello.foreign.trial` finds out.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from cello.cells.contract import Cell, CellError, State, state_dtype
from cello.foreign.apart import apart
from cello.foreign.structure import Nested, Structure, describe


class FunctionCell(nn.Module):
    """A plain function as a module, so that everything after this point deals in modules."""

    def __init__(self, function: Callable[..., Any]) -> None:
        super().__init__()
        self.function = function

    def forward(self, *args: Any) -> Any:
        return self.function(*args)

    def extra_repr(self) -> str:
        return str(getattr(self.function, "__name__", type(self.function).__name__))


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
        dtypes: for each tensor of the state the dtype in which the cell returns it, where that is one of
            integers, bools or, of an input that is real, complex numbers; ``None`` where the tensor is of
            the dtype of the layer's input.
    """

    structure: Structure
    shapes: tuple[tuple[int, ...], ...]
    names: tuple[str, ...]
    returns_output: bool
    makes_initial_state: bool
    input_shape: tuple[int, ...]
    output_shape: tuple[int, ...]
    dtypes: tuple[torch.dtype | None, ...] = ()

    def split(self, returned: Nested) -> tuple[Tensor, State]:
        """Part what the cell returned into its output and its flat state.

        Raises:
            CellError: it does not have the structure that the trial found.
        """
        if self.returns_output and not is_pair(returned):
            raise CellError(
                f"the cell returned (output, state) in its trial and now {describe(returned)}"
            )
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

    def __call__(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        return self.forward(
            x, state
        )  # hooks for all modules are to see the cell, and not this view

    @property
    def label(self) -> str:
        return cell_name(self.cell)

    @property
    def state_sizes(self) -> dict[str, int | tuple[int, ...]]:
        return dict(zip(self.form.names, self.form.shapes, strict=True))

    def initial_state(
        self, batch_size: int, *, dtype: torch.dtype, device: torch.device
    ) -> State | None:
        if self.form.makes_initial_state:
            return None
        return self.zeros(batch_size, dtype=dtype, device=device)

    def zeros(self, batch_size: int, *, dtype: torch.dtype, device: torch.device) -> State:
        """Return a state of zeros, in the dtypes that the cell gives it."""
        shapes, dtypes = self.form.shapes, self.form.dtypes or (None,) * len(self.form.shapes)
        dtypes = tuple(dtype.to_complex() if own and own.is_complex else own for own in dtypes)
        return tuple(
            torch.zeros(batch_size, *shape, dtype=own or dtype, device=device)
            for shape, own in zip(shapes, dtypes, strict=True)
        )

    def forward(self, x: Tensor, state: State | None) -> tuple[Tensor, State]:
        if state is None:
            return self.form.split(self.cell(x))
        return self.form.split(self.cell(x, self.form.structure.unflatten(state)))


def adapt(cell: nn.Module, form: CellForm) -> Cell:
    """Return `cell` itself where it is a :class:`Cell`, else an :class:`Adapted` view of it."""
    return cell if isinstance(cell, Cell) else Adapted(cell, form)


def own_initial_state(cell: Adapted, batch_size: int, like: Tensor) -> State:
    """Find the state that a cell makes for itself at its first step, if it is always zero.

    Args:
        cell: a cell whose form says that it makes its own initial state.
        batch_size: B.
        like: an input of the layer, for its dtype and device.

    Returns:
        Zeros (B, ...), after steps without a state and steps from zeros have given the same, and
        no parameter has been found that matters to the former alone.

    Raises:
        CellError: they differ; then the initial state cannot be read off the cell.
    """
    dtype = state_dtype(like.dtype, cell)
    zeros = cell.zeros(batch_size, dtype=dtype, device=like.device)
    buffers = dict(cell.cell.named_buffers())
    weights = [p for p in cell.cell.parameters() if p.requires_grad]
    if not _begins_as_from(cell, zeros, like, {}, buffers, weights):
        raise CellError(
            f"{cell.label} makes its own initial state, which is learned or not zero, so the "
            "state of a sequence of length 0 is unknown. Give hx, or derive from cello.Cell and "
            "override initial_state."
        )
    return zeros


def begins_at_zero(cell: Cell, like: Tensor) -> bool:
    """Whether a cell makes its own initial state, and it is zero whatever its weights and buffers are.

    Args:
        cell: any cell.
        like: an input of it, for its dtype and device.
    """
    if not isinstance(cell, Adapted) or not cell.form.makes_initial_state:
        return False
    module, dtype = cell.cell, state_dtype(like.dtype, cell)
    leaves = {name: p.detach().clone() for name, p in module.named_parameters()}
    for leaf in leaves.values():
        leaf.requires_grad_(leaf.is_floating_point() or leaf.is_complex())
    changed = {  # which are positive where they were
        name: buffer * 1.5 + 0.25 if buffer.is_floating_point() else buffer
        for name, buffer in module.named_buffers()
    }
    with (
        suppress(Exception),
        torch.enable_grad(),
    ):  # of the cell's code, which may not take any input
        zeros = cell.zeros(1, dtype=dtype, device=like.device)
        weights = [leaf for leaf in leaves.values() if leaf.requires_grad]
        return _begins_as_from(cell, zeros, like, leaves, changed, weights)
    return False


def _begins_as_from(
    cell: Adapted,
    state: State,
    like: Tensor,
    parameters: dict[str, Tensor],
    buffers: dict[str, Tensor],
    weights: Sequence[Tensor],
) -> bool:
    """Whether steps without a state give the same as steps from a state, and depend on the same weights.

    Args:
        cell: the cell.
        state: the state.
        like: an input, for its dtype and device.
        parameters: what stands in for those of the cell, if anything does.
        buffers: what stands in for its buffers; steps get copies, into which they may write.
        weights: those that matter.
    """

    def step(x: Tensor, *state: Nested) -> State:
        begin_anew()
        copies = {name: buffer.clone() for name, buffer in buffers.items()}
        found = torch.func.functional_call(cell.cell, parameters | copies, (x, *state))
        return cell.form.split(found)[1]

    def used(state: State) -> list[bool]:
        results = [part for part in state if part.requires_grad]
        if not results:
            return []
        seeds = [torch.ones_like(part) for part in results]
        gradients = torch.autograd.grad(results, weights, seeds, allow_unused=True)
        return [gradient is not None for gradient in gradients]

    # Several inputs: a gate that is shut, or a value that is clamped, hides where a step began.
    with apart(cell.cell, like.device) as begin_anew:
        for value in (0, 1, -1, 0.1) if like.is_floating_point() else (0, 1):
            x = like.new_full((len(state[0]), *cell.form.input_shape), value)
            alone, from_state = step(x), step(x, cell.form.structure.unflatten(state))
            same = all(torch.equal(a, b) for a, b in zip(alone, from_state, strict=True))
            if not same or used(alone) != used(from_state):
                return False
    return True


class _Traced(threading.local):
    at_zero: frozenset[nn.Module] = frozenset()


_traced = _Traced()


@contextmanager
def known_to_begin_at_zero(cells: Iterable[nn.Module]) -> Iterator[None]:
    """Say of which foreign cells :func:`begins_at_zero` is true, for what torch traces in the ``with``.

    While it traces there are no numbers to find that out with.
    """
    before, _traced.at_zero = _traced.at_zero, frozenset(cells)
    try:
        yield
    finally:
        _traced.at_zero = before


def traced_initial_state(
    cell: Adapted, batch_size: int, like: Tensor, *, is_needed: bool
) -> State | None:
    """Return the state that a cell makes for itself while torch traces it: zeros, if that is known.

    Args:
        cell: a cell.
        batch_size: B.
        like: an input of the layer, for its dtype and device.
        is_needed: whether the cell may not take the first step without a state.

    Raises:
        RuntimeError: it is not known, and needed.
    """
    if cell.cell in _traced.at_zero:
        return cell.zeros(batch_size, dtype=state_dtype(like.dtype, cell), device=like.device)
    if is_needed:
        raise RuntimeError(
            f"{cell.label} makes its own initial state, which is not known to be zero while torch traces "
            "it with lengths; give hx"
        )
    return None


def is_pair(returned: Nested) -> bool:
    """Whether a cell returned two things, which may be its output and its state."""
    return isinstance(returned, tuple | list) and len(returned) == 2


def cell_name(cell: nn.Module) -> str:
    """What messages call a foreign cell."""
    if isinstance(cell, FunctionCell):
        return cell.extra_repr()
    return type(cell).__name__
