"""The one layout in which sequences travel inside Cello: packed and time-major.

The rows of all sequences that are alive at step 0 come first, then those of step 1, and so on, as in
a ``PackedSequence``; sequences lie in the order of falling length. A dense batch (T, B, F) is the
special case in which every step has B rows.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor


@dataclass(frozen=True)
class Sequence:
    """A batch of sequences.

    Attributes:
        data: (N, F), the rows of all steps, N = sum of `batch_sizes`.
        batch_sizes: the number of rows of each of the T steps; never rises from step to step.
    """

    data: Tensor
    batch_sizes: tuple[int, ...]

    @property
    def steps(self) -> int:
        """T, the number of steps of the longest sequence."""
        return len(self.batch_sizes)

    @property
    def batch_size(self) -> int:
        """B, the number of sequences."""
        return self.batch_sizes[0]

    @property
    def is_dense(self) -> bool:
        """Whether all sequences have T steps."""
        return self.batch_sizes[0] == self.batch_sizes[-1]

    def with_data(self, data: Tensor) -> Sequence:
        """Return a sequence of the same lengths with other rows (N, ...)."""
        return Sequence(data, self.batch_sizes)

    def unrolled(self) -> Tensor:
        """Return a dense sequence as (T, B, F), a view."""
        return self.data.view(self.steps, self.batch_size, *self.data.shape[1:])

    def reversed(self) -> Sequence:
        """Return every sequence read from its own last step to its first.

        Lengths stay, so this is a permutation of rows, and doing it twice restores the sequence.
        """
        return self.with_data(self.reverse_rows(self.data))

    def reverse_rows(self, rows: Tensor) -> Tensor:
        """Apply the permutation of :meth:`reversed` to other rows (N, ...) of these sequences."""
        if self.is_dense:
            shape = (self.steps, self.batch_size, *rows.shape[1:])
            return rows.reshape(shape).flip(0).reshape(rows.shape)
        return rows.index_select(0, self._reverse_index.to(rows.device))

    @cached_property
    def _reverse_index(self) -> Tensor:
        sizes = torch.tensor(self.batch_sizes)
        starts = sizes.cumsum(0) - sizes  # (T,) the first row of each step
        step = torch.repeat_interleave(torch.arange(self.steps), sizes)  # (N,)
        sample = torch.arange(len(step)) - starts[step]  # (N,)
        lengths = (sizes[:, None] > torch.arange(self.batch_size)).sum(0)  # (B,)
        return starts[lengths[sample] - 1 - step] + sample
