"""Whether torch may compute something beforehand, for the rows of all steps at once.

It may where no row of the result depends on another row. The instruction set knows of each operation where
the batch goes; so this lowers what is computed beforehand as if the loop were to compute it, and looks at
the axes alone: dtypes do not count, and neither do the instructions.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod
from typing import Any

import torch

from cello.compile.held import Held
from cello.compile.instructions import Kind, Value
from cello.compile.lower.axes import BATCH, contiguous_axes
from cello.compile.lower.dtypes import Dtypes
from cello.compile.lower.lowering import KNOWN, Lowering
from cello.compile.lower.rows import Refused, Rows
from cello.compile.lower.sort import RANDOM, Sorting
from cello.compile.node import Node, Trace, by_name, operation, reads_shape_only
from cello.foreign.scope import words


def hold_apart(trace: Trace, label: str, beforehand: Iterable[Node], held: Held) -> None:
    """Check what torch computes beforehand.

    Args:
        trace: the step.
        label: what messages call the cell.
        beforehand: the tensors that are computed so.
        held: looks up numbers that the cell holds.

    Raises:
        CannotCompile: a row of one of them depends on other rows, or that cannot be told.
    """
    made = [node for node in beforehand if node.source != "x"]
    if made:
        apart = _Apart(trace, label, held)
        for node in made:
            apart.in_rows(node, node)


class _Apart(Lowering):
    """Lowers tensors for the sake of their axes."""

    def __init__(self, trace: Trace, label: str, held: Held) -> None:
        super().__init__(trace, label, torch.float64, torch.float64, held)
        self._sorting = Sorting(trace, label, hoists=False)
        self._dtypes = _AnyDtypes(trace, label, torch.float64, torch.float64)
        self._lowered |= {id(node): self._fresh(node) for node in trace.state}  # of random numbers

    def in_rows(self, node: Node, reader: Node) -> Rows:
        """The node, whose first axis counts the rows; messages name its reader."""
        rows = self._get(node)
        with self._telling(reader):
            if not rows.axes or rows.axes[0][:1] != (BATCH,):
                raise Refused("mixes the rows of a batch in {op}{line}")
        return rows

    def _operands(self, node: Node) -> list[Node]:
        if self._sorting.is_given(node) and node.source != "x":
            return self._read_rows(node)
        return super()._operands(node)

    def _input(self, node: Node) -> Rows:
        name = operation(node)
        if node.source == "x":
            return self._fresh(node)
        if name in RANDOM:
            for part in self._read_rows(node):
                self.in_rows(part, node)
            return self._fresh(node)
        given, parts = by_name(node), self._read_rows(node)
        with self._telling(node):
            if name not in _READS_ROWS:
                raise Refused(
                    "uses {op}{line}, and whether that keeps the rows of a batch apart is not known"
                )
            if len(parts) != 1 or parts[0] is not given.get(_READS_ROWS.get(name, "")):
                raise Refused("mixes the rows of a batch in {op}{line}")
            if given.get("scale_grad_by_freq"):
                raise Refused("counts the rows of a batch in {op}{line}")
            rows = self.in_rows(parts[0], node)
            if name == "convolution":
                return self._fresh(node)
            added = [() if size == 1 else ((size, 0),) for size in node.shape[rows.rank :]]
            value = self._numbers(node)
            axes = contiguous_axes([*rows.axes, *added])
            return Rows(value, 0, axes, self._build, self._trace.rows)

    def _is_looked_up(self, given: dict[str, Any]) -> bool:
        """Whether an index of each row chooses from a tensor that is the same for all rows."""
        is_table = self._sorting.is_static(given["self"])
        return is_table and len(given["indices"]) == 1 and given["indices"][0] is not None

    def _fresh(self, node: Node) -> Rows:
        """A node with its batch axis first."""
        with self._telling(node):
            return self._whole(self._numbers(node), node)

    def _numbers(self, node: Node) -> Value:
        """What a row of a node holds."""
        return Value(Kind.INPUT, prod(node.shape) // self._trace.rows)

    def _read_rows(self, node: Node) -> list[Node]:
        """The operands of which an operation reads the rows, and not only their shape."""
        if reads_shape_only(node):
            return []
        return [part for part in node.inputs() if not self._sorting.is_static(part)]

    def _lower(self, node: Node) -> Rows:
        if self._sorting.is_given(node) or self._sorting.is_computed_once(node):
            return super()._lower(node)
        name = operation(node)
        is_known = name in KNOWN and name not in _ALONG | {"index"}
        if is_known or node.custom is not None or node.op is None:
            return super()._lower(node)
        if torch.Tag.pointwise in node.op.tags:
            with self._telling(node):
                rows, *rest = [self._get(part) for part in node.inputs()]
                for other in rest:
                    rows = rows.apply("add", rows, other)
                return rows
        if name in _KEEP_AXES:
            self.in_rows(next(node.inputs()), node)
            return self._fresh(node)
        given = by_name(node)
        if name == "index":
            if not self._is_looked_up(given):
                return super()._lower(node)
            self.in_rows(given["indices"][0], node)
            return self._fresh(node)
        dims = given.get("dim", given.get("dims"))
        dims = [dims] if type(dims) is int else dims
        parts = list(node.inputs())
        if name not in _ALONG or not dims or any(dim % len(parts[0].shape) == 0 for dim in dims):
            raise self._unknown(node)
        for part in parts:
            self.in_rows(part, node)
        return self._fresh(node)


_READS_ROWS = {"embedding": "indices", "one_hot": "self", "convolution": "input"}
"""The operand of which an operation reads each row for itself."""


class _AnyDtypes(Dtypes):
    """Dtypes that torch computes in."""

    def check_given(self, node: Node) -> None:
        pass

    def check_made(self, node: Node) -> None:
        pass

    def rounded(self, number: float, node: Node) -> float:
        return float(number.real)


_KEEP_AXES = words("view_as_real view_as_complex _conj _conj_physical resolve_conj")
"""Operations that keep all axes, up to one behind them, which the instruction set lacks."""

_ALONG = words(
    "sort topk argsort argmax argmin kthvalue median nanmedian mode cummax cummin cumprod logcumsumexp "
    "gather _fft_r2c _fft_c2c _fft_c2r"
)
"""Operations along axes that they are told, which the instruction set lacks, or has for some integers."""
