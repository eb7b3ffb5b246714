"""Scans of padded batches with lengths that a graph does not know: packed when they run."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from cello.engines.programs.kernel import Kernel
from cello.engines.sequence import Layout, Packing, check_lengths

Tensors = list[Tensor]


def divided(items: Iterable[Any], counts: Sequence[int]) -> list[list[Any]]:
    """Lists of so many items each, one after the other."""
    rest = iter(items)
    return [[next(rest) for _ in range(count)] for count in counts]


def scan_padded(
    kernel: Kernel[Any],
    run: Callable[..., Tensors],
    inputs: Tensors,
    statics: Tensors,
    states: Tensors,
    rows: int,
    descending: bool,
    lengths: Tensor,
) -> Tensors:
    """Run a scan of padded rows.

    Args:
        kernel: what runs it.
        run: runs a scan of packed rows: of inputs, statics, states, batch sizes, rows and direction.
        inputs: (T*B, width) each.
        statics: what is the same for all steps.
        states: (B, width) each.
        rows: T*B.
        descending: whether time runs from T - 1 to 0.
        lengths: (B,) int64 on the CPU.

    Returns:
        The results, zero where a sequence has ended; the final states, the initial ones of sequences
        without a step; and what is saved, the packed rows first.

    Raises:
        ValueError: the lengths do not fit.
    """
    packing, layout = _packed(rows, states, lengths)
    if layout is None:
        like, widths = states[0], (*kernel.widths, kernel.loops.saved_width)
        *results, saved = [like.new_zeros(rows, width) for width in widths]
        kept = [saved] if saved.shape[1] else []
        return [*results, *(state.clone() for state in states), *kept]
    found = run(
        [packing.pack(tensor) for tensor in inputs],
        statics,
        [packing.enter(state) for state in states],
        layout.sizes_tensor,
        layout.rows,
        descending,
    )
    count_saved = int(kernel.loops.saved_width > 0)
    results, finals, kept = divided(found, (len(kernel.widths), len(states), count_saved))
    return [
        *map(packing.unpack, results),
        *map(packing.leave, finals, states),
        *(nn.functional.pad(saved, (0, 0, 0, rows - layout.rows)) for saved in kept),
    ]


def scan_padded_backward(
    kernel: Kernel[Any],
    run: Callable[..., Tensors],
    gradients: Tensors,
    given: Sequence[bool],
    groups: tuple[Tensors, Tensors, Tensors],
    kept: Tensors,
    rows: int,
    descending: bool,
    lengths: Tensor,
) -> Tensors:
    """Run the gradient of :func:`scan_padded`.

    Args:
        kernel: what runs it.
        run: runs the gradient of a scan of packed rows; its arguments are those of the operator.
        gradients: those of the results and the final states that are not zero.
        given: which these are.
        groups: the inputs, the statics and the states.
        kept: those of the results that the backward loop reads, and what was saved.
        rows: T*B.
        descending: the direction of the *forward* loop.
        lengths: (B,) int64 on the CPU.

    Returns:
        The gradients that are wanted, in the order of the groups.

    Raises:
        ValueError: the lengths do not fit.
    """
    inputs, statics, states = groups
    packing, layout = _packed(rows, states, lengths)
    count = len(kernel.widths)
    present = iter(gradients)
    seeds = [next(present) if is_given else None for is_given in given]
    # A sequence without a step ends in the state that it starts from.
    idle = [
        torch.zeros_like(state) if seed is None else seed
        for state, seed in zip(states, seeds[count:], strict=True)
    ]
    wanted = kernel.loops.gets_gradient
    if layout is None:
        zeros = (torch.zeros_like(tensor) for tensor in (*inputs, *statics))
        found = [zero for zero, is_wanted in zip(zeros, wanted, strict=False) if is_wanted]
        return [*found, *map(torch.clone, idle)]
    packed = [None if seed is None else packing.pack(seed) for seed in seeds[:count]]
    packed += [None if seed is None else packing.enter(seed) for seed in seeds[count:]]
    count_read = sum(kernel.reads)
    results, saved = divided(kept, (count_read, len(kept) - count_read))
    found = run(
        [seed for seed in packed if seed is not None],
        given,
        [packing.pack(tensor) for tensor in inputs],
        statics,
        [packing.enter(state) for state in states],
        [*map(packing.pack, results), *(tensor[: layout.rows] for tensor in saved)],
        layout.sizes_tensor,
        layout.rows,
        descending,
    )
    counts = sum(wanted[: len(inputs)]), sum(wanted[len(inputs) : -len(states)]), len(states)
    of_inputs, of_statics, of_states = divided(found, counts)
    return [*map(packing.unpack, of_inputs), *of_statics, *map(packing.leave, of_states, idle)]


def _packed(rows: int, states: Tensors, lengths: Tensor) -> tuple[Packing, Layout | None]:
    """How the rows of a padded batch are packed, and the layout of what counts; ``None`` for nothing.

    Raises:
        ValueError: there is not one length for each sequence, or one is not among the steps.
    """
    batch = len(states[0])
    if lengths.shape != (batch,) or lengths.dtype != torch.int64 or not lengths.is_cpu:
        raise ValueError(f"a scan expects its lengths as ({batch},) int64 on the CPU")
    steps = rows // max(1, batch)
    check_lengths(lengths, steps)
    packing = Packing(lengths, steps, states[0].device)
    return packing, packing.layout
