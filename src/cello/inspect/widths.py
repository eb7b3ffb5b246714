"""How wide the states and outputs of a layer are, in letters and in numbers."""

from __future__ import annotations

from dataclasses import dataclass

from cello.cells import Equations
from cello.foreign.adapt import Adapted
from cello.nn.base import RecurrentLayer
from cello.nn.rnn_base import RNNBase


@dataclass(frozen=True)
class Widths:
    """How wide states and outputs are, in letters and in numbers.

    Attributes:
        letters: the letters that stand for widths.
        names: the parts of the state.
        states: for each layer, for each part of the state, its dimensions in letters.
        outputs: for each layer, the dimensions of one direction's output in letters.
    """

    letters: dict[str, int]
    names: tuple[str, ...]
    states: list[list[tuple[str, ...]]]
    outputs: list[tuple[str, ...]]


def widths_of(layer: RecurrentLayer) -> Widths:
    """Give the widths of a layer's states and outputs their letters."""
    cells = [directions[0] for directions in layer._cells()]
    sizes = [list(cell.state_shapes.values()) for cell in cells]
    names = cells[0].state_names
    letters: dict[str, int] = {}
    proj = isinstance(layer, RNNBase) and bool(layer.proj_size)
    # H is the width of the state: of its last part with a projection, which narrows h alone.
    hidden = [layer_sizes[-1 if proj else 0] for layer_sizes in sizes]
    if all(len(shape) == 1 for shape in hidden):
        same = len(set(hidden)) == 1
        letters |= {"H": hidden[0][0]} if same else {f"H{k}": h[0] for k, h in enumerate(hidden)}
    if isinstance(layer, RNNBase) and layer.proj_size:
        letters["P"] = layer.proj_size

    def written(shape: tuple[int, ...], index: int, projected: bool) -> tuple[str, ...]:
        if projected:
            return ("P",)
        letter = "H" if "H" in letters else f"H{index}"
        if len(shape) == 1 and letters.get(letter) == shape[0]:
            return (letter,)
        return tuple(map(str, shape))

    states = [
        [written(s, k, proj and part == 0) for part, s in enumerate(parts)]
        for k, parts in enumerate(sizes)
    ]
    outputs = []
    for k, cell in enumerate(cells):
        if isinstance(cell, Adapted) and cell.form.returns_output:
            outputs.append(written(cell.form.output_shape, k, False))
        elif isinstance(cell, Adapted) or isinstance(layer, RNNBase):
            outputs.append(states[k][0])
        else:
            form = getattr(layer, "_forms", {}).get(f"l{k}")
            outputs.append(states[k][0] if form is None else written(form.output_shape, k, False))
    if isinstance(cells[0], Equations):
        letters["G"] = len(cells[0].gates)
    return Widths(letters, names, states, outputs)


def merged(layer: RecurrentLayer, width: tuple[str, ...]) -> tuple[str, ...]:
    """The letters of what both directions' outputs become, D*H where they lie side by side."""
    if layer.bidirectional and layer.merge not in ("concat", "none"):
        return width
    return (f"D*{width[0]}", *width[1:])
