"""In which dtypes a program computes: an engine's decision, which the compile step follows."""

from __future__ import annotations

from functools import lru_cache
from typing import NamedTuple

import torch


class Precision(NamedTuple):
    """The dtypes of a program.

    Attributes:
        compute: of all that is computed, and of the streams and states of the loops.
        product: the dtype in which weights may stay that are in it and are only multiplied with. An engine
            may round the rows that it multiplies them with to it; it sums up in `compute`.
    """

    compute: torch.dtype
    product: torch.dtype


@lru_cache
def for_storage(dtype: torch.dtype) -> Precision:
    """Return the precision in which half precision is for storage, and for weights, and no more.

    Args:
        dtype: that of the cell's state.
    """
    if dtype in (torch.bfloat16, torch.float16):
        dtype = torch.float32
    return Precision(dtype, torch.bfloat16 if dtype == torch.float32 else dtype)
