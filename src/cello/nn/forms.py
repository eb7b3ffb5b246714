"""The forms in which callers hand over sequences, and the way back from the inner layout to each.

A form is made from the caller's input. It holds the :class:`Sequence` that the layers run on, takes
states in and out, and turns rows (N, ...) back into what the caller gave.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence as AbstractSequence
from itertools import pairwise

import torch
from torch import Tensor
from torch.nn.utils.rnn import PackedSequence

from cello.engines import Layout, Packing, Sequence, check_lengths
from cello.foreign.kinds import is_traced

Lengths = Tensor | AbstractSequence[int]


class Form(ABC):
    """A caller's way of writing a batch of sequences.

    Attributes:
        sequence: the batch in the inner layout, or ``None`` where no sequence has a step.
        batch_size: B, the number of sequences, those of length zero included.
        keeps_order: whether the rows of states are in the caller's order, so that :meth:`enter` and
            :meth:`leave` do nothing.
    """

    sequence: Sequence | None
    batch_size: int
    keeps_order = False

    @abstractmethod
    def rows(self, rows: Tensor) -> Tensor | PackedSequence:
        """Turn the rows of all steps, (N, ...), into the caller's form."""

    def enter(self, state: Tensor) -> Tensor:
        """Take the rows of a state (B, ...) into the order of `sequence`, without those of length 0."""
        return state

    def leave(self, state: Tensor, initial: Tensor | None) -> Tensor:
        """Bring a final state back: the inverse of :meth:`enter`, length 0 keeps `initial`."""
        return state

    @property
    def has_empty(self) -> bool:
        """Whether there are sequences of length zero, or may be."""
        return False


class Padded(Form):
    """(T, B, F), or (B, T, F) with `batch_first`.

    All sequences have T steps, or as many as `lengths` says that are not known while torch traces.
    """

    keeps_order = True

    def __init__(self, input: Tensor, batch_first: bool, lengths: Tensor | None = None) -> None:
        self.batch_first = batch_first
        x = input.transpose(0, 1) if batch_first else input
        steps, self.batch_size = x.shape[:2]
        layout = Layout(steps, self.batch_size, lengths=lengths)
        self.sequence = Sequence(x.reshape(steps * self.batch_size, *x.shape[2:]), layout)
        self.steps = steps

    def rows(self, rows: Tensor) -> Tensor:
        out = rows.view(self.steps, self.batch_size, *rows.shape[1:])
        return out.transpose(0, 1) if self.batch_first else out

    @property
    def has_empty(self) -> bool:
        assert self.sequence is not None
        return self.sequence.layout.lengths is not None  # some may be


class Unbatched(Form):
    """(T, F), one sequence."""

    keeps_order = True

    def __init__(self, input: Tensor) -> None:
        self.batch_size = 1
        self.sequence = Sequence(input, Layout(input.shape[0], 1))

    def rows(self, rows: Tensor) -> Tensor:
        return rows


class Packed(Form):
    """A ``PackedSequence``, sorted by the caller or by torch."""

    def __init__(self, input: PackedSequence) -> None:
        for name in ("sorted_indices", "unsorted_indices"):
            indices = getattr(input, name)
            if indices is not None and indices.device != input.data.device:
                raise RuntimeError(
                    f"input: expected data and {name} of a PackedSequence on the same device, found "
                    f"data at {input.data.device} and {name} at {indices.device}"
                )
        self.packed = input
        _hold_known()
        if is_traced(input.batch_sizes):
            raise RuntimeError(
                "input: a graph has no packed sequences: give the layer padded ones, and lengths="
            )
        _check_packed(input)
        layout = Layout.of(tuple(input.batch_sizes.tolist()), input.sorted_indices)
        self.sequence = Sequence(input.data, layout)
        self.batch_size = self.sequence.batch_size

    def rows(self, rows: Tensor) -> PackedSequence:
        return PackedSequence(
            rows, self.packed.batch_sizes, self.packed.sorted_indices, self.packed.unsorted_indices
        )

    def enter(self, state: Tensor) -> Tensor:
        order = self.packed.sorted_indices
        return state if order is None else state.index_select(0, order)

    def leave(self, state: Tensor, initial: Tensor | None) -> Tensor:
        order = self.packed.unsorted_indices
        return state if order is None else state.index_select(0, order)


