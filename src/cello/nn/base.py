"""What all of Cello's layers share: one forward pass, from the caller's form and back to it."""

from __future__ import annotations

import numbers
import operator
import warnings
from abc import ABC, abstractmethod
from collections.abc import Sequence as AbstractSequence
from typing import TYPE_CHECKING, Any, Literal, SupportsFloat, SupportsIndex

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from cello.cells.contract import Cell, CellError, State, state_dtype
from cello.engines import Direction
from cello.foreign.adapt import Adapted, own_initial_state, traced_initial_state
from cello.foreign.hooks import has_global_hooks
from cello.foreign.kinds import HOOKS, is_traced
from cello.foreign.structure import Nested, Structure, describe
from cello.layers import MERGES, run_stack
from cello.nn.devices import check_devices
from cello.nn.forms import (
    Form,
    Lengths,
    Packed,
    Padded,
    Unbatched,
    WithLengths,
    read_lengths,
)
from cello.nn.graph import (
    LAYERS,
    is_symbolic,
    layer_tensors,
    leaf_of,
    names_in_graph,
    run_in_graph,
    settings_of,
)
from cello.nn.options import check_attribute
from cello.nn.plan import Plans

if TYPE_CHECKING:
    from typing_extensions import Self

ReturnStates = bool | Literal["last", "all"]

Cells = list[tuple[Cell, ...]]
"""For each layer, the cell of each direction, with the weights of this moment."""

States = AbstractSequence[AbstractSequence[State | None]]
"""For each layer, the state of each direction."""


_OPTIONS = frozenset(
    ("activation", "gate_activation", "merge", "reverse", "learn_initial_state", "forget_bias")
)


