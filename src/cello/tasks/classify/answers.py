"""Predictions, and the lines that tell them."""

from __future__ import annotations

import json
import re
from dataclasses import asdict, dataclass


@dataclass(frozen=True)
class Prediction:
    """The class of one input: the likeliest label, and the probability of each one.

    `unknown` is the share of the text's tokens that the model does not know; 0 for numbers. Where
    there was nothing to read, as in an empty text, each of them is None.
    """

    label: str | None
    probability: float | None
    probabilities: dict[str, float] | None
    unknown: float | None = 0.0


def told(answer: Prediction, as_json: bool) -> str:
    """Return the line that tells an answer; nothing is in the places of what there is not."""
    if as_json:
        return json.dumps(asdict(answer), ensure_ascii=False)
    if answer.label is None:
        return "\t"
    return f"{one_line(answer.label)}\t{answer.probability:.4f}"


def one_line(label: str) -> str:
    r"""Return a label as it is; in quotes, as JSON, where it would not be one field of one line.

    Example:
        >>> print(one_line("good"), one_line("very\ngood"))
        good "very\ngood"
    """
    return json.dumps(label) if _BREAKS.search(label) or label.startswith('"') else label


_BREAKS = re.compile("[\t\n\v\f\r\x1c-\x1e\x85\u2028\u2029]")
