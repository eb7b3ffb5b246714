"""The parameters of a layer: their shapes in letters, and their number by part."""

from __future__ import annotations

from collections.abc import Iterator

from torch import Tensor, nn

from cello.cells import GRU, LSTM, RNN, Cell
from cello.inspect.shapes import Shape
from cello.inspect.widths import Widths, merged
from cello.nn.base import RecurrentLayer
from cello.nn.rnn import RNNBase

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


def weights_of(layer: RecurrentLayer, widths: Widths) -> Iterator[Shape]:
    """Yield every parameter and buffer of a layer, those of torch's cells in letters too."""
    if isinstance(layer, RNNBase):
        for name in layer._flat_weights_names:
            kind, suffix = _owner(name)
            depth = int(suffix.removeprefix("l").removesuffix("_reverse"))
            before = merged(layer, widths.outputs[depth - 1]) if depth else ("F",)
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
        before = merged(layer, widths.outputs[depth - 1]) if depth else ("F",)
        for name, parameter in module.named_parameters():
            full = f"cells.{suffix}.{name}"
            if is_known and name in PARTS:
                yield _weight(full, name, parameter, before[0], depth, widths)
            else:
                yield Shape(full, (), tuple(parameter.shape))
        for name, buffer in module.named_buffers():
            yield Shape(f"cells.{suffix}.{name}", (), tuple(buffer.shape), "buffer, not trained")


def _weight(name: str, kind: str, weight: Tensor, before: str, depth: int, widths: Widths) -> Shape:
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


def counts_of(layer: RecurrentLayer, suffix: str) -> dict[str, int]:
    """Return the number of parameters of one direction of a layer, by part."""
    counts: dict[str, int] = {}
    modules = _modules(layer)
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


def _modules(layer: RecurrentLayer) -> dict[str, nn.Module]:
    """The module of each cell of a layer of foreign cells, by its suffix."""
    cells = getattr(layer, "cells", None)
    return dict(cells.items()) if isinstance(cells, nn.ModuleDict) else {}


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
