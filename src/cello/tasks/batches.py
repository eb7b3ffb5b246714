"""Batches of sequences of about the same length."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from torch.utils.data import DataLoader, Sampler

Example = tuple[Tensor, int]
"""One sequence, (T,) or (T, F), and the number of its class."""


class Buckets(Sampler[list[int]]):
    """Batches whose sequences are of about the same length, so that there is little padding.

    Without a seed the sequences go from the shortest to the longest. With one they are shuffled,
    sorted by length within pools of 50 batches, and the batches are shuffled; the order depends on
    `seed` and `epoch` alone.

    Args:
        lengths: the length of each sequence.
        batch_size: sequences in a batch.
        seed: ``None`` for the sorted order.
        epoch: the number of the pass over the data.
    """

    def __init__(
        self, lengths: Sequence[int], batch_size: int, seed: int | None = None, epoch: int = 0
    ) -> None:
        self.lengths, self.batch_size = lengths, batch_size
        self.seed, self.epoch = seed, epoch

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        if self.seed is None:
            order = sorted(range(len(self.lengths)), key=self.lengths.__getitem__)
            yield from self._cut(order)
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        pool = 50 * self.batch_size
        batches = [
            batch
            for start in range(0, len(order), pool)
            for batch in self._cut(
                sorted(order[start : start + pool], key=self.lengths.__getitem__)
            )
        ]
        for i in torch.randperm(len(batches), generator=generator).tolist():
            yield batches[i]

    def _cut(self, order: list[int]) -> Iterator[list[int]]:
        for start in range(0, len(order), self.batch_size):
            yield order[start : start + self.batch_size]


def pad(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack sequences.

    Args:
        sequences: B tensors, each (T,) or (T, F).

    Returns:
        The sequences, (T, B) or (T, B, F), zero past their ends, and their lengths, (B,).
    """
    return pad_sequence(list(sequences)), torch.tensor([len(s) for s in sequences])


def loader(
    sequences: Sequence[Tensor],
    targets: Sequence[int],
    batch_size: int,
    seed: int | None = None,
    epoch: int = 0,
) -> DataLoader[Example]:
    """Return the batches of one epoch, each ``(x, lengths, targets)``; see :class:`Buckets`."""
    examples: list[Example] = list(zip(sequences, targets, strict=True))
    return DataLoader(
        examples,  # type: ignore[arg-type]  # a list is a map-style dataset, but not a subclass
        batch_sampler=Buckets([len(s) for s in sequences], batch_size, seed, epoch),
        collate_fn=_collate,
    )


def _collate(examples: list[Example]) -> tuple[Tensor, Tensor, Tensor]:
    x, lengths = pad([sequence for sequence, _ in examples])
    return x, lengths, torch.tensor([target for _, target in examples])
