"""Prediction intervals that hold their level: split conformal prediction.

The bounds that a network learnt are moved by what it takes to hold their share of the validation
part. Romano, Patterson and Candès, "Conformalized Quantile Regression", 2019, arXiv:1905.03222; for
each step of a forecast by itself: Stankevičiūtė, Alaa and van der Schaar, "Conformal Time-Series
Forecasting", 2021. What is promised is promised as far as later rows are like those of the validation
part.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

Array = NDArray[np.float64]

UNKNOWN = -1
"""The number of validation forecasts of a model that was written before there were margins."""


def needed(level: float) -> int:
    """Return how many forecasts there must be to tell how far out an interval of a level must reach.

    Example:
        >>> needed(0.8), needed(0.95)
        (4, 19)
    """
    return math.ceil(round(level / (1 - level), 9))


def lack(level: float, forecasts: int) -> str:
    """Say why an interval does not promise its level; nothing where it does.

    Args:
        level: of the interval.
        forecasts: how many there were to calibrate it; :data:`UNKNOWN` where nobody did.

    Example:
        >>> lack(0.95, 3)
        'not calibrated: 3 validation forecasts are too few, 95% needs 19'
        >>> lack(0.8, 50)
        ''
    """
    if forecasts == UNKNOWN:
        return "not calibrated: the model was written before intervals were; train it again"
    if forecasts >= needed(level):
        return ""
    count = f"{forecasts or 'no'} validation forecast{' is' if forecasts == 1 else 's are'}"
    return f"not calibrated: {count} too few, {100 * level:g}% needs {needed(level):,}"


def margins(scores: Array, levels: Sequence[float]) -> Array:
    """Return how far the bounds of each level are to be moved outwards.

    Where there are too few forecasts for a level, those of all steps and columns are taken together:
    better than what the network learnt, but no promise, as they are not independent of each other.

    Args:
        scores: how far the truth lies outside each interval, less than zero inside, (H, n, Y, levels).
        levels: the share of the truth that should be inside.

    Returns:
        (levels, H, Y); zero where even that is too little.

    Example:
        >>> margins(np.arange(1.0, 10.0).reshape(1, 9, 1, 1), [0.8])
        array([[[8.]]])
    """
    H, _, Y, _ = scores.shape
    found = np.zeros((len(levels), H, Y))
    for k, level in enumerate(levels):
        own = scores[..., k]
        for rows in (own, own.reshape(1, -1, 1)):
            n = rows.shape[1]
            if n >= needed(level):
                # A further score is as likely to be at any place among the n: the ceil((n + 1) level)-th
                # smallest is not exceeded with a probability of `level`, at least.
                rank = min(math.ceil(round((n + 1) * level, 9)), n)
                found[k] = np.partition(rows, rank - 1, axis=1)[:, rank - 1]
                break
    return found


def widen(lower: Array, upper: Array, by: Array) -> None:
    """Move bounds outwards, in place; those of rising levels stay around each other.

    Args:
        lower: of the intervals, (..., levels).
        upper: of the same shape.
        by: of the same shape; less than zero: inwards, to the middle at most.
    """
    by = np.maximum(by, (lower - upper) / 2)
    lower -= by
    upper += by
    np.minimum.accumulate(lower, -1, out=lower)
    np.maximum.accumulate(upper, -1, out=upper)


def bounds(outputs: Array) -> tuple[Array, Array]:
    """Part quantiles, which follow the point forecast, into lower and upper bounds, by level."""
    levels = outputs.shape[-1] // 2
    return outputs[..., levels:0:-1], outputs[..., levels + 1 :]
