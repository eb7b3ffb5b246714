"""The network of language modelling: tokens, recurrent layers, the scores of the next token."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn

from cello.foreign.structure import Nested, Structure
from cello.tasks.errors import InputError
from cello.tasks.language.options import Options

INITIAL = 0.5
"""Deviation of the numbers in tokens' vectors at the beginning."""


class LanguageNetwork(nn.Module):
    """Embedding, recurrent layers, and a linear layer or the embedding itself as scores.

    Args:
        options: sizes, cell and dropout.
        vocabulary: V, number of tokens.

    Raises:
        InputError: the layers read backward, or their cell cannot be made.

    Attributes:
        structure: how the state is nested.
    """

    counts: Tensor
    """How often each token is in the training part, (V,); for the baseline."""

    def __init__(self, options: Options, vocabulary: int) -> None:
        super().__init__()
        width = options.embedding
        self.embedding = nn.Embedding(vocabulary, width)
        self.embedding_dropout = nn.Dropout(options.embedding_dropout)
        self.recurrent = options.layer(width)
        if getattr(self.recurrent, "reverse", False):
            raise InputError(
                "cell-arg: reverse: a language model reads forward only; backward it would read what is "
                "to be predicted"
            )
        self.dropout = nn.Dropout(options.dropout)
        self.projection: nn.Linear | None = None
        self.linear: nn.Linear | None = None
        with torch.no_grad():  # whatever the cell is, its layers tell what they return
            output, state = self.recurrent(self.embedding.weight[None, :1])
        size, self.structure = output.shape[-1], Structure.of(state)
        if not options.tied:
            self.linear = nn.Linear(size, vocabulary)
        elif size != width:
            self.projection = nn.Linear(size, width)
        self.bias = nn.Parameter(torch.zeros(vocabulary)) if options.tied else None
        with torch.no_grad():  # tied, they are the weights of a layer, and begin as small
            self.embedding.weight.mul_(width**-0.5 if options.tied else INITIAL)
        self.register_buffer("counts", torch.zeros(vocabulary, dtype=torch.int64))

    def forward(self, ids: Tensor, state: Nested | None = None) -> tuple[Tensor, Nested]:
        """Score the token that follows each step.

        Args:
            ids: (T, B).
            state: what the call before returned; ``None`` at the beginning of a text.

        Returns:
            The logits (T, B, V), and the state for the next call.
        """
        output, state = self.recurrent(self.embedding_dropout(self.embedding(ids)), state)
        return self._scores(output), state

    def step(self, ids: Tensor, state: Nested | None = None) -> tuple[Tensor, Nested]:
        """Do as :meth:`forward` for one step: ids (B,), logits (B, V)."""
        output, state = self.recurrent.step(self.embedding(ids), state)
        return self._scores(output), state

    def _scores(self, output: Tensor) -> Tensor:
        output = self.dropout(output)
        if self.linear is not None:
            scores: Tensor = self.linear(output)
            return scores
        if self.projection is not None:
            output = self.projection(output)
        return nn.functional.linear(output, self.embedding.weight, self.bias)


class ExportedLanguageModel(nn.Module):
    """A language model as other programs use it: the batch first, the state as separate tensors.

    Args:
        model: the network.
    """

    def __init__(self, model: LanguageNetwork) -> None:
        super().__init__()
        self.model = model

    def forward(self, ids: Tensor, *state: Tensor) -> tuple[Tensor, ...]:
        """Return the logits (B, T, V) of ids (B, T), and the parts of the state for the next call."""
        structure = self.model.structure
        logits, after = self.model(ids.transpose(0, 1), structure.unflatten(state))
        return logits.transpose(0, 1), *structure.flatten(after)


def nats(logits: Tensor, targets: Tensor, **keywords: Any) -> Tensor:
    """Return minus the logarithm of the probability of each target, or their sum.

    Args:
        logits: (T, B, V).
        targets: (T, B); those of :data:`NONE` count nothing.
        **keywords: of torch's ``cross_entropy``.
    """
    flat = logits.flatten(0, 1).float()
    return nn.functional.cross_entropy(
        flat, targets.flatten().long(), ignore_index=NONE, **keywords
    )


NONE = -1
"""In the place of a target: there is none."""
