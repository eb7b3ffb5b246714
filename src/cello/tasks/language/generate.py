"""The choice of the next token."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from cello.tasks.errors import InputError, check_count, check_real


@dataclass(frozen=True)
class Choice:
    """How the next token is chosen from the scores.

    Attributes:
        temperature: the scores are divided by it; 0 for the most probable token.
        top_k: only that many of the most probable tokens.
        top_p: only the most probable tokens whose probabilities together reach it (Holtzman et al., "The
            curious case of neural text degeneration", 2020).

    Raises:
        InputError: a value is out of range.
    """

    temperature: float = 1.0
    top_k: int | None = None
    top_p: float | None = None

    def __post_init__(self) -> None:
        check_real("temperature", self.temperature)
        if self.top_k is not None:
            check_count("top-k", self.top_k)
        if self.top_p is not None:
            check_real("top-p", self.top_p)
        if not 0.0 <= self.temperature < math.inf:
            raise InputError(f"temperature: {self.temperature} is not a number from 0")
        if self.top_p is not None and not 0.0 < self.top_p <= 1.0:
            raise InputError(f"top-p: {self.top_p} is not a number above 0, up to 1")

    def probabilities(self, scores: Tensor) -> Tensor:
        """Return the probability of each token.

        Args:
            scores: logits, (V,); minus infinity for a token that is never chosen.
        """
        scores = scores.double()
        best = scores.argmax()
        if self.temperature == 0.0:
            return torch.zeros_like(scores).index_fill(0, best, 1.0)
        scores = (scores - scores[best]) / self.temperature
        order = scores.argsort(descending=True, stable=True)
        if self.top_k is not None:
            scores[order[self.top_k :]] = -math.inf
        probabilities = scores.softmax(0)
        if self.top_p is not None:
            ranked = probabilities[order]
            probabilities[order[ranked.cumsum(0) - ranked >= self.top_p]] = 0.0
        return probabilities / probabilities.sum()

    def draw(self, scores: Tensor, generator: torch.Generator) -> int:
        """Return the number of a token, drawn by :meth:`probabilities`."""
        return int(torch.multinomial(self.probabilities(scores), 1, generator=generator))
