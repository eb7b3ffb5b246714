"""A graph of steps at work: the launches of a block of steps, captured once and replayed.

On a GPU the launches of :data:`BLOCK` steps become a CUDA graph. All that they read lies in memory that
belongs to the graph (a table with the addresses of a call's tensors, the workspace, copies of the
matrices), so that the calls that follow replay it. Where nothing can be captured, and in Triton's
interpreter, the same launches run one by one.
"""

from __future__ import annotations

import threading
import warnings
import weakref
from collections.abc import Callable, Sequence
from functools import cache, lru_cache, partial
from itertools import pairwise
from types import ModuleType
from typing import NamedTuple

import torch
from torch import Tensor

from cello.compile.instructions import Value
from cello.engines.triton.library import in_triton, is_interpreted
from cello.engines.triton.products import at_places, block_of, multiply
from cello.engines.triton.segments import BASE, TENSORS, GraphSource, Launch

BLOCK = 32
"""Steps of a captured graph."""
FEW = 8
"""Steps up to which launches take less time than a graph of a whole block."""
KEPT = 16
"""Graphs that are kept; torch has 32 streams."""
ROWS = 16 if is_interpreted() else 1
"""Rows of the batch that a program owns; the interpreter takes as long for one as for many."""
WARPS = 4


class Tensors(NamedTuple):
    """The tensors of a call.

    Attributes:
        listed: what the kernels read and write, as their writer lists it.
        starts: (T + 1,) the first row of each step.
        fixed: the statics.
        states: what is carried, (B, width) each.
    """

    listed: Sequence[Tensor]
    starts: Tensor
    fixed: dict[Value, Tensor]
    states: Sequence[Tensor]


