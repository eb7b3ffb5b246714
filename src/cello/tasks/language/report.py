"""How well a language model predicts a text."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import IO, Any, ClassVar

from rich.console import Console

from cello.inspect.pictures import finish
from cello.tasks.errors import say
from cello.tasks.report import Report

POINTS = 100
"""Into how many pieces the text is cut for the picture, at most."""


@dataclass(kw_only=True)
class LanguageReport(Report):
    """How well a language model predicts a text, each token from all tokens before it.

    Attributes:
        tokens: of the text; the end of a document is one where another follows.
        characters: of the text, the same ends included.
        nats: the loss: minus the natural logarithm of the probability of a token, on average.
        perplexity: e to the power of it.
        bits_per_character: minus the logarithm to base 2 of the probability of the text, divided by its
            characters; so models with different tokens can be compared.
        nats_per_character: the same with the natural logarithm.
        baseline: perplexity and bits per character of a model that knows how often each token is in the
            training part, and nothing more.
        unknown: the share of tokens that the model does not know; what an unknown one stands for is
            not predicted, so figures of texts with many of them are too good.
        course: the bits per character of pieces of the text, from its beginning to its end.
        notes: what else there is to say.
    """

    picture: ClassVar[str] = "language.png"
    measure: ClassVar[str] = "perplexity"

    tokens: int
    characters: int
    nats: float
    perplexity: float
    bits_per_character: float
    nats_per_character: float
    baseline: dict[str, float]
    unknown: float
    course: list[float]
    notes: list[str] = field(default_factory=list)

    @property
    def score(self) -> float:
        """The perplexity."""
        return self.perplexity

    def show(self, console: Console) -> None:
        """Print the figures."""
        say(console, self.data)
        say(
            console,
            f"perplexity {self.perplexity:.3f} of {self.tokens:,} tokens  "
            f"(by the frequency of each token alone: {self.baseline['perplexity']:.3f})",
        )
        say(
            console,
            f"{self.bits_per_character:.4f} bits, {self.nats_per_character:.4f} nats per character of "
            f"{self.characters:,}  (by frequency: {self.baseline['bits_per_character']:.4f} bits)  "
            f"{self.seconds:.1f} s",
        )
        if self.unknown:
            say(
                console,
                f"{self.unknown:.2%} of the tokens are unknown; what they stand for is not predicted, "
                "so models with other tokens cannot be compared exactly",
            )
        if self.perplexity >= self.baseline["perplexity"]:
            say(console, "no better than the frequency of each token alone")
        for note in dict.fromkeys([*self.training.get("notes", ()), *self.notes]):
            say(console, note)

    def draw(self, stream: IO[bytes]) -> None:
        """Draw the loss of each epoch, if there was training, and the course along the text."""
        from matplotlib.backends.backend_agg import FigureCanvasAgg
        from matplotlib.figure import Figure

        epochs: Sequence[dict[str, Any]] = self.training.get("epochs", ())
        figure = Figure(figsize=(9.0 if epochs else 5.0, 3.4), layout="constrained")
        FigureCanvasAgg(figure)
        panels = figure.subplots(1, 2 if epochs else 1, squeeze=False)[0]
        if epochs:
            axes, numbers = panels[0], [one["epoch"] for one in epochs]
            for name, label in (
                ("train_loss", "training, with dropout"),
                ("valid_loss", "validation"),
            ):
                axes.plot(numbers, [one[name] for one in epochs], marker="o", ms=3, label=label)
            axes.axvline(self.training["kept_epoch"], color="#777777", lw=0.8, ls=":", label="kept")
            axes.xaxis.get_major_locator().set_params(integer=True)
            axes.set(xlabel="epoch", ylabel="nats per token")
            axes.legend(fontsize=8)
        axes = panels[-1]
        places = [100.0 * (i + 0.5) / len(self.course) for i in range(len(self.course))]
        axes.plot(places, self.course, lw=1.0, marker="o" if len(places) < 2 else "")
        axes.axhline(self.bits_per_character, color="#777777", lw=0.8, ls="--", label="mean")
        axes.set(xlabel="% of the text", ylabel="bits per character")
        axes.legend(fontsize=8)
        finish(figure, stream, format="png", dpi=120)


def perplexity(nats: float) -> float:
    """Return e to the power of it; the largest number there is instead of a larger one."""
    return math.exp(min(nats, 700.0))
