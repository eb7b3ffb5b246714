"""Computing tensors of a trace in torch: what is static, what is done beforehand, and whole steps."""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor, nn

from cello.compile.constant import CONSTANT
from cello.compile.node import Custom, Node, Trace, may_count, operation, reads_shape_only
from cello.foreign.path import Path, find
from cello.foreign.scope import words

# A step is traced on tensors without gaps in memory. Those that it is given may have some, and what is
# made of them may be laid out in another way.
RESHAPES = words("view _unsafe_view _reshape_alias")
IN_ORDER = words("native_group_norm view_as_real view_as_complex _pdist_forward")


class Replay:
    """Computes nodes of a trace for a number of rows, each at most once.

    Args:
        traced_rows: how many rows the traced step has.
        cell: where the tensors of the cell are looked up.
        rows: how many rows there are now.
        device: where factories make their tensors.
    """

    def __init__(self, traced_rows: int, cell: nn.Module, rows: int, device: torch.device) -> None:
        self._traced_rows, self._cell, self._rows = traced_rows, cell, rows
        self._device = device
        self._known: dict[int, Any] = {}

    def give(self, node: Node, tensor: Tensor) -> None:
        """Say what a node is, instead of computing it."""
        self._known[id(node)] = tensor

    def __call__(self, node: Node) -> Tensor:
        """Return the tensor of a node."""
        stack = [node]
        while stack:
            current = stack[-1]
            if id(current) in self._known:
                stack.pop()
                continue
            missing = [part for part in _read(current) if id(part) not in self._known]
            if missing:
                stack += missing
                continue
            self._known[id(current)] = self._detached(current)
            stack.pop()
        known: Tensor = self._known[id(node)]
        return known

    def _detached(self, node: Node) -> Any:
        """The tensor of a node, without its gradient where it was made under ``torch.no_grad``."""
        if not node.is_detached:
            return self._compute(node)
        if node.custom is not None:  # whose other results may have gradients
            return self._compute(node).detach()
        with torch.no_grad():
            made = self._compute(node)
        if node.in_place_of is None:
            return made
        written = self._known[id(node.in_place_of)].clone()
        with torch.no_grad():
            return written.copy_(made)

    def _compute(self, node: Node) -> Any:
        if isinstance(node.source, Path):
            return find(self._cell, node.source)
        if node.custom is not None:
            return self._call(node, node.custom)
        assert node.op is not None
        if node.op is CONSTANT and not torch._C._len_torch_dispatch_stack():
            return _constant(node, self._device)
        args = [self._argument(value, may_count(node, value)) for value in node.args]
        kwargs = {k: self._argument(v, may_count(node, v)) for k, v in node.kwargs.items()}
        if node.op is torch.ops.aten.copy.default:  # which has no derivative
            return args[1].to(args[0].dtype).expand_as(args[0])
        name = operation(node)
        if name in RESHAPES and isinstance(args[1], list):  # and not a dtype
            return args[0].reshape(args[1])
        if name in IN_ORDER:
            args[0] = args[0].contiguous()
        out = node.op(*args, **kwargs)
        return out if node.index is None else out[node.index]

    def _call(self, node: Node, custom: Custom) -> Any:
        """A result of a custom function, which is called once for all of them."""
        if id(custom) not in self._known:
            arguments = map(self._of_custom, node.args)
            self._known[id(custom)] = custom.function.apply(*arguments)
        out = self._known[id(custom)]
        return out[node.index or 0] if isinstance(out, tuple) else out

    def _of_custom(self, value: Any) -> Any:
        """An argument of a custom function, which may be told a list from a tuple."""
        if isinstance(value, Node):
            return self._known[id(value)]
        if isinstance(value, tuple | list):
            return type(value)(map(self._of_custom, value))
        return value

    def _argument(self, value: Any, counts: bool) -> Any:
        if isinstance(value, Node):
            known = self._known.get(id(value))
            return self._shaped(value) if known is None else known
        if isinstance(value, tuple | list):
            return [self._argument(item, counts) for item in value]
        if isinstance(value, torch.device):
            return self._device
        if counts and type(value) is int and value and value % self._traced_rows == 0:
            return value // self._traced_rows * self._rows
        return value

    def _shaped(self, node: Node) -> Tensor:
        """A tensor without numbers, like one of which only shape and dtype are read."""
        shape = [self._argument(size, True) for size in node.shape]
        return torch.empty(shape, dtype=node.dtype, device=self._device)


@lru_cache(maxsize=256)
def _constant(node: Node, device: torch.device) -> Tensor:
    """What was made of many Python numbers, which nobody writes into: it is made once."""
    numbers, shape, dtype, _ = node.args
    with torch.inference_mode(False):
        made: Tensor = CONSTANT(numbers, shape, dtype, device)
    return made


def _read(node: Node) -> list[Node]:
    """The nodes whose numbers a node is made of."""
    return [] if reads_shape_only(node) or node.op is CONSTANT else list(node.inputs())


def in_rows(tensor: Tensor) -> Tensor:
    """A tensor as (B, width), also where it has no axis but that of the batch."""
    return tensor.flatten(1) if tensor.dim() > 1 else tensor[:, None]


def replay_steps(
    trace: Trace,
    cell: nn.Module,
    given: Sequence[tuple[Node, Tensor]],
    rows: Sequence[tuple[Node, Tensor]],
    states: Sequence[Tensor],
    batch_sizes: Sequence[int],
    descending: bool,
) -> tuple[list[Tensor], list[list[Tensor]], list[Tensor]]:
    """Run all steps in torch: the same operations as the compiled loop, one after the other.

    Args:
        trace: the traced step.
        cell: the cell that it was traced from.
        given: tensors that are the same for all steps.
        rows: tensors with the rows of all steps.
        states: the states before the first step.
        batch_sizes: the number of rows of each step.
        descending: whether time runs backwards.

    Returns:
        The outputs of each step in the order of time, the states of each step likewise, and the final
        states.
    """
    steps = len(batch_sizes)
    split = [(node, tensor.split(list(batch_sizes))) for node, tensor in rows]
    outputs: list[Any] = [None] * steps
    history: list[Any] = [None] * steps
    current = list(states)
    for t in range(steps - 1, -1, -1) if descending else range(steps):
        size = batch_sizes[t]
        replay = Replay(trace.rows, cell, size, states[0].device)
        for node, tensor in given:
            replay.give(node, tensor)
        for node, parts in split:
            replay.give(node, parts[t])
        for node, state in zip(trace.state, current, strict=True):
            replay.give(node, state[:size])
        outputs[t] = in_rows(replay(trace.output))
        new = [replay(node) for node in trace.new_state]
        history[t] = list(map(in_rows, new))
        current = [
            torch.cat([part, old[size:]]) if size < len(old) else part
            for part, old in zip(new, current, strict=True)
        ]
    return outputs, history, current