class Graph:
    """The launches of a loop, and the memory that they work in.

    Args:
        source: the text of its kernels.
        functions: the kernels.
        like: a tensor of the loop's dtype and device.
        capacity: rows that there may be at a step.
    """

    def __init__(
        self, source: GraphSource, functions: ModuleType, like: Tensor, capacity: int
    ) -> None:
        self.source, self.functions, self.capacity = source, functions, capacity
        self.dtype = in_triton(like.dtype)
        kinds = [(like.dtype, source.workspace)]
        kinds += [(dtype or like.dtype, width) for dtype, width in source.memories.items()]
        self.memories = [like.new_zeros(capacity, width, dtype=dtype) for dtype, width in kinds]
        self.matrices = {
            gemm: like.new_empty(gemm.K, gemm.N, dtype=gemm.dtype)
            for stretch in source.step
            for gemm in stretch.gemms
        }
        self.table = like.new_zeros(TENSORS + source.addresses, dtype=torch.int64)
        self.blocks: dict[int, Callable[[], object]] = {}
        self.capture: Capture | None = None
        self.lock = threading.Lock()

    def run(self, tensors: Tensors, descending: bool, counts: Sequence[int], replays: bool) -> None:
        """Go through all steps.

        Args:
            tensors: the tensors.
            descending: whether time runs from T - 1 to 0.
            counts: the rows of each step, in the order in which the loop comes to them.
            replays: whether to replay captured launches.
        """
        # The last kernel of a step goes on to the rows of the next one.
        reached = [max(pair) for pair in pairwise([*counts, 0])]
        with self.lock:
            self._begin(tensors, descending, len(counts), counts[0])
            for first in range(0, len(counts), BLOCK):
                block = reached[first : first + BLOCK]
                if replays:
                    self._replay(min(rounded(max(block)), self.capacity))
                else:
                    self._launch_block(block)

    def _begin(self, tensors: Tensors, descending: bool, steps: int, rows: int) -> None:
        for gemm, matrix in self.matrices.items():
            for block in gemm.blocks:
                shape, strides = (block.K, block.N), (block.k_stride, block.n_stride)
                static = block_of(tensors.fixed[block.static], shape, strides, block.offset)
                matrix[block.k0 : block.k0 + block.K, block.n0 : block.n0 + block.N] = static
        for number, (memory, offset) in self.source.beginnings:
            state = tensors.states[number]
            to = slice(offset, offset + state.shape[1])
            self.memories[memory][: len(state), to] = state
        addresses = *tensors.listed, tensors.starts, *self.memories
        self.functions.fill[(1,)](self.table, steps, int(descending), *addresses)
        self._launch(self.source.before, 0, rows)

    def _replay(self, rows: int) -> None:
        known = self.blocks.get(rows)
        if known is not None:
            known()
            return
        launches = partial(self._launch_block, [rows] * BLOCK)
        launches()  # compiles and loads what has to be there before it is captured
        self.capture = self.capture or Capture(self.table.device)
        found = self.capture.of(launches)
        if found is None:  # it may have taken what the other graphs of its stream work in
            self.blocks.clear()
        self.blocks[rows] = found or launches

    def _launch_block(self, rows: Sequence[int]) -> None:
        for k, count in enumerate(rows):
            for gemms, launch in self.source.step:
                for gemm in gemms:
                    places, (of_row, of_out) = gemm.places, (gemm.row.offset, gemm.out.offset)
                    row = self.memories[gemm.row.memory][:count]
                    row = at_places(row, of_row, gemm.K, places, gemm.row_step)
                    out = self.memories[0][:count]
                    out = at_places(out, of_out, gemm.N, places, gemm.out_step)
                    multiply(out, row, self.matrices[gemm], gemm.accumulates)
                self._launch(launch, k, count)
        self.table[BASE : BASE + 1] += BLOCK

    def _launch(self, launch: Launch | None, k: int, rows: int) -> None:
        if launch is not None:
            getattr(self.functions, launch.name)[-(-rows // ROWS), launch.tiles](
                self.table, k, ROWS=ROWS, DTYPE=self.dtype, num_warps=WARPS
            )


def run(
    source: GraphSource,
    functions: ModuleType,
    tensors: Tensors,
    descending: bool,
    counts: Sequence[int],
) -> None:
    """Run all steps of a call: with a graph that is kept for the calls that follow, if there can be one."""
    like = tensors.states[0]
    batch = len(like)
    if may_be_kept(like):
        key = source, functions, rounded(batch), like.dtype, like.device
        _kept(*key, _circumstances()).run(tensors, descending, counts, len(counts) > FEW)
    else:
        Graph(source, functions, like, batch).run(tensors, descending, counts, False)


def at_once(first: Callable[[], object], second: Callable[[], object], like: Tensor) -> None:
    """Run the graphs of two directions at the same time, the second on a stream of its own.

    That stream begins after what the caller's stream has been given before, and the caller's goes on when
    both are done. So memory of the caller's is reused after both only; what is allocated in between on the
    other stream is used on that one alone.
    """
    if not (torch.cuda.is_available() and may_be_kept(like)):
        first()
        second()
        return
    here, beside = torch.cuda.current_stream(), _stream_beside(like.device)
    beside.wait_stream(here)
    try:
        with torch.cuda.stream(beside):
            second()
        first()
    finally:
        here.wait_stream(beside)


@cache
def _stream_beside(device: torch.device) -> torch.cuda.Stream:
    return torch.cuda.Stream(device)


@lru_cache(maxsize=KEPT)
def _kept(
    source: GraphSource,
    functions: ModuleType,
    capacity: int,
    dtype: torch.dtype,
    device: torch.device,
    circumstances: object,
) -> Graph:
    with torch.inference_mode(False):  # its memory serves all calls
        return Graph(source, functions, torch.empty(0, dtype=dtype, device=device), capacity)


def _circumstances() -> object:
    """What captured products depend on, and the stream whose calls share a graph's memory."""
    matmul = torch.backends.cuda.matmul
    stream = torch.cuda.current_stream() if torch.cuda.is_available() else None
    return (
        stream,
        matmul.fp32_precision,
        matmul.allow_fp16_reduced_precision_reduction,
        matmul.allow_bf16_reduced_precision_reduction,
        matmul.allow_fp16_accumulation,
        torch.are_deterministic_algorithms_enabled(),
    )


def may_be_kept(like: Tensor) -> bool:
    """Whether launches may be captured: on a GPU, unless the caller captures them already."""
    return like.is_cuda and not torch.cuda.is_current_stream_capturing()


class Capture:
    """Where the launches of one graph are captured: on a stream and in memory of their own.

    torch's stream for captures is that of one device. What is captured on one stream shares the memory that
    cuBLAS works in, so it must not run at the same time, nor outlive any of it.

    Args:
        device: where they run.
    """

    def __init__(self, device: torch.device) -> None:
        free = _free_streams(device)
        self.stream = free.pop() if free else torch.cuda.Stream(device)
        weakref.finalize(self, free.append, self.stream)
        self.pool = torch.cuda.graph_pool_handle()

    def of(self, launches: Callable[[], object]) -> Callable[[], object] | None:
        """Return launches as one call of a CUDA graph, or ``None`` where they cannot be captured."""
        try:
            graph = torch.cuda.CUDAGraph()
            # torch leaves the stream only if it can end the capture.
            with (
                _CAPTURE,
                torch.cuda.stream(self.stream),
                torch.cuda.graph(graph, self.pool, self.stream, capture_error_mode="thread_local"),
            ):
                launches()
        except RuntimeError as error:
            reason = str(error).partition("\n")[0]
            warnings.warn(
                f"the steps of a layer could not be captured in a CUDA graph ({reason}); their kernels are "
                "launched one by one, which takes longer",
                RuntimeWarning,
                stacklevel=2,
            )
            return None
        return graph.replay


@cache
def _free_streams(device: torch.device) -> list[torch.cuda.Stream]:
    """Streams for captures on a device; torch gives the same ones again after 32."""
    return [torch.cuda.Stream(device) for _ in range(KEPT)]


_CAPTURE = threading.Lock()
"""One capture at a time is possible in a process."""


def rounded(rows: int) -> int:
    """A number of rows that is not less, and at most an eighth more: one of few, for a graph has one."""
    unit = max(1, (1 << rows.bit_length()) // 16)
    return -(-rows // unit) * unit
