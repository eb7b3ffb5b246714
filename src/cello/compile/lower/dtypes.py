"""The one dtype that a loop computes in, and what may be computed in it although torch uses another."""

from __future__ import annotations

import torch

from cello.compile.integers import Integers, is_whole
from cello.compile.node import FACTORIES, VIEWS, Node, Trace, operation
from cello.compile.reasons import CannotCompile
from cello.foreign.path import Path
from cello.foreign.scope import words

_COPIES = VIEWS | words("clone detach lift_fresh cat stack flip roll repeat")
"""Operations that neither compute nor round."""


class Dtypes:
    """Holds the tensors of a step to what the loop computes in.

    Args:
        trace: the step.
        label: what messages call the cell.
        dtype: the dtype of the cell's state.
        compute: the dtype that the loop computes in.
    """

    def __init__(self, trace: Trace, label: str, dtype: torch.dtype, compute: torch.dtype) -> None:
        self.dtype, self.compute, self.label = dtype, compute, label
        self.integers = Integers(label, compute)
        self._known = dtype, compute, trace.autocast

    def check_given(self, node: Node) -> None:
        """Refuse a tensor whose numbers the loop cannot hold; a single one counts as torch counts it."""
        if node.shape and not self._holds(node.dtype):
            raise self._mixture(node)

    def check_made(self, node: Node) -> None:
        """Refuse an operation that torch computes in another dtype, and rounds to it."""
        self.integers.check(node, operation(node))
        if is_whole(node.dtype):
            return
        if node.dtype in self._known or operation(node) in FACTORIES or not node.shape:
            return
        if self._holds(node.dtype) and self.integers.holds(node, operation(node)):
            return
        is_copied = all(part.dtype == node.dtype for part in node.inputs())
        if not (is_copied and operation(node) in _COPIES):
            raise self._mixture(node)

    def rounded(self, number: float, node: Node) -> float:
        """The number that a constant tensor of torch is full of."""
        if not node.dtype.is_floating_point:
            return float(number)
        rounded = float(torch.tensor(number, dtype=node.dtype, device="cpu").item())
        if node.shape and not self._holds(node.dtype):
            own = float(torch.tensor(rounded, dtype=self.dtype, device="cpu").item())
            if own != rounded and rounded == rounded:
                raise self._mixture(node)
        return rounded

    def _holds(self, dtype: torch.dtype) -> bool:
        """Whether numbers of a dtype are what they are in the loop."""
        return dtype in self._known or torch.promote_types(dtype, self.dtype) == self.dtype

    def _mixture(self, node: Node) -> CannotCompile:
        held = f" of {node.source.readable}" if isinstance(node.source, Path) else ""
        return CannotCompile(
            f"{self.label} mixes {node.dtype}{held} with {self.dtype}{node.line}; write .to(x.dtype)"
        )
