"""A way to run a program as calls below Python, and as a text that another process can run."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict
from functools import cached_property, lru_cache
from typing import TYPE_CHECKING, Any
from weakref import WeakKeyDictionary

import torch
from torch import Tensor

from cello.compile import Program, Wanted
from cello.engines.native.check import check
from cello.engines.native.library import library
from cello.engines.sequence import Layout

if TYPE_CHECKING:
    from cello.engines.native import _native

FORMAT = 3
"""The version of the text. It rises when instructions or lists change their meaning."""


class Kernel:
    """Both loops of one way to run a program.

    Args:
        content: what :attr:`text` writes down.

    Attributes:
        widths: the widths of the output and of the states that are kept of all steps.
        saved_width: how many numbers of each row are saved for the backward loop.
        inputs: for each input whether it gets a gradient.
        statics: likewise for what is the same for all steps.
        wanted: both, and the states, which all get one.
        reads: for the output and each kept state whether the backward loop reads it.
        bfloat16: for each static whether it is in bfloat16; all else is in :attr:`dtype`.
        is_differentiable: whether there is a backward loop.
    """

    def __init__(self, content: dict[str, Any]) -> None:
        self.content = content
        self.widths: tuple[int, ...] = tuple(content["widths"])
        self.saved_width: int = content["saved_width"]
        self.inputs: tuple[bool, ...] = tuple(content["inputs"])
        self.statics: tuple[bool, ...] = tuple(content["statics"])
        self.wanted = (*self.inputs, *self.statics, *(True for _ in content["state_widths"]))
        self.reads: tuple[bool, ...] = tuple(content["reads"])
        self.dtype = torch.float64 if content["dtype"] == "float64" else torch.float32
        self._is_double = self.dtype == torch.float64
        self.bfloat16: list[bool] = content["bfloat16"]
        self._forward = _plan(content["forward"], self.bfloat16)
        backward = content["backward"]
        self._backward = None if backward is None else _plan(backward, self.bfloat16)
        self.is_differentiable = self._backward is not None

    @staticmethod
    def of(program: Program, keep_states: bool, wanted: Wanted | None) -> Kernel:
        """Return the kernel of a program, made at the first call.

        Args:
            program: a compiled cell.
            keep_states: whether the states of all steps are results.
            wanted: which gradients are, or ``None`` for none.
        """
        kernels = _kernels.get(program)
        if kernels is None:
            kernels = _kernels.setdefault(program, {})
        kernel = kernels.get((keep_states, wanted))
        if kernel is None:
            made = Kernel(_content(program, keep_states, wanted))
            kernel = kernels.setdefault((keep_states, wanted), made)
        return kernel

    @cached_property
    def text(self) -> str:
        """All that a process needs to run this kernel; numbers and lists, no code."""
        return json.dumps(self.content, separators=(",", ":"))

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
        batch = len(states[0])
        expected = [[rows, width] for width in self.content["input_widths"]]
        expected += self.content["static_shapes"]
        expected += [[batch, width] for width in self.content["state_widths"]]
        self._hold((*inputs, *statics, *states), expected, self.bfloat16, len(inputs))
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
        if self._backward is None:
            raise ValueError("this scan was written without its backward loop")
        results = [[rows, width] for width in self.widths]
        finals = [[batch, width] for width in self.content["state_widths"]]
        places = [*zip(gradients, (*results, *finals), strict=True)]
        places += [*zip(kept, results, strict=True), (saved, [rows, self.saved_width])]
        found = [(tensor, shape) for tensor, shape in places if tensor is not None]
        self._hold([tensor for tensor, _ in found], [shape for _, shape in found])
        if (saved is None) != (self.saved_width == 0):
            raise ValueError("a scan's backward loop got not what its forward loop saved")

    def _hold(
        self,
        tensors: Sequence[Tensor],
        expected: list[list[int]],
        bfloat16: Sequence[bool] = (),
        first: int = 0,
    ) -> None:
        """Hold tensors to shapes and dtypes; `bfloat16` is about those from position `first` on."""
        found = [list(tensor.shape) for tensor in tensors]
        if found != expected:
            raise ValueError(f"a scan expects tensors of the shapes {expected}, got {found}")
        dtypes = [self.dtype] * len(tensors)
        for place, is_bfloat16 in enumerate(bfloat16, first):
            dtypes[place] = torch.bfloat16 if is_bfloat16 else self.dtype
        if [t.dtype for t in tensors] != dtypes or any(t.device.type != "cpu" for t in tensors):
            raise ValueError(f"a scan of {self.dtype} on the CPU got other tensors")

    def empty_results(self, like: Tensor, rows: int) -> list[Tensor]:
        """Make room for the output and the kept states."""
        return [_empty(like, rows, width) for width in self.widths]

    def empty_saved(self, like: Tensor, rows: int) -> list[Tensor]:
        """Make room for what is saved for the backward loop: one tensor, or none."""
        return [_empty(like, rows, self.saved_width)] if self.saved_width else []

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
        """Return the call that runs all steps, for :func:`run`, and where it will leave its results.

        Args:
            steps: T.
            rows: N, the rows of all steps.
            batch_sizes: (T,) int64, or ``None`` where all steps have B rows.
            descending: whether time runs from T - 1 to 0.
            inputs: (N, width) each; like all tensors here contiguous, on the CPU, without gradient, and
                alive until the call has run.
            statics: what is the same for all steps.
            states: (B, width) each.
            batch: B, for states of another shape with as many numbers.

        Returns:
            The call; the output and the kept states, (N, width) each; the final states, of the shapes of
            `states`; what is saved.
        """
        like = states[0]
        results, saved = self.empty_results(like, rows), self.empty_saved(like, rows)
        finals = [torch.empty_like(state) for state in states]
        call = self._forward.call(
            self._is_double,
            descending,
            steps,
            like.shape[0] if batch is None else batch,
            rows,
            0 if batch_sizes is None else batch_sizes.data_ptr(),
            [tensor.data_ptr() for tensor in (*inputs, *results, *saved)] + [0] * (not saved),
            [tensor.data_ptr() for tensor in statics],
            [tensor.data_ptr() for tensor in states],
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
            The call; the gradients of the inputs, statics and states, ``None`` for those not wanted, which
            are then still to be brought :meth:`in_their_dtypes`.
        """
        assert self._backward is not None
        count = len(self.widths)
        d_inputs = [
            torch.empty_like(tensor) if is_wanted else None
            for tensor, is_wanted in zip(inputs, self.inputs, strict=True)
        ]
        d_statics = [
            torch.zeros_like(tensor, dtype=self.dtype) if is_wanted else None
            for tensor, is_wanted in zip(statics, self.statics, strict=True)
        ]
        finals = gradients[count:]
        d_states = [
            torch.zeros_like(state) if gradient is None else torch.empty_like(state)
            for gradient, state in zip(finals, states, strict=True)
        ]
        # A gradient that is zero at the last step starts where it ends.
        carried = [own if g is None else g for g, own in zip(finals, d_states, strict=True)]
        streams = (*gradients[:count], *inputs, *results, saved)
        call = self._backward.call(
            self._is_double,
            not descending,
            steps,
            states[0].shape[0],
            rows,
            0 if batch_sizes is None else batch_sizes.data_ptr(),
            [_address(tensor) for tensor in streams]
            + [tensor.data_ptr() for tensor in d_inputs if tensor is not None],
            [tensor.data_ptr() for tensor in statics],
            [tensor.data_ptr() for tensor in carried],
            [tensor.data_ptr() for tensor in d_states],
            [tensor.data_ptr() for tensor in states],
            [_address(tensor) for tensor in d_statics],
        )
        return call, [*d_inputs, *d_statics, *d_states]

    def in_their_dtypes(self, gradients: list[Tensor | None]) -> list[Tensor | None]:
        """Round the gradients of statics in bfloat16, which a backward loop sums up in float32."""
        for place, is_bfloat16 in enumerate(self.bfloat16, len(self.inputs)):
            gradient = gradients[place]
            if is_bfloat16 and gradient is not None:
                gradients[place] = gradient.to(torch.bfloat16)
        return gradients

    def is_better_together(self, layout: Layout) -> bool:
        """Whether two directions take less time at the same time than one after the other."""
        none: list[int] = []
        call = self._forward.call(
            self._is_double, False, layout.steps, layout.batch_size, layout.rows, 0, *[none] * 6
        )
        return call.is_better_together(torch.get_num_threads())


