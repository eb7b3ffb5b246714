"""An engine of programs in NumPy, for float64: what an engine for another device has to do, and no more."""

from __future__ import annotations

import numpy as np
import torch
from numpy_operations import OPERATIONS

from cello.compile.instructions import Assemble, Kind, Pointwise, Ref
from cello.compile.loops import Streams
from cello.compile.stages import make_stages
from cello.engines.programs import Kernel, ProgramEngine


def view(rows, offset, shape, strides):
    """A block of each row."""
    steps = [rows.strides[0], *(stride * rows.itemsize for stride in strides)]
    return np.lib.stride_tricks.as_strided(rows[:, offset:], (len(rows), *shape), steps)


def at(values, ref, shape):
    """A block of each row of a value."""
    constant = np.array([[ref.value.number]])
    rows = constant if ref.value.kind is Kind.CONSTANT else values[ref.value]
    return view(rows, ref.offset, shape, ref.strides)


def multiply(values, addends, rows):
    """Add products of rows to the results of their sums, or begin those with the biases."""
    for product, term, accumulates in addends:
        out = values.setdefault(product.out, np.zeros((rows, product.out.width)))
        to = view(out, term.target, (product.places, term.N), (product.block, 1))
        if not accumulates:
            to[...] = sum(
                at(values, bias._replace(offset=bias.offset + term.target), (term.N,))[:, None]
                for bias in product.biases
            )
        weight = Ref(term.weight, term.w_offset, (term.k_stride, term.n_stride))
        row = at(values, Ref(term.row, term.offset, (term.row_step, 1)), (product.places, term.K))
        to += row @ at(values, weight, (term.K, term.N))[0]


def compute(values, instruction, rows):
    """Run an instruction that is no product."""
    out = values[instruction.out] = np.zeros((rows, instruction.out.width))
    if isinstance(instruction, Assemble):
        for shape, source, offset, strides in instruction.pieces:
            view(out, offset, shape, strides)[...] = at(values, source, shape)
        return
    is_pointwise, shape = isinstance(instruction, Pointwise), instruction.shape
    found = OPERATIONS[instruction.op](*(at(values, ref, shape) for ref in instruction.args))
    kept = shape if is_pointwise else shape[:-1]
    out[...] = np.broadcast_to(found, (rows, *kept)).reshape(out.shape)


def run(way, streams, statics, sizes, descending, states, origins=(), gradients=()):
    """Run all steps; the streams to write, the states and the gradients of statics are written to."""
    stages, loop, reads, widths = make_stages(way), way.loop, way.reads, way.streams.in_order()
    starts, total = np.cumsum([0, *sizes]), sum(sizes)
    streams = [None if stream is None else stream.detach().numpy() for stream in streams.in_order()]

    def read(value, first, end):  # as far as it lies there
        (stream, offset, _), out = reads[value], np.zeros((end - first, value.width))
        low, high = max(0, -offset), min(value.width, widths[stream] - offset)
        if streams[stream] is not None:  # a gradient that is zero
            out[:, low:high] = streams[stream][first:end, offset + low : offset + high]
        return out

    def write(values, here):
        for value, first, end, column in way.writes:
            if value in values:
                to = slice(column.offset, column.offset + end - first)
                streams[column.stream][here, to] = values[value][:, first:end]

    def gather(static, offset, strides, found):
        view(gradients[static.index].reshape(1, -1), offset, found.shape, strides)[0] += found

    flat = [static.detach().numpy().reshape(1, -1) for static in statics]
    fixed = dict(zip(loop.statics, flat, strict=True))
    ahead = fixed | {value: read(value, 0, total) for value in reads if stages.is_known(value)}
    for stage in stages.steps:
        multiply(ahead, stage.ahead, total)
    late = fixed | {value: np.zeros((total, value.width)) for value in stages.late}
    for t in range(len(sizes))[:: -1 if descending else 1]:
        rows, here = sizes[t], slice(starts[t], starts[t + 1])
        values = {v: a if v in fixed else a[here].copy() for v, a in ahead.items()}
        values |= {v: s[:rows].copy() for v, s in zip(loop.states, states, strict=True)}
        for value in reads:
            if value not in ahead:  # a state before this step of the forward loop
                before = t - 1 if descending else t + 1
                going = min(rows, sizes[before]) if 0 <= before < len(sizes) else 0
                place = starts[before] if going else 0
                parts = read(value, place, place + going), origins[reads[value].origin][going:rows]
                values[value] = np.concatenate(parts)
        for stage in stages.steps:
            multiply(values, stage.addends, rows)
            for instruction in stage.fusion:
                compute(values, instruction, rows)
        for value in stages.late:
            late[value][here] = values[value]
        write(values, here)
        for shape, source, vector, offset, strides in loop.row_sums:
            block = np.broadcast_to(at(values, source, shape), (rows, *shape))
            gather(vector, offset, strides, block.sum(0))
        for state, value in zip(states, loop.new_states, strict=True):
            state[:rows] = values[value]  # none of which is a part of `states`
    multiply(late, stages.addends_behind(), total)
    write({product.out: late[product.out] for product in stages.behind}, slice(0, total))
    for outer in loop.outers:
        row = Ref(outer.row, outer.offset, (outer.row_step, 1))
        gradient = Ref(outer.gradient, outer.g_offset, (outer.g_step, 1))
        left = at(late, row, (outer.places, outer.K)).reshape(-1, outer.K)
        right = at(late, gradient, (outer.places, outer.N)).reshape(-1, outer.N)
        gather(outer.weight, outer.w_offset, (outer.k_stride, outer.n_stride), left.T @ right)


class NumpyKernel(Kernel):
    device_types = ("cpu",)

    def forward(self, steps, rows, batch_sizes, descending, inputs, statics, states, batch=None):
        widths = *self.widths, self.loops.saved_width
        *results, saved = [states[0].new_empty(rows, width) for width in widths]
        sizes = [rows // steps] * steps if batch_sizes is None else batch_sizes.tolist()
        finals = [state.detach().clone() for state in states]
        flat = [final.view(sizes[0], -1).numpy() for final in finals]
        streams = Streams((), inputs, results, [saved])
        call = self.loops.forward, streams, statics, sizes, descending, flat
        return call, results, finals, [saved][: widths[-1] > 0]

    def backward(self, steps, rows, batch_sizes, descending, gradients, *groups):
        inputs, statics, states, results, saved = groups
        sizes = [rows // steps] * steps if batch_sizes is None else batch_sizes.tolist()
        given = zip((*inputs, *statics, *states), self.wanted, strict=True)
        found = [torch.zeros_like(tensor) if is_wanted else None for tensor, is_wanted in given]
        for own, gradient in zip(found[-len(states) :], gradients[len(results) :], strict=True):
            own += 0 if gradient is None else gradient
        own = [gradient for gradient in found[: len(inputs)] if gradient is not None]
        streams = Streams(gradients[: len(results)], inputs, results, [saved], own)
        arrays = [None if g is None else g.numpy() for g in found[len(inputs) :]]
        more = arrays[len(statics) :], [state.detach().numpy() for state in states], arrays
        return (self.loops.backward, streams, statics, sizes, not descending, *more), found

    @staticmethod
    def run(calls):
        with np.errstate(all="ignore"):
            for call in calls:
                run(*call)


class Toy(ProgramEngine):
    name = "toy"
    kernels = NumpyKernel

    def why_not_here(self, scan):
        return iter(())
