"""A persistent kernel at work: its memory, its launch, and what the interpreter runs instead."""

from __future__ import annotations

from types import ModuleType
from typing import Any

import torch

from cello.engines.triton.graph import Tensors
from cello.engines.triton.library import is_interpreted
from cello.engines.triton.persistent import APART, PersistentSource


class LaunchError(RuntimeError):
    """The programs of a kernel cannot all run at the same time."""


def run(
    source: PersistentSource,
    functions: ModuleType,
    tensors: Tensors,
    descending: bool,
    constants: dict[str, Any],
) -> None:
    """Run all steps of a call.

    Args:
        source: the text of the kernel.
        functions: the kernel and its phases.
        tensors: the tensors.
        descending: whether time runs from T - 1 to 0.
        constants: what is compiled in.

    Raises:
        LaunchError: nothing has run, since not all programs can run at the same time.
    """
    like = tensors.states[0]
    batch, steps = len(like), len(tensors.starts) - 1
    memories = [
        like.new_empty(2, batch, width, dtype=dtype) for dtype, width in source.memories.items()
    ]
    for number, (memory, offset) in source.beginnings:
        state = tensors.states[number]
        memories[memory - 1][:, :, offset : offset + state.shape[1]] = state
    grid = -(-batch // source.rows), source.tiles
    arguments = *tensors.listed, *memories, tensors.starts, steps, batch, int(descending)
    if is_interpreted():  # where programs run one after the other
        kept = like.new_empty(source.kept, batch, source.units)
        for step in range(steps):
            for phase in range(source.phases):
                alone = getattr(functions, f"alone{phase}")
                alone[grid](step, kept, *arguments, **constants)
        return
    counters = like.new_zeros(grid[0], APART, dtype=torch.int64)
    from triton.runtime.errors import OutOfResources

    try:
        functions.loop[grid](counters, *arguments, **constants, **options(source))
    except (OutOfResources, RuntimeError) as error:
        if not isinstance(error, OutOfResources) and "cooperative" not in str(error):
            raise
        raise LaunchError(str(error).partition("\n")[0]) from error


def options(source: PersistentSource) -> dict[str, Any]:
    """How Triton is to compile and to launch a kernel.

    What other programs write must not be read ahead of the exchange, so that nothing is pipelined.
    """
    return {
        "num_warps": source.warps,
        "num_stages": 1,
        "maxnreg": 255,
        "launch_cooperative_grid": True,
    }