def run(calls: list[_native.Call]) -> None:
    """Run calls at the same time."""
    module = library()
    assert module is not None
    module.run(calls, torch.get_num_threads())


_LARGE = 1 << 14
"""From so many numbers on, memory that is used again is worth the trouble of asking for it."""


def _empty(like: Tensor, rows: int, width: int) -> Tensor:
    """Room for the rows of all steps, with any content."""
    # A tensor without memory may have symbolic sizes, which a comparison would pin down.
    if type(like) is not Tensor or like.is_meta or rows * width < _LARGE:
        return like.new_empty((rows, width))
    module = library()
    assert module is not None
    tensor: Tensor = module.empty(rows, width, like.dtype is torch.float64)
    return tensor


def _address(tensor: Tensor | None) -> int:
    return 0 if tensor is None else tensor.data_ptr()


def _plan(lists: dict[str, Any], bfloat16: list[bool]) -> _native.Plan:
    module = library()
    if module is None:
        raise RuntimeError("this needs Cello's native engine, which was not built")
    plan: _native.Plan = module.Plan(**lists, bfloat16=bfloat16)
    return plan


def _content(program: Program, keep_states: bool, wanted: Wanted | None) -> dict[str, Any]:
    run, loop = program.run(keep_states, wanted), program.loop
    kept = [*loop.outputs, *(loop.new_states if keep_states else [])]
    none = (False,) * len(loop.inputs), (False,) * len(loop.statics)
    inputs, statics = none if wanted is None else wanted
    return {
        "format": FORMAT,
        "dtype": str(program.dtype).removeprefix("torch."),
        "label": program.label,
        "input_widths": [value.width for value in loop.inputs],
        "static_shapes": [list(node.shape) for node in program.statics],
        "bfloat16": [value.is_bfloat16 for value in loop.statics],
        "state_widths": [value.width for value in loop.states],
        "widths": [value.width for value in kept],
        "saved_width": run.saved_width,
        "inputs": list(inputs),
        "statics": list(statics),
        "reads": list(run.reads_output),
        "forward": asdict(run.forward),
        "backward": None if run.backward is None else asdict(run.backward),
    }


_kernels: WeakKeyDictionary[Program, dict[tuple[bool, Wanted | None], Kernel]] = WeakKeyDictionary()


@lru_cache(maxsize=512)
def read_kernel(text: str) -> Kernel:
    """Return the kernel that a text describes.

    Raises:
        ValueError: it describes none, one of another version of Cello, or one that would leave the
            memory of its tensors.
    """
    content = json.loads(text)
    if not isinstance(content, dict) or content.get("format") != FORMAT:
        raise ValueError(
            "this program was written by another version of Cello; export the model again"
        )
    check(content)
    return Kernel(content)
