"""A schedule as lists of numbers for `csrc/lists.cc`; `csrc/schedule.h` says what each of them is."""

from __future__ import annotations

from typing import Any

import torch

from cello.compile.instructions import Value
from cello.compile.stages import Block
from cello.engines.native.library import Numbers
from cello.engines.native.schedule import Schedule, Slice


def encode(schedule: Schedule, numbers: Numbers) -> dict[str, Any]:
    """Return the arguments of the extension module's `Schedule`.

    Args:
        schedule: the schedule.
        numbers: those by which the extension module knows operations and kinds of memory.
    """
    static = {value: index for index, value in enumerate(schedule.statics)}
    return {
        "buffers": [
            [numbers.spaces[b.space.value], b.width, b.index, b.offset, b.stride, b.origin]
            for b in schedule.buffers
        ],
        "numbers": schedule.numbers,
        "instructions": [
            [
                numbers.operations[code.op],
                *code.sizes,
                *(n for o in (code.out, *code.operands) for n in (*o.place, *o.strides)),
            ]
            for code in schedule.codes
        ],
        "matrices": [
            [m.K, m.N, *(n for block in m.blocks for n in _block(block, static))]
            for m in schedule.matrices
        ],
        "terms": [
            [
                *t.row,
                *t.out,
                t.matrix,
                t.k0,
                t.K,
                int(t.accumulates),
                -1 if t.partner is None else t.partner,
                *(t.places, t.row_step, t.out_step),
            ]
            for t in schedule.terms
        ],
        "biases": [
            [b.term, b.column, b.width, static[b.static], b.offset] for b in schedule.biases
        ],
        "stages": [[int(stage.is_fusion), *stage.items] for stage in schedule.stages],
        "before": schedule.ahead,
        "after": schedule.behind,
        "outers": [
            [
                *(*o.row, o.K, *o.gradient, o.N, *o.steps),
                *(n for piece in o.slices for n in _slice(piece, static)),
            ]
            for o in schedule.outers
        ],
        "sums": schedule.sums,
        "targets": [
            [t.sum, t.skipped, static[t.static], *t.sizes, t.offset, *t.strides]
            for t in schedule.targets
        ],
        "tiles": schedule.tiles,
        "bfloat16": [value.dtype == torch.bfloat16 for value in schedule.statics],
    }


def _block(block: Block, static: dict[Value, int]) -> tuple[int, ...]:
    return (
        *(static[block.static], block.offset, block.k_stride, block.n_stride),
        *(block.k0, block.n0, block.K, block.N),
    )


def _slice(piece: Slice, static: dict[Value, int]) -> tuple[int, ...]:
    return (
        *(piece.first, piece.N, static[piece.static]),
        *(piece.offset, piece.k_stride, piece.n_stride),
    )
