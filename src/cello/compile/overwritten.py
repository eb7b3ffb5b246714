"""Whether a tensor may be written to past its gradient, as in ``e.data.masked_fill_(mask, -inf)``.

torch does not see such a write. What it has kept of the tensor to compute gradients from holds the new
numbers then, and the gradients are others. A write that is compiled changes only what is read later.
"""

from __future__ import annotations

from collections.abc import Iterable

import torch

from cello.compile.node import Node, operation
from cello.foreign.scope import words


def is_kept_by_none(node: Node, nodes: Iterable[Node], *, may_be_copied: bool) -> bool:
    """Whether torch keeps neither a tensor, nor what shares its memory, for a gradient.

    Args:
        node: the tensor.
        nodes: all that the step has made so far, in order.
        may_be_copied: whether the step has called what copies tensors only with gaps in their memory.
    """
    base = node
    while operation(base) == "_unsafe_view" or (base.op is not None and base.op.is_view):
        if (
            operation(base) not in _VIEWS
        ):  # such as `detach`, past which a gradient does not come back
            return False
        base = base.args[0]
    has_gaps = operation(base) not in _WITHOUT_GAPS
    is_kept = base.is_detached or base.custom is not None or operation(base) not in _KEEP_NO_RESULT
    if is_kept or (has_gaps and may_be_copied):
        return False
    family = {id(base)}
    for other in nodes:
        if any(id(part) in family for part in other.inputs()):
            name = operation(other)
            if name in _VIEWS or name == "detach":
                family.add(id(other))
                if has_gaps and name in _RESHAPES:
                    return False
            elif other.dtype != torch.bool:  # truth values have no gradient
                return False
    return True


_WITHOUT_GAPS = words("mm addmm bmm baddbmm mv addmv dot")
"""Operations whose results lie in their memory without gaps, in a call as in a trace."""

_KEEP_NO_RESULT = _WITHOUT_GAPS | words("add sub rsub mul div neg sum cat stack")
"""Operations whose gradient is computed from their operands, or from nothing."""

_RESHAPES = words("view _unsafe_view _reshape_alias")
"""Views that are copies where a tensor has gaps in its memory."""

_VIEWS = _RESHAPES | words("alias squeeze unsqueeze select slice transpose t permute")
"""Operations whose results have the memory of their operand, and each number of it once."""
