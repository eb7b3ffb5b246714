"""The parameters of a layer: their shapes in letters, and their number by part."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

from torch import Tensor, nn

from cello.cells import Cell, Equations
from cello.cells import Weight as Declared
from cello.inspect.shapes import OF_LAYER, Shape
from cello.inspect.widths import Widths, merged
from cello.nn.base import RecurrentLayer
from cello.nn.rnn_base import RNNBase


def weights_of(layer: RecurrentLayer, widths: Widths) -> Iterator[Shape]:
    """Yield every parameter and buffer of a layer, those that a cell declares in letters too."""
    if isinstance(layer, RNNBase):
        declared = layer.equations.weights
        for name in layer._flat_weights_names:
            kind, suffix = _owner(layer, name)
            depth = int(suffix.removeprefix("l").removesuffix("_reverse"))
            before = merged(layer, widths.outputs[depth - 1]) if depth else ("F",)
            yield _weight(name, declared[kind], getattr(layer, name), before[0], depth, widths)
        for name, parameter in layer.named_parameters():
            kind, suffix = _owner(layer, name)
            if kind.startswith("initial_"):
                depth = int(suffix.removeprefix("l").removesuffix("_reverse"))
                part = widths.names.index(kind.removeprefix("initial_"))
                yield Shape(
                    name,
                    widths.states[depth][part],
                    tuple(parameter.shape),
                    "learned initial state",
                )
    for suffix, module in _modules(layer).items():
        known = _declared(layer, suffix)
        depth = int(suffix.removeprefix("l").removesuffix("_reverse"))
        before = merged(layer, widths.outputs[depth - 1]) if depth else ("F",)
        for name, parameter in module.named_parameters():
            full = f"cells.{suffix}.{name}"
            if name in known:
                yield _weight(full, known[name], parameter, before[0], depth, widths)
            else:
                yield Shape(full, (), tuple(parameter.shape))
        for name, buffer in module.named_buffers():
            yield Shape(f"cells.{suffix}.{name}", (), tuple(buffer.shape), "buffer, not trained")
    yield from _others(layer)


def _others(layer: RecurrentLayer) -> Iterator[Shape]:
    """Yield what is of no cell: what a subclass adds, and the buffers of pruned or computed weights."""

    def is_of_a_cell(name: str) -> bool:
        own = _owner(layer, name)[0] if isinstance(layer, RNNBase) else ""
        return bool(own) or name.startswith("cells.")

    for name, parameter in layer.named_parameters():
        if not is_of_a_cell(name):
            yield Shape(name, (), tuple(parameter.shape), OF_LAYER)
    for name, buffer in layer.named_buffers():
        if not name.startswith("cells."):
            yield Shape(name, (), tuple(buffer.shape), "buffer, not trained")


def _weight(
    name: str, declared: Declared, weight: Tensor, before: str, depth: int, widths: Widths
) -> Shape:
    """A weight that a cell declares, in the letters of its layer."""
    hidden = "H" if "H" in widths.letters else f"H{depth}"
    letters = {"F": before, "G": "G", "H": hidden, "P": widths.states[depth][0][0]}
    sizes = ("*".join(letters.get(f, f) for f in size.split("*")) for size in declared.shape)
    return Shape(name, tuple(sizes), tuple(weight.shape))


def counts_of(layer: RecurrentLayer, suffix: str) -> dict[str, int]:
    """Return the number of parameters of one direction of a layer, by part."""
    counts: dict[str, int] = {}

    def count(part: str, parameter: Tensor) -> None:
        counts[part] = counts.get(part, 0) + parameter.numel()

    modules = _modules(layer)
    known = _declared(layer, suffix)
    if suffix in modules:
        for name, parameter in modules[suffix].named_parameters():
            part = name if known else name.partition(".")[0]
            count(known[name].part if name in known else part, parameter)
    elif isinstance(layer, RNNBase):
        for name, parameter in layer.named_parameters():
            kind, own = _owner(layer, name)
            if own == suffix:
                count(known[kind].part if kind in known else "initial states", parameter)
    return counts


def _modules(layer: RecurrentLayer) -> dict[str, nn.Module]:
    """The module of each cell of a layer of foreign cells, by its suffix."""
    cells = getattr(layer, "cells", None)
    return dict(cells.items()) if isinstance(cells, nn.ModuleDict) else {}


def _declared(layer: RecurrentLayer, suffix: str) -> Mapping[str, Declared]:
    """The weights that the cell of a direction declares."""
    depth, _, reverse = suffix.removeprefix("l").partition("_")
    cell: Cell = layer._cells()[int(depth)][1 if reverse else 0]
    return cell.weights if isinstance(cell, Equations) else {}


def _owner(layer: RNNBase, name: str) -> tuple[str, str]:
    """Which weight a parameter belongs to: its kind and its place.

    Parametrizations, pruning and weight norm put ``weight_hh_l0.original0``, ``weight_hh_l0_orig`` and
    ``weight_hh_l0_g`` in the place of ``weight_hh_l0``.
    """
    kinds = (*layer.equations.weights, *(f"initial_{part}" for part in layer.state_names))
    for component in name.split("."):
        for kind in kinds:
            if component.startswith(f"{kind}_l"):
                depth, *rest = component.removeprefix(f"{kind}_l").split("_")
                return kind, f"l{depth}" + ("_reverse" if rest[:1] == ["reverse"] else "")
    return "", ""
