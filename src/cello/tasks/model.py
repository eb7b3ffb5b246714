"""The network of sequence classification."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from cello.tasks.options import Options


class SequenceClassifier(nn.Module):
    """Embedding (of tokens) or scaling (of numbers), recurrent layers, pooling, a linear layer.

    Args:
        options: sizes, cell, pooling and dropout.
        classes: number of classes.
        vocabulary: number of tokens, for text.
        features: numbers in one step, for numbers; one of the two is given.
    """

    mean: Tensor
    scale: Tensor

    def __init__(
        self, options: Options, classes: int, *, vocabulary: int | None, features: int | None
    ) -> None:
        super().__init__()
        self.pooling = options.pooling
        self.embedding = None
        if vocabulary is not None:
            self.embedding = nn.Embedding(vocabulary, options.embedding, padding_idx=0)
            with torch.no_grad():  # smaller than PyTorch's start; texts are learnt in fewer epochs
                self.embedding.weight.mul_(0.1)
            width = options.embedding
        else:
            assert features is not None
            width = features
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("scale", torch.ones(width))
        self.dropout = nn.Dropout(options.dropout)
        self.recurrent = options.layer(width)
        self.directions = 2 if options.bidirectional else 1
        width = options.hidden * self.directions
        self.linear = nn.Linear(width * (2 if options.pooling == "mean-max" else 1), classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits, (B, classes), of ``x``: ids (T, B) or numbers (T, B, F)."""
        x = self._scaled(x) if self.embedding is None else self.dropout(self.embedding(x))
        output, hx = self.recurrent(x, lengths=lengths)
        logits: Tensor = self.linear(self.dropout(self._pool(output, hx, lengths)))
        return logits

    def _scaled(self, x: Tensor) -> Tensor:
        return (x - self.mean) / self.scale

    def _pool(self, output: Tensor, hx: Tensor | tuple[Tensor, ...], lengths: Tensor) -> Tensor:
        if self.pooling == "last":
            h = hx if isinstance(hx, Tensor) else hx[0]
            return torch.cat(list(h[-self.directions :]), dim=1)
        pooled = []
        if "mean" in self.pooling:  # past the ends the output is zero
            pooled.append(output.sum(0) / lengths.clamp(min=1)[:, None])
        if "max" in self.pooling:
            steps = torch.arange(len(output), device=output.device)[:, None]
            past = (steps >= lengths)[..., None]
            pooled.append(output.masked_fill(past, float("-inf")).amax(0))
        return torch.cat(pooled, dim=1)
