"""A long text as parallel streams, and these in windows of some steps: truncated back-propagation.

The text is cut into B pieces of the same length. Batch k holds steps k*T to (k+1)*T of every piece, so a
layer that begins with the state that batch k - 1 left reads each piece as one sequence.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, overload

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cello.tasks.batches import Examples
from cello.tasks.language.network import NONE
from cello.tasks.language.text import END_ID

Window = tuple[int, Tensor, Tensor]
"""The number of a window in its stream, from 0; ids to read, and those that follow them, (T,)."""


class Windows(Sequence[Window]):
    """The windows of all streams: the first of each stream, then the second of each, and so on.

    The last ones are shorter, or empty, where the text cannot be cut evenly: each token is predicted
    once, the first one from the end token.

    Args:
        ids: the text, (N,).
        streams: B.
        steps: T.
    """

    def __init__(self, ids: Tensor, streams: int, steps: int) -> None:
        self.ids, self.streams, self.steps = ids, streams, steps
        self.read = before(ids)
        self.bounds = [b * len(ids) // streams for b in range(streams + 1)]
        longest = -(-len(ids) // streams)
        self.batches = -(-longest // steps)

    def __len__(self) -> int:
        return self.batches * self.streams

    @overload
    def __getitem__(self, index: int) -> Window: ...
    @overload
    def __getitem__(self, index: slice) -> list[Window]: ...
    def __getitem__(self, index: int | slice) -> Any:
        if isinstance(index, slice):
            return [self[i] for i in range(*index.indices(len(self)))]
        number, stream = divmod(range(len(self))[index], self.streams)
        first = self.bounds[stream] + number * self.steps
        last = min(first + self.steps, self.bounds[stream + 1])
        return number, self.read[first:last], self.ids[first:last]

    def examples(self) -> Examples:
        """Return them as examples, whose order is kept."""
        return Examples(self, [self.steps] * len(self), ordered=True)


def before(ids: Tensor) -> Tensor:
    """Return what is read when each token is predicted, (N,): the token before it."""
    return torch.cat([ids.new_tensor([END_ID]), ids])[:-1]


def collate(windows: Sequence[Window]) -> tuple[Tensor, Tensor, Tensor]:
    """Put the windows of one number into a batch.

    Returns:
        The number, ids (T, B), targets (T, B); past the end of a window there is no target.
    """
    numbers, read, follow = zip(*windows, strict=True)
    x, y = pad_sequence(list(read)), pad_sequence(list(follow), padding_value=NONE)
    if not len(x):  # of the last tokens this process got none
        x, y = x.new_full((1, len(windows)), END_ID), y.new_full((1, len(windows)), NONE)
    return torch.tensor(numbers[0]), x, y
