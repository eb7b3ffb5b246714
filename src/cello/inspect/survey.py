"""The shapes of the inputs, weights and outputs of one call of a layer."""

from __future__ import annotations

import re
from collections.abc import Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from cello.cells import Cell, Equations, activation_name
from cello.foreign.adapt import Adapted
from cello.foreign.structure import Structure
from cello.inspect.recording import data_of
from cello.inspect.shapes import Gate, Place, Shape, Shapes
from cello.inspect.weights import counts_of, weights_of
from cello.inspect.widths import Widths, merged, widths_of
from cello.nn.base import RecurrentLayer


@dataclass(frozen=True)
class _Call:
    """One call of a layer: its input, its form, and how the caller indexes a step."""

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
    if lengths is not None and not isinstance(lengths, Tensor):
        lengths = torch.as_tensor(lengths, device="cpu")
    call = _Call(layer, input, lengths)
    widths = widths_of(layer)
    data = data_of(input)
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
        weights=tuple(weights_of(layer, widths)),
        gates=_gates(layer._cells()[0][0]),
        places=tuple(_places(layer, call, widths)),
        names=widths.names,
        merge=layer.merge if layer.bidirectional else "",
        dropout=layer.dropout,
        state=_nesting(layer._structure(), widths.names),
        total=sum(p.numel() for p in parameters),
        frozen=sum(p.numel() for p in parameters if not p.requires_grad),
    )


def _gates(cell: Cell) -> tuple[Gate, ...]:
    """The gates of a cell that says which it has, in the order of their rows."""
    gates = cell.gates if isinstance(cell, Equations) else ()
    ends = ["0", "H", *(f"{k}*H" for k in range(2, len(gates) + 1))]
    return tuple(
        Gate(name, meaning, activation_name(getattr(cell, function)), f"{ends[k]}:{ends[k + 1]}")
        for k, (name, meaning, function) in enumerate(gates)
    )


def _output_shapes(
    layer: RecurrentLayer, call: _Call, widths: Widths, output: Any
) -> Iterator[Shape]:
    width = widths.outputs[-1]
    what = "the last layer at every step"
    if call.lengths is not None:
        what += ", zero past the end of a sequence"
    if call.packed:
        what = f"PackedSequence; {what}"
    if layer.bidirectional and layer.merge == "none":
        for direction, part in zip(("forward", "backward"), output, strict=True):
            shape = tuple(data_of(part).shape)
            yield Shape("output", (*call.leading, *width), shape, f"{direction}: {what}")
        return
    if layer.bidirectional:
        behind = ", :" * (len(width) - 1)  # the other axes of an image
        side = f"[..., :{width[0]}{behind}] forward, [..., {width[0]}:{behind}] backward"
        joined = {"sum": "added", "mean": "averaged", "mul": "multiplied"}
        how = side if layer.merge == "concat" else f"both directions {joined[layer.merge]}"
        what = f"{what}; {how}"
    yield Shape(
        "output", (*call.leading, *merged(layer, width)), tuple(data_of(output).shape), what
    )


def _state_shapes(
    layer: RecurrentLayer, call: _Call, widths: Widths, state: Any
) -> tuple[list[Shape], list[Shape]]:
    """Return the initial and the final state, part by part."""
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
    layer: RecurrentLayer, call: _Call, widths: Widths, states: dict[str, Any]
) -> Iterator[Shape]:
    for key, rows in states.items():
        found = None if key in widths.names else re.fullmatch(r"(.*)_l(\d+)(_reverse)?", key)
        name = key if found is None else found[1]
        part = widths.names.index(name)
        depth = layer.num_layers - 1 if found is None else int(found[2])
        width = widths.states[depth][part]
        if found is None:
            width = (f"D*{width[0]}", *width[1:])
        yield Shape(
            f"states[{key!r}]",
            (*call.leading, *width),
            tuple(data_of(rows).shape),
            f"{name} after every step",
        )


def _places(layer: RecurrentLayer, call: _Call, widths: Widths) -> Iterator[Place]:
    same_widths = all(states == widths.states[0] for states in widths.states)
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
                counts=counts_of(layer, suffix),
            )


def _in_output(
    layer: RecurrentLayer,
    call: _Call,
    widths: Widths,
    cell: Cell,
    depth: int,
    direction: int,
    backward: bool,
) -> str:
    """Where `output` holds the first part of a final state, if it does."""
    is_state = isinstance(cell, Equations) or (
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


def _nesting(structure: Structure, names: tuple[str, ...]) -> str:
    """How the caller nests the state, with a name for each tensor: ``(h_n, c_n)``."""

    def write(part: Structure, left: Iterator[str]) -> str:
        if part.container is None:
            return f"{next(left)}_n"
        inner = ", ".join(write(child, left) for child in part.children)
        name = part.container.__name__ if hasattr(part.container, "_fields") else ""
        return f"{name}({inner}{',' if len(part.children) == 1 and not name else ''})"

    return write(structure, iter(names))
