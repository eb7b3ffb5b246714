"""What goes into a recurrent layer, what it holds and what comes out: shapes in letters and in numbers."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from math import prod
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn.utils.rnn import PackedSequence

from cello.cells import GRU, LSTM, RNN, Cell, activation_name
from cello.cells.adapt import Adapted
from cello.cells.structure import Structure
from cello.nn.base import RecurrentLayer
from cello.nn.rnn import RNNBase

WORDS = {
    "T": "time",
    "B": "batch",
    "N": "steps of all sequences",
    "F": "features",
    "H": "hidden",
    "O": "output",
    "P": "projection",
    "G": "gates",
    "L": "layers",
    "D": "directions",
}
"""What the letters mean; H0, H1, ... are the H of each layer where they differ."""

PARTS = {
    "weight_ih": "input weights",
    "weight_hh": "recurrent weights",
    "bias_ih": "biases",
    "bias_hh": "biases",
    "weight_hr": "projection",
    "initial_h": "initial states",
    "initial_c": "initial states",
}
"""Which part of the parameters each kind of weight belongs to."""


@dataclass(frozen=True)
class Shape:
    """One tensor.

    Attributes:
        name: what the caller calls it.
        letters: each dimension in letters, ``("G*H", "F")``; empty where no letter is known.
        numbers: each dimension as a number, ``(16, 28)``.
        meaning: what it is, in words.
    """

    name: str
    letters: tuple[str, ...]
    numbers: tuple[int, ...]
    meaning: str = ""

    @property
    def text(self) -> str:
        """``"(G*H, F) = (16, 28)"``, or the numbers alone."""
        numbers = _tuple(self.numbers)
        return f"{_tuple(self.letters)} = {numbers}" if self.letters else numbers


@dataclass(frozen=True)
class Gate:
    """One block of H rows in each weight of a cell.

    Attributes:
        name: its usual letter.
        meaning: its name in words.
        function: the function that makes it.
        rows: its rows in `weight_ih`, `weight_hh` and the biases, in letters: ``"H:2*H"``.
    """

    name: str
    meaning: str
    function: str
    rows: str


@dataclass(frozen=True)
class Place:
    """One direction of one layer.

    Attributes:
        layer: its number, from 0.
        direction: 0 reads forward, 1 backward.
        cell: the name of its cell.
        suffix: the end of its parameters' names, ``"l0_reverse"``.
        index: where its final state lies, ``"[1]"``.
        after: the step after which it has this final state, in words.
        output: the same numbers in `output`, ``"output[-1, :, :H]"``; empty where they are not there.
        counts: the number of its parameters by part.
    """

    layer: int
    direction: int
    cell: str
    suffix: str
    index: str
    after: str
    output: str
    counts: dict[str, int]

    @property
    def reading(self) -> str:
        """Which way it reads."""
        return "backward" if self.direction else "forward"


@dataclass(frozen=True)
class Shapes:
    """Shapes, gates and numbers of parameters of a layer; ``str`` makes a table of them.

    Attributes:
        letters: what each letter is, ``{"T": 3, "B": 10, ...}``.
        inputs: the input and the initial state.
        outputs: the output, the final state and, if asked for, the states of all steps.
        weights: parameters and buffers.
        gates: the blocks of rows of each weight, in order; empty where the cell has no known ones.
        places: layers x directions, in the order of the final states.
        names: the parts of the state, in order.
        state: how the final state nests, ``"(h_n, c_n)"``.
        merge: how the outputs of both directions become one; empty where there is one direction.
        dropout: the probability of zeroing an element between two layers in training.
        total: the number of parameters.
        frozen: how many of them are not trained.
    """

    letters: dict[str, int]
    inputs: tuple[Shape, ...]
    outputs: tuple[Shape, ...]
    weights: tuple[Shape, ...]
    gates: tuple[Gate, ...]
    places: tuple[Place, ...]
    names: tuple[str, ...]
    state: str
    merge: str
    dropout: float
    total: int
    frozen: int = 0

    @property
    def legend(self) -> str:
        """What each letter means and is."""
        return ", ".join(f"{k}={v} {WORDS.get(k, WORDS[k[0]])}" for k, v in self.letters.items())

    def __str__(self) -> str:
        lines = [f"  {self.legend}"]
        for title, shapes in (
            ("takes", self.inputs),
            ("returns", self.outputs),
            ("weights", self.weights),
        ):
            if shapes:
                lines += ["", f"  {title}", *_columns([_cells_of(shape) for shape in shapes])]
            if title == "returns":
                lines += ["", f"  rows of the final state {self.state}", *self._places()]
        if self.gates:
            rows = [(g.name, g.meaning, g.function, f"rows {self._rows(g)}") for g in self.gates]
            lines += ["", "  gates, in the order of the rows of each weight and bias"]
            lines += _columns(rows)
        lines += ["", "  parameters", *self._counts()]
        return "\n".join(lines)

    def _rows(self, gate: Gate) -> str:
        known = {letter: value for letter, value in self.letters.items() if letter == "H"}
        return gate.rows if not known else f"{gate.rows} = {_numbers(gate.rows, known)}"

    def _places(self) -> list[str]:
        rows = [
            (p.index, f"layer {p.layer} {p.reading}", p.after, p.output and f"= {p.output}")
            for p in self.places
        ]
        return _columns(rows)

    def _counts(self) -> list[str]:
        parts = list(dict.fromkeys(part for place in self.places for part in place.counts))
        rows = [
            (
                f"layer {p.layer} {p.reading}",
                *(f"{p.counts.get(part, 0):,}" for part in parts),
                f"{sum(p.counts.values()):,}",
            )
            for p in self.places
        ]
        sums = [f"{sum(p.counts.get(part, 0) for p in self.places):,}" for part in parts]
        if len(rows) > 1:
            rows.append(("all", *sums, f"{self.total:,}"))
        table = _columns([("", *parts, "total"), *rows], right=True)
        return [*table, f"    {self.frozen:,} of them are frozen"] if self.frozen else table


def _cells_of(shape: Shape) -> tuple[str, str, str]:
    numbers = _tuple(shape.numbers)
    return (
        shape.name,
        f"{_tuple(shape.letters)} = {numbers}" if shape.letters else numbers,
        (shape.meaning),
    )


def _tuple(items: tuple[Any, ...]) -> str:
    return f"({', '.join(map(str, items))}{',' if len(items) == 1 else ''})"


def _numbers(rows: str, letters: dict[str, int]) -> str:
    """``"H:2*H"`` with H = 4 as ``"4:8"``."""
    return ":".join(
        str(prod(letters.get(factor) or int(factor) for factor in end.split("*")))
        for end in rows.split(":")
    )


def _columns(rows: Sequence[tuple[str, ...]], right: bool = False) -> list[str]:
    """Lay text out in columns; numbers to the right of theirs."""
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [
        [
            cell.rjust(width) if right and k else cell.ljust(width)
            for k, (cell, width) in enumerate(zip(row, widths, strict=True))
        ]
        for row in rows
    ]
    return [f"    {'  '.join(row)}".rstrip() for row in aligned]


@dataclass(frozen=True)
class _Call:
    """The form of the caller's batch: how a step of a sequence is written."""

    layer: RecurrentLayer
    input: Tensor | PackedSequence
    lengths: Tensor | None

    @property
    def packed(self) -> bool:
        return isinstance(self.input, PackedSequence)

    @property
    def batched(self) -> bool:
        return self.packed or self.input.dim() > 2  # type: ignore[union-attr]

    @property
    def leading(self) -> tuple[str, ...]:
        """The dimensions in front of the features, in letters."""
        if self.packed:
            return ("N",)
        if not self.batched:
            return ("T",)
        return ("B", "T") if self.layer.batch_first else ("T", "B")

    @property
    def batch(self) -> tuple[str, ...]:
        return ("B",) if self.batched else ()

    @property
    def letters(self) -> dict[str, int]:
        if isinstance(self.input, PackedSequence):
            sizes = self.input.batch_sizes
            return {"T": len(sizes), "B": int(sizes[0]), "N": len(self.input.data)}
        sizes_of = dict(zip(self.leading, self.input.shape, strict=False))
        return {letter: sizes_of[letter] for letter in "TB" if letter in sizes_of}

    def step(self, first: bool, columns: str) -> str:
        """Write what `output` holds at each sequence's first or last step."""
        if self.packed or (self.lengths is not None and not bool((self.lengths > 0).all())):
            return ""  # a sequence without a step keeps its initial state, which is in no output
        if self.lengths is not None and not first:
            # Advanced indices side by side: one step of each sequence.
            rows, steps = "range(B)", "[n - 1 for n in lengths]"
            places = f"{rows}, {steps}" if self.layer.batch_first else f"{steps}, {rows}"
        else:
            step = "0" if first else "-1"
            order = {"T": step, "B": ":"}
            places = ", ".join(order[letter] for letter in self.leading)
        return f"output[{places}{columns}]"


