"""Splitting data into a training, a validation and a held-out part."""

from __future__ import annotations

import math
from collections import Counter
from fractions import Fraction
from itertools import chain, islice
from typing import NamedTuple

from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from cello.tasks.classify.data import Source
from cello.tasks.classify.options import SourceOptions
from cello.tasks.classify.rows import Part
from cello.tasks.errors import InputError


class Splits(NamedTuple):
    """The three parts: to learn from, to choose the best epoch on, to report on."""

    train: Part
    valid: Part
    test: Part


def split(source: Source, options: SourceOptions, seed: int) -> Splits:
    """Complete the parts of a source; the same source and seed give the same parts.

    Parts that the source came in are kept. A missing one is split off the training rows: each class
    in its share, or by whole groups where there is a group column.

    Args:
        source: what was read.
        options: fractions and group column.
        seed: of the choice.

    Returns:
        The three parts.

    Raises:
        InputError: there are too few rows to split, or fewer than two classes.
    """
    parts = dict(source.parts)
    if len(set(parts["train"].labels)) < 2:
        only = parts["train"].labels[0]
        raise InputError(f"{source.name}: every label is {only!r}; two classes are needed at least")
    for number, (name, fraction) in enumerate(
        [("test", options.test_fraction), ("valid", options.valid_fraction)],
        start=2 * seed,
    ):
        if name not in parts:
            whole = parts["train"]
            grouped = options.group_column is not None
            missing = _missing(whole, fraction, grouped)
            if missing:
                raise InputError(
                    f"{source.name}: too few rows to split off a {name} part"
                    f" ({len(whole)} rows; {missing})"
                )
            off = (_some_groups if grouped else _some_rows)(whole, fraction, number)
            parts["train"] = whole.take(i for i in range(len(whole)) if i not in off)
            parts[name] = whole.take(sorted(off))
    splits = Splits(parts["train"], parts["valid"], parts["test"])
    known = set(splits.train.labels)
    for row in chain(splits.valid, splits.test):
        if row.label not in known:
            raise InputError(f"{row.place}: label {row.label!r} is not in the training part")
    return splits


def _missing(part: Part, fraction: float, grouped: bool) -> str:
    """Return what is missing for a split, or nothing."""
    classes = Counter(part.labels)
    label, rarest = min(classes.items(), key=lambda item: item[1])
    least = 2
    if grouped:
        least, groups = round(1 / fraction), len(set(part.groups))
        if groups < least:
            return f"{groups} groups, where {least} are needed"
    if rarest < least:
        return f"{rarest} with the label {label!r}, where {least} are needed"
    off = math.ceil(fraction * len(part))
    if not grouped and min(off, len(part) - off) < len(classes):
        return f"a row of each of {len(classes)} classes is needed in each part"
    return ""


def _some_rows(part: Part, fraction: float, seed: int) -> set[int]:
    rows = range(len(part))
    _, off = train_test_split(rows, test_size=fraction, random_state=seed, stratify=part.labels)
    return set(off)


def _some_groups(part: Part, fraction: float, seed: int) -> set[int]:
    groups, labels = part.groups, part.labels
    # As many folds of equal size as it takes to put the fraction together, and as there can be.
    most = min(len(set(groups)), *Counter(labels).values(), max(20, round(1 / fraction)))
    share = Fraction(fraction).limit_denominator(most)
    folds = StratifiedGroupKFold(share.denominator, shuffle=True, random_state=seed)
    chosen = islice(folds.split(groups, labels, groups), share.numerator)
    return {int(i) for _, off in chosen for i in off}
