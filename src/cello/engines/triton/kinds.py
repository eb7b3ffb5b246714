"""Which kind of kernels runs a loop, and why: by what it computes, by its shapes and by its GPU."""

from __future__ import annotations

import os
from dataclasses import replace
from typing import NamedTuple

import torch

from cello.compile.loops import Pass
from cello.compile.places import most_places, one_by_one
from cello.engines.triton.library import is_interpreted
from cello.engines.triton.loop import RowWriter, UnitWriter
from cello.engines.triton.persistent import BESIDE, HELD, PersistentWriter, Room
from cello.engines.triton.segments import GraphWriter

SMALL = 150 * 1024
"""Bytes of matrices that one program of a kernel reads at each step, at most: what is near a processor of
a GPU."""
SELECTION = "CELLO_TRITON"
"""The variable of the environment that selects kernels; `persistent` is what it may be."""
MOST_PLACES = 16
"""At so many places of a row a product may be computed in kernels that compute it for each of them."""
MOST_ROWS = 64
"""Rows of a batch that persistent kernels have, at most."""
OWN = 16, 8, 32
"""How many units a program of a persistent kernel may own, what is tried first first."""
INTERPRETED = 132
"""Programs that run at the same time on the GPU that the interpreter stands for."""


class Choice(NamedTuple):
    """How a loop runs.

    Attributes:
        writer: what writes its kernels.
        why: the reason, for a user.
    """

    writer: RowWriter | UnitWriter | GraphWriter | PersistentWriter
    why: str


def is_persistent_selected() -> bool:
    """Whether the environment selects persistent kernels.

    Raises:
        ValueError: it selects something else.
    """
    selected = os.environ.get(SELECTION, "")
    if selected not in ("", "persistent"):
        raise ValueError(
            f"the environment variable {SELECTION} must be 'persistent' or not set, got {selected!r}"
        )
    return selected == "persistent"


def room_for_programs(device: torch.device, batch: int) -> Room | str:
    """Return what there is for the programs of a persistent kernel, or why it cannot run.

    Args:
        device: where it is to run.
        batch: B.
    """
    if batch > MOST_ROWS:
        return f"the batch has {batch} sequences, more than {MOST_ROWS}"
    tiles = -(-batch // PersistentWriter.rows)
    if is_interpreted():
        return Room(INTERPRETED // tiles, HELD)
    if device.type != "cuda" or torch.version.hip is not None:
        return "programs that wait for each other are launched on NVIDIA's GPUs only"
    # One program is sure to fit each processor.
    found = torch.cuda.get_device_properties(device)
    shared = getattr(found, "shared_memory_per_block_optin", found.shared_memory_per_block)
    held = min(HELD, shared - BESIDE)
    return Room(found.multi_processor_count // tiles, held)


def _one_by_one(way: Pass) -> Pass | str:
    """A loop whose products have one place each, or why there is none."""
    places = most_places(way.loop)
    if places > MOST_PLACES:
        return f"a product is computed at {places} places of each row"
    return replace(way, loop=one_by_one(way.loop))


def persistent(
    way: Pass, missing: frozenset[int], dtype: torch.dtype, room: Room | str
) -> PersistentWriter | str:
    """Return what writes the persistent kernel of a loop, or why there is none.

    Args:
        way: the loop.
        missing: the numbers of the streams that are not there and count as zeros.
        dtype: what it computes in.
        room: as :func:`room_for_programs` returns it.
    """
    if isinstance(room, str):
        return room
    single = _one_by_one(way)
    if isinstance(single, str):
        return single
    writer, reason = PersistentWriter(single, missing, dtype), ""
    for writer.own in OWN:
        reason = writer.why_not(room) or ""
        if not reason:
            return writer
    return reason


def choose(
    way: Pass,
    missing: frozenset[int],
    dtype: torch.dtype,
    room: Room | str | None = None,
) -> Choice:
    """Choose the kernels of a loop.

    Args:
        way: the loop.
        missing: the numbers of the streams that are not there and count as zeros.
        dtype: what it computes in.
        room: if persistent kernels are selected, what :func:`room_for_programs` returns.
    """
    single = _one_by_one(way)
    if isinstance(single, str):
        return Choice(GraphWriter(way, missing), f"graph of steps, since {single}")
    way = single
    units = UnitWriter(way, missing)
    if units.units:
        return Choice(units, "by units, since no unit of the state meets another one")
    rest = ""
    if room is not None:
        found = persistent(way, missing, dtype, room)
        if isinstance(found, PersistentWriter):
            why = f"{found.own} units of {found.rows} sequences a program"
            return Choice(found, f"persistent, as {SELECTION} selects: {why}")
        rest = f"; not persistent, since {found}"
    terms = {
        (term.weight, term.w_offset, term.K, term.N, (term.weight.dtype or dtype).itemsize)
        for stage in units.stages.steps
        for _, term, _ in stage.addends
    }
    size = sum(K * N * itemsize for _, _, K, N, itemsize in terms)
    told = f"since the matrices of a step have {size / 1024:,.0f} KB"
    if size <= SMALL:
        why = f"by rows, {told}, not more than {SMALL // 1024} KB{rest}"
        return Choice(RowWriter(way, missing), why)
    return Choice(
        GraphWriter(way, missing), f"graph of steps, {told}, more than {SMALL // 1024} KB{rest}"
    )