def shapes_of(
    layer: RecurrentLayer,
    input: Tensor | PackedSequence,
    lengths: Any,
    returned: tuple[Any, ...],
) -> Shapes:
    """Write down the shapes of a layer and of one call of it.

    Args:
        layer: a layer that knows its cells.
        input: what it was given.
        lengths: the lengths it was given, or ``None``.
        returned: what it returned.
    """
    call = _Call(layer, input, None if lengths is None else torch.as_tensor(lengths))
    widths = _widths(layer)
    data = input.data if isinstance(input, PackedSequence) else input
    features = tuple(data.shape[len(call.leading) :])
    letters = call.letters
    if len(features) == 1:
        letters["F"] = features[0]
    letters |= widths.letters | {"L": layer.num_layers, "D": layer.num_directions}
    in_features = ("F",) if len(features) == 1 else tuple(map(str, features))
    form = "PackedSequence; .data holds the steps of all sequences" if call.packed else ""
    inputs = [Shape("input", (*call.leading, *in_features), tuple(data.shape), form)]
    if lengths is not None:
        inputs.append(Shape("lengths", ("B",), (letters["B"],), "steps that count, 0 to T"))
    initial, final = _state_shapes(layer, call, widths, returned[1])
    outputs = [*_output_shapes(layer, call, widths, returned[0]), *final]
    if len(returned) == 3:
        outputs += _history_shapes(layer, call, widths, returned[2])
    parameters = list(layer.parameters())
    return Shapes(
        letters=letters,
        inputs=(*inputs, *initial),
        outputs=tuple(outputs),
        weights=tuple(_weights(layer, widths)),
        gates=gates_of(layer._cells()[0][0]),
        places=tuple(_places(layer, call, widths)),
        names=widths.names,
        merge=layer.merge if layer.bidirectional else "",
        dropout=layer.dropout,
        state=_nesting(layer._structure(), widths.names),
        total=sum(p.numel() for p in parameters),
        frozen=sum(p.numel() for p in parameters if not p.requires_grad),
    )


