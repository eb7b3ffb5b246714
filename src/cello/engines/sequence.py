"""The inner layout of sequences in Cello: packed and time-major.

The rows of all sequences that are alive at step 0 come first, then those of step 1, and so on, as in
a ``PackedSequence``; sequences are sorted by decreasing length. A dense batch (T, B, F) is the
special case in which every step has B rows.
"""

from __future__ import annotations

from functools import cached_property, partial

import torch
from torch import Tensor


class Layout:
    """The number of rows of each step, shared by every tensor with one row per step and sequence.

    For a dense batch the layout stores only the numbers of steps and sequences. They may be symbolic
    while torch traces.

    Args:
        steps: T, the number of steps of the longest sequence.
        batch_size: B, the number of sequences.
        sizes: the number of rows of each step, or ``None`` if every step has B rows.
        order: (B,) the place of each sequence in the caller's batch, or ``None`` if they are in its order.
        lengths: of a dense batch (B,) int64, how many steps of each sequence count, on the CPU; or ``None``
            if all do. Only a graph that torch traces has them, for any lengths: else they decide `sizes`.

    Attributes:
        rows: N, the number of rows of all steps.
    """

    def __init__(
        self,
        steps: int,
        batch_size: int,
        sizes: tuple[int, ...] | None = None,
        order: Tensor | None = None,
        lengths: Tensor | None = None,
    ) -> None:
        self.steps, self.batch_size, self.order = steps, batch_size, order
        self.is_dense, self.lengths = sizes is None, lengths
        self._sizes = sizes
        self.rows = steps * batch_size if sizes is None else sum(sizes)

    @staticmethod
    def of(sizes: tuple[int, ...], order: Tensor | None = None) -> Layout:
        """Return the layout in which step t has ``sizes[t]`` rows."""
        is_dense = sizes[0] == sizes[-1]  # the sizes never increase
        return Layout(len(sizes), sizes[0], None if is_dense else sizes, order)

    def steps_from(self, first: int, last: int | None = None) -> Layout:
        """Return the layout of some of the steps."""
        if self._sizes is None:  # where steps and batch may be symbols of a graph
            steps = (self.steps if last is None else min(last, self.steps)) - first
            lengths = None if self.lengths is None else (self.lengths - first).clamp(0, steps)
            return Layout(steps, self.batch_size, None, self.order, lengths)
        sizes = self._sizes[first:last]
        return Layout.of(sizes, None if self.order is None else self.order[: sizes[0]])

    def is_in_order(self) -> bool:
        """Whether the sequences are in the order of the caller's batch."""
        return self.order is None or bool(
            torch.equal(self.order, torch.arange(self.batch_size, device=self.order.device))
        )

    @cached_property
    def sizes(self) -> tuple[int, ...]:
        """The number of rows of each step."""
        return (self.batch_size,) * self.steps if self._sizes is None else self._sizes

    @cached_property
    def numbers_of_rows(self) -> frozenset[int]:
        """The numbers of rows that steps have."""
        return frozenset((self.batch_size,) if self._sizes is None else self._sizes)

    @cached_property
    def sizes_tensor(self) -> Tensor | None:
        """The number of rows of each step, (T,) int64, or ``None`` if every step has B rows."""
        return None if self._sizes is None else torch.tensor(self._sizes, device="cpu")

    @cached_property
    def reverse_index(self) -> Tensor:
        """(N,) for each row, the row that replaces it when every sequence is reversed."""
        count = partial(torch.arange, device="cpu")  # whatever torch.set_default_device says
        if self.lengths is not None:
            step = count(self.steps)[:, None]  # (T, 1)
            mirrored = torch.where(step < self.lengths, self.lengths - 1 - step, step)  # (T, B)
            return (mirrored * self.batch_size + count(self.batch_size)).reshape(-1)
        sizes = torch.tensor(self.sizes, device="cpu")
        starts = sizes.cumsum(0) - sizes  # (T,) the first row of each step
        step = torch.repeat_interleave(count(self.steps), sizes)  # (N,)
        sample = count(len(step)) - starts[step]  # (N,)
        lengths = (sizes[:, None] > count(self.batch_size)).sum(0)  # (B,)
        return starts[lengths[sample] - 1 - step] + sample


