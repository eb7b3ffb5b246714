"""What of a traced step is computed where.

Each tensor of the trace is one of these:

- *static*: made from weights alone; stays in torch, under autograd, once per call;
- *beforehand*: made from the input alone, and either not in the instruction set (an embedding) or
  itself the operand of a product; stays in torch, under autograd, once for the rows of all steps;
- the rest becomes instructions. Which of their products can run ahead of the loop, since they read the
  input only, the engine sees by itself.
"""

from __future__ import annotations

import torch

from cello.compile.integers import is_integer
from cello.compile.node import FACTORIES, VIEWS, Node, Trace, all_inputs, operation
from cello.compile.reasons import DEPENDS_ON_ROWS, CannotCompile
from cello.foreign.scope import words

RANDOM = words(
    "bernoulli rand rand_like randn randn_like uniform normal normal_functional native_dropout randint "
    "randint_like exponential"
)

BEFOREHAND_ONLY = words("embedding convolution one_hot _embedding_bag arange")
"""Operations that treat rows alike, but that only torch knows."""

_OF_ANY_NUMBER = words("any all _is_any_true _is_all_true max min amax amin")
"""Operations that give the same of many equal numbers as of one."""

_PRODUCTS = words("mm addmm bmm baddbmm")


class Sorting:
    """Says of each tensor of a trace where it is computed.

    Args:
        trace: the step.
        label: what messages call the cell.
        hoists: whether what the instruction set has may be computed beforehand, too.

    Raises:
        CannotCompile: random numbers are neither static nor the input's, or a constant depends on the
            number of rows.
    """

    def __init__(self, trace: Trace, label: str, hoists: bool = True) -> None:
        self._trace, self._label, self._hoists = trace, label, hoists
        self._on_x: set[int] = set()
        self._on_state: set[int] = set()
        self._beforehand: set[int] = set()
        answered = _answered(trace)
        for node in trace.nodes:
            parts = list(node.inputs())
            if node.source == "x" or any(id(part) in self._on_x for part in parts):
                self._on_x.add(id(node))
            is_given = isinstance(node.source, int) or node.source == "gradient"
            if is_given or any(id(part) in self._on_state for part in parts):
                self._on_state.add(id(node))
            if id(node) not in answered:
                self._check_rows(node, parts)
        for node in trace.nodes:
            self._sort(node)

    def _check_rows(self, node: Node, parts: list[Node]) -> None:
        """Refuse what is made of as many rows as the batch has, and is the same for all of them."""
        if not self.is_static(node) or self._counts_rows(node):
            return
        name = operation(node)
        if name in FACTORIES:  # of a tensor they take no more than its kind
            return
        if any(self._counts_rows(part) and not self._is_one_row(name, part) for part in parts):
            raise CannotCompile(DEPENDS_ON_ROWS.format(self._label, node.line))

    def _is_one_row(self, name: str, part: Node) -> bool:
        """Whether an operation takes one of many equal rows, or what is the same of any number of them."""
        if name in _OF_ANY_NUMBER:
            return self._has_equal_rows(part)
        return name in VIEWS and operation(part) in FACTORIES

    def _has_equal_rows(self, node: Node) -> bool:
        """Whether all rows of a static tensor are sure to be equal."""
        if not self._counts_rows(node) or operation(node) in FACTORIES:
            return True
        if operation(node) == "expand":
            return self._has_equal_rows(node.args[0])
        is_pointwise = node.op is not None and torch.Tag.pointwise in node.op.tags
        return is_pointwise and all(map(self._has_equal_rows, node.inputs()))

    def is_static(self, node: Node) -> bool:
        """Whether it depends on neither the input nor the state."""
        return id(node) not in self._on_x and id(node) not in self._on_state

    def is_computed_once(self, node: Node) -> bool:
        """Whether torch computes it once per call."""
        if not self.is_static(node) or self._counts_rows(node):
            return False
        # A view without a gradient is a tensor of its own.
        is_view = operation(node) in VIEWS and not node.is_detached
        return not is_view and operation(node) not in FACTORIES

    def is_given(self, node: Node) -> bool:
        """Whether the loop reads it as the input, or as what torch has made of that for all steps."""
        return node.source == "x" or id(node) in self._beforehand

    def _sort(self, node: Node) -> None:
        """Mark what torch computes beforehand."""
        name = operation(node)
        if name in RANDOM or name.rstrip("_") in RANDOM:
            self._check_random(node, name)
            self._beforehand.add(id(node))
        elif node.op is not None and torch.Tag.nondeterministic_seeded in node.op.tags:
            raise CannotCompile(
                f"{self._label} draws random numbers by {name}{node.line}, which is not in the instruction "
                "set; draw them outside of the step"
            )
        if not self._is_of_input(node):
            return
        if not self._hoists:
            if name in BEFOREHAND_ONLY:
                self._beforehand.add(id(node))
            return
        reads_integers = any(is_integer(part.dtype) for part in node.inputs())
        if name in BEFOREHAND_ONLY or (reads_integers and not is_integer(node.dtype)):
            self._beforehand.add(id(node))
        if name in _PRODUCTS:
            for part in node.inputs():
                self._sort_operand(part)

    def _check_random(self, node: Node, name: str) -> None:
        if not self._counts_rows(node):
            # Drawn once it would be the same at all steps, which the cell's own loop is not.
            raise CannotCompile(
                f"{self._label} draws random numbers{node.line} that are no tensor (B, ...), new at each "
                "step; draw them for each row, or outside of the step"
            )
        read = [] if "like" in name else node.inputs()
        if any(id(part) in self._on_state and operation(part) not in FACTORIES for part in read):
            raise CannotCompile(
                f"{self._label} draws random numbers that depend on its state{node.line}"
            )

    def _sort_operand(self, node: Node) -> None:
        """Mark what a product of the input multiplies, where it is more than the input itself."""
        x = self._trace.x
        while _is_the_same(node) and node is not x:
            node = next(node.inputs())
        if node.shape[:1] != (self._trace.rows,) or not self._is_of_input(node):
            return
        if node is not x or not node.dtype.is_floating_point:
            self._beforehand.add(id(node))

    def _is_of_input(self, node: Node) -> bool:
        return id(node) in self._on_x and id(node) not in self._on_state

    def _counts_rows(self, node: Node) -> bool:
        return any(size and size % self._trace.rows == 0 for size in node.shape)


def _answered(trace: Trace) -> set[int]:
    """The tensors, by identity, that only lead to truth values which are assumed: nothing computes them."""
    leaves = [one.node for one in trace.assumed]
    if not leaves:
        return set()
    questions = {id(n) for one in trace.questions for n in all_inputs(one.node, leaves)}
    ends = (trace.output, *trace.new_state, *leaves)
    return questions - {id(node) for end in ends for node in all_inputs(end)}


def _is_the_same(node: Node) -> bool:
    """Whether a node has the numbers of another one, in another shape or in another precision."""
    if operation(node) == "_to_copy":
        return all(part.dtype.is_floating_point for part in (node, next(node.inputs())))
    return operation(node) in VIEWS
