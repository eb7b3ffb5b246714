"""A shortcut for a call that repeats the previous one.

Beside its arithmetic a call has to find its cells, an engine and programs, and to hold all of them to
what the caller gave. On a short sequence that takes longer than the arithmetic. A layer therefore
remembers what it found out, with all that it depends on; where any of that differs, the call goes the
ordinary way. Only calls that do nothing special are remembered: one direction, over a padded batch on
the CPU, or one step.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor, nn

from cello.engines import Direction, Layout, Repeat, Scan, Sequence, repeat

if TYPE_CHECKING:
    from cello.nn.rnn_base import RNNBase


class Memory:
    """What a layer remembers; copies of the layer begin with nothing.

    Attributes:
        call: the last call, if it is of the kind that can be remembered.
        tried: whether a first `step` has been tried for the shortcut.
        changes: how often the layer has changed.
    """

    call: Again | None = None
    tried = False
    changes = 0

    def forget(self) -> None:
        """Begin anew: the layer has changed."""
        self.changes += 1
        self.call, self.tried = None, False

    def remember(self, layer: RNNBase, x: Any, changes: int) -> None:
        """Remember a call, unless the layer has changed since that number of changes."""
        call = again(layer, x)
        if self.changes == changes:
            self.call = call

    def __reduce__(self) -> tuple[Any, ...]:
        return Memory, ()


class Again:
    """What layers found out at a call, for calls like it.

    Args:
        layer: layers of one direction.
        x: the input that they ran on, (T, B, F) or (B, T, F).

    Raises:
        ValueError: their calls are not of the kind that can be repeated.
    """

    def __init__(self, layer: RNNBase, x: Tensor) -> None:
        self.layer = ref(layer)
        self.weights = [weight for weight in layer._parameters.values() if weight is not None]
        if any(type(w) is not nn.Parameter or w.dtype != x.dtype for w in self.weights):
            raise ValueError
        self.shapes = [weight.shape for weight in self.weights]
        self.dtype, self.features = x.dtype, x.shape[2]
        self.widths = [layer._state_widths(depth) for depth in range(layer.num_layers)]
        self.repeats: list[Repeat] = []
        features = self.features
        for (cell,), widths in zip(layer._cells(), self.widths, strict=True):
            # A weight that is computed (by a parametrization) is another one at the next call.
            held = [value for value in vars(cell).values() if isinstance(value, Tensor)]
            if any(all(tensor is not weight for weight in self.weights) for tensor in held):
                raise ValueError
            state = tuple(x.new_empty(1, width) for width in widths)
            sequence = Sequence(x.new_empty(1, features), Layout(1, 1))
            found = repeat(Scan(sequence, (Direction(cell, state, layer.reverse),)))
            if found is None:
                raise ValueError
            self.repeats.append(found)
            features = widths[0]

    def run(self, layer: RNNBase, x: Any, hx: Any) -> tuple[Tensor, Any] | None:
        """Return what the layers return, or ``None`` where this call is not like the one before."""
        if type(x) is not Tensor or x.dim() != 3 or not self._fits(layer, x):
            return None
        if layer.batch_first:
            x = x.transpose(0, 1)
        steps, batch, features = x.shape
        if steps == 0 or batch == 0:
            return None
        found = self._run(x.reshape(steps * batch, features), Layout(steps, batch), hx)
        if found is None:
            return None
        rows, state = found
        output = rows.view(steps, batch, -1)
        return output.transpose(0, 1) if layer.batch_first else output, state

    def step(self, layer: RNNBase, x: Any, hx: Any) -> tuple[Tensor, Any] | None:
        """Run one step of a batch, (B, F), likewise."""
        if type(x) is not Tensor or x.dim() != 2 or not self._fits(layer, x):
            return None
        batch = x.shape[0]
        return self._run(x, Layout(1, batch), hx) if batch > 0 else None

    def _fits(self, layer: RNNBase, x: Tensor) -> bool:
        dtype = self.dtype
        if x.dtype is not dtype or x.shape[-1] != self.features or not x.is_cpu:
            return False
        # A shallow copy shares this memory, and may since have been changed.
        if self.layer() is not layer or len(layer._parameters) != len(self.weights):
            return False
        if layer._modules:
            return False
        for weight, known, shape in zip(
            layer._parameters.values(), self.weights, self.shapes, strict=True
        ):
            # The numbers of a parameter may have been replaced by others (`.data`, `.double()`).
            if (
                weight is None
                or weight is not known
                or weight.dtype is not dtype
                or weight.shape != shape
                or not weight.is_contiguous()
                or not weight.is_cpu
                or weight.is_neg()
            ):
                return False
        return True

    def _run(self, rows: Tensor, layout: Layout, hx: Any) -> tuple[Tensor, Any] | None:
        states = self._states(hx, layout.batch_size, rows)
        if states is None:
            return None
        finals: list[list[Tensor]] = []
        for run, state in zip(self.repeats, states, strict=True):
            found = run(rows, layout, state)
            if found is None:
                return None
            rows, final = found
            finals.append(final)
        leaves = finals[0]
        if len(finals) > 1:
            leaves = [torch.cat(parts) for parts in zip(*finals, strict=True)]
        return rows, leaves[0] if len(leaves) == 1 else tuple(leaves)

    def _states(self, hx: Any, batch: int, x: Tensor) -> list[list[Tensor]] | None:
        """The initial state of each layer, (1, B, H) each."""
        if hx is None:
            zeros = {width: x.new_zeros(1, batch, width) for width in set().union(*self.widths)}
            return [[zeros[width] for width in widths] for widths in self.widths]
        parts = (hx,) if len(self.widths[0]) == 1 else hx
        if type(parts) is not tuple or len(parts) != len(self.widths[0]):
            return None
        for part, width in zip(parts, self.widths[0], strict=True):
            if (
                type(part) is not Tensor
                or part.shape != (len(self.widths), batch, width)
                or part.dtype is not self.dtype
                or not part.is_contiguous()
                or not part.is_cpu
            ):
                return None
        if len(self.widths) == 1:
            return [list(parts)]
        return [list(state) for state in zip(*(part.split(1) for part in parts), strict=True)]


def again(layer: RNNBase, x: Any) -> Again | None:
    """Remember a call, where it is of the kind that can be."""
    is_simple = (
        type(layer).__module__.startswith("cello.nn.")  # a subclass may compute anything
        and not layer.bidirectional
        and not layer.learn_initial_state
        and isinstance(layer.hidden_size, int)
        and not (layer.training and layer.dropout > 0 and layer.num_layers > 1)
        and type(x) is Tensor
        and x.dim() == 3
        and x.is_cpu
        and x.dtype.is_floating_point
        and x.shape[-1] == layer.input_size
    )
    if not is_simple:
        return None
    try:
        return Again(layer, x)
    except ValueError:
        return None
