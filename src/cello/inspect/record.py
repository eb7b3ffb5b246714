"""Every state and every named value of every step: what a recurrent layer does, made visible."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from cello.cells.contract import Cell, State
from cello.engines import Direction, DirectionResult, Engine, Scan, Sequence, engine
from cello.engines.reference import Reference
from cello.inspect.capture import Captured, CellCode, Value, captured
from cello.inspect.shapes import gates_of
from cello.nn.base import RecurrentLayer
from cello.nn.forms import Form, Lengths

if TYPE_CHECKING:
    from matplotlib.figure import Figure

Rows = Tensor | PackedSequence

Steps = list[dict[str, Tensor]]
"""For each step, in the order of reading, what each name stood for."""

Places = dict[str, tuple["Direction", "_Watched"]]
"""Directions with their watched cells by the end of their names."""


class Values(Mapping[str, Rows]):
    """Tensors by name and place: ``values["f_l0"]``, ``values["f_l1_reverse"]``.

    With one layer and one direction the place may be left out: ``values["f"]``. So may the path of a
    submodule where no other name ends alike: ``values["x_l0"]`` for ``gate.x``.
    """

    def __init__(self, places: dict[str, dict[str, Rows]]) -> None:
        self._places = places

    def at(self, layer: int = -1, direction: int = 0) -> dict[str, Rows]:
        """Return all values of one direction of one layer by their plain names.

        Args:
            layer: its number; negative ones count from the last.
            direction: 0 is the first, 1 reads in reverse.

        Raises:
            IndexError: there is no such layer or direction.
        """
        return self._places[self.place(layer, direction)]

    def place(self, layer: int = -1, direction: int = 0) -> str:
        """Return the end of the names of one direction of one layer, ``"l0_reverse"``."""
        directions = 2 if any(place.endswith("_reverse") for place in self._places) else 1
        layers = len(self._places) // directions
        if not -layers <= layer < layers or not 0 <= direction < directions:
            raise IndexError(
                f"layer {layer}, direction {direction}: the recording has {layers} layers and "
                f"{directions} directions"
            )
        return f"l{layer % layers}{'_reverse' if direction else ''}"

    def places(self) -> Iterator[tuple[str, dict[str, Rows]]]:
        """Return for each direction of each layer the end of its names and :meth:`at` of it."""
        return iter(self._places.items())

    def value(self, name: str, layer: int = -1, direction: int = 0) -> Rows:
        """Return one value of one direction of one layer; see :meth:`at`.

        Raises:
            KeyError: the recording has no such name there.
        """
        return _find(self.at(layer, direction), name, name)

    def __getitem__(self, key: str) -> Rows:
        for place, values in self._places.items():
            if key.endswith(f"_{place}"):
                return _find(values, key.removesuffix(f"_{place}"), key)
        if len(self._places) != 1:
            ends = ", ".join(f"_{place}" for place in self._places)
            raise KeyError(f"{key!r} needs the end of a place: {ends}")
        return _find(next(iter(self._places.values())), key, key)

    def __iter__(self) -> Iterator[str]:
        for place, values in self._places.items():
            yield from (f"{name}_{place}" for name in values)

    def __len__(self) -> int:
        return sum(len(values) for values in self._places.values())


def _find(values: dict[str, Rows], name: str, key: str) -> Rows:
    if name in values:
        return values[name]
    alike = [full for full in values if full.endswith(f".{name}")]
    if len(alike) != 1:
        known = ", ".join(alike or values) or "nothing"
        raise KeyError(f"{key!r} is not one name of the recording, which has {known}")
    return values[alike[0]]


class Recording(Values):
    """What :func:`record` saw: all states and named values of every step.

    Each value is (T, B, ...), or in the layout of the input: batch first, unbatched or packed. Rows past
    the end of a sequence are zero, as in `output`; at steps that gave a name no value it is NaN (0 where
    it holds integers).

    Attributes:
        title: the layer, as it prints itself.
        output: what the layer returned as its output.
        state: what it returned as its final state.
        gradients: the gradient of the loss with respect to each value, with the same names and
            shapes; ``None`` unless asked for. Values that depend on nothing trainable have none.
        state_names: the names of the parts of the state.
        reverse: for each place, whether it reads its input backwards.
    """

    def __init__(
        self,
        places: dict[str, dict[str, Rows]],
        *,
        title: str,
        output: Any,
        state: Any,
        gradients: Values | None,
        state_names: tuple[str, ...],
        reverse: dict[str, bool],
        gates: dict[str, tuple[str, ...]],
        batch_first: bool,
        mask: Rows,
    ) -> None:
        super().__init__(places)
        self.title = title
        self.output = output
        self.state = state
        self.gradients = gradients
        self.state_names = state_names
        self.reverse = reverse
        self._gates = gates
        self._batch_first = batch_first
        self._mask = mask

    @property
    def mask(self) -> Tensor:
        """Which steps belong to a sequence, (T, B) of bool."""
        return self.dense(self._mask)[..., 0] > 0

    def dense(self, rows: Rows) -> Tensor:
        """Return a value as (T, B, ...), whatever the layout of the input was."""
        if isinstance(rows, PackedSequence):
            return pad_packed_sequence(rows)[0]
        is_unbatched = isinstance(self._mask, Tensor) and self._mask.dim() == 2
        if is_unbatched:
            return rows.unsqueeze(1)
        return rows.transpose(0, 1) if self._batch_first else rows

    def reach(self, name: str | None = None, layer: int = -1, direction: int = 0) -> Tensor:
        """Return how far back the gradient reaches: its norm by the distance from the last step.

        Args:
            name: a state or value; the first part of the state unless given.
            layer: as for :meth:`at`.
            direction: as for :meth:`at`; the last step of a direction is the one that it reads last.

        Returns:
            (T, B): in row d the norm of d loss / d value, d steps before the last one of each
            sequence; NaN where a sequence is not that long.

        Raises:
            ValueError: the recording has no gradients.
        """
        if self.gradients is None:
            raise ValueError("reach needs gradients: record(..., gradients=True)")
        place = self.place(layer, direction)
        found = self.dense(self.gradients.value(name or self.state_names[0], layer, direction))
        norms = found.flatten(2).norm(dim=2) if found.dim() > 2 else found.abs()
        mask = self.mask
        lengths = mask.sum(0)
        distance = torch.arange(len(norms), device=norms.device)[:, None]
        step = distance if self.reverse[place] else lengths - 1 - distance
        by_distance = norms.gather(0, step.clamp(min=0).expand(norms.shape))
        return by_distance.masked_fill(distance >= lengths, float("nan"))

    def shown(self, layer: int = -1, direction: int = 0) -> tuple[str, ...]:
        """Return the names that :meth:`plot` shows unless told: gates and states.

        Those are the gates of torch's cells; of other cells all variables of `forward` with one number
        for each unit of the state.
        """
        place = self.place(layer, direction)
        gates = self._gates[place]
        if not gates:
            width = self.dense(self._places[place][self.state_names[0]]).shape[2:]
            gates = tuple(
                name
                for name, rows in self._places[place].items()
                if self.dense(rows).shape[2:] == width
                and not any(mark in name for mark in ".#[")
                and name not in ("input", "output", *self.state_names)
            )
        return tuple(dict.fromkeys((*gates, *self.state_names)))

    def gates(self, layer: int = -1, direction: int = 0) -> tuple[str, ...]:
        """Return the names among :meth:`shown` whose values all lie between 0 and 1."""
        return tuple(
            name
            for name in self.shown(layer, direction)
            if _is_between(self.dense(self.value(name, layer, direction))[self.mask], 0)
        )

    def saturation(
        self, name: str, layer: int = -1, direction: int = 0, margin: float = 0.05
    ) -> Tensor:
        """Return how often each unit of a gate is shut and how often it is wide open.

        Args:
            name: a value between 0 and 1, or between -1 and 1.
            layer: as for :meth:`at`.
            direction: as for :meth:`at`.
            margin: how close to the end of its range counts, as a share of the range.

        Returns:
            (H, 2): for each unit the share of all steps at which it is near the lower end, and near 1.

        Raises:
            ValueError: the value leaves these ranges.
        """
        values = self.dense(self.value(name, layer, direction))[self.mask].flatten(1)  # (N, H)
        low = next((end for end in (0, -1) if _is_between(values, end)), None)
        if low is None:
            raise ValueError(
                f"{name!r} is no gate: it goes from {float(values.min()):.3g} to "
                f"{float(values.max()):.3g}"
            )
        edge = margin * (1 - low)
        ends = (values <= low + edge, values >= 1 - edge)
        return torch.stack([end.float().mean(0) for end in ends], dim=1)

    def plot(
        self,
        *names: str,
        sequence: int = 0,
        layer: int = -1,
        direction: int = 0,
        kind: str = "map",
        path: str | Path | None = None,
    ) -> Figure:
        """Draw values of one sequence over time.

        Args:
            names: what to draw; gates and states unless given.
            sequence: which one of the batch.
            layer: as for :meth:`at`.
            direction: as for :meth:`at`.
            kind: ``"map"`` for units x time in colour, ``"lines"`` for a line for each of up to eight
                units, or the median unit and where 8 of 10 of them lie.
            path: a file to write, ``.png``, ``.svg`` or ``.pdf``.

        Returns:
            The matplotlib figure. Needs matplotlib.

        Raises:
            KeyError: the recording has no such name there.
        """
        from cello.inspect.plots import plot_values

        return plot_values(
            self,
            names,
            sequence=sequence,
            layer=layer,
            direction=direction,
            kind=kind,
            path=path,
        )

    def plot_saturation(
        self, *names: str, layer: int = -1, direction: int = 0, path: str | Path | None = None
    ) -> Figure:
        """Draw how the values of gates are spread, and how often each unit is shut or open.

        The second row follows A. Karpathy et al., "Visualizing and understanding recurrent networks"
        (2016): a point for each unit, with the share of all steps at which it is near the lower end and
        near 1. A unit on the line is always at one end: a switch.

        Args:
            names: what to draw; all gates between 0 and 1 unless given.
            layer: as for :meth:`at`.
            direction: as for :meth:`at`.
            path: a file to write, ``.png``, ``.svg`` or ``.pdf``.

        Returns:
            The matplotlib figure. Needs matplotlib.

        Raises:
            ValueError: a value is no gate, or there is none.
        """
        from cello.inspect.plots import plot_saturation

        return plot_saturation(self, names, layer=layer, direction=direction, path=path)

    def plot_reach(
        self, *names: str, layer: int = -1, direction: int = 0, path: str | Path | None = None
    ) -> Figure:
        """Draw :meth:`reach`: how the norm of the gradient falls with the distance from the last step.

        Args:
            names: what to draw; the parts of the state unless given.
            layer: as for :meth:`at`.
            direction: as for :meth:`at`.
            path: a file to write, ``.png``, ``.svg`` or ``.pdf``.

        Returns:
            The matplotlib figure. Needs matplotlib.

        Raises:
            ValueError: the recording has no gradients.
        """
        from cello.inspect.plots import plot_reach

        return plot_reach(self, names, layer=layer, direction=direction, path=path)

    def __str__(self) -> str:
        places = list(self._places)
        tables = {place: self._table(place) for place in places}
        lines = [self.title]
        for place in places:
            alike = [other for other in places if tables[other] == tables[place]]
            if place == alike[0]:  # layers and directions of the same shapes are told once
                lines += [f"  {', '.join(alike)}", *tables[place]]
        return "\n".join(lines)

    def _table(self, place: str) -> list[str]:
        values = self._places[place]
        width = max(map(len, values), default=0)
        return [
            f"    {name.ljust(width)}  {tuple(_data(rows).shape)}"
            + ("  state" if name in self.state_names else "")
            for name, rows in values.items()
        ]


def record(
    layer: RecurrentLayer,
    input: Tensor | PackedSequence,
    hx: Any = None,
    *,
    lengths: Lengths | None = None,
    gradients: bool = False,
    of: Callable[[Any, Any], Tensor] | None = None,
) -> Recording:
    """Run `layer` in a Python loop and keep every state and every named value of every step.

    The names are those of the local variables in the code of the cell: for ``cello.nn.LSTM`` the gates
    i, f, g and o, for ``GRU`` r, z and n, and for a cell of your own whatever you called things. Where
    a step gives a name several values, the last one has the plain name and those before it are ``i#1``,
    ``i#2``, ...: in an LSTM ``i#1`` is the gate before its sigmoid. The parts of the state have their
    own names and are those *after* the step. Variables in methods of the cell and in its submodules have
    the name of the method or the path of the submodule before them: ``gate.x``. Code that runs below Python
    (a scripted function) shows its states only.

    The layer is left as it was, with its buffers and gradients; dropout draws what a call would draw now
    and does not advance the random generators.

    Args:
        layer: any layer of :mod:`cello.nn`.
        input: an input of the layer.
        hx: an initial state, as for the layer.
        lengths: as for the layer.
        gradients: also take the gradient of a loss with respect to each value.
        of: the loss, a function of what the layer returns, ``(output, state)``, to a scalar. Unless
            given, the sum of the last layer's first state after the last step (`h_n`), in both
            directions.

    Returns:
        A :class:`Recording`.

    Raises:
        TypeError: `layer` is not a layer of Cello.
        ValueError: `of` without `gradients`, or it does not return a scalar that depends on the layer.

    Example:
        >>> import torch, cello
        >>> lstm, x = cello.nn.LSTM(3, 4), torch.randn(7, 2, 3)
        >>> recording = cello.record(lstm, x, gradients=True)
        >>> f, c = recording["f"], recording["c"]
        >>> f.shape
        torch.Size([7, 2, 4])
        >>> i, g = recording["i"], recording["g"]
        >>> torch.allclose(c[1:], f[1:] * c[:-1] + i[1:] * g[1:])
        True
        >>> recording.gradients["c"].shape, recording.reach("c").shape
        (torch.Size([7, 2, 4]), torch.Size([7, 2]))
    """
    if not isinstance(layer, RecurrentLayer):
        raise TypeError(f"layer must be a layer of cello.nn, got {type(layer).__name__}")
    if of is not None and not gradients:
        raise ValueError("of= is the loss whose gradients are taken: it needs gradients=True")
    buffers = {name: buffer.clone() for name, buffer in layer.named_buffers()}
    recorder = _Recorder(gradients)
    with (
        torch.inference_mode(False),
        torch.set_grad_enabled(gradients),
        torch.random.fork_rng(),
    ):
        data = _data(input).detach().clone()
        if gradients and data.is_floating_point():
            data.requires_grad_()  # so that every step has a gradient, also where weights are frozen
        x = input._replace(data=data) if isinstance(input, PackedSequence) else data
        form, _ = layer._form(x, hx, lengths)
        with engine(recorder, segment=0):
            returned = torch.func.functional_call(layer, buffers, (x, hx), {"lengths": lengths})
        slopes = None
        if gradients:
            loss = _last_state(layer, returned[1]) if of is None else of(*returned)
            slopes = _gradients(loss, [watch for _, watch in recorder.places().values()])
    places = recorder.places()
    rows = 0 if form.sequence is None else len(form.sequence.data)
    return Recording(
        _in_form(places, [watch.kept for _, watch in places.values()], form),
        title=f"{type(layer).__name__}({layer.extra_repr()})",
        output=_detached(returned[0]),
        state=_detached(returned[1]),
        gradients=None if slopes is None else Values(_in_form(places, slopes, form)),
        state_names=layer._cells()[0][0].state_names,
        reverse={place: direction.reverse for place, (direction, _) in places.items()},
        gates={
            place: tuple(gate.name for gate in gates_of(direction.cell))
            for place, (direction, _) in places.items()
        },
        batch_first=layer.batch_first,
        mask=form.rows(torch.ones(rows, 1, device=data.device)),
    )


class _Recorder(Engine):
    """The Python loop, over cells that are watched."""

    name = "record"
    is_fused = False

    def __init__(self, gradients: bool) -> None:
        self.gradients = gradients
        self.seen: list[tuple[Scan, list[_Watched]]] = []

    def why_not(self, scan: Scan) -> list[str]:
        return []

    def run(self, scan: Scan) -> tuple[DirectionResult, ...]:
        watched = [_Watched(direction.cell, self.gradients) for direction in scan.directions]
        self.seen.append((scan, watched))
        directions = zip(scan.directions, watched, strict=True)
        return Reference().run(
            scan._replace(directions=tuple(d._replace(cell=watch) for d, watch in directions))
        )

    def places(self) -> Places:
        """The directions of all layers by the end of their names."""
        return {
            f"l{layer}{'_reverse' if number else ''}": pair
            for layer, (scan, watched) in enumerate(self.seen)
            for number, pair in enumerate(zip(scan.directions, watched, strict=True))
        }


class _Watched(Cell):
    """A cell whose steps leave their values behind.

    Attributes:
        kept: for each step, copies of what each name stood for.
        tensors: for each step, the tensors themselves, in the graph of autograd.
    """

    def __init__(self, cell: Cell, gradients: bool) -> None:
        super().__init__()
        code = CellCode(cell)
        kept: Steps = []
        tensors: Steps = []
        self.borrow(cell=cell, code=code, gradients=gradients, kept=kept, tensors=tensors)

    cell: Cell
    code: CellCode
    gradients: bool
    kept: Steps
    tensors: Steps

    @property
    def label(self) -> str:
        return self.cell.label

    @property
    def state_sizes(self) -> Mapping[str, int | tuple[int, ...]]:
        return self.cell.state_sizes

    def forward(self, x: Tensor, state: State) -> tuple[Tensor, State]:
        with engine("reference"), captured(self.code) as found:  # layers that the cell runs itself
            output, new = self.cell(x, state)
        given = (x, *(state or ()), *self.cell.parameters(), *self.cell.buffers())
        own = {"input": x, **dict(zip(self.state_names, new, strict=False))}
        if not new or output is not new[0]:
            own["output"] = output
        values = _named(found, own, given)
        self.kept.append({name: value.copy for name, value in values.items()})
        if self.gradients:
            self.tensors.append({k: v.tensor for k, v in values.items() if v.is_current})
        return output, new


def _named(found: Captured, own: dict[str, Tensor], given: tuple[Tensor, ...]) -> dict[str, Value]:
    """Give each value of a step its name.

    Args:
        found: what the names of the cell's code stood for.
        own: the input, the state after the step and the output, which have names already.
        given: tensors that the step did not compute; they are no values of it.
    """
    rows = len(own["input"])
    left_out = {id(tensor) for tensor in given}
    last: dict[str, Value] = {}
    earlier: dict[str, Value] = {}
    for name, values in found.items():
        versions = [
            value
            for value in values
            if value.tensor.dim() > 0
            and len(value.tensor) == rows
            and id(value.tensor) not in left_out
        ]
        if name not in own and versions:
            last[name] = versions.pop()
        elif versions and versions[-1].tensor is own.get(name):
            versions.pop()
        earlier |= {f"{name}#{k}": value for k, value in enumerate(versions, 1)}
    return {**last, **{name: Value.of(tensor) for name, tensor in own.items()}, **earlier}


def _join(steps: Steps, sequence: Sequence, reverse: bool) -> dict[str, Tensor]:
    """Put the values of all steps together, (N, ...) each, row for row with the input."""
    joined = {}
    for name in dict.fromkeys(name for step in steps for name in step):
        present = [step[name] for step in steps if name in step]
        like = present[0]
        if any(part.shape[1:] != like.shape[1:] or part.dtype != like.dtype for part in present):
            continue  # a value that changes its shape from step to step has no layout
        empty = float("nan") if like.is_floating_point() or like.is_complex() else 0
        rows = torch.cat(
            [
                step[name] if name in step else like.new_full((size, *like.shape[1:]), empty)
                for step, size in zip(steps, sequence.batch_sizes, strict=True)
            ]
        )
        joined[name] = sequence.reverse_rows(rows) if reverse else rows
    return joined


def _in_form(places: Places, steps: list[Steps], form: Form) -> dict[str, dict[str, Rows]]:
    """Bring the values of each place into the caller's form."""
    found: dict[str, dict[str, Rows]] = {}
    for (place, (direction, _)), own in zip(places.items(), steps, strict=True):
        assert form.sequence is not None  # or nothing would have run
        rows = _join(own, form.sequence, direction.reverse)
        found[place] = {name: form.rows(part) for name, part in rows.items()}
    return found