class Packing:
    """How the rows of a padded batch (T, B) become those of a packed one, and states with them.

    Args:
        lengths: (B,) int64 on the CPU, of which :func:`check_lengths` says nothing.
        steps: T.
        device: where the rows are.

    Attributes:
        active: how many sequences have a step.
        layout: that of the packed rows, or ``None`` where no sequence has a step.
    """

    def __init__(self, lengths: Tensor, steps: int, device: torch.device) -> None:
        self._steps, self._batch_size = steps, len(lengths)
        with torch._C._DisableFuncTorch():  # which wraps tensors; torch 2.9 has no numbers of these
            self._arrange(lengths, device)

    def _arrange(self, lengths: Tensor, device: torch.device) -> None:
        steps = self._steps
        lengths, order = lengths.sort(descending=True, stable=True)
        self.active = int((lengths > 0).sum())
        step = torch.arange(steps, device="cpu")[:, None]  # (T, 1)
        alive = step < lengths  # (T, B), in sorted order
        sizes = alive.sum(1).tolist()
        # Where each packed row lies in the caller's (T*B) rows.
        places = (step * self._batch_size + order)[alive]
        self._places = sent(places, device)
        self._order = sent(order, device)
        self._unsort = sent(order.argsort(), device)
        last = sum(size > 0 for size in sizes)
        self.layout = Layout.of(tuple(sizes[:last]), order[: self.active]) if last else None

    @property
    def has_empty(self) -> bool:
        """Whether there are sequences of length zero."""
        return self.active < self._batch_size

    def pack(self, rows: Tensor) -> Tensor:
        """Take the rows (N, ...) that count out of (T*B, ...)."""
        return rows.index_select(0, self._places)

    def unpack(self, rows: Tensor) -> Tensor:
        """Put rows (N, ...) back among zeros (T*B, ...)."""
        flat = rows.new_zeros(self._steps * self._batch_size, *rows.shape[1:])
        return flat.index_copy(0, self._places, rows)

    def enter(self, state: Tensor) -> Tensor:
        """Take the rows of a state (B, ...) into the order of the packed rows, without empty ones."""
        return state.index_select(0, self._order[: self.active])

    def leave(self, state: Tensor, initial: Tensor | None) -> Tensor:
        """Bring a final state back: the inverse of :meth:`enter`, length 0 keeps `initial`."""
        if initial is not None and self.has_empty:
            idle = initial.index_select(0, self._order[self.active :])
            state = torch.cat([state, idle.to(state.dtype)])
        return state.index_select(0, self._unsort)


def check_lengths(lengths: Tensor, steps: int) -> None:
    """Refuse lengths, int64 on the CPU, that are not between 0 and T.

    Raises:
        ValueError: one is not.
    """
    if len(lengths) and (int(lengths.min()) < 0 or int(lengths.max()) > steps):
        raise ValueError(
            f"lengths must lie between 0 and the {steps} steps of the input, "
            f"got {int(lengths.min())} to {int(lengths.max())}"
        )


class Sequence:
    """A batch of sequences.

    Args:
        data: (N, F), the rows of all steps, N = sum of `batch_sizes`.
        batch_sizes: the number of rows of each of the T steps, which never increases; or a layout.
    """

    def __init__(self, data: Tensor, batch_sizes: tuple[int, ...] | Layout) -> None:
        self.data = data
        self.layout = batch_sizes if isinstance(batch_sizes, Layout) else Layout.of(batch_sizes)

    @property
    def batch_sizes(self) -> tuple[int, ...]:
        """The number of rows of each of the T steps."""
        return self.layout.sizes

    @property
    def steps(self) -> int:
        """T, the number of steps of the longest sequence."""
        return self.layout.steps

    @property
    def batch_size(self) -> int:
        """B, the number of sequences."""
        return self.layout.batch_size

    @property
    def is_dense(self) -> bool:
        """Whether all sequences have T steps."""
        return self.layout.is_dense

    def with_data(self, data: Tensor) -> Sequence:
        """Return a sequence with the same lengths and other rows (N, ...)."""
        return Sequence(data, self.layout)

    def unrolled(self) -> Tensor:
        """Return a dense sequence as (T, B, F), a view."""
        return self.data.view(self.steps, self.batch_size, *self.data.shape[1:])

    def reversed(self) -> Sequence:
        """Return every sequence read from its own last step to its first.

        The lengths do not change, so this is a permutation of rows; applied twice it restores them.
        """
        return self.with_data(self.reverse_rows(self.data))

    def reverse_rows(self, rows: Tensor) -> Tensor:
        """Apply the permutation of :meth:`reversed` to other rows (N, ...) of these sequences."""
        if self.is_dense and self.layout.lengths is None:
            shape = (self.steps, self.batch_size, *rows.shape[1:])
            return rows.reshape(shape).flip(0).reshape(rows.shape)
        return rows.index_select(0, sent(self.layout.reverse_index, rows.device))


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a fresh tensor from the CPU to a device, without waiting for what that still has to do.

    CUDA has read memory like this when the copy returns; of other devices that is not known.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
