"""The plan of a call: what a layer found out at one call, for the next call like it.

Beside its arithmetic a call has to find its cells, an engine and programs, and to hold all of them to what
the caller gave. On a short sequence that takes longer than the arithmetic. So the ordinary call leaves a
plan behind, with all that it depends on; where any of that differs, the next call goes the ordinary way,
which is the only one that raises errors. Calls that do something special have no plan: it is for one
direction, over a padded batch on the CPU, or for one step.
"""

from __future__ import annotations

from operator import is_
from typing import Any
from weakref import ref

import torch
from torch import Tensor, nn

from cello.cells import Cell, Equations
from cello.engines import Direction, EngineError, Layout, Prepared, Scan, Sequence, choose, settings
from cello.foreign.adapt import Adapted


class Plans:
    """The plans of a layer; copies of the layer begin with none.

    Attributes:
        changes: how often the layer has changed.
    """

    def __init__(self) -> None:
        self.changes = 0
        self._plans: dict[bool, Plan] = {}
        self._none: dict[bool, Any] = {}  # under which circumstances there was none

    def __reduce__(self) -> tuple[Any, ...]:
        return Plans, ()

    def forget(self) -> None:
        """Begin anew: the layer has changed."""
        self.changes += 1
        self._plans.clear()
        self._none.clear()

    def find(self, x: Any, batch_first: bool) -> Plan | None:
        """Return the plan for an input, if it is one that there are plans for."""
        if type(x) is not Tensor or x.dim() != 3:  # the sizes of one in a graph may be no numbers
            return None
        return self._plans.get(_is_special(x.shape[batch_first]))

    def of_a_step(self) -> Plan | None:
        """Return the plan for a step."""
        return self._plans.get(_is_special(1))

    def leave(self, layer: Any, x: Any, hx: Any, changes: int) -> None:
        """Leave a plan of a call, unless the layer has changed since that number of changes."""
        now = settings()
        if type(x) is not Tensor or x.dim() != 3 or now is None:
            return
        if hx is None and not layer._starts_at_zero():
            return
        steps = x.shape[layer.batch_first]
        kind, circumstances = _is_special(steps), (now, x.dtype, layer.training)
        if self._none.get(kind) == circumstances:
            return
        plan = _plan(layer, x, steps)
        if self.changes == changes:
            if plan is None:
                self._none[kind] = circumstances
                self._plans.pop(kind, None)
            else:
                self._plans[kind] = plan


def _is_special(steps: int) -> bool:
    """Whether engines may choose otherwise than for other calls: for one step with gradients."""
    return steps == 1 and torch.is_grad_enabled()


