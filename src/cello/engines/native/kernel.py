"""Loops as calls of the extension module."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING

import torch
from torch import Tensor

from cello.compile import Loops
from cello.compile.loops import Pass, Streams
from cello.engines.native.addresses import make_schedule
from cello.engines.native.encode import encode
from cello.engines.native.library import library, numbers_of
from cello.engines.programs.kernel import Kernel, lost
from cello.engines.sequence import Layout

if TYPE_CHECKING:
    from cello.engines.native import _native


class NativeKernel(Kernel["_native.Call"]):
    """Loops on the CPU.

    Raises:
        ValueError: they compute in a dtype in which the engine does not.
    """

    device_types = ("cpu",)

    def __init__(self, loops: Loops) -> None:
        super().__init__(loops)
        self._is_double = loops.dtype == torch.float64
        possible = {torch.float64} if self._is_double else {torch.float32, torch.bfloat16}
        if loops.dtype == torch.bfloat16 or not {loops.dtype, *self.dtypes} <= possible:
            raise ValueError(
                "the native engine computes in float64, or in float32 with weights in float32 or "
                f"bfloat16; the loops of {loops.label} are in {loops.dtype} with weights in "
                f"{', '.join(map(str, self.dtypes))}"
            )
        self._saved_width, self._dtype = loops.saved_width, loops.dtype
        self._forward = _schedule(loops.forward)
        self._backward = None if loops.backward is None else _schedule(loops.backward)

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
    ) -> tuple[_native.Call, list[Tensor], list[Tensor], list[Tensor]]:
        like = states[0]
        results = [_empty(like, rows, width) for width in self.widths]
        saved = [_empty(like, rows, self._saved_width)] if self._saved_width else []
        finals = [torch.empty_like(state) for state in states]
        streams = Streams.ordered((), inputs, results, saved or (None,), ())
        call = self._forward.call(
            self._is_double,
            descending,
            steps,
            like.shape[0] if batch is None else batch,
            rows,
            0 if batch_sizes is None else batch_sizes.data_ptr(),
            _addresses(streams),
            _addresses(statics),
            _addresses(states),
            [tensor.data_ptr() for tensor in finals],
            [],
            [],
        )
        return call, results, finals, saved

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
    ) -> tuple[_native.Call, list[Tensor | None]]:
        assert self._backward is not None
        count = len(self.widths)
        d_inputs = [
            torch.empty_like(tensor) if is_wanted else None
            for tensor, is_wanted in zip(inputs, self.wanted[: len(inputs)], strict=True)
        ]
        d_statics = [
            torch.zeros_like(tensor, dtype=self._dtype) if is_wanted else None
            for tensor, is_wanted in zip(
                statics, self.wanted[len(inputs) : -len(states)], strict=True
            )
        ]
        finals = gradients[count:]
        d_states = [
            torch.zeros_like(state) if gradient is None else torch.empty_like(state)
            for gradient, state in zip(finals, states, strict=True)
        ]
        # A gradient that is zero at the last step starts where it ends.
        carried = [own if g is None else g for g, own in zip(finals, d_states, strict=True)]
        streams = Streams.ordered(
            gradients[:count],
            inputs,
            results,
            (saved,),
            [gradient for gradient in d_inputs if gradient is not None],
        )
        call = self._backward.call(
            self._is_double,
            not descending,
            steps,
            states[0].shape[0],
            rows,
            0 if batch_sizes is None else batch_sizes.data_ptr(),
            _addresses(streams),
            _addresses(statics),
            [tensor.data_ptr() for tensor in carried],
            [tensor.data_ptr() for tensor in d_states],
            _addresses(states),
            [0 if tensor is None else tensor.data_ptr() for tensor in d_statics],
        )
        return call, [*d_inputs, *d_statics, *d_states]

    @staticmethod
    def run(calls: list[_native.Call]) -> None:
        module = library()
        assert module is not None
        module.run(calls, torch.get_num_threads())

    def is_better_together(self, layout: Layout) -> bool:
        none: list[int] = []
        call = self._forward.call(
            self._is_double, False, layout.steps, layout.batch_size, layout.rows, 0, *[none] * 6
        )
        return call.is_better_together(torch.get_num_threads())


def _addresses(tensors: Iterable[Tensor | None]) -> list[int]:
    """Where tensors are in memory; 0 for those that are not there.

    Raises:
        RuntimeError: one has lost its memory.
    """
    found = [0 if tensor is None else tensor.data_ptr() for tensor in tensors]
    if 0 in found:
        for address, tensor in zip(found, tensors, strict=True):
            if not address and tensor is not None and tensor.numel():
                raise lost(tensor)
    return found


_LARGE = 1 << 14
"""Smaller blocks are not worth pooling."""


def _empty(like: Tensor, rows: int, width: int) -> Tensor:
    """Room for the rows of all steps, with any content."""
    if type(like) is not Tensor or rows * width < _LARGE:
        return like.new_empty((rows, width))
    module = library()
    assert module is not None
    tensor: Tensor = module.empty(rows, width, like.dtype is torch.float64)
    return tensor


def _schedule(way: Pass) -> _native.Schedule:
    module = library()
    if module is None:
        raise RuntimeError("this needs Cello's native engine, which was not built")
    schedule: _native.Schedule = module.Schedule(**encode(make_schedule(way), numbers_of(module)))
    return schedule
