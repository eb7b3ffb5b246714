"""How good a tagger is, on words that it knows and on others."""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

from cello.tasks.confusion import ClassReport

if TYPE_CHECKING:
    from rich.console import Console


@dataclass(kw_only=True)
class TagReport(ClassReport):
    """What a tagger got right on some data; `rows` are words, `classes` are tags.

    `known` and `unknown` are words that the training set has and has not, each with the accuracy (0
    of no words) and how many they are. `baseline` is the accuracy of the most frequent tag that each
    word has in the training set; for unknown words, of the most frequent one of all.
    """

    unit: ClassVar[str] = "words"

    sentences: int
    known: dict[str, float]
    unknown: dict[str, float]
    baseline: float

    @property
    def rivals(self) -> dict[str, float]:
        found = super().rivals
        return found and {**found, "the most frequent tag of each word": self.baseline}

    def show(self, console: Console) -> None:
        """Print the figures of each tag and of all words."""
        super().show(console)
        shares = [
            f"{name} words {share['accuracy']:.4f} of {share['words']:,}"
            for name, share in (("known", self.known), ("unknown", self.unknown))
            if share["words"]
        ]
        console.print(
            "  ".join([*shares, f"(the most frequent tag of each word: {self.baseline:.4f})"]),
            highlight=False,
            soft_wrap=True,
        )
