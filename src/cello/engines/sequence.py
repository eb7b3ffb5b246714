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

    Attributes:
        rows: N, the number of rows of all steps.
    """

    def __init__(
        self,
        steps: int,
        batch_size: int,
        sizes: tuple[int, ...] | None = None,
        order: Tensor | None = None,
    ) -> None:
        self.steps, self.batch_size, self.order = steps, batch_size, order
        self.is_dense = sizes is None
        self._sizes = sizes
        self.rows = steps * batch_size if sizes is None else sum(sizes)

    @staticmethod
    def of(sizes: tuple[int, ...], order: Tensor | None = None) -> Layout:
        """Return the layout in which step t has ``sizes[t]`` rows."""
        is_dense = sizes[0] == sizes[-1]  # the sizes never increase
        return Layout(len(sizes), sizes[0], None if is_dense else sizes, order)

    def steps_from(self, first: int, last: int | None = None) -> Layout:
        """Return the layout of some of the steps."""
        sizes = self.sizes[first:last]
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
        sizes = torch.tensor(self.sizes, device="cpu")
        starts = sizes.cumsum(0) - sizes  # (T,) the first row of each step
        step = torch.repeat_interleave(count(self.steps), sizes)  # (N,)
        sample = count(len(step)) - starts[step]  # (N,)
        lengths = (sizes[:, None] > count(self.batch_size)).sum(0)  # (B,)
        return starts[lengths[sample] - 1 - step] + sample


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
        if self.is_dense:
            shape = (self.steps, self.batch_size, *rows.shape[1:])
            return rows.reshape(shape).flip(0).reshape(rows.shape)
        return rows.index_select(0, sent(self.layout.reverse_index, rows.device))


def sent(tensor: Tensor, device: torch.device) -> Tensor:
    """Copy a fresh tensor from the CPU to a device, without waiting for what that still has to do.

    CUDA has read memory like this when the copy returns; of other devices that is not known.
    """
    return tensor.to(device, non_blocking=device.type == "cuda")