def _check_packed(packed: PackedSequence) -> None:
    """Refuse a packed sequence that is not whole; an engine would read what is not there.

    Raises:
        RuntimeError: it is not; the message says what is wrong.
    """
    sizes, rows = packed.batch_sizes, len(packed.data)
    if sizes.dim() != 1 or sizes.is_floating_point() or not len(sizes):
        raise RuntimeError(
            f"input: batch_sizes of a PackedSequence must be whole numbers (T,), got {sizes.dtype} of "
            f"shape {tuple(sizes.shape)}"
        )
    numbers = sizes.tolist()
    if numbers[-1] < 1 or any(a < b for a, b in pairwise(numbers)) or sum(numbers) != rows:
        shown = f"{numbers[:8]}".replace("]", ", ...]" if len(numbers) > 8 else "]")
        raise RuntimeError(
            "input: batch_sizes of a PackedSequence must be numbers of sequences that do not rise and add "
            f"up to the {rows} rows of its data, got {shown}"
        )
    for name in ("sorted_indices", "unsorted_indices"):
        indices = getattr(packed, name)
        if indices is not None and indices.shape != (numbers[0],):
            raise RuntimeError(
                f"input: {name} of a PackedSequence must have one number for each of its {numbers[0]} "
                f"sequences, got the shape {tuple(indices.shape)}"
            )


def _hold_known() -> None:
    """Refuse sequences of different lengths in torch.jit.trace, which would keep those of its example.

    Raises:
        RuntimeError: a trace is going on.
    """
    if torch._C._is_tracing():
        raise RuntimeError(
            "torch.jit.trace would keep the lengths of its example for all inputs; trace the layer on "
            "padded sequences without lengths="
        )


class WithLengths(Form):
    """(T, B, F) or (B, T, F), of which only the first `lengths[b]` steps of row b count."""

    def __init__(self, input: Tensor, lengths: Tensor, batch_first: bool) -> None:
        _hold_known()
        self.batch_first = batch_first
        x = input.transpose(0, 1) if batch_first else input
        self.steps, self.batch_size = x.shape[:2]
        self._packing = Packing(lengths, self.steps, x.device)
        data = self._packing.pack(x.reshape(-1, *x.shape[2:]))
        layout = self._packing.layout
        self.sequence = None if layout is None else Sequence(data, layout)

    def rows(self, rows: Tensor) -> Tensor:
        out = self._packing.unpack(rows)
        out = out.view(self.steps, self.batch_size, *rows.shape[1:])
        return out.transpose(0, 1) if self.batch_first else out

    def enter(self, state: Tensor) -> Tensor:
        return self._packing.enter(state)

    def leave(self, state: Tensor, initial: Tensor | None) -> Tensor:
        return self._packing.leave(state, initial)

    @property
    def has_empty(self) -> bool:
        return self._packing.has_empty


def read_lengths(lengths: Lengths, steps: int, batch_size: int) -> Tensor:
    """Check `lengths` and return it as an int64 tensor on the CPU.

    Raises:
        TypeError: `lengths` is not made of integers.
        ValueError: it has not B entries, or one is negative or above T.
    """
    try:
        tensor = lengths if isinstance(lengths, Tensor) else torch.as_tensor(lengths, device="cpu")
    except (TypeError, RuntimeError, ValueError) as error:
        raise TypeError(f"lengths must hold integers, got {lengths!r}: {error}") from error
    if tensor.is_meta:
        raise ValueError(
            "lengths must hold numbers, got a tensor on the meta device, which has none"
        )
    is_integer = not (tensor.dtype.is_floating_point or tensor.dtype.is_complex)
    if tensor.numel() > 0 and (not is_integer or tensor.dtype == torch.bool):  # [] has no dtype
        raise TypeError(f"lengths must hold integers, got {tensor.dtype}")
    tensor = tensor.to(device="cpu", dtype=torch.int64)
    if tuple(tensor.shape) != (batch_size,):
        raise ValueError(
            f"lengths must hold one length for each of the {batch_size} sequences, "
            f"got shape {tuple(tensor.shape)}"
        )
    if not is_traced(tensor):
        check_lengths(tensor, steps)
    return tensor
