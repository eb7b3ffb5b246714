"""The values of a recording, and its methods for reading and drawing them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence, pad_packed_sequence

from cello.inspect.plots import MARGIN

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

Rows = Tensor | PackedSequence

_NOTHING = "no sequence has a step, so nothing was recorded"


class Values(Mapping[str, Rows]):
    """Tensors by name and place: ``values["f_l0"]``, ``values["f_l1_reverse"]``.

    With one layer and one direction you may omit the place: ``values["f"]``. You may also omit the path
    of a submodule if no other name has the same ending: ``values["x_l0"]`` for ``gate.x``.
    """

    def __init__(self, places: dict[str, dict[str, Rows]]) -> None:
        self._places = places

    def at(self, layer: int = -1, direction: int = 0) -> dict[str, Rows]:
        """Return all values of one direction of one layer by their plain names.

        Args:
            layer: the number of the layer; negative numbers count from the last.
            direction: 0 is the first direction, 1 the second, which reads backward.

        Raises:
            IndexError: there is no such layer or direction.
        """
        return self._places[self.place(layer, direction)]

    def place(self, layer: int = -1, direction: int = 0) -> str:
        """Return the place of one direction of one layer, such as ``"l0_reverse"``.

        Raises:
            IndexError: there is no such layer or direction.
        """
        if not self._places:
            raise IndexError(f"layer {layer}, direction {direction}: {_NOTHING}")
        directions = 2 if any(place.endswith("_reverse") for place in self._places) else 1
        layers = len(self._places) // directions
        if not -layers <= layer < layers or not 0 <= direction < directions:
            raise IndexError(
                f"layer {layer}, direction {direction}: the recording has {layers} layers and "
                f"{directions} directions"
            )
        return f"l{layer % layers}{'_reverse' if direction else ''}"

    def places(self) -> Iterator[tuple[str, dict[str, Rows]]]:
        """Return the place and the values (:meth:`at`) of each direction of each layer."""
        return iter(self._places.items())

    def value(self, name: str, layer: int = -1, direction: int = 0) -> Rows:
        """Return one value of one direction of one layer; see :meth:`at`.

        Raises:
            KeyError: the recording has no such name there.
            IndexError: there is no such layer or direction.
        """
        return _find(self.at(layer, direction), name, name)

    def __getitem__(self, key: str) -> Rows:
        if not self._places:
            raise KeyError(f"{key!r}: {_NOTHING}")
        for place, values in self._places.items():
            name = key.removesuffix(f"_{place}")
            if name == key or (len(self._places) == 1 and key in values and name not in values):
                continue  # without a place, as is a variable whose own name ends like one
            return _find(values, name, key)
        if len(self._places) != 1:
            ends = ", ".join(f"_{place}" for place in self._places)
            raise KeyError(f"{key!r} must end with a place, one of {ends}")
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
        raise KeyError(f"{key!r} is not a unique name in the recording; available: {known}")
    return values[alike[0]]


class Recording(Values):
    """The result of :func:`record`: all states and named values of every step.

    Each value is (T, B, ...), or has the form of the input: batch first, unbatched or packed. Rows after
    the end of a sequence are zero, as in `output`. At steps that did not assign a name, its value is NaN
    (0 for integers).

    Attributes:
        title: the layer as text.
        output: the output of the layer.
        state: the final state of the layer.
        gradients: the gradient of the loss with respect to each value, with the same names and
            shapes; ``None`` without `gradients`. Values that depend on nothing trainable have none.
        state_names: the names of the parts of the state.
        reverse: for each place, whether it reads its input backward.
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
        """Whether each step belongs to a sequence, (T, B) of bool."""
        return self.dense(self._mask)[..., 0] > 0

    def dense(self, rows: Rows) -> Tensor:
        """Return a value as (T, B, ...), for every form of the input."""
        if isinstance(rows, PackedSequence):
            return pad_packed_sequence(rows)[0]
        is_unbatched = isinstance(self._mask, Tensor) and self._mask.dim() == 2
        if is_unbatched:
            return rows.unsqueeze(1)
        return rows.transpose(0, 1) if self._batch_first else rows

    def reach(self, name: str | None = None, layer: int = -1, direction: int = 0) -> Tensor:
        """Return how far back the gradient reaches: its norm by the distance from the last step.

        Args:
            name: a state or value; by default the first part of the state.
            layer: as for :meth:`at`.
            direction: as for :meth:`at`; the last step of a direction is the step that it reads last.

        Returns:
            (T, B): in row d the norm of d loss / d value, d steps before the last one of each
            sequence; NaN if a sequence is shorter.

        Raises:
            ValueError: the recording has no gradients.
            KeyError: the recording has no gradient of such a name there.
            IndexError: there is no such layer or direction.
        """
        if self.gradients is None:
            raise ValueError("reach needs a recording with gradients: record(..., gradients=True)")
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
        """Return the names that :meth:`plot` shows by default: gates and states.

        For other cells than torch's, the gates are all variables of `forward` with one element for each
        unit of the state.
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
            if _is_between(self._assigned(name, layer, direction), 0)
        )

    def saturation(
        self, name: str, layer: int = -1, direction: int = 0, margin: float = MARGIN
    ) -> Tensor:
        """Return how often each unit of a gate is closed and how often it is open.

        Args:
            name: a value between 0 and 1, or between -1 and 1. Steps that did not assign it do not count.
            layer: as for :meth:`at`.
            direction: as for :meth:`at`.
            margin: the distance from an end of the range that counts as near, as a fraction of the range.

        Returns:
            (H, 2): for each unit the fraction of all steps at which it is near the lower end, and near 1.

        Raises:
            ValueError: the value is not within these ranges.
            KeyError: the recording has no such name there.
            IndexError: there is no such layer or direction.
        """
        values = self._assigned(name, layer, direction)
        if not values.is_floating_point():
            raise ValueError(
                f"{name!r} is not a gate: expected floating-point numbers, got {values.dtype}"
            )
        low = next((end for end in (0, -1) if _is_between(values, end)), None)
        if low is None:
            raise ValueError(
                f"{name!r} is not a gate: expected values from 0 or -1 to 1, got "
                f"{float(values.min()):.3g} to {float(values.max()):.3g}"
            )
        edge = margin * (1 - low)
        ends = (values <= low + edge, values >= 1 - edge)
        return torch.stack([end.float().mean(0) for end in ends], dim=1)

    def _assigned(self, name: str, layer: int, direction: int) -> Tensor:
        """Return a value at the steps that have assigned it, (N, H)."""
        values = self.dense(self.value(name, layer, direction))[self.mask]
        values = values.reshape(len(values), math.prod(values.shape[1:]))
        return values[~values.isnan().all(1)]

    def plot(
        self,
        *names: str,
        sequence: int = 0,
        layer: int = -1,
        direction: int = 0,
        kind: str = "map",
        ax: Axes | Iterable[Axes] | None = None,
        label: str | None = None,
        path: str | Path | None = None,
    ) -> Figure:
        """Draw values of one sequence over time.

        Several recordings share a picture by `ax`: ``a.plot("f", kind="lines", ax=ax, label="a")``, and
        the same with ``b``.

        Args:
            names: the values to draw; by default gates and states.
            sequence: the number of the sequence in the batch.
            layer: as for :meth:`at`.
            direction: as for :meth:`at`.
            kind: ``"map"`` for units x time in colour; ``"lines"`` for one line per unit if there are up
                to eight units, otherwise the median and the range of 8 of 10 units.
            ax: matplotlib axes to draw into, one for each name; a new figure unless given. Several
                recordings share axes as lines, a map needs axes of its own.
            label: what the legend or the title calls this recording, for several in one picture.
            path: a file to write, ``.png``, ``.svg`` or ``.pdf``.

        Returns:
            The matplotlib figure. Needs matplotlib.

        Raises:
            KeyError: the recording has no such name there.
            IndexError: there is no such sequence, layer or direction.
            ValueError: `kind` is another one, the sequence has no steps, or `ax` has another number of
                axes, or for a map axes with an image.
            ModuleNotFoundError: matplotlib is not there.
        """
        from cello.inspect.plots import plot_values

        return plot_values(
            self,
            names,
            sequence=sequence,
            layer=layer,
            direction=direction,
            kind=kind,
            ax=ax,
            label=label,
            path=path,
        )

    def plot_saturation(
        self,
        *names: str,
        layer: int = -1,
        direction: int = 0,
        ax: Axes | Iterable[Axes] | None = None,
        label: str | None = None,
        path: str | Path | None = None,
    ) -> Figure:
        """Draw the distribution of the values of gates, and how often each unit is closed or open.

        The second row follows A. Karpathy et al., "Visualizing and understanding recurrent networks"
        (2016): a point for each unit, with the fraction of all steps at which it is near the lower end and
        near 1. A unit on the line is always near one end, like a switch.

        Args:
            names: the values to draw; by default all gates between 0 and 1.
            layer: as for :meth:`at`.
            direction: as for :meth:`at`.
            ax: matplotlib axes to draw into, those of the first row and then those of the second, one
                for each name in each; a new figure unless given.
            label: what the legend or the title calls this recording, for several in one picture.
            path: a file to write, ``.png``, ``.svg`` or ``.pdf``.

        Returns:
            The matplotlib figure. Needs matplotlib.

        Raises:
            ValueError: a value is not a gate or no step has assigned it, there is no gate, or `ax` has
                another number of axes.
            KeyError: the recording has no such name there.
            IndexError: there is no such layer or direction.
            ModuleNotFoundError: matplotlib is not there.
        """
        from cello.inspect.plots import plot_saturation

        return plot_saturation(
            self, names, layer=layer, direction=direction, ax=ax, label=label, path=path
        )

    def plot_reach(
        self,
        *names: str,
        layer: int = -1,
        direction: int = 0,
        ax: Axes | None = None,
        label: str | None = None,
        path: str | Path | None = None,
    ) -> Figure:
        """Draw :meth:`reach`: how the norm of the gradient falls with the distance from the last step.

        Args:
            names: the values to draw; by default the parts of the state that have a gradient.
            layer: as for :meth:`at`.
            direction: as for :meth:`at`.
            ax: matplotlib axes to draw into, one; a new figure unless given.
            label: what the legend or the title calls this recording, for several in one picture.
            path: a file to write, ``.png``, ``.svg`` or ``.pdf``.

        Returns:
            The matplotlib figure. Needs matplotlib.

        Raises:
            ValueError: the recording has no gradients or no sequences, or `ax` has more axes than one.
            KeyError: the recording has no gradient of such a name there.
            IndexError: there is no such layer or direction.
            ModuleNotFoundError: matplotlib is not there.
        """
        from cello.inspect.plots import plot_reach

        return plot_reach(
            self, names, layer=layer, direction=direction, ax=ax, label=label, path=path
        )

    def __str__(self) -> str:
        places = list(self._places)
        tables = {place: self._table(place) for place in places}
        lines = [self.title]
        for place in places:
            alike = [other for other in places if tables[other] == tables[place]]
            if place == alike[0]:  # print layers and directions with the same shapes once
                lines += [f"  {', '.join(alike)}", *tables[place]]
        return "\n".join(lines)

    def _table(self, place: str) -> list[str]:
        values = self._places[place]
        width = max(map(len, values), default=0)
        return [
            f"    {name.ljust(width)}  {tuple(data_of(rows).shape)}"
            + ("  state" if name in self.state_names else "")
            for name, rows in values.items()
        ]


class Recordings(Sequence[Recording]):
    """The recordings of the calls of a layer inside ``with cello.record(layer)``, in their order.

    Attributes:
        title: the layer as text.
    """

    def __init__(self, title: str) -> None:
        self.title = title
        self._recordings: list[Recording] = []

    @overload
    def __getitem__(self, index: int) -> Recording: ...
    @overload
    def __getitem__(self, index: slice) -> list[Recording]: ...
    def __getitem__(self, index: int | slice) -> Recording | list[Recording]:
        count = len(self)
        if isinstance(index, int) and not -count <= index < count:
            calls = "was called once" if count == 1 else f"was called {count} times"
            raise IndexError(f"recording {index}: {self.title} {calls} in the with statement")
        return self._recordings[index]

    def __len__(self) -> int:
        return len(self._recordings)

    def __str__(self) -> str:
        return (
            "\n".join(f"call {i}: {one}" for i, one in enumerate(self)) or f"{self.title}: no calls"
        )


def _is_between(values: Tensor, low: int) -> bool:
    """Whether all values lie between `low` and 1."""
    return bool(values.is_floating_point() and ((values >= low) & (values <= 1)).all())


def data_of(rows: Rows) -> Tensor:
    """Return the tensor of a value in any layout."""
    return rows.data if isinstance(rows, PackedSequence) else rows