class RecurrentLayer(nn.Module, ABC):
    """Layers x directions of cells, with the interface of ``torch.nn``'s recurrent layers.

    A subclass says which cells it runs and what their state looks like to the caller.
    """

    num_layers: int
    batch_first: bool
    dropout: float
    bidirectional: bool
    merge: str
    reverse: bool
    _plans: Plans

    def _set_options(
        self,
        *,
        num_layers: int,
        batch_first: bool,
        dropout: float,
        bidirectional: bool,
        merge: str,
        reverse: bool,
    ) -> None:
        is_number = isinstance(dropout, numbers.Real) and not isinstance(dropout, bool)
        if not is_number or not 0 <= float(dropout) <= 1:
            error = ValueError if isinstance(dropout, SupportsFloat | str) else TypeError
            raise error(
                "dropout should be a number in range [0, 1] representing the probability of an "
                f"element being zeroed, got {dropout!r}"
            )
        bidirectional = _read_flag(bidirectional)
        flags = {"batch_first": batch_first, "bidirectional": bidirectional, "reverse": reverse}
        for name, flag in flags.items():
            if not isinstance(flag, bool):
                raise TypeError(f"{name} should be of type bool, got: {type(flag).__name__}")
        num_layers = read_count("num_layers", num_layers)
        if num_layers <= 0:
            raise ValueError(f"num_layers must be greater than zero, got {num_layers}")
        if dropout > 0 and num_layers == 1:
            warnings.warn(
                "dropout option adds dropout after all but last recurrent layer, so non-zero "
                f"dropout expects num_layers greater than 1, but got dropout={dropout} and "
                f"num_layers={num_layers}",
                stacklevel=4,
            )
        if merge not in MERGES:
            raise ValueError(f"merge must be one of {', '.join(MERGES)}, got {merge!r}")
        if merge != "concat" and not bidirectional:
            raise ValueError(
                f"merge={merge!r} needs bidirectional=True: there is one direction only"
            )
        if reverse and bidirectional:
            raise ValueError("reverse=True is for a single direction; bidirectional runs both")
        self.num_layers = num_layers
        self.batch_first = batch_first
        self.dropout = float(dropout)
        self.bidirectional = bidirectional
        self.merge = merge
        self.reverse = reverse

    def __new__(cls, *args: Any, **kwargs: Any) -> Self:
        layer = super().__new__(cls)
        layer.__dict__["_plans"] = Plans()
        LAYERS[id(layer)] = layer
        return layer

    def __setattr__(self, name: str, value: Any) -> None:
        if name in _OPTIONS:
            check_attribute(self, name, _OPTIONS)
        if name == "num_directions" and value == self.num_directions:
            return  # which subclasses of torch's layers set
        super().__setattr__(name, value)
        self._plans.forget()  # any of it may matter

    def __getstate__(self) -> dict[str, Any]:
        """Return what a copy of the layer has: all but the ``forward`` that records this layer's calls."""
        state = dict(vars(self))
        if state.pop("_is_recorded", False):
            del state["forward"]
        return state

    def _is_known(self) -> bool:
        """Whether the layer knows the shapes of its state already."""
        return True

    def _input_axes(self) -> int | None:
        """How many axes the features of an input have, or ``None`` if that is not known yet."""
        return 1

    @property
    def num_directions(self) -> int:
        """D: 2 if bidirectional, else 1."""
        return 2 if self.bidirectional else 1

    @abstractmethod
    def _cells(self) -> Cells:
        """Return the cells with their weights as they are now (a parametrization may compute them)."""

    def _custom_cells(self) -> nn.Module:
        """Return a module that holds the cells that a user wrote."""
        return nn.Module()

    @abstractmethod
    def _structure(self) -> Structure:
        """Return how the caller nests the state."""

    def _output_shapes(self) -> tuple[tuple[int, ...], ...]:
        """Return the shape of a row of each output: one, or one a direction with merge="none"."""
        return self._output_shapes_of(self.num_layers - 1)

    def _changed_options(self) -> list[str]:
        """The options that have other values than by default, as they are written."""
        values = {name: getattr(self, name, default) for name, default in _DEFAULTS.items()}
        return [f"{name}={value!r}" for name, value in values.items() if value != _DEFAULTS[name]]

    @abstractmethod
    def _made_of(self) -> list[Any] | None:
        """Return what the cells are made of, by whose identities a plan knows them again.

        ``None`` where there can be no plan.
        """

    @abstractmethod
    def _starts_at_zero(self) -> bool:
        """Whether the state before the first step is zero where the caller gives none."""

    @abstractmethod
    def _output_shapes_of(self, layer: int) -> tuple[tuple[int, ...], ...]:
        """Return the shapes of the rows that a layer hands on, or gives to the caller."""

    @abstractmethod
    def _prepare(self, x: Tensor, hx: Nested | None, *, packed: bool, batched: bool) -> None:
        """Check the caller's tensors; `hx` in the caller's shapes."""

    def _initial_state(
        self, cell: Cell, layer: int, direction: int, batch_size: int, like: Tensor
    ) -> State | None:
        """Return the state of a cell at the start of a sequence that came without one."""
        dtype = state_dtype(like.dtype, cell)
        return cell.initial_state(batch_size, dtype=dtype, device=like.device)

    def forward(
        self,
        input: Tensor | PackedSequence,
        hx: Nested | None = None,
        *,
        lengths: Lengths | None = None,
        return_states: ReturnStates = False,
    ) -> tuple[Any, ...]:
        """Run the layers over a batch of sequences.

        Args:
            input: (T, B, F); (B, T, F) with `batch_first`; (T, F) for one sequence without a batch;
                or a ``PackedSequence``.
            hx: the initial state, each part (L*D, B, H), or (L*D, H) without a batch; direction d of
                layer l is entry l*D + d. Where the layers differ in width, a list of one (D, B, H)
                for each layer. ``None`` stands for zeros, or for what the layer or cell learned.
            lengths: the number of steps that count in each sequence, a list or tensor of B integers
                from 0 to T, in any order.
            return_states: ``True`` or ``"last"`` for the states of all steps of the last layer,
                ``"all"`` for those of every layer and direction.

        Returns:
            ``(output, state)``, or ``(output, state, states)`` with `return_states`. `output` is the
            last layer's, (T, B, D*H) or as the input was given, zero past the end of a sequence;
            with ``merge="none"`` a pair of them. `state` has the form of `hx`: each sequence's
            state after its own last step. `states` is a dict: ``{"h": ..., "c": ...}``, each
            (T, B, D*H) with the directions side by side whatever `merge` is, or with ``"all"``
            ``{"h_l0": ..., "h_l0_reverse": ..., ...}``, each (T, B, H); batch first or packed where
            `output` is.

        Raises:
            ValueError: `input` has no dimension for time, `lengths` do not fit, or dtypes differ.
            RuntimeError: a size differs from what the layer was made for, T is 0, or `input` is nested.
            AttributeError: `input` is no tensor.
        """
        if torch.compiler.is_dynamo_compiling():
            return self._run_traced(input, hx, lengths, return_states)
        return self._run(input, hx, lengths, return_states)

    def _run(
        self,
        input: Tensor | PackedSequence,
        hx: Nested | None,
        lengths: Lengths | None,
        return_states: ReturnStates,
    ) -> tuple[Any, ...]:
        plans = self._plans if lengths is None and return_states is False else None
        if torch._C._len_torch_dispatch_stack() > 0:
            plans = None  # what sees operations, as a selective checkpoint, is to see the same at each call
        if plans is None or not isinstance(input, Tensor) or input.is_nested:
            if is_symbolic(input):
                node: tuple[Any, ...] = leaf_of(self, input, hx, lengths, return_states)
                return node
            return self._run_anew(input, hx, lengths, return_states)
        plan, changes = plans.find(input, self.batch_first), plans.changes
        found = None if plan is None else plan.run(self, input, hx)
        if found is None:
            found = self._run_anew(input, hx, lengths, return_states)
            plans.leave(self, input, hx, changes)
        return found

    def _run_traced(
        self,
        input: Tensor | PackedSequence,
        hx: Nested | None,
        lengths: Lengths | None,
        return_states: ReturnStates,
    ) -> tuple[Any, ...]:
        """What torch.compile traces in the place of :meth:`_run`; see :mod:`cello.nn.graph`."""
        known = None
        if isinstance(input, Tensor) and input.dim() >= (2 if lengths is None else 3):
            sizes = input.shape[min(2, input.dim() - 1) :]
            shape = (*(2 for _ in input.shape[: -len(sizes)]), *map(operator.index, sizes))
            known = names_in_graph(
                *(id(self), input.dtype, shape, return_states),
                *(hx is not None, lengths is not None),
            )
        if known is None or not isinstance(input, Tensor):
            # The loop over time would be unrolled into the graph, and compiled for minutes; as with
            # torch.nn's layers, what is around this one is compiled and this is not.
            run = torch.compiler.disable(self._run)
            return run(input, hx, lengths, return_states)  # type: ignore[no-any-return]
        names, at_zero = known
        structure = self._structure()
        outputs, leaves, states = run_in_graph(
            id(self),
            settings_of(self),
            return_states,
            [tensor for _, tensor in layer_tensors(self)],
            input,
            None if hx is None else list(structure.flatten(hx)),
            lengths
            if lengths is None or isinstance(lengths, Tensor)
            else torch.as_tensor(lengths, device="cpu"),
            at_zero,
        )
        output = tuple(outputs) if self.merge == "none" else outputs[0]
        state = structure.unflatten(leaves)
        if not names:
            return output, state
        return output, state, dict(zip(names, states, strict=True))

    def _run_anew(
        self,
        input: Tensor | PackedSequence,
        hx: Nested | None,
        lengths: Lengths | None,
        return_states: ReturnStates,
    ) -> tuple[Any, ...]:
        """Run without a plan: the ordinary way."""
        keep = _read_return_states(return_states)
        form, batched = self._form(input, hx, lengths)
        values = input.data if isinstance(input, PackedSequence) else input
        cells = self._cells()
        initial = self._read_states(cells, hx, form, batched, values)
        check_devices(cells, initial, hx is not None, values.device)
        if form.sequence is None:  # every sequence has length zero
            dtype = state_dtype(values.dtype, self)
            outputs = tuple(values.new_zeros(0, *s, dtype=dtype) for s in self._output_shapes())
            history = [[tuple(part[:0] for part in s or ()) for s in layer] for layer in initial]
            finals = [[tuple(part.clone() for part in s or ()) for s in layer] for layer in initial]
        else:
            layers = [
                tuple(
                    Direction(cell, _enter(form, state), self.reverse or direction == 1)
                    for direction, (cell, state) in enumerate(zip(*layer, strict=True))
                )
                for layer in zip(cells, initial, strict=True)
            ]
            result = run_stack(
                form.sequence,
                layers,
                merge=self.merge,
                dropout=self.dropout if self.training else 0.0,
                keep_states=keep,
            )
            outputs, history = result.outputs, result.history
            finals = result.states
            if not form.keeps_order:
                finals = [
                    [_leave(form, *states) for states in zip(*layer, strict=True)]
                    for layer in zip(result.states, initial, strict=True)
                ]
        output = tuple(form.rows(rows) for rows in outputs)
        returned = output if self.merge == "none" else output[0]
        state = self._write_state(finals, batched)
        if keep == "none":
            return returned, state
        return returned, state, self._name_states(form, cells, history, keep)

    def step(self, x: Tensor, state: Nested | None = None) -> tuple[Tensor, Nested]:
        """Run one step, for streams: as many steps as there are inputs equal one call on all.

        Args:
            x: the input of this step, (B, F), or (F,) without a batch.
            state: what the step before returned; ``None`` at the start.

        Returns:
            The output (B, H), or (H,), and the state to give to the next step.

        Raises:
            ValueError: the layer reads its input in reverse or in both directions, or `x` is a whole
                sequence.

        Example:
            >>> import torch, cello
            >>> layer = cello.nn.GRU(3, 4)
            >>> state = None
            >>> for x in torch.randn(5, 3):
            ...     output, state = layer.step(x, state)
            >>> output.shape, state.shape
            (torch.Size([4]), torch.Size([1, 4]))
        """
        # A stream waits for each step: with a plan it needs neither `forward` nor what is around that.
        plan = self._plans.of_a_step()
        if plan is not None and not (
            torch.compiler.is_dynamo_compiling()
            or self.reverse
            or any(getattr(self, hooks) for hooks in HOOKS)
            or type(self).forward is not RecurrentLayer.forward
            or "forward" in vars(self)
            or has_global_hooks()
        ):
            found = plan.step(self, x, state)
            if found is not None:
                return found
        if self.bidirectional or self.reverse:
            raise ValueError(
                "step needs a layer that reads forward only; the reverse direction starts at the end"
            )
        if not isinstance(x, Tensor):
            raise TypeError(f"step takes a tensor (B, F) or (F,), got {type(x).__name__}")
        hint = (
            f"step takes the input of one step, (B, F) or (F,), got {tuple(x.shape)}: to run a whole "
            "sequence call the layer itself, layer(x, state)"
        )
        axes = self._input_axes()
        if axes is not None and x.dim() > axes + 1:
            raise ValueError(hint)
        time = 1 if self.batch_first and x.dim() >= 2 else 0
        try:
            output, state = self(x.unsqueeze(time), state)
        except CellError as error:
            if axes is not None or x.dim() < 3:
                raise
            raise CellError(
                f"{error}\nIf {tuple(x.shape)} is a sequence: {hint}"
            ) from error.__cause__
        return output.squeeze(time), state

    def _form(
        self, input: Tensor | PackedSequence, hx: Nested | None, lengths: Lengths | None
    ) -> tuple[Form, bool]:
        if isinstance(input, PackedSequence):
            if lengths is not None:
                raise ValueError("lengths must be left out: a PackedSequence knows its lengths")
            self._prepare(input.data, hx, packed=True, batched=True)
            return Packed(input), True
        if not isinstance(input, Tensor):
            raise AttributeError(  # as torch.nn
                f"{type(self).__name__} takes a tensor (T, B, F), (B, T, F) or (T, F), or a "
                f"PackedSequence, got {type(input).__name__}"
            )
        if input.is_nested:
            raise RuntimeError(
                f"{type(self).__name__} takes no nested tensors: pad them, "
                "input.to_padded_tensor(0.0), and give lengths="
            )
        if input.dim() < 2:
            raise ValueError(
                f"{type(self).__name__}: expected input (T, B, F), (B, T, F) or (T, F), "
                f"got {input.dim()}D {tuple(input.shape)}"
            )
        batched = input.dim() > 2
        self._prepare(input, hx, packed=False, batched=batched)
        time = 1 if batched and self.batch_first else 0
        if input.shape[time] == 0:
            raise RuntimeError(f"input must have at least one step, got shape {tuple(input.shape)}")
        if lengths is None:
            return (Padded(input, self.batch_first) if batched else Unbatched(input)), batched
        if not batched:
            raise ValueError("lengths needs a batch of sequences, got an input (T, F) of one")
        checked = read_lengths(lengths, input.shape[time], input.shape[1 - time])
        if is_traced(checked):
            return Padded(input, self.batch_first, checked), True
        if bool((checked == input.shape[time]).all()):
            return Padded(input, self.batch_first), True
        return WithLengths(input, checked, self.batch_first), True

    def _read_states(
        self, cells: Cells, hx: Nested | None, form: Form, batched: bool, values: Tensor
    ) -> States:
        """Return the initial state of each layer and direction, with B rows in the caller's order."""
        if hx is None:
            states = [
                [
                    self._initial_state(cell, layer, direction, form.batch_size, values)
                    for direction, cell in enumerate(directions)
                ]
                for layer, directions in enumerate(cells)
            ]
            for row, directions in zip(states, cells, strict=True):
                for direction, cell in enumerate(directions):
                    if row[direction] is None and isinstance(cell, Adapted):
                        row[direction] = self._own_start(cell, form, values)
            return states
        self._check_state_shapes(hx, cells, form.batch_size, batched)
        parts = []  # for each name, for each layer and direction in a row, (B, ...)
        for leaf in self._structure().flatten(hx):
            tensors = [leaf] if isinstance(leaf, Tensor) else leaf
            rows = [row for tensor in tensors for row in tensor.unbind(0)]
            parts.append(rows if batched else [row.unsqueeze(0) for row in rows])
        flat = iter(zip(*parts, strict=True))
        return [[next(flat) for _ in directions] for directions in cells]

    def _own_start(self, cell: Adapted, form: Form, values: Tensor) -> State | None:
        """Return the state that a cell makes for itself, where it has to be known."""
        B = form.batch_size
        if is_traced(values):
            return traced_initial_state(cell, B, values, is_needed=form.has_empty)
        # A sequence without a step returns its initial state.
        return own_initial_state(cell, B, values) if form.has_empty else None

    def _check_state_shapes(self, hx: Nested, cells: Cells, batch_size: int, batched: bool) -> None:
        """Check the shapes of `hx` against those of the cells.

        Raises:
            RuntimeError: one differs; the message names the part, what was given and expected.
        """
        try:
            leaves = self._structure().flatten(hx)
        except TypeError as error:
            raise RuntimeError(f"hx: {error}") from None
        names = cells[0][0].state_names
        batch = (batch_size,) if batched else ()
        for index, (name, leaf) in enumerate(zip(names, leaves, strict=True)):
            shapes = [directions[0].state_shapes[name] for directions in cells]
            label = f"hx[{index}] ({name})" if len(names) > 1 else "hx"
            if len(set(shapes)) == 1:
                expected: Any = (self.num_layers * self.num_directions, *batch, *shapes[0])
                given: Any = _shape(leaf)
            else:
                expected = [(self.num_directions, *batch, *shape) for shape in shapes]
                is_list = isinstance(leaf, tuple | list)
                given = [_shape(part) for part in leaf] if is_list else describe(leaf)
            if given != expected:
                raise RuntimeError(f"Expected {label} size {expected}, got {given}")

    def _write_state(self, finals: States, batched: bool) -> Nested:
        """Put the final states together in the caller's form."""
        leaves: list[Any] = []
        if len(finals) == 1 and len(finals[0]) == 1 and finals[0][0] and batched:
            leaves += [part.unsqueeze(0) for part in finals[0][0]]
            return self._structure().unflatten(leaves)
        columns = zip(*(state for layer in finals for state in layer if state), strict=True)
        for parts in columns:
            rows = parts if batched else tuple(part[0] for part in parts)
            if all(row.shape == rows[0].shape for row in rows):
                leaves.append(rows[0].unsqueeze(0) if len(rows) == 1 else torch.stack(rows))
            else:
                d = self.num_directions
                leaves.append([torch.stack(rows[k : k + d]) for k in range(0, len(rows), d)])
        return self._structure().unflatten(leaves)

    def _name_states(
        self,
        form: Form,
        cells: Cells,
        history: list[list[tuple[Tensor, ...]]],
        keep: str,
    ) -> dict[str, Any]:
        """Name the states of all steps and bring them into the caller's form."""
        names = cells[-1][0].state_names
        if keep == "last":
            columns = zip(*history[-1], strict=True)
            return {
                name: form.rows(_side_by_side(parts))
                for name, parts in zip(names, columns, strict=True)
            }
        return {
            f"{name}_l{layer}{'_reverse' if direction == 1 else ''}": form.rows(part)
            for layer, directions in enumerate(history)
            for direction, parts in enumerate(directions)
            for name, part in zip(names, parts, strict=True)
        }


