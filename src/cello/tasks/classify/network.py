"""The network of classification: tokens or numbers, recurrent layers, pooling, classes."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from cello.tasks.cells import last_step, output_size
from cello.tasks.classify.options import Options
from cello.tasks.members import Members, each, first_of, mean_of_probabilities

SIZE = 0.5
"""Deviation of the numbers in tokens' vectors, where `adversarial` is measured against them."""


class SequenceClassifier(nn.Module):
    """Embedding (of tokens) or scaling (of numbers), recurrent layers, pooling, a linear layer.

    Args:
        options: sizes, cell, pooling and dropout.
        classes: number of classes.
        vocabulary: number of tokens, for text.
        features: numbers in one step, for numbers; one of the two is given.
    """

    mean: Tensor
    mean_rest: Tensor
    """What the mean, in double precision, is more than `mean`."""
    scale: Tensor

    def __init__(
        self, options: Options, classes: int, *, vocabulary: int | None, features: int | None
    ) -> None:
        super().__init__()
        self.pooling, self.pool_input = options.pooling, options.pool_input
        self.word_dropout, self.adversarial = options.word_dropout, options.adversarial
        self.embedding = None
        share = options.dropout
        if options.embedding_dropout is not None:
            share = options.embedding_dropout
        self.embedding_dropout = nn.Dropout(share)
        if vocabulary is not None:
            self.embedding = nn.Embedding(vocabulary, options.embedding, padding_idx=0)
            with torch.no_grad():  # smaller than PyTorch's start; texts are learnt in fewer epochs
                self.embedding.weight.mul_(SIZE if self.adversarial > 0.0 else 0.1)
            width = options.embedding
        else:
            assert features is not None
            width = features
            self.register_buffer("mean", torch.zeros(width))
            self.register_buffer("mean_rest", torch.zeros(width))
            self.register_buffer("scale", torch.ones(width))
        self.dropout = nn.Dropout(options.dropout)
        self.recurrent = options.layer(width)
        pooled = output_size(self.recurrent) * (2 if options.pooling == "mean-max" else 1)
        self.linear = nn.Linear(pooled + (width if options.pool_input else 0), classes)

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits, (B, classes), of ``x``: ids (T, B), or numbers less their mean (T, B, F)."""
        return self.in_use(self.read(self.embed(x), lengths), x, lengths)

    def in_use(self, logits: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits that :meth:`forward` gives, of those that :meth:`read` returned."""
        return logits

    def embed(self, x: Tensor) -> Tensor:
        """Return the vector of each step, (T, B, F), of ids (T, B) or numbers less their mean."""
        if self.embedding is None:
            return x / self.scale
        vectors: Tensor = self.embedding(x)
        if self.adversarial > 0.0:  # of one size, or the network would outgrow what moves them
            vectors = nn.functional.layer_norm(vectors, vectors.shape[-1:]) * SIZE
        return vectors

    def read(self, vectors: Tensor, lengths: Tensor) -> Tensor:
        """Return the logits, (B, classes), of what :meth:`embed` returned."""
        if self.embedding is not None:
            if self.training and self.word_dropout > 0.0:
                seen = torch.rand(vectors.shape[:2], device=vectors.device) >= self.word_dropout
                vectors = vectors * seen[..., None]
            vectors = self.embedding_dropout(vectors)
        output, _ = self.recurrent(vectors, lengths=lengths)
        pooled = self._pool(output, lengths)
        if self.pool_input:
            inside = torch.arange(len(vectors), device=vectors.device)[:, None] < lengths
            total = (vectors * inside[..., None]).sum(0)
            pooled = torch.cat([pooled, total / lengths.clamp(min=1)[:, None].sqrt()], dim=1)
        logits: Tensor = self.linear(self.dropout(pooled))
        return logits

    def loss(self, x: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        """Return the cross entropy, summed over the batch; with an adversary, if there is one."""
        vectors = self.embed(x)
        if self.adversarial == 0.0 or not self.training:
            return self._cross_entropy(vectors, lengths, targets)
        vectors.requires_grad_()  # where they are numbers, with nothing to learn before them
        loss = self._cross_entropy(vectors, lengths, targets)
        return self._with_adversary(loss, vectors, lengths, targets)

    def judged(self, x: Tensor, lengths: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return the logits as in use, and the loss without an adversary, of one pass."""
        logits = self.read(self.embed(x), lengths)
        return self.in_use(logits, x, lengths), _summed(logits, targets)

    def _cross_entropy(self, vectors: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        return _summed(self.read(vectors, lengths), targets)

    def _with_adversary(
        self, loss: Tensor, vectors: Tensor, lengths: Tensor, targets: Tensor
    ) -> Tensor:
        """Add the loss on texts that are moved where it grows fastest.

        Adversarial training of Miyato, Dai and Goodfellow (2017, https://arxiv.org/abs/1605.07725):
        each text's vectors together move by `adversarial` along the gradient of its loss.
        """
        weights = [p for p in self.parameters() if p.requires_grad]
        gradient, *of_weights = torch.autograd.grad(loss, [vectors, *weights], retain_graph=True)
        size = gradient.pow(2).sum((0, 2), keepdim=True).sqrt()
        moved = vectors + self.adversarial * gradient / (size + 1e-12)
        # The first loss has been differentiated; what it found is attached to the weights as it is.
        found = [((p - p.detach()) * g).sum() for p, g in zip(weights, of_weights, strict=True)]
        return self._cross_entropy(moved, lengths, targets) + loss.detach() + sum(found)

    def scale_by(self, mean: NDArray[np.float64], deviation: NDArray[np.float64]) -> None:
        """Set what is subtracted from numbers, and what they are divided by, (F,) each."""
        exact = torch.from_numpy(mean)
        self.mean.copy_(exact)
        self.mean_rest.copy_(exact - self.mean.cpu().double())
        self.scale.copy_(torch.from_numpy(deviation))

    def less_mean(self, sequences: list[NDArray[Any]]) -> list[Tensor]:
        """Subtract the mean from numbers, (T, F) each, before single precision rounds them."""
        mean = (self.mean.cpu().double() + self.mean_rest.cpu().double()).numpy()
        return [
            torch.from_numpy((np.asarray(steps, np.float64) - mean).astype(np.float32))
            for steps in sequences
        ]

    def _load_from_state_dict(self, weights: dict[str, Any], prefix: str, *others: Any) -> None:
        if self.embedding is None:  # earlier versions had the mean in single precision alone
            weights.setdefault(f"{prefix}mean_rest", torch.zeros_like(self.mean))
        super()._load_from_state_dict(weights, prefix, *others)

    def _pool(self, output: Tensor, lengths: Tensor) -> Tensor:
        if self.pooling == "last":
            return last_step(self.recurrent, output, lengths)
        pooled = []
        if "mean" in self.pooling:  # past the ends the output is zero
            pooled.append(output.sum(0) / lengths.clamp(min=1)[:, None])
        if "max" in self.pooling:
            steps = torch.arange(len(output), device=output.device)[:, None]
            past = (steps >= lengths)[..., None]
            pooled.append(output.masked_fill(past, float("-inf")).amax(0))
        return torch.cat(pooled, dim=1)


class Classifiers(Members):
    """Classifiers that learn side by side; the answer is the mean of their probabilities."""

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the logarithms of the probabilities, (B, classes); see :class:`SequenceClassifier`."""
        return self._in_use(self._read(x, lengths), x, lengths)

    def loss(self, x: Tensor, lengths: Tensor, targets: Tensor) -> Tensor:
        """Return the mean of the classifiers' losses, summed over the batch."""
        return torch.stack([one.loss(x, lengths, targets) for one in each(self)]).mean()

    def judged(self, x: Tensor, lengths: Tensor, targets: Tensor) -> tuple[Tensor, Tensor]:
        """Return what :meth:`forward` gives, and its loss without an adversary, of one pass."""
        logits = self._read(x, lengths)
        return self._in_use(logits, x, lengths), _summed(logits, targets)

    def _read(self, x: Tensor, lengths: Tensor) -> Tensor:
        return mean_of_probabilities([one.read(one.embed(x), lengths) for one in each(self)], 1)

    def _in_use(self, logits: Tensor, x: Tensor, lengths: Tensor) -> Tensor:
        in_use: Tensor = first_of(self).in_use(logits, x, lengths)
        return in_use


class ExportedClassifier(nn.Module):
    """A classifier as other programs use it: the batch first, numbers as they are, probabilities.

    Args:
        model: the network.
    """

    def __init__(self, model: SequenceClassifier | Classifiers) -> None:
        super().__init__()
        self.model = model

    def forward(self, x: Tensor, lengths: Tensor) -> Tensor:
        """Return the probability of each class, (B, classes).

        Args:
            x: ids (B, T), or numbers (B, T, F) in double precision.
            lengths: (B,).
        """
        first: SequenceClassifier = first_of(self.model)
        if first.embedding is None:  # before single precision rounds them, as less_mean does
            x = (x - (first.mean.double() + first.mean_rest.double())).float()
        logits: Tensor = self.model(x.transpose(0, 1), lengths)
        return logits.softmax(1)


def _summed(logits: Tensor, targets: Tensor) -> Tensor:
    return nn.functional.cross_entropy(logits.float(), targets, reduction="sum")
