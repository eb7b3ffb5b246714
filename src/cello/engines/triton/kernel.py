"""Loops as launches of Triton kernels, with the products ahead of them and behind them by torch."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache, partial
from types import ModuleType
from typing import Any, NamedTuple

import torch
from torch import Tensor

from cello.compile.instructions import Kind, Ref, Value
from cello.compile.loops import Pass, Streams
from cello.compile.stages import Addend
from cello.engines.programs import Kernel
from cello.engines.sequence import Layout, sent
from cello.engines.triton import graph, kinds, together
from cello.engines.triton.graph import Tensors
from cello.engines.triton.library import build, in_triton, is_interpreted
from cello.engines.triton.loop import DEEP, SHALLOW, LoopSource
from cello.engines.triton.persistent import PersistentSource, Room
from cello.engines.triton.products import at_places, block_of, multiply
from cello.engines.triton.segments import GraphSource
from cello.engines.triton.writer import Source


@dataclass
class Call:
    """A loop with its tensors.

    Attributes:
        way: the loop.
        streams: the tensor of each stream, ``None`` for a gradient that is zero.
        statics: the statics.
        states: what is carried, (B, width) each, which the loop leaves as it is at the end.
        origins: the states before the first step of the forward loop, for the backward one.
        gradients: of the statics, all of them zero at first.
        counts: the rows of each step.
        starts: (T + 1,) the first row of each step.
        rows: N.
        descending: whether time runs from T - 1 to 0.
    """

    way: Pass
    streams: tuple[Tensor | None, ...]
    statics: Sequence[Tensor]
    states: Sequence[Tensor]
    origins: Sequence[Tensor]
    gradients: Sequence[Tensor | None]
    counts: Sequence[int]
    starts: Tensor
    rows: int
    descending: bool


class TritonKernel(Kernel[Call]):
    """Loops on a GPU, or in Triton's interpreter on the CPU."""

    device_types = ("cpu",) if is_interpreted() else ("cuda", "xpu")  # "cuda" is ROCm, too

    def forward(
        self,
        steps: int,
        rows: int,
        batch_sizes: Tensor | None,
        descending: bool,
        inputs: Sequence[Tensor],
        statics: Sequence[Tensor],
        states: Sequence[Tensor],
        batch: int | None = None,
    ) -> tuple[Call, list[Tensor], list[Tensor], list[Tensor]]:
        like = states[0]
        widths = *self.widths, self.loops.saved_width
        *results, saved = [like.new_empty(rows, width) for width in widths]
        finals = [state.detach().clone() for state in states]
        count = like.shape[0] if batch is None else batch
        streams = Streams.ordered((), inputs, results, [saved], ())
        call = Call(
            self.loops.forward,
            streams,
            statics,
            [final.view(count, final.numel() // max(1, count)) for final in finals],
            [],
            [],
            *_rows(steps, rows, batch_sizes, like.device),
            rows,
            descending,
        )
        return call, results, finals, [saved][: self.loops.saved_width > 0]

    def backward(
        self,
        steps: int,
        rows: int,
        batch_sizes: Tensor | None,
        descending: bool,
        gradients: Sequence[Tensor | None],
        inputs: Sequence[Tensor],
        statics: Sequence[Tensor],
        states: Sequence[Tensor],
        results: Sequence[Tensor | None],
        saved: Tensor | None,
    ) -> tuple[Call, list[Tensor | None]]:
        assert self.loops.backward is not None
        dtype = self.loops.dtype
        given = zip((*inputs, *statics, *states), self.wanted, strict=True)
        found = [torch.zeros_like(t, dtype=dtype) if is_wanted else None for t, is_wanted in given]
        own: list[Any] = found[len(found) - len(states) :]
        for gradient, final in zip(own, gradients[len(results) :], strict=True):
            if final is not None:
                gradient.copy_(final)
        d_inputs = [gradient for gradient in found[: len(inputs)] if gradient is not None]
        streams = Streams.ordered(gradients[: len(results)], inputs, results, (saved,), d_inputs)
        call = Call(
            self.loops.backward,
            streams,
            statics,
            own,
            states,
            found[len(inputs) : len(inputs) + len(statics)],
            *_rows(steps, rows, batch_sizes, states[0].device),
            rows,
            not descending,
        )
        return call, found

    def is_better_together(self, layout: Layout) -> bool:
        return True  # a batch of few rows leaves most of a GPU to the other direction

    @staticmethod
    def run(calls: list[Call]) -> None:
        calls = [call for call in calls if call.rows > 0]
        if not calls:
            return
        with torch.no_grad(), _here(calls[0].states[0].device):
            if len(calls) == 1 or kinds.is_persistent_selected():
                for call in calls:
                    _run(call)
            else:
                _run_at_once(*calls)


def _here(device: torch.device) -> AbstractContextManager[object]:
    """Launch on a device, since Triton launches on the current one.

    The interpreter, which computes with NumPy, is to divide by zero as a GPU does.
    """
    if not is_interpreted():
        return torch.get_device_module(device.type).device(device)  # type: ignore[no-any-return]
    import numpy as np

    return np.errstate(all="ignore")


def _rows(
    steps: int, rows: int, batch_sizes: Tensor | None, device: torch.device
) -> tuple[list[int], Tensor]:
    """How many rows each step has, and the first row of each step, and N."""
    if batch_sizes is None:
        count = rows // max(1, steps)
        return [count] * steps, torch.arange(steps + 1, device=device) * count
    starts = torch.nn.functional.pad(batch_sizes.cumsum(0), (1, 0))
    return batch_sizes.tolist(), sent(starts, device)


def _run(call: Call) -> None:
    """Run a loop, on persistent kernels if they are selected and can be launched."""
    like = call.states[0]
    if not kinds.is_persistent_selected():
        _run_with(call, None)
        return
    room = kinds.room_for_programs(like.device, len(like))
    try:
        # The reason why there is none is no part of what kernels are kept for: it names the batch.
        _run_with(call, None if isinstance(room, str) else room)
    except together.LaunchError as error:
        warnings.warn(
            f"the persistent kernel of a layer cannot be launched ({error}); other kernels run instead",
            RuntimeWarning,
            stacklevel=2,
        )
        _run_with(call, None)


def _run_at_once(first: Call, second: Call) -> None:
    """Run the loops of two directions at the same time, where their kernels can."""
    one, other = (_compiled(call, None)[0] for call in (first, second))
    if isinstance(one, GraphSource) and isinstance(other, GraphSource):
        like = first.states[0]
        graph.at_once(partial(_run_with, first, None), partial(_run_with, second, None), like)
    elif isinstance(one, LoopSource) and isinstance(other, LoopSource) and one.text == other.text:
        ready = [_Ready.of(call, None) for call in (first, second)]
        _launch(ready)
        for way in ready:
            way.finish()
    else:
        _run_with(first, None)
        _run_with(second, None)


def _run_with(call: Call, room: Room | None) -> None:
    ready = _Ready.of(call, room)
    source, functions, tensors = ready.source, ready.functions, ready.tensors
    if isinstance(source, GraphSource):
        counts = call.counts[::-1] if call.descending else call.counts
        graph.run(source, functions, tensors, call.descending, counts)
    elif isinstance(source, PersistentSource):
        fixed = constants(source, call.states[0].dtype, _precision())
        together.run(source, functions, tensors, call.descending, fixed)
    else:
        _launch([ready])
    ready.finish()


def _compiled(
    call: Call, room: Room | None
) -> tuple[LoopSource | GraphSource | PersistentSource, ModuleType]:
    missing = frozenset(k for k, stream in enumerate(call.streams) if stream is None)
    return compiled(call.way, missing, call.states[0].dtype, room)


class _Ready(NamedTuple):
    """A call of which the products ahead of the loop are computed.

    Attributes:
        call: the call.
        source: the text of its kernels.
        functions: the kernels.
        tensors: what they read and write.
        late: the rows of all steps that are written for what comes behind the loop.
    """

    call: Call
    source: LoopSource | GraphSource | PersistentSource
    functions: ModuleType
    tensors: Tensors
    late: dict[Value, Tensor]

    @classmethod
    def of(cls, call: Call, room: Room | None) -> _Ready:
        """Choose the kernels of a call, and do what comes ahead of the loop."""
        source, functions = _compiled(call, room)
        like, rows = call.states[0], call.rows
        fixed = dict(zip(call.way.loop.statics, call.statics, strict=True))
        addends = [addend for stage in source.stages.steps for addend in stage.ahead]
        ahead = _multiply(addends, rows, like, partial(_rows_of, call, {}), fixed)
        late = {value: like.new_empty(rows, value.width) for value in source.late}
        tensors = Tensors(
            [
                *call.statics,
                *(like if stream is None else stream for stream in call.streams),
                *call.states,
                *(call.origins or call.states),
                *ahead.values(),
                *late.values(),
            ],
            call.starts,
            fixed,
            call.states,
        )
        return cls(call, source, functions, tensors, late)

    def finish(self) -> None:
        """Do what comes behind the loop."""
        _finish(self.call, self.source, partial(_rows_of, self.call, self.late), self.tensors.fixed)


def _rows_of(call: Call, late: dict[Value, Tensor], value: Value) -> Tensor:
    """The rows of all steps of a value, from its first number on."""
    if value in late:
        return late[value]
    column = call.way.reads[value]
    stream = call.streams[column.stream]
    if stream is None:
        return call.states[0].new_zeros(call.rows, value.width)
    return stream[:, column.offset : column.offset + value.width]


def _launch(ready: Sequence[_Ready]) -> None:
    """Launch the kernel of one direction, or that of both."""
    source, like, starts = ready[0].source, ready[0].call.states[0], ready[0].tensors.starts
    assert isinstance(source, LoopSource)
    functions = ready[0].functions
    kernel = functions.loop if len(ready) == 1 else functions.both
    arguments: list[Any] = []
    for one in ready:
        work = like.new_empty(len(like), source.workspace)
        arguments += [*one.tensors.listed, work, int(one.call.descending)]
    kernel[-(-len(like) // source.rows), source.tiles, len(ready)](
        *arguments,
        starts,
        len(starts) - 1,
        len(like),
        **constants(source, like.dtype, _precision()),
        **options(source, like.device.type),
    )


def constants(
    source: LoopSource | PersistentSource, dtype: torch.dtype, precision: str
) -> dict[str, Any]:
    """What is compiled into a kernel.

    Args:
        source: its text.
        dtype: what the loop computes in.
        precision: how float32 is multiplied, as Triton calls it.
    """
    found = {"ROWS": source.rows, "DTYPE": in_triton(dtype), "PRECISION": precision}
    if isinstance(source, LoopSource):
        found["DEEP"] = DEEP if precision == "tf32" and dtype == torch.float32 else SHALLOW
    return found


def options(source: LoopSource, device_type: str = "cuda") -> dict[str, int]:
    """How Triton is to compile a kernel: with all registers, for it is alone on its processor.

    Args:
        source: its text.
        device_type: where it runs.
    """
    # NVIDIA's compiler would hold back registers; those for other GPUs have no such option.
    registers = {"maxnreg": 255} if device_type == "cuda" and not torch.version.hip else {}
    return {"num_warps": source.warps, "num_stages": 2, **registers}


def _finish(
    call: Call,
    source: Source,
    rows_of: Callable[[Value], Tensor],
    fixed: dict[Value, Tensor],
) -> None:
    """Do what comes behind the loop: products that nothing in it waits for, and weight gradients."""
    like = call.states[0]
    behind = _multiply(source.stages.addends_behind(), call.rows, like, rows_of, fixed)
    for value, first, end, column in call.way.writes:
        stream = call.streams[column.stream]
        if value in behind and stream is not None:
            to = slice(column.offset, column.offset + end - first)
            stream[:, to] = behind[value][:, first:end]
    for outer in call.way.loop.outers:
        gradient = call.gradients[outer.weight.index]
        assert gradient is not None
        places, K, N = outer.places, outer.K, outer.N
        left = at_places(rows_of(outer.row), outer.offset, K, places, outer.row_step)
        right = at_places(rows_of(outer.gradient), outer.g_offset, N, places, outer.g_step)
        block = block_of(gradient, (K, N), (outer.k_stride, outer.n_stride), outer.w_offset)
        left, right = left.reshape(-1, K).T, right.reshape(-1, N)
        repeated = [axis for axis in (0, 1) if block.stride(axis) == 0]
        if repeated:  # a weight as a matrix in which its numbers are more than once
            total = gradient.new_zeros(K, N).addmm_(left, right)  # whatever torch.autocast says
            total = total.sum(repeated, keepdim=True)
            block[: len(total), : total.shape[1]] += total
        else:
            block.addmm_(left, right)
    for row_sum in call.way.loop.row_sums:
        gradient = call.gradients[row_sum.vector.index]
        assert gradient is not None
        block = block_of(gradient, row_sum.shape, row_sum.strides, row_sum.offset)
        block += _sum_of_rows(row_sum.source, row_sum.shape, call, rows_of)


def _sum_of_rows(
    source: Ref, shape: tuple[int, ...], call: Call, rows_of: Callable[[Value], Tensor]
) -> Tensor:
    like = call.states[0]
    if source.value.kind is Kind.CONSTANT:
        return like.new_full(shape, source.value.number * call.rows)
    sums = rows_of(source.value).sum(0)
    return sums.as_strided(shape, source.strides, source.offset)


def _multiply(
    addends: Sequence[Addend],
    rows: int,
    like: Tensor,
    rows_of: Callable[[Value], Tensor],
    fixed: dict[Value, Tensor],
) -> dict[Value, Tensor]:
    """The sums of products for the rows of all steps, with the biases of all columns."""
    sums: dict[Value, Tensor] = {}
    for product, term, _ in addends:
        if product.out not in sums:
            sums[product.out] = like.new_zeros(rows, product.out.width)
            for bias in product.biases:
                first = bias.offset
                vector = fixed[bias.value].view(-1)[first : first + product.block]
                sums[product.out] += vector.repeat(product.places)
        out = at_places(sums[product.out], term.target, term.N, product.places, product.block)
        row = at_places(rows_of(term.row), term.offset, term.K, product.places, term.row_step)
        strides = term.k_stride, term.n_stride
        matrix = block_of(fixed[term.weight], (term.K, term.N), strides, term.w_offset)
        multiply(out, row, matrix, True)
    return sums


@lru_cache(maxsize=512)
def compiled(
    way: Pass, missing: frozenset[int], dtype: torch.dtype, room: Room | None
) -> tuple[LoopSource | GraphSource | PersistentSource, ModuleType]:
    """Choose and write the kernels of a loop, and give them to Triton."""
    source = kinds.choose(way, missing, dtype, room).writer.write()
    return source, build(source.text)


def _precision() -> str:
    """How float32 is multiplied in the loop: as torch multiplies it outside of it."""
    # allow_tf32 says the same, and raises an error where the newer setting was set. Not all of AMD's GPUs
    # have it.
    is_tf32 = torch.backends.cuda.matmul.fp32_precision == "tf32" and not torch.version.hip
    return "tf32" if is_tf32 else "ieee"
