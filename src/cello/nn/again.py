"""A call like the one before it, without finding everything out once more.

Beside its arithmetic a call has to find its cell, an engine and a program, and to hold all of them to
what the caller gave. On a short sequence that takes longer than the arithmetic. A layer therefore
remembers what it found out, with all that it depends on; where any of that differs, the call goes the
ordinary way. Only calls that do nothing special are remembered: one layer in one direction over a padded
batch on the CPU.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any
from weakref import ref

import torch
from torch import Tensor, nn

from cello.engines import Direction, Layout, Scan, Sequence, repeat

if TYPE_CHECKING:
    from cello.nn.rnn import RNNBase


class Memory:
    """What a layer remembers of its last call; copies of the layer begin with nothing."""

    call: Again | None = None

    def __reduce__(self) -> tuple[Any, ...]:
        return Memory, ()


class Again:
    """What a layer found out at a call, for calls like it.

    Args:
        layer: a layer of one direction.
        x: the input that it ran on, (T, B, F) or (B, T, F).

    Raises:
        ValueError: its calls are not of the kind that can be repeated.
    """

    def __init__(self, layer: RNNBase, x: Tensor) -> None:
        self.layer = ref(layer)
        self.weights = [weight for weight in layer._parameters.values() if weight is not None]
        if any(type(weight) is not nn.Parameter for weight in self.weights):
            raise ValueError
        self.shapes = [weight.shape for weight in self.weights]
        self.dtype, self.features = x.dtype, x.shape[2]
        ((self.cell,),) = layer._cells()
        rows = x.new_empty(1, self.features)
        self.widths = layer._state_widths(0)
        state = tuple(x.new_empty(1, width) for width in self.widths)
        scan = Scan(Sequence(rows, Layout(1, 1)), (Direction(self.cell, state, layer.reverse),))
        found = repeat(scan)
        if found is None:
            raise ValueError
        self._repeat = found

    def run(self, layer: RNNBase, x: Any, hx: Any) -> tuple[Tensor, Any] | None:
        """Return what the layer returns, or ``None`` where this call is not like the one before."""
        dtype = self.dtype
        if type(x) is not Tensor or x.dtype is not dtype or x.dim() != 3 or not x.is_cpu:
            return None
        steps, batch, features = x.shape
        if features != self.features or steps == 0 or batch == 0:
            return None
        # A shallow copy shares this memory, and may since have been changed.
        if self.layer() is not layer or len(layer._parameters) != len(self.weights):
            return None
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
            ):
                return None
        if layer.batch_first:
            x = x.transpose(0, 1)
            steps, batch = batch, steps
        state = self._state(hx, batch, x)
        if state is None:
            return None
        rows = x.reshape(steps * batch, features)
        found = self._repeat(self.cell, rows, Layout(steps, batch), state)
        if found is None:
            return None
        output, finals = found
        output = output.view(steps, batch, -1)
        if layer.batch_first:
            output = output.transpose(0, 1)
        if len(finals) == 1:
            return output, finals[0].unsqueeze(0)
        return output, tuple([part.unsqueeze(0) for part in finals])

    def _state(self, hx: Any, batch: int, x: Tensor) -> list[Tensor] | None:
        """The initial state, (B, H) each."""
        widths = self.widths
        if hx is None:
            zeros = x.new_zeros(batch, widths[0])
            return [zeros if width == widths[0] else x.new_zeros(batch, width) for width in widths]
        parts = (hx,) if type(hx) is Tensor else hx
        if type(parts) is not tuple or len(parts) != len(widths):
            return None
        for part, width in zip(parts, widths, strict=True):
            if (
                type(part) is not Tensor
                or part.shape != (1, batch, width)
                or part.dtype is not self.dtype
                or not part.is_cpu
            ):
                return None
        return [part[0].contiguous() for part in parts]


def again(layer: RNNBase, x: Any) -> Again | None:
    """Remember a call, where it is of the kind that can be."""
    is_simple = (
        layer.num_layers == 1
        and not layer.bidirectional
        and not layer.learn_initial_state
        and type(x) is Tensor
        and x.dim() == 3
        and x.is_cpu
        and x.dtype in (torch.float32, torch.float64)
    )
    if not is_simple:
        return None
    try:
        return Again(layer, x)
    except ValueError:
        return None
