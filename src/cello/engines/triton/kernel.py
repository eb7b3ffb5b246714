"""Loops as launches of Triton kernels, with the products ahead of them and behind them by torch."""

from __future__ import annotations

import hashlib
import linecache
from collections.abc import Callable, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import torch
from torch import Tensor

from cello.compile.instructions import Kind, Ref, Value
from cello.compile.loops import Pass, Streams
from cello.compile.stages import Addend
from cello.engines.programs import Kernel
from cello.engines.sequence import sent
from cello.engines.triton.library import is_interpreted
from cello.engines.triton.source import TILE, Source, write

ROWS = 16
"""Rows of the batch that one program of a kernel owns: as many as a product on tensor cores needs."""

FEW_ROWS = 4
"""The same where it owns a tile of numbers of each."""


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
            [final.view(count, -1) for final in finals],
            [],
            [],
            _starts(steps, rows, batch_sizes, like.device),
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
            _starts(steps, rows, batch_sizes, states[0].device),
            rows,
            not descending,
        )
        return call, found

    @staticmethod
    def run(calls: list[Call]) -> None:
        with torch.no_grad(), _here(calls[0].states[0].device):
            for call in calls:
                _run(call)


def _here(device: torch.device) -> AbstractContextManager[object]:
    """Launch on a device, since Triton launches on the current one.

    The interpreter, which computes with NumPy, is to divide by zero as a GPU does.
    """
    if not is_interpreted():
        return torch.get_device_module(device.type).device(device)  # type: ignore[no-any-return]
    import numpy as np

    return np.errstate(all="ignore")


def _starts(steps: int, rows: int, batch_sizes: Tensor | None, device: torch.device) -> Tensor:
    """The first row of each step, and N."""
    if batch_sizes is None:
        return torch.arange(steps + 1, device=device) * (rows // steps)
    return sent(torch.nn.functional.pad(batch_sizes.cumsum(0), (1, 0)), device)


def _run(call: Call) -> None:
    missing = frozenset(k for k, stream in enumerate(call.streams) if stream is None)
    source, function = _compiled(call.way, missing)
    like = call.states[0]
    batch, rows = like.shape[0], call.rows
    fixed = dict(zip(call.way.loop.statics, call.statics, strict=True))

    def rows_of(value: Value) -> Tensor:
        """The rows of all steps of a value, from its first number on."""
        if value in late:
            return late[value]
        column = call.way.reads[value]
        stream = call.streams[column.stream]
        if stream is None:
            return like.new_zeros(rows, value.width)
        return stream[:, column.offset : column.offset + value.width]

    late: dict[Value, Tensor] = {}
    ahead = {value: like.new_zeros(rows, value.width) for value in source.ahead}
    for stage in source.stages.steps:
        _multiply(stage.ahead, ahead, rows_of, fixed)
    late = {value: like.new_empty(rows, value.width) for value in source.late}
    work = like.new_empty(batch, source.workspace)
    tensors = [
        *(like if stream is None else stream for stream in call.streams),
        *call.statics,
        *call.states,
        *(call.origins or call.states),
        *ahead.values(),
        *late.values(),
    ]
    owned = FEW_ROWS if source.units else ROWS
    function[-(-batch // owned), max(1, -(-source.units // TILE))](
        *tensors,
        work,
        call.starts,
        len(call.starts) - 1,
        batch,
        int(call.descending),
        WORK=source.workspace,
        ROWS=owned,
        DTYPE=_in_triton(like.dtype),
        PRECISION=_precision(),
        IS_EMULATED=is_interpreted(),
        **options(source),
    )
    _finish(call, source, rows_of, fixed)


def options(source: Source) -> dict[str, int]:
    """How Triton is to compile a kernel: so that shipped cells fit the registers."""
    return {"num_warps": 4 if source.units else 8, "num_stages": 2}


def _finish(
    call: Call, source: Source, rows_of: Callable[[Value], Tensor], fixed: dict[Value, Tensor]
) -> None:
    """Do what comes behind the loop: products that nothing in it waits for, and weight gradients."""
    like = call.states[0]
    behind = {p.out: like.new_zeros(call.rows, p.out.width) for p in source.stages.behind}
    _multiply(source.stages.addends_behind(), behind, rows_of, fixed)
    for value, first, end, column in call.way.writes:
        stream = call.streams[column.stream]
        if value in behind and stream is not None:
            to = slice(column.offset, column.offset + end - first)
            stream[:, to] = behind[value][:, first:end]
    for outer in call.way.loop.outers:
        gradient = call.gradients[outer.weight.index]
        assert gradient is not None
        left = rows_of(outer.row)[:, outer.offset : outer.offset + outer.K]
        right = rows_of(outer.gradient)[:, outer.g_offset : outer.g_offset + outer.N]
        strides = outer.k_stride, outer.n_stride
        _block(gradient, (outer.K, outer.N), strides, outer.w_offset).addmm_(left.T, right)
    for row_sum in call.way.loop.row_sums:
        gradient = call.gradients[row_sum.vector.index]
        assert gradient is not None
        block = _block(gradient, row_sum.shape, row_sum.strides, row_sum.offset)
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
    results: dict[Value, Tensor],
    rows_of: Callable[[Value], Tensor],
    fixed: dict[Value, Tensor],
) -> None:
    """Add products of the rows of all steps to the results of their sums, those first with the biases."""
    for product, term, accumulates in addends:
        out = results[product.out][:, term.target : term.target + term.N]
        if not accumulates:
            for bias in product.biases:
                first = bias.offset + term.target
                out += fixed[bias.value].view(-1)[first : first + term.N]
        weight = fixed[term.weight]
        matrix = _block(weight, (term.K, term.N), (term.k_stride, term.n_stride), term.w_offset)
        row = rows_of(term.row)[:, term.offset : term.offset + term.K]
        if matrix.dtype != row.dtype:  # rounded as in the loop, and summed up as there
            row, matrix = row.to(matrix.dtype).to(out.dtype), matrix.to(out.dtype)
        out.addmm_(row, matrix)


def _block(tensor: Tensor, shape: tuple[int, ...], strides: tuple[int, ...], offset: int) -> Tensor:
    return tensor.as_strided(shape, strides, tensor.storage_offset() + offset)


@lru_cache(maxsize=512)
def _compiled(way: Pass, missing: frozenset[int]) -> tuple[Source, Any]:
    """Write the kernel of a loop and give it to Triton, which compiles it at its first launch."""
    import triton
    import triton.language as tl

    from cello.engines.triton import functions

    source = write(way, missing)
    # Triton reads the text of a function from its file.
    name = f"<cello-{hashlib.sha256(source.text.encode()).hexdigest()[:16]}>"
    linecache.cache[name] = len(source.text), None, source.text.splitlines(keepends=True), name
    scope: dict[str, Any] = {"triton": triton, "tl": tl, "F": functions, "__name__": __name__}
    exec(compile(source.text, name, "exec"), scope)
    return source, scope["loop"]


def _in_triton(dtype: torch.dtype) -> Any:
    import triton.language as tl

    return {torch.float32: tl.float32, torch.float64: tl.float64}[dtype]


def _precision() -> str:
    """How float32 is multiplied in the loop: as torch multiplies it outside of it."""
    # allow_tf32 says the same, and raises an error where the newer setting was set.
    return "tf32" if torch.backends.cuda.matmul.fp32_precision == "tf32" else "ieee"
