"""Examples, and batches of examples of about the same length."""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from itertools import islice
from typing import Any, TypeVar

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from cello.tasks.errors import InputError, check_count
from cello.tasks.options import TrainingOptions

T = TypeVar("T")

STEPS = 400
"""Steps of training in which most models have learnt something."""
PASSES = 100
"""More passes over the same examples are not chosen."""


class Examples:
    """What a model learns from or is judged on: encoded examples with their lengths.

    Args:
        items: the examples; anything that a task's `collate` puts into a batch.
        lengths: steps of each, for batches of about the same length.
        ordered: whether batches are cut from the examples as they stand, in every epoch; so the same
            place of each batch may hold the continuation of one sequence.
    """

    def __init__(
        self, items: Sequence[Any], lengths: Sequence[int], *, ordered: bool = False
    ) -> None:
        self.items, self.lengths, self.ordered = items, lengths, ordered

    def __len__(self) -> int:
        return len(self.lengths)

    def __getitem__(self, index: int) -> Any:
        return self.items[index]


class Buckets:
    """Batches whose examples are of about the same length, so that there is little padding.

    Without a seed the examples go from the shortest to the longest, or without `sort` as they
    stand. With one they are shuffled, sorted by length within pools of 50 batches, and the batches
    are shuffled; the order depends on `seed` and `epoch` alone. Where several processes share the
    work, each gets its part of every batch (of the last one perhaps none), so that together they
    take the steps of a single one.

    Args:
        lengths: the length of each example.
        batch_size: examples in a batch, of all processes together.
        seed: ``None`` for an order that is not random.
        epoch: the number of the pass over the data.
        sort: whether lengths count.
        rank: the number of this process.
        world: how many processes there are.
        skip: batches at the beginning that are left out.
    """

    def __init__(
        self,
        lengths: Sequence[int],
        batch_size: int,
        seed: int | None = None,
        epoch: int = 0,
        *,
        sort: bool = True,
        rank: int = 0,
        world: int = 1,
        skip: int = 0,
    ) -> None:
        self.lengths, self.batch_size = lengths, batch_size
        self.seed, self.epoch, self.sort = seed, epoch, sort
        self.rank, self.world, self.skip = rank, world, skip

    def __len__(self) -> int:
        return -(-len(self.lengths) // self.batch_size)

    def __iter__(self) -> Iterator[list[int]]:
        for number, batch in enumerate(self._batches()):
            if number >= self.skip:
                yield batch[self.rank :: self.world]

    def _batches(self) -> Iterator[list[int]]:
        if self.seed is None:
            order = list(range(len(self.lengths)))
            yield from self._cut(
                sorted(order, key=self.lengths.__getitem__) if self.sort else order
            )
            return
        generator = torch.Generator().manual_seed(self.seed * 1_000_003 + self.epoch)
        order = torch.randperm(len(self.lengths), generator=generator).tolist()
        if not self.sort:
            yield from self._cut(order)
            return
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


def enough(epochs: int, examples: int, batch_size: int) -> int:
    """Return how many passes it takes to learn something, where they are left open.

    Args:
        epochs: passes over data of common size.
        examples: how many there are to learn from; of few more passes are made, so that there are
            :data:`STEPS` steps, but no more than :data:`PASSES`.
        batch_size: examples in a batch.

    Example:
        >>> enough(4, 10_000, 32), enough(4, 500, 32), enough(4, 50, 32)
        (4, 25, 100)
    """
    return max(epochs, min(-(-STEPS // -(-examples // batch_size)), PASSES))


def training_batches(
    examples: Examples,
    collate: Callable[[list[Any]], Any],
    options: TrainingOptions,
    epoch: int,
    rank: int = 0,
    world: int = 1,
    skip: int = 0,
) -> Iterable[Any]:
    """Return the batches of one epoch of training; see :class:`Buckets`."""
    buckets = Buckets(
        examples.lengths, options.batch_size, None if examples.ordered else options.seed, epoch,
        sort=options.buckets and not examples.ordered, rank=rank, world=world, skip=skip,
    )  # fmt: skip
    return _loaded(examples, buckets, collate)


def validation_batches(
    examples: Examples,
    collate: Callable[[list[Any]], Any],
    batch_size: int,
    rank: int = 0,
    world: int = 1,
) -> Iterable[Any]:
    """Return all examples once, from the shortest to the longest unless they are ordered."""
    sort = not examples.ordered
    buckets = Buckets(examples.lengths, batch_size, sort=sort, rank=rank, world=world)
    return _loaded(examples, buckets, collate)


def _loaded(
    examples: Examples, buckets: Buckets, collate: Callable[[list[Any]], Any]
) -> Iterable[Any]:
    """Return batches put together; an empty share of a batch is an empty tuple."""
    for chosen in buckets:
        yield collate([examples[i] for i in chosen]) if chosen else ()


def by_length(
    lengths: Sequence[int], most: int | None = None, largest: int | None = None
) -> Iterator[list[int]]:
    """Yield the numbers of sequences in batches of about the same length; empty ones are left out.

    Args:
        lengths: of the sequences.
        most: sequences in a batch.
        largest: steps in a batch, padding included, unless a single sequence has more.

    Example:
        >>> list(by_length([1, 9, 0, 2, 8], most=3, largest=18))
        [[0, 3], [4, 1]]
    """
    order = sorted((i for i in range(len(lengths)) if lengths[i]), key=lengths.__getitem__)
    group: list[int] = []
    for i in order:  # the longest of a group is its last
        full = largest is not None and (len(group) + 1) * lengths[i] > largest
        if group and (len(group) == most or full):
            yield group
            group = []
        group.append(i)
    if group:
        yield group


def answerable(items: Iterable[T], size: int) -> Iterator[list[T]]:
    """Yield inputs in batches; those before one that cannot be used are given out first.

    Args:
        items: inputs, read and checked one by one as they are asked for.
        size: how many are read before they are given out.

    Raises:
        InputError: as `items` did; or the size is not positive.
    """
    check_count("batch_size", size)
    rest = iter(items)
    wrong: InputError | None = None
    while wrong is None:
        batch: list[T] = []
        try:
            for item in islice(rest, size):
                batch.append(item)  # one by one: a list of them all would lose those before
        except InputError as error:
            wrong = error
        if not batch:
            break
        yield batch
    if wrong is not None:
        raise wrong


def pad(sequences: Sequence[Tensor]) -> tuple[Tensor, Tensor]:
    """Stack sequences.

    Args:
        sequences: B tensors, each (T,) or (T, F).

    Returns:
        The sequences, (T, B) or (T, B, F), zero past their ends, and their lengths, (B,).
    """
    return pad_sequence(list(sequences)), torch.tensor([len(s) for s in sequences])