@dataclass(frozen=True)
class _Widths:
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


def _widths(layer: RecurrentLayer) -> _Widths:
    cells = [directions[0] for directions in layer._cells()]
    sizes = [[_shape(size) for size in cell.state_sizes.values()] for cell in cells]
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
    if isinstance(cells[0], LSTM | GRU | RNN):
        letters["G"] = len(GATES[type(cells[0])])
    return _Widths(letters, names, states, outputs)


def _shape(size: Any) -> tuple[int, ...]:
    return tuple(size) if isinstance(size, tuple) else (int(size),)


def _merged(layer: RecurrentLayer, width: tuple[str, ...]) -> tuple[str, ...]:
    """The letters of what both directions' outputs become, D*H where they lie side by side."""
    if layer.bidirectional and layer.merge not in ("concat", "none"):
        return width
    return (f"D*{width[0]}", *width[1:])


def _output_shapes(
    layer: RecurrentLayer, call: _Call, widths: _Widths, output: Any
) -> Iterator[Shape]:
    width = widths.outputs[-1]
    what = "the last layer at every step"
    if call.lengths is not None:
        what += ", zero past the end of a sequence"
    if call.packed:
        what = f"PackedSequence; {what}"
    if layer.bidirectional and layer.merge == "none":
        for direction, part in zip(("forward", "backward"), output, strict=True):
            shape = tuple(_data(part).shape)
            yield Shape("output", (*call.leading, *width), shape, f"{direction}: {what}")
        return
    if layer.bidirectional:
        side = f"[..., :{width[0]}] forward, [..., {width[0]}:] backward"
        joined = {"sum": "added", "mean": "averaged", "mul": "multiplied"}
        how = side if layer.merge == "concat" else f"both directions {joined[layer.merge]}"
        what = f"{what}; {how}"
    yield Shape("output", (*call.leading, *_merged(layer, width)), tuple(_data(output).shape), what)


def _data(rows: Tensor | PackedSequence) -> Tensor:
    return rows.data if isinstance(rows, PackedSequence) else rows