_DEFAULTS = {
    "proj_size": 0,
    "num_layers": 1,
    "bias": True,
    "batch_first": False,
    "dropout": 0.0,
    "bidirectional": False,
    "merge": "concat",
    "reverse": False,
    "learn_initial_state": False,
    "state_size": None,
}
"""Of the options of all layers, in the order in which they are shown."""


def read_count(name: str, count: SupportsIndex) -> int:
    """Read a number of things as torch's layers do: as anything that counts, such as an ``np.int64``.

    Raises:
        TypeError: it is no whole number.
    """
    try:
        if not isinstance(count, bool):
            return operator.index(count)
    except TypeError:  # a tensor of another dtype has the method, too
        pass
    raise TypeError(f"{name} should be of type int, got: {type(count).__name__}")


def _read_flag(flag: Any) -> Any:
    """Read 0 and 1 of any type as a bool, as torch does for `bidirectional` and for nothing else."""
    try:
        return bool(flag) if operator.index(flag) in (0, 1) else flag
    except TypeError:
        return bool(flag) if type(flag).__name__ in ("bool", "bool_") else flag  # of NumPy


def _shape(part: Nested) -> tuple[int, ...] | str:
    """The shape of a tensor, or a description of what is none."""
    return tuple(part.shape) if isinstance(part, Tensor) else describe(part)


def _enter(form: Form, state: State | None) -> State | None:
    if state is None or form.keeps_order:
        return state
    return tuple(form.enter(part) for part in state)


def _leave(form: Form, state: State, initial: State | None) -> State:
    starts = initial or (None,) * len(state)
    return tuple(form.leave(part, start) for part, start in zip(state, starts, strict=True))


def _read_return_states(return_states: ReturnStates) -> str:
    if isinstance(return_states, bool):
        return "last" if return_states else "none"
    if return_states not in ("last", "all"):
        raise ValueError(f"return_states must be a bool, 'last' or 'all', got {return_states!r}")
    return return_states


def _side_by_side(rows: tuple[Tensor, ...]) -> Tensor:
    """The states of all directions; numbers without an axis of their own get one."""
    if len(rows) == 1:
        return rows[0]
    return torch.cat(list(rows), 1) if rows[0].dim() > 1 else torch.stack(list(rows), 1)
