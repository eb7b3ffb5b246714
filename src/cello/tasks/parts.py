"""The parts of data: what messages call them, and a training set with a limit."""

from __future__ import annotations

import random
from collections.abc import Sequence
from typing import Any, TypeVar

from cello.tasks.errors import InputError
from cello.tasks.stored import Chosen

AnyPart = TypeVar("AnyPart", bound=Chosen[Any])

SETS = {"train": "training set", "valid": "validation set", "test": "test set"}


def part_of(name: object, part: str) -> str:
    """Name a part of the data for the eye; ``all`` is the data itself.

    Example:
        >>> part_of("films.csv", "test"), part_of("films.csv", "all")
        ('films.csv, test set', 'films.csv')
    """
    return f"{name}, {SETS[part]}" if part in SETS else str(name)


def limited(
    part: AnyPart, limit: int | None, seed: int, labels: Sequence[str] = (), unit: str = "rows"
) -> tuple[AnyPart, list[str]]:
    """Return the first rows of a training set in a random order, and what there is to say about it.

    Args:
        part: the training set.
        limit: how many rows; all if ``None``, or if there are no more.
        seed: of the order; a larger limit adds rows to those of a smaller one.
        labels: the label of each row; the first rows hold one of each.
        unit: what a row is, for the message.

    Raises:
        InputError: there are more labels than rows.
    """
    if limit is None or limit >= len(part):
        return part, []
    classes = len(set(labels))
    if classes > limit:
        raise InputError(f"limit: {limit} {unit} cannot hold each of {classes} labels")
    order = list(range(len(part)))
    random.Random(seed).shuffle(order)
    if labels:
        firsts = {labels[i]: i for i in reversed(order)}.values()
        order = list(dict.fromkeys([*firsts, *order]))
    said = f"limit: the first {limit:,} of {len(part):,} {unit} for training, in a random order"
    return part.take(sorted(order[:limit])), [said]
