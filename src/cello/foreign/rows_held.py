"""Whether a step pairs the rows of its batch with rows that the cell holds, such as vectors of speakers.

Those rows are in the order of one batch, and there are as many as it has sequences. A layer that sorts
sequences by their lengths would pair them with others.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor, nn

from cello.cells.contract import Cell, State
from cello.foreign.apart import apart
from cello.foreign.memoryless import OVERWRITING, SHAPE_ALONE, Mode, each_tensor
from cello.foreign.scope import words


class RowsHeld(Mode):
    """Looks at the operations of one step for tensors of the cell's that meet its rows one by one.

    Parameters are left out: what is trained belongs to no batch.

    Args:
        rows: B, the number of rows; more than one.
        given: what the step is given for each of its rows.
        held: what the cell holds.

    Attributes:
        found: the tensor that was met first, if there is one.
    """

    def __init__(self, rows: int, given: Iterable[Tensor], held: Iterable[Tensor]) -> None:
        super().__init__()
        self.rows = rows
        self.found: Tensor | None = None
        self._varying = {id(tensor): tensor for tensor in given}
        self._written: set[int] = (
            set()
        )  # the memory of tensors with numbers for each row, written by parts
        # What is made of them alone, too, with the first one.
        self._held = {id(t): (t, t) for t in held if not isinstance(t, nn.Parameter)}

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        name = func._schema.name.removeprefix("aten::")
        operands = list(each_tensor((args, kwargs or {})))
        read = operands[1:] if name in OVERWRITING else operands
        if name in SHAPE_ALONE:
            read = []
        varying = [tensor for tensor in read if self._varies(tensor)]
        held = [tensor for tensor in read if self._is_held(tensor)]
        if varying and self.found is None:
            meeting = (tensor for tensor in held if self._meets(func, name, args, tensor, varying))
            self.found = next(map(self._origin, meeting), None)
        for made in each_tensor(out):
            if varying:
                self._varying[id(made)] = made
                if func._schema.is_mutable and id(made) not in self._held:
                    self._written.add(_memory_of(made))
            elif held:
                self._held[id(made)] = made, self._origin(held[0])
        return out

    def take(self, returned: Iterable[Tensor]) -> None:
        """Look at what the step returned for its rows, which is checked later."""
        for tensor in returned:
            is_new = self.found is None and self._is_held(tensor)
            if is_new and tensor.shape[:1] == (self.rows,) and _differs(tensor, 0):
                self.found = self._origin(tensor)

    def _is_held(self, tensor: Tensor) -> bool:
        return id(tensor) in self._held and not self._varies(tensor)

    def _varies(self, tensor: Tensor) -> bool:
        is_written = bool(self._written) and _memory_of(tensor) in self._written - {0}
        return is_written or id(tensor) in self._varying

    def _origin(self, tensor: Tensor) -> Tensor:
        return self._held[id(tensor)][1]

    def _meets(
        self, func: Any, name: str, args: tuple[Any, ...], held: Tensor, varying: list[Tensor]
    ) -> bool:
        """Whether place i of an axis of a tensor goes with row i."""
        rows = [tensor for tensor in varying if tensor.shape[:1] == (self.rows,)]
        if name in ("mm", "addmm"):  # a sum over rows
            axes = [1] * (held is args[-2] and any(tensor is args[-1] for tensor in rows))
        elif torch.Tag.pointwise in func.tags or name in OVERWRITING:  # which align the last axes
            axes = [held.dim() - tensor.dim() for tensor in rows]
        else:
            is_along = name == "cat" and 0 in args[1:2]
            axes = [0] * (name in _BY_ROW and not is_along and len(rows) > 0)
        return any(
            0 <= axis < held.dim() and held.shape[axis] == self.rows and _differs(held, axis)
            for axis in axes
        )


def _memory_of(tensor: Tensor) -> int:
    """Where the memory of a tensor begins; 0 where it has none."""
    if tensor.is_meta or tensor.layout is not torch.strided:
        return 0
    return tensor.untyped_storage().data_ptr()


def gives_each_row_its_own(cell: Cell, x: Tensor, state: State | None) -> bool:
    """Whether a step on the rows in other orders gives the same rows in these orders.

    A matrix with as many rows as the batch may have nothing to do with the batch.

    Args:
        cell: the cell.
        x: an input of a step, (B, ...), of which the shape counts.
        state: a state likewise.
    """
    generator = torch.Generator().manual_seed(0)

    def some(like: Tensor) -> Tensor:
        """Numbers in its place: zeros, as a first state has, hide what they are multiplied by."""
        if not like.is_floating_point():
            return like
        return torch.randn(like.shape, generator=generator, device="cpu").to(like)

    given = [some(part) for part in (x, *(state or ()))]
    in_order = torch.arange(len(x), device="cpu")
    orders = [torch.randperm(len(x), generator=generator, device="cpu") for _ in range(_ORDERS)]
    first: list[Tensor] = []
    try:
        with torch.no_grad(), apart(cell, x.device) as begin_anew:
            for order in (in_order, *orders):
                begin_anew()
                with _SameDraws():
                    now, *before = [part[order.to(part.device)] for part in given]
                    output, new_state = cell(now, tuple(before) or None)
                results = [output, *new_state]
                first = first or results
                for a, b in zip(results, first, strict=True):
                    expected = b[order.to(b.device)]
                    if not torch.allclose(a, expected, rtol=1e-3, atol=1e-5, equal_nan=True):
                        return False
    except Exception:  # it needs the rows in their order
        return False
    return True


_ORDERS = 4
"""In so many, neighbours in a batch do not stay neighbours."""


class _SameDraws(Mode):
    """Random numbers are one number for all rows, so that rows can be compared in other orders."""

    def __torch_dispatch__(
        self,
        func: Any,
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        out = func(*args, **(kwargs or {}))
        if torch.Tag.nondeterministic_seeded in func.tags:
            for made in each_tensor(out):
                made.fill_(0.5 if made.is_floating_point() else made.dtype is torch.bool)
        return out


def _differs(tensor: Tensor, axis: int) -> bool:
    """Whether it matters which place along an axis goes with which row."""
    if tensor.is_meta or tensor.stride(axis) == 0:
        return False
    if torch._C._len_torch_dispatch_stack() > 0:  # there may be no numbers to look at
        return True
    return not bool((tensor == tensor.narrow(axis, 0, 1)).all())


_BY_ROW = words("cat stack bmm baddbmm gather take_along_dim scatter scatter_add index_put")
"""Operations without the tag of pointwise ones in which row i of one operand meets row i of another."""
