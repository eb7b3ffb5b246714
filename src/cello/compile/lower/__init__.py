"""ATen operations as instructions.

`lowering.py` goes through the trace; `sort.py` says what stays in torch, and `dtypes.py` what the loop may
compute in its own dtype. A tensor of the trace is a `Rows` (`rows.py`): a view of a value, with the batch
among its axes (`axes.py`). An operation is a function of `Rows`, in the table of the file for its kind:
`views.py`, `products.py`, `reductions.py`, `normalise.py`, `pointwise.py` or `activations.py`. That none of
its arguments is left out is the affair of `arguments.py`; custom functions are that of `custom.py`. What
stays in torch is held to rows that do not see each other (`apart.py`).
"""

from cello.compile.lower.apart import hold_apart
from cello.compile.lower.lowering import KNOWN, Lowered, Lowering
from cello.compile.lower.sort import RANDOM
from cello.compile.node import operation
from cello.compile.reasons import CannotCompile

__all__ = ["KNOWN", "RANDOM", "CannotCompile", "Lowered", "Lowering", "hold_apart", "operation"]
