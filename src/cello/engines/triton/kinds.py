"""Which kind of kernels runs a loop, and why: by what it computes and by its shapes, never by trying."""

from __future__ import annotations

from typing import NamedTuple

import torch

from cello.compile.loops import Pass
from cello.engines.triton.loop import RowWriter, UnitWriter
from cello.engines.triton.segments import GraphWriter

SMALL = 150 * 1024
"""Bytes of matrices that one program of a kernel reads at each step, at most: what is near a processor of
a GPU."""


class Choice(NamedTuple):
    """How a loop runs.

    Attributes:
        writer: what writes its kernels.
        why: the reason, for a user.
    """

    writer: RowWriter | UnitWriter | GraphWriter
    why: str


def choose(way: Pass, missing: frozenset[int], dtype: torch.dtype) -> Choice:
    """Choose the kernels of a loop.

    Args:
        way: the loop.
        missing: the numbers of the streams that are not there and count as zeros.
        dtype: what it computes in.
    """
    units = UnitWriter(way, missing)
    if units.units:
        return Choice(
            units, "one kernel for all steps, by units: no unit of the state meets another one"
        )
    terms = {
        (term.weight, term.w_offset, term.K, term.N, (term.weight.dtype or dtype).itemsize)
        for stage in units.stages.steps
        for _, term, _ in stage.addends
    }
    size = sum(K * N * itemsize for _, _, K, N, itemsize in terms)
    told = (
        f"the matrices of a step have {size / 1024:,.0f} KB, and a program holds {SMALL // 1024} KB"
    )
    if size <= SMALL:
        return Choice(RowWriter(way, missing), f"one kernel for all steps, by rows: {told}")
    return Choice(GraphWriter(way, missing), f"products and kernels in turn at each step: {told}")