def _state_shapes(
    layer: RecurrentLayer, call: _Call, widths: _Widths, state: Any
) -> tuple[list[Shape], list[Shape]]:
    """The initial and the final state, part by part."""
    initial, final = [], []
    for part, (name, leaf) in enumerate(
        zip(widths.names, layer._structure().flatten(state), strict=True)
    ):
        learned = getattr(layer, "learn_initial_state", False)
        start = f"parameters initial_{name}_l*" if learned else "zeros"
        if any(_makes_initial_state(cell) for directions in layer._cells() for cell in directions):
            start = "what the cell makes"
        before = f"{name} before the first step; {start} unless hx is given"
        after = f"{name} of every layer and direction after its last step"
        if isinstance(leaf, Tensor):
            entries = ("", ("L*D", *call.batch, *widths.states[0][part]), leaf)
            tensors: list[tuple[str, tuple[str, ...], Tensor]] = [entries]
        else:  # the layers differ in width: a list, one tensor for each
            tensors = [
                (f"[{k}]", ("D", *call.batch, *widths.states[k][part]), tensor)
                for k, tensor in enumerate(leaf)
            ]
        for index, letters, tensor in tensors:
            shape = tuple(tensor.shape)
            initial.append(Shape(f"{name}_0{index}", letters, shape, before))
            final.append(Shape(f"{name}_n{index}", letters, shape, after))
    return initial, final


def _makes_initial_state(cell: Cell) -> bool:
    if isinstance(cell, Adapted):
        return cell.form.makes_initial_state
    return type(cell).initial_state is not Cell.initial_state


def _history_shapes(
    layer: RecurrentLayer, call: _Call, widths: _Widths, states: dict[str, Any]
) -> Iterator[Shape]:
    for key, rows in states.items():
        name, _, place = key.rpartition("_l") if "_l" in key else (key, "", "")
        part = widths.names.index(name)
        depth = int(place.removesuffix("_reverse")) if place else layer.num_layers - 1
        width = widths.states[depth][part]
        if not place:
            width = (f"D*{width[0]}", *width[1:])
        yield Shape(
            f"states[{key!r}]",
            (*call.leading, *width),
            tuple(_data(rows).shape),
            f"{name} after every step",
        )


def _places(layer: RecurrentLayer, call: _Call, widths: _Widths) -> Iterator[Place]:
    same_widths = all(states == widths.states[0] for states in widths.states)
    modules = _modules(layer)
    for depth, directions in enumerate(layer._cells()):
        for direction, cell in enumerate(directions):
            suffix = f"l{depth}{'_reverse' if direction else ''}"
            backward = bool(direction) or layer.reverse
            own = call.packed or call.lengths is not None
            last = "the sequence's own last step" if own else "step T-1"
            index = layer.num_directions * depth + direction
            yield Place(
                layer=depth,
                direction=int(backward),
                cell=cell.label,
                suffix=suffix,
                index=f"[{index}]" if same_widths else f"[{depth}][{direction}]",
                after=f"after {'step 0' if backward else last}",
                output=_in_output(layer, call, widths, cell, depth, direction, backward),
                counts=_counts(layer, modules, suffix),
            )


def _in_output(
    layer: RecurrentLayer,
    call: _Call,
    widths: _Widths,
    cell: Cell,
    depth: int,
    direction: int,
    backward: bool,
) -> str:
    """Where `output` holds the first part of a final state, if it does."""
    is_state = isinstance(cell, LSTM | GRU | RNN) or (
        isinstance(cell, Adapted) and not cell.form.returns_output
    )
    plain = len(widths.outputs[-1]) == 1
    if depth < layer.num_layers - 1 or not is_state or not plain or call.packed:
        return ""
    if not layer.bidirectional:
        return call.step(backward, "")
    if layer.merge == "none":
        return call.step(backward, "").replace("output[", f"output[{direction}][")
    if layer.merge != "concat":
        return ""
    width = widths.outputs[-1][0]
    columns = f", {width}:" if direction else f", :{width}"
    return call.step(backward, columns)


def _modules(layer: RecurrentLayer) -> dict[str, nn.Module]:
    """The module of each cell of a layer of foreign cells, by its suffix."""
    cells = getattr(layer, "cells", None)
    return dict(cells.items()) if isinstance(cells, nn.ModuleDict) else {}


def _counts(layer: RecurrentLayer, modules: dict[str, nn.Module], suffix: str) -> dict[str, int]:
    """The number of parameters of one direction of a layer, by part."""
    counts: dict[str, int] = {}
    if suffix in modules:
        named = modules[suffix].named_parameters()
        known = isinstance(_kind(layer, suffix), LSTM | GRU | RNN)
        for name, parameter in named:
            part = PARTS.get(name, name) if known else name.partition(".")[0]
            counts[part] = counts.get(part, 0) + parameter.numel()
        return counts
    for name, parameter in layer.named_parameters():
        kind, own = _owner(name)
        if own == suffix:
            counts[PARTS[kind]] = counts.get(PARTS[kind], 0) + parameter.numel()
    return counts


