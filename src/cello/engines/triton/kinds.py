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
        return Choice(units, "by units, since no unit of the state meets another one")
    terms = {
        (term.weight, term.w_offset, term.K, term.N, (term.weight.dtype or dtype).itemsize)
        for stage in units.stages.steps
        for _, term, _ in stage.addends
    }
    size = sum(K * N * itemsize for _, _, K, N, itemsize in terms)
    told = f"since the matrices of a step have {size / 1024:,.0f} KB"
    if size <= SMALL:
        why = f"by rows, {told}, not more than {SMALL // 1024} KB"
        return Choice(RowWriter(way, missing), why)
    return Choice(
        GraphWriter(way, missing), f"graph of steps, {told}, more than {SMALL // 1024} KB"
    )
