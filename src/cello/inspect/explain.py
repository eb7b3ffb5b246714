"""Explain a layer: its shapes, which engine runs it, and why not another one."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import torch
from torch.nn.utils.rnn import PackedSequence

from cello.engines import Choice, Scan, engine, observe
from cello.foreign.undo import Undo
from cello.inspect.recording import data_of
from cello.inspect.shapes import Shapes
from cello.inspect.survey import shapes_of
from cello.nn.base import RecurrentLayer

if TYPE_CHECKING:
    from matplotlib.figure import Figure


@dataclass(frozen=True)
class LayerPlan:
    """How one layer runs.

    Attributes:
        layer: the number of the layer, from 0.
        cells: the name of the cell of each direction.
        engine: the name of the engine that runs it.
        reasons: for each engine that comes before it, why it does not run this layer.
        program: the program of a compiled cell in lines of text: loop-invariant values, values computed
            before the loop, the equations of a step, the weight gradients after the loop, and the cost.
    """

    layer: int
    cells: tuple[str, ...]
    engine: str
    reasons: dict[str, list[str]]
    program: tuple[str, ...] = ()


@dataclass(frozen=True)
class Explanation:
    """Describes a recurrent layer and how it runs on an input; ``str`` gives readable text.

    Attributes:
        title: the layer as text.
        plans: how each of the stacked layers runs.
        shapes: the shape of every input, output and weight in letters and in numbers, the gates in
            order, the rows of the final state, and the number of parameters of each part.
    """

    title: str
    plans: tuple[LayerPlan, ...]
    shapes: Shapes

    @property
    def running(self) -> str:
        """Text on how each of the stacked layers runs."""
        lines = []
        for plan in self.plans:
            directions = f" x {len(plan.cells)} directions" if len(plan.cells) > 1 else ""
            lines.append(f"  layer {plan.layer}: {plan.cells[0]}{directions} on {plan.engine!r}")
            for name, reasons in plan.reasons.items():
                lines += [f"    not {name!r}: {reason}" for reason in reasons]
            lines += [f"    {line}" for line in plan.program]
        return "\n".join(lines) or "  no sequence has a step: nothing runs"

    def draw(self, path: str | Path | None = None) -> Figure:
        """Draw the layer unrolled over time, layers and directions.

        A box is a cell at one step. Colours mark `output` and the parts of the final state. Long sequences
        are abbreviated.

        Args:
            path: a file to write, ``.png``, ``.svg`` or ``.pdf``.

        Returns:
            The matplotlib figure. Needs matplotlib.

        Raises:
            ModuleNotFoundError: matplotlib is not there.
        """
        from cello.inspect.draw import draw_shapes

        return draw_shapes(self.title, self.shapes, path)

    def __str__(self) -> str:
        return f"{self.title}\n{self.shapes}\n\nhow it runs\n{self.running}"


def explain(
    layer: RecurrentLayer, input: torch.Tensor | PackedSequence, hx: Any = None, **options: Any
) -> Explanation:
    """Run `layer` once and describe its inputs, weights and outputs, and how it ran.

    The layer runs like a normal call, with or without gradients, because the choice of the engine may
    depend on that. What it changes is put back: buffers, attributes of a cell, random generators.

    Args:
        layer: any layer of :mod:`cello.nn`.
        input: an input of the layer.
        hx: an initial state, as for the layer.
        **options: `lengths` or `return_states`, as for the layer.

    Returns:
        An :class:`Explanation`; print it, or read its fields.

    Raises:
        TypeError: `layer` is not a layer of Cello.
        ValueError: as the layer raises it, and so its other errors: the layer runs.

    Example:
        >>> import torch, cello
        >>> print(cello.explain(cello.nn.RNN(3, 4), torch.zeros(5, 2, 3)))
        RNN(3, 4)
          T=5 time, B=2 batch, F=3 features, H=4 hidden, G=1 gates, L=1 layers, D=1 directions
        <BLANKLINE>
          ...
        how it runs
          layer 0: RNN on 'native'
            once per call:
              weight_hh (4, 4)
              bias_hh (4,)
              weight_ih (4, 3)
              bias_ih (4,)
            each step:
              v1 = x @ weight_ih.T + h @ weight_hh.T + bias_ih + bias_hh (rnn.py:...)
              v2 = tanh(v1) (rnn.py:...)
              output = v2
              h' = v2
            how the state depends on the one before:
              h' mixes the units of h (rnn.py:...)
            ready ahead of the loop:
              x @ weight_ih.T
            behind the loop, in training:
              dweight_ih = sum over all rows of x times the gradient of the product
              dweight_hh = sum over all rows of h times the gradient of the product
            per row and step: 28 multiply-adds in products, 4 numbers elsewhere, 0 bytes saved for training
    """
    if not isinstance(layer, RecurrentLayer):
        raise TypeError(f"layer must be a layer of cello.nn, got {type(layer).__name__}")
    # Gradients are on or off as for the caller, because the choice of the engine may depend on that.
    # Segments are off, because each segment would be a separate scan.
    undone = Undo(layer._custom_cells(), data_of(input).device)
    with observe() as seen, engine(segment=0), undone:
        returned = layer(input, hx, **options)
    plans = tuple(_plan(number, scan, choice) for number, (scan, choice) in enumerate(seen))
    shapes = shapes_of(layer, input, options.get("lengths"), returned)
    return Explanation(f"{type(layer).__name__}({layer.extra_repr()})", plans, shapes)


def draw(
    layer: RecurrentLayer,
    input: torch.Tensor | PackedSequence,
    path: str | Path | None = None,
    hx: Any = None,
    **options: Any,
) -> Figure:
    """Draw `layer` unrolled over time, layers and directions: ``explain(...).draw(path)``.

    Args:
        layer: any layer of :mod:`cello.nn`.
        input: an input of the layer.
        path: a file to write, ``.png``, ``.svg`` or ``.pdf``.
        hx: an initial state, as for the layer.
        **options: `lengths` or `return_states`, as for the layer.

    Returns:
        The matplotlib figure. Needs matplotlib.

    Raises:
        TypeError: `layer` is not a layer of Cello.
        ValueError: as the layer raises it, and so its other errors: the layer runs.
        ModuleNotFoundError: matplotlib is not there.

    Example:
        >>> import torch, cello
        >>> figure = cello.draw(cello.nn.LSTM(3, 4, num_layers=2), torch.zeros(5, 2, 3))
    """
    return explain(layer, input, hx, **options).draw(path)


def _plan(number: int, scan: Scan, choice: Choice) -> LayerPlan:
    names = tuple(direction.cell.label for direction in scan.directions)
    program = tuple(choice.engine.describe(scan))
    return LayerPlan(number, names, choice.engine.name, choice.reasons, program)