class Plan:
    """What the layers of one direction found out.

    Args:
        layer: the layers.
        x: the input that they ran on.
        steps: T of it.

    Raises:
        ValueError: there can be no plan of their call.
    """

    def __init__(self, layer: Any, x: Tensor, steps: int) -> None:
        self.layer: Any = ref(layer)
        self.settings = settings()
        # Read before the cells are made: a change from here on shows at the next call.
        made_of = layer._made_of()
        if made_of is None:
            raise ValueError
        self.made_of = made_of
        self.weights = [(part, part.shape) for part in made_of if isinstance(part, Tensor)]
        if any(type(w) is not nn.Parameter or w.dtype != x.dtype for w, _ in self.weights):
            raise ValueError
        self.dtype, self.features = x.dtype, x.shape[2]
        self.structure = layer._structure()
        self.is_tensor = self.structure.container is None
        self.cells = [cell for (cell,) in layer._cells()]
        self.shapes = [list(cell.state_shapes.items()) for cell in self.cells]
        first = self.shapes[0]
        if any(shapes != first for shapes in self.shapes):  # the state is no stack of tensors
            raise ValueError
        self.parts = [shape for _, shape in first]
        self.scans: list[Prepared] = []
        features = self.features
        for depth, cell in enumerate(self.cells):
            self._hold_to_weights(cell)
            state = tuple(x.new_empty(1, *shape) for shape in self.parts)
            sequence = Sequence(x.new_empty(steps, features), Layout(steps, 1))
            scan = Scan(sequence, (Direction(cell, state, layer.reverse),))
            prepared = choose(scan).engine.prepare(scan)
            if prepared is None:
                raise ValueError
            self.scans.append(prepared)
            features = layer._output_shapes_of(depth)[0][0]
        # Those that a user has written may say something else at the next call.
        known = zip(self.cells, self.shapes, strict=True)
        self.own = [(c, s) for c, s in known if not isinstance(c, Adapted | Equations)]

    def _hold_to_weights(self, cell: Cell) -> None:
        """Refuse equations with a weight that is computed (by a parametrization): the next is another."""
        held = vars(cell).values() if isinstance(cell, Equations) else ()
        for value in held:
            if isinstance(value, Tensor) and all(value is not w for w, _ in self.weights):
                raise ValueError

    def run(self, layer: Any, x: Tensor, hx: Any) -> tuple[Tensor, Any] | None:
        """Return what the layers return, or ``None`` if this call is not like the one before."""
        if not self._fits(layer, x):
            return None
        if layer.batch_first:
            x = x.transpose(0, 1)
        steps, batch, features = x.shape
        if steps == 0 or batch == 0:
            return None
        found = self._run(layer, x.reshape(steps * batch, features), Layout(steps, batch), hx)
        if found is None:
            return None
        rows, state = found
        output = rows.view(steps, batch, -1)
        return output.transpose(0, 1) if layer.batch_first else output, state

    def step(self, layer: Any, x: Any, hx: Any) -> tuple[Tensor, Any] | None:
        """Run one step of a batch, (B, F), likewise."""
        if type(x) is not Tensor or x.dim() != 2 or not self._fits(layer, x):
            return None
        batch = x.shape[0]
        return self._run(layer, x, Layout(1, batch), hx) if batch > 0 else None

    def _fits(self, layer: Any, x: Tensor) -> bool:
        dtype = self.dtype
        if x.dtype is not dtype or x.shape[-1] != self.features or not x.is_cpu:
            return False
        # A shallow copy shares this plan, and may since have been changed.
        if self.layer() is not layer:
            return False
        now = settings()
        if now is not self.settings and now != self.settings:
            return False
        made_of = layer._made_of()
        if made_of is None or len(made_of) != len(self.made_of):
            return False
        if not all(map(is_, made_of, self.made_of)):
            return False
        for weight, shape in self.weights:
            # The numbers of a parameter may have been replaced by others (`.data`, `.double()`).
            if (
                weight.dtype is not dtype
                or weight.shape != shape
                or not weight.is_contiguous()
                or not weight.is_cpu
                or weight.is_neg()
            ):
                return False
        return not self.own or all(list(c.state_shapes.items()) == s for c, s in self.own)

    def _run(self, layer: Any, rows: Tensor, layout: Layout, hx: Any) -> tuple[Tensor, Any] | None:
        states = self._states(layer, hx, layout.batch_size, rows)
        if states is None:
            return None
        for scan in self.scans:  # all of them before one runs, which may draw random numbers
            if not scan.holds(layout):
                return None
        finals: list[list[Tensor]] = []
        for scan, state in zip(self.scans, states, strict=True):
            rows, final = scan.run(rows, layout, state)
            finals.append(final)
        leaves = finals[0]
        if len(finals) > 1:
            leaves = [torch.cat(parts) for parts in zip(*finals, strict=True)]
        return rows, leaves[0] if self.is_tensor else self.structure.unflatten(leaves)

    def _states(self, layer: Any, hx: Any, batch: int, x: Tensor) -> list[list[Tensor]] | None:
        """The initial state of each layer, (1, B, ...) each."""
        if hx is None:
            if not layer._starts_at_zero():
                return None
            zeros = {shape: x.new_zeros(1, batch, *shape) for shape in self.parts}
            return [[zeros[shape] for shape in self.parts] for _ in self.scans]
        try:
            parts = [hx] if self.is_tensor else list(self.structure.flatten(hx))
        except TypeError:  # which the ordinary way raises
            return None
        for part, shape in zip(parts, self.parts, strict=True):
            if (
                type(part) is not Tensor
                or part.shape != (len(self.scans), batch, *shape)
                or part.dtype is not self.dtype
                or not part.is_cpu
            ):
                return None
        parts = [part.contiguous() for part in parts]
        if len(self.scans) == 1:
            return [parts]
        return [list(state) for state in zip(*(part.split(1) for part in parts), strict=True)]


def _plan(layer: Any, x: Tensor, steps: int) -> Plan | None:
    """Make the plan of a call, if there can be one."""
    is_simple = (
        type(layer).__module__.startswith("cello.nn.")  # a subclass may compute anything
        and not layer.bidirectional
        and not (layer.training and layer.dropout > 0 and layer.num_layers > 1)
        and x.is_cpu
        and x.dtype.is_floating_point
    )
    if not is_simple:
        return None
    try:
        return Plan(layer, x, steps)
    except (ValueError, EngineError):  # an engine may not take the one row that plans are made on
        return None