def _last_state(layer: RecurrentLayer, state: Any) -> Tensor:
    """The sum of the last layer's first state after the last step, in both directions."""
    first = layer._structure().flatten(state)[0]
    last = first[-layer.num_directions :] if isinstance(first, Tensor) else first[-1]
    return last.sum()


def _gradients(loss: Any, watched: list[_Watched]) -> list[Steps]:
    """The gradient of `loss` with respect to every value that has one.

    Raises:
        ValueError: `loss` is no scalar, or nothing in the layer has a gradient.
    """
    if not isinstance(loss, Tensor) or loss.numel() != 1 or not loss.requires_grad:
        what = f"a tensor {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss).__name__
        raise ValueError(
            f"the loss must be a scalar tensor that depends on the layer's values, got {what}"
        )
    tensors = [
        tensor
        for watch in watched
        for step in watch.tensors
        for tensor in step.values()
        if tensor.requires_grad
    ]
    found = iter(torch.autograd.grad(loss.sum(), tensors, allow_unused=True))
    return [
        [
            {
                name: _or_zero(next(found), tensor)
                for name, tensor in step.items()
                if tensor.requires_grad
            }
            for step in watch.tensors
        ]
        for watch in watched
    ]


def _or_zero(gradient: Tensor | None, tensor: Tensor) -> Tensor:
    return torch.zeros_like(tensor).detach() if gradient is None else gradient


def _is_between(values: Tensor, low: int) -> bool:
    """Whether all values lie between `low` and 1."""
    return bool(values.is_floating_point() and ((values >= low) & (values <= 1)).all())


def _data(rows: Rows) -> Tensor:
    return rows.data if isinstance(rows, PackedSequence) else rows


def _detached(nested: Any) -> Any:
    """An output or a state without its graph, nested as it was."""
    if isinstance(nested, Tensor):
        return nested.detach()
    if isinstance(nested, PackedSequence):
        return nested._replace(data=nested.data.detach())
    items = [_detached(item) for item in nested]
    return type(nested)(*items) if hasattr(nested, "_fields") else type(nested)(items)
