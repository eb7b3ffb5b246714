"""Loops as calls of an engine: what an engine of programs has to offer."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Iterable, Sequence
from functools import cached_property, lru_cache
from typing import Any, ClassVar, Generic, TypeVar
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cello.compile import Loops, Program, Used, Wanted, text
from cello.engines.sequence import Layout

Call = TypeVar("Call")
Own = TypeVar("Own", bound="Kernel[Any]")


class Kernel(ABC, Generic[Call]):
    """Both loops of one way to run a program, ready for the tensors of any batch.

    Args:
        loops: the loops.

    Attributes:
        device_types: the types of devices that it runs on; all tensors of a call are on the same one.
        widths: the widths of the output and of the states that are kept of all steps.
        wanted: whether each input, static and state gets a gradient.
        reads: for the output and each kept state whether the backward loop reads it.
        dtypes: the dtype of each static; all else has that of the loops.
        is_differentiable: whether there is a backward loop.
    """

    device_types: ClassVar[tuple[str, ...]]

    def __init__(self, loops: Loops) -> None:
        self.loops = loops
        self.widths = loops.forward.streams.results
        self.wanted = loops.gets_gradient
        self.reads = loops.reads_results
        self.dtypes = loops.static_dtypes
        self._is_mixed = any(dtype != loops.dtype for dtype in self.dtypes)
        self.is_differentiable = loops.backward is not None

    @classmethod
    def of(
        cls: type[Own],
        program: Program,
        keep_states: bool,
        wanted: Wanted | None,
        used: Used | None = None,
    ) -> Own:
        """Return the kernel of a program, made at the first call.

        Args:
            program: a compiled cell.
            keep_states: whether the states of all steps are results.
            wanted: which gradients are, or ``None`` for none.
            used: which results and final states have gradients, or ``None`` for all.
        """
        kernels = _kernels.get(program)
        if kernels is None:
            kernels = _kernels.setdefault(program, {})
        key = (cls, keep_states, wanted, used)
        kernel = kernels.get(key)
        if kernel is None:
            loops = program.loops(keep_states, wanted, used)
            is_whole = used is None or loops.used is not None
            made = cls(loops) if is_whole else cls.of(program, keep_states, wanted)
            kernel = kernels.setdefault(key, made)
        return kernel  # type: ignore[return-value]

    @classmethod
    def read(cls: type[Own], written: str) -> Own:
        """Return the kernel of loops that are written as a text, made at the first call.

        Raises:
            ValueError: it holds no loops that this engine can run.
        """
        return _read(cls, written)  # type: ignore[return-value]

    @cached_property
    def text(self) -> str:
        """The loops as a text, which another process can :meth:`read`."""
        return text.write(self.loops)

    @abstractmethod
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
        """Return the call that runs all steps, for :meth:`run`, and where it will leave its results.

        Args:
            steps: T.
            rows: N, the rows of all steps.
            batch_sizes: (T,) int64, or ``None`` where all steps have B rows.
            descending: whether time runs from T - 1 to 0.
            inputs: (N, width) each; like all tensors here contiguous, on the engine's device, without
                gradient, and alive until the call has run.
            statics: what is the same for all steps.
            states: (B, width) each.
            batch: B, for states of another shape with as many numbers.

        Returns:
            The call; the output and the kept states, (N, width) each; the final states, of the shapes of
            `states`; what is saved for the backward loop, one tensor or none.
        """

    @abstractmethod
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
        """Return the call that runs all steps backwards, and where it will leave the gradients.

        Args:
            steps: as in :meth:`forward`, like `rows`, `batch_sizes`, `inputs`, `statics`, `states`.
            rows: N.
            batch_sizes: the rows of each step.
            descending: the direction of the *forward* loop.
            gradients: of the output, of the kept states and of the final states; ``None`` for zero.
            inputs: the inputs.
            statics: what is the same for all steps.
            states: the initial states.
            results: the output and kept states, or ``None`` where they are not read.
            saved: what the forward loop saved.

        Returns:
            The call; the gradients of the inputs, statics and states, ``None`` for those not wanted, in the
            dtype of the loops, from which :meth:`in_their_dtypes` brings them to those of the tensors.
        """

    @staticmethod
    @abstractmethod
    def run(calls: list[Call]) -> None:
        """Run calls, which an engine may do at the same time."""

    def is_better_together(self, layout: Layout) -> bool:
        """Whether two directions take less time at the same time than one after the other."""
        return False

    def in_their_dtypes(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """Round the gradients of statics in another dtype than that in which they were summed up."""
        if self._is_mixed:
            for place, dtype in enumerate(self.dtypes, len(self.loops.wanted.inputs)):
                gradient = gradients[place]
                if gradient is not None and gradient.dtype != dtype:
                    gradients[place] = gradient.to(dtype)
        return gradients

    def check(
        self,
        rows: int,
        inputs: Sequence[Tensor],
        statics: Sequence[Tensor],
        states: Sequence[Tensor],
        batch_sizes: Tensor | None,
    ) -> None:
        """Hold tensors to what the loops read.

        Raises:
            ValueError: one has another shape, dtype or device.
        """
        loops, batch = self.loops, len(states[0])
        expected = [[rows, width] for width in loops.forward.streams.inputs]
        expected += [list(shape) for shape in loops.static_shapes]
        expected += [[batch, width] for width in loops.state_widths]
        dtypes = [
            *(loops.dtype for _ in inputs),
            *self.dtypes,
            *(loops.dtype for _ in states),
        ]
        self._hold((*inputs, *statics, *states), expected, dtypes)
        if batch_sizes is None:
            is_whole = rows % batch == 0 if batch else rows == 0
        else:
            if batch_sizes.dtype != torch.int64 or batch_sizes.dim() != 1 or not batch_sizes.is_cpu:
                raise ValueError("a scan expects its batch sizes as int64 on the CPU")
            sizes = batch_sizes.tolist()
            is_whole = sizes[0] == batch and sum(sizes) == rows and min(sizes) > 0
            is_whole = is_whole and sizes == sorted(sizes, reverse=True)
        if not is_whole:
            raise ValueError(f"a scan of {rows} rows does not fit its steps and {batch} sequences")

    def check_gradients(
        self,
        rows: int,
        batch: int,
        gradients: Sequence[Tensor | None],
        kept: Sequence[Tensor | None],
        saved: Tensor | None,
    ) -> None:
        """Hold what only the backward loop reads to its shapes, as :meth:`check` does the rest.

        Raises:
            ValueError: one has another shape, dtype or device, or there is no backward loop.
        """
        if not self.is_differentiable:
            raise ValueError("this scan was written without its backward loop")
        width = self.loops.saved_width
        results = [[rows, width] for width in self.widths]
        finals = [[batch, width] for width in self.loops.state_widths]
        places = [*zip(gradients, (*results, *finals), strict=True)]
        places += [*zip(kept, results, strict=True), (saved, [rows, width])]
        found = [(tensor, shape) for tensor, shape in places if tensor is not None]
        dtypes = [self.loops.dtype for _ in found]
        self._hold([tensor for tensor, _ in found], [shape for _, shape in found], dtypes)
        if (saved is None) != (width == 0):
            raise ValueError("a scan's backward loop got not what its forward loop saved")

    def _hold(
        self, tensors: Sequence[Tensor], expected: list[list[int]], dtypes: list[torch.dtype]
    ) -> None:
        found = [list(tensor.shape) for tensor in tensors]
        if found != expected:
            raise ValueError(f"a scan expects tensors of the shapes {expected}, got {found}")
        devices = {tensor.device for tensor in tensors}
        is_here = len(devices) <= 1 and all(d.type in self.device_types for d in devices)
        if [tensor.dtype for tensor in tensors] != dtypes or not is_here:
            raise ValueError(
                f"a scan of {self.loops.dtype} on {' or '.join(self.device_types)} got other tensors"
            )


_kernels: WeakKeyDictionary[Program, dict[object, Kernel[Any]]] = WeakKeyDictionary()


@lru_cache(maxsize=512)
def _read(kind: type[Kernel[Any]], written: str) -> Kernel[Any]:
    return kind(text.read(written))


def lost(tensor: Tensor) -> RuntimeError:
    """Return what to say of a tensor whose memory is gone."""
    return RuntimeError(
        f"input, weights or states: a tensor of shape {tuple(tensor.shape)} has no memory; its storage was "
        "resized, as offloading does"
    )


def contiguous(tensors: Iterable[Tensor]) -> list[Tensor]:
    """The tensors, each laid out without gaps."""
    return [tensor.contiguous() for tensor in tensors]