def _kind(layer: RecurrentLayer, suffix: str) -> Cell:
    depth, _, reverse = suffix.removeprefix("l").partition("_")
    return layer._cells()[int(depth)][1 if reverse else 0]


def _owner(name: str) -> tuple[str, str]:
    """Which weight a parameter belongs to: its kind and its place.

    Parametrizations, pruning and weight norm put ``weight_hh_l0.original0``, ``weight_hh_l0_orig`` and
    ``weight_hh_l0_g`` in the place of ``weight_hh_l0``.
    """
    for component in name.split("."):
        for kind in PARTS:
            if component.startswith(f"{kind}_l"):
                layer, *rest = component.removeprefix(f"{kind}_l").split("_")
                return kind, f"l{layer}" + ("_reverse" if rest[:1] == ["reverse"] else "")
    return "", ""


def _weights(layer: RecurrentLayer, widths: _Widths) -> Iterator[Shape]:
    if isinstance(layer, RNNBase):
        for name in layer._flat_weights_names:
            kind, suffix = _owner(name)
            depth = int(suffix.removeprefix("l").removesuffix("_reverse"))
            before = _merged(layer, widths.outputs[depth - 1]) if depth else ("F",)
            yield _weight(name, kind, getattr(layer, name), before[0], depth, widths)
        for name, parameter in layer.named_parameters():
            if name.startswith("initial_"):
                kind, suffix = _owner(name)
                depth = int(suffix.removeprefix("l").removesuffix("_reverse"))
                part = widths.names.index(kind.removeprefix("initial_"))
                yield Shape(
                    name,
                    widths.states[depth][part],
                    tuple(parameter.shape),
                    "learned initial state",
                )
        return
    for suffix, module in _modules(layer).items():
        is_known = isinstance(_kind(layer, suffix), LSTM | GRU | RNN)
        depth = int(suffix.removeprefix("l").removesuffix("_reverse"))
        before = _merged(layer, widths.outputs[depth - 1]) if depth else ("F",)
        for name, parameter in module.named_parameters():
            full = f"cells.{suffix}.{name}"
            if is_known and name in PARTS:
                yield _weight(full, name, parameter, before[0], depth, widths)
            else:
                yield Shape(full, (), tuple(parameter.shape))
        for name, buffer in module.named_buffers():
            yield Shape(f"cells.{suffix}.{name}", (), tuple(buffer.shape), "buffer, not trained")


def _weight(
    name: str, kind: str, weight: Tensor, before: str, depth: int, widths: _Widths
) -> Shape:
    """A weight of torch's cells, in letters."""
    hidden = "H" if "H" in widths.letters else f"H{depth}"
    out = widths.states[depth][0][0]
    rows = f"G*{hidden}"
    letters = {
        "weight_ih": (rows, before),
        "weight_hh": (rows, out),
        "bias_ih": (rows,),
        "bias_hh": (rows,),
        "weight_hr": (out, hidden),
    }
    return Shape(name, letters[kind], tuple(weight.shape))


GATES: dict[type[Cell], tuple[tuple[str, str, str], ...]] = {
    LSTM: (
        ("i", "input gate", "gate_activation"),
        ("f", "forget gate", "gate_activation"),
        ("g", "candidate", "activation"),
        ("o", "output gate", "gate_activation"),
    ),
    GRU: (
        ("r", "reset gate", "gate_activation"),
        ("z", "update gate", "gate_activation"),
        ("n", "candidate", "activation"),
    ),
    RNN: (("h", "new state", "activation"),),
}
"""The blocks of rows of torch's cells: name, meaning, and which of the cell's functions makes it."""


def gates_of(cell: Cell) -> tuple[Gate, ...]:
    """Return the gates of one of torch's cells in the order of their rows; of other cells none."""
    gates = GATES.get(type(cell), ())
    ends = ["0", "H", *(f"{k}*H" for k in range(2, len(gates) + 1))]
    return tuple(
        Gate(name, meaning, activation_name(getattr(cell, function)), f"{ends[k]}:{ends[k + 1]}")
        for k, (name, meaning, function) in enumerate(gates)
    )


def _nesting(structure: Structure, names: tuple[str, ...]) -> str:
    """How the caller nests the state, with a name for each tensor: ``(h_n, c_n)``."""

    def write(part: Structure, left: Iterator[str]) -> str:
        if part.container is None:
            return f"{next(left)}_n"
        inner = ", ".join(write(child, left) for child in part.children)
        name = part.container.__name__ if hasattr(part.container, "_fields") else ""
        return f"{name}({inner}{',' if len(part.children) == 1 and not name else ''})"

    return write(structure, iter(names))
