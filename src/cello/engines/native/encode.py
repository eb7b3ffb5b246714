"""A plan as lists of numbers, which `csrc/run.cc` reads; `csrc/schedule.h` says what each of them is."""

from __future__ import annotations

from typing import Any

import torch

from cello.engines.native.library import Numbers
from cello.engines.native.plan import Plan


def encode(plan: Plan, numbers: Numbers) -> dict[str, Any]:
    """Return the arguments of the extension module's `Plan`.

    Args:
        plan: the plan.
        numbers: those by which the extension module knows operations and kinds of memory.
    """
    static = {value: index for index, value in enumerate(plan.statics)}
    return {
        "buffers": [
            [numbers.spaces[b.space.value], b.width, b.index, b.offset, b.stride, b.origin]
            for b in plan.buffers
        ],
        "numbers": plan.numbers,
        "instructions": [
            [
                numbers.operations[code.op],
                *code.sizes,
                *(n for o in (code.out, *code.operands) for n in (*o.place, *o.strides)),
            ]
            for code in plan.codes
        ],
        "matrices": [
            [m.K, m.N, *(n for block in m.blocks for n in (static[block.static], *block[1:]))]
            for m in plan.matrices
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
            ]
            for t in plan.terms
        ],
        "biases": [[b.term, b.column, b.width, static[b.static], b.offset] for b in plan.biases],
        "stages": [[int(is_segment), *items] for is_segment, items in plan.stages],
        "before": plan.ahead,
        "after": plan.behind,
        "outers": [
            [
                *(*o.row, o.K, *o.gradient, o.N),
                *(n for p in o.parts for n in (p.first, p.N, static[p.static], *p[3:])),
            ]
            for o in plan.outers
        ],
        "sums": plan.sums,
        "targets": [
            [t.sum, t.skipped, static[t.static], *t.sizes, t.offset, *t.strides]
            for t in plan.targets
        ],
        "tiles": plan.tiles,
        "bfloat16": [value.dtype == torch.bfloat16 for value in plan.statics],
    }
