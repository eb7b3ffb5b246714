"""Splitting data into a training, a validation and a held-out part."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
from sklearn.model_selection import StratifiedGroupKFold, train_test_split

from cello.tasks.errors import InputError
from cello.tasks.options import Options
from cello.tasks.sources import Part, Source


class Splits(NamedTuple):
    """The three parts: to learn from, to choose the best epoch on, to report on."""

    train: Part
    valid: Part
    test: Part


def split(source: Source, options: Options) -> Splits:
    """Complete the parts of a source; the same source and seed give the same parts.

    Parts that the source came in are kept. A missing one is split off the training rows: each class
    in its share, or by whole groups where there is a group column.

    Args:
        source: what was read.
        options: fractions, group column and seed.

    Returns:
        The three parts.

    Raises:
        InputError: there are too few rows to split, or fewer than two classes.
    """
    parts = dict(source.parts)
    if len(set(parts["train"].labels)) < 2:
        only = parts["train"].labels[0]
        raise InputError(f"{source.name}: every label is {only!r}; two classes are needed at least")
    for seed, (name, fraction) in enumerate(
        [("test", options.test_fraction), ("valid", options.valid_fraction)],
        start=2 * options.seed,
    ):
        if name not in parts:
            whole = parts["train"]
            try:
                rest, off = _split_off(whole, fraction, options.group_column is not None, seed)
            except ValueError as error:
                raise InputError(
                    f"{source.name}: too few rows to split off a {name} part"
                    f" ({len(whole)} rows; {error})"
                ) from error
            parts["train"] = Part([whole.rows[i] for i in rest])
            parts[name] = Part([whole.rows[i] for i in off])
    splits = Splits(parts["train"], parts["valid"], parts["test"])
    known = set(splits.train.labels)
    for row in (*splits.valid.rows, *splits.test.rows):
        if row.label not in known:
            raise InputError(f"{row.place}: label {row.label!r} is not in the training part")
    return splits


def _split_off(
    part: Part, fraction: float, grouped: bool, seed: int
) -> tuple[list[int], list[int]]:
    rows, labels = np.arange(len(part)), part.labels
    if not grouped:
        rest, off = train_test_split(rows, test_size=fraction, random_state=seed, stratify=labels)
    else:
        groups = [row.group for row in part.rows]
        folds = round(1 / fraction)
        if len(set(groups)) < folds:
            raise ValueError(f"{len(set(groups))} groups, where {folds} are needed")
        if min(labels.count(label) for label in set(labels)) < folds:
            raise ValueError(f"a class has fewer than {folds} rows")
        chosen = StratifiedGroupKFold(folds, shuffle=True, random_state=seed)
        rest, off = next(chosen.split(rows, labels, groups))
    return sorted(rest.tolist()), sorted(off.tolist())
