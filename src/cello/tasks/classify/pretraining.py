"""Learning the language of the training texts before their labels: the neighbours of each token.

A recurrent network that has first learnt to predict the next token of its texts starts from what it
knows of words and their order, and needs fewer labels (Dai and Le, "Semi-supervised Sequence Learning",
2015, https://arxiv.org/abs/1511.01432). Where it reads in both directions, the backward one predicts the
token before (Peters et al., "Deep contextualized word representations", 2018).
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from cello.tasks.cells import output_size
from cello.tasks.classify.network import SequenceClassifier
from cello.tasks.errors import InputError
from cello.tasks.members import each

SAMPLES = 512
"""Wrong tokens that the right one is told from, at a time."""
FLATTENED = 0.75
"""Wrong tokens are drawn by their frequency to this power (Mikolov et al. 2013)."""
POSITIONS = 2048
"""Predictions that share their wrong tokens."""
DROPOUT = 0.1
"""Of the numbers in tokens' vectors, and of the layers' outputs."""


class SampledSoftmax(nn.Module):
    """The cross entropy of a linear layer that scores all tokens, estimated from some of them.

    The cross entropy is ``log(sum_v exp s_v) - s_t``, with the scores s and the right token t. In the
    sum, a sample of wrong tokens stands for all of them, each divided by how often it is expected in
    the sample: importance sampling (Bengio and Senécal, "Quick Training of Probabilistic Neural Nets by
    Importance Sampling", 2003).

    Args:
        features: H, size of what predicts.
        counts: how often each token is in the training set, (V,); those with none are no samples.
        samples: wrong tokens for all predictions of a call; all tokens, exactly, where there are no more.
    """

    expected: Tensor

    def __init__(self, features: int, counts: Tensor, samples: int = SAMPLES) -> None:
        super().__init__()
        self.features, self.samples = features, samples
        self.weight = nn.Embedding(len(counts), features)
        self.bias = nn.Embedding(len(counts), 1)
        with torch.no_grad():
            self.weight.weight.mul_(features**-0.5)
            self.bias.weight.zero_()
        often = counts.double() ** FLATTENED * (counts > 0)
        expected = (samples * often / often.sum()).float()
        self.has_all = len(counts) <= samples
        if self.has_all:
            expected = torch.ones(len(counts))
        self.register_buffer("expected", expected, persistent=False)

    def forward(self, x: Tensor, targets: Tensor) -> Tensor:
        """Return the cross entropy, summed, of predictions (N, H) of the tokens `targets`, (N,)."""
        blocks = max(-(-len(x) // POSITIONS), 1)
        if self.has_all:
            wrong = torch.arange(len(self.expected), device=x.device).expand(blocks, -1)
        else:
            drawn = torch.multinomial(self.expected, blocks * self.samples, replacement=True)
            wrong = drawn.view(blocks, -1)
        # Rows of the weights are looked up once: the gradient of each look-up has all rows.
        right = (x * self.weight(targets)).sum(1, dtype=torch.float32) + self.bias(targets)[:, 0]
        weights = self.weight(wrong)
        biases = self.bias(wrong)[..., 0] - self.expected[wrong].log()
        losses = [
            # The scores are computed again in the backward pass: kept, they would not fit into caches.
            checkpoint(_cross_entropy, *block, use_reentrant=False)
            for block in zip(
                x.split(POSITIONS), right.split(POSITIONS), targets.split(POSITIONS),
                weights, biases, wrong, strict=True,
            )
        ]  # fmt: skip
        return torch.stack([right.new_zeros(()), *losses]).sum()


def _cross_entropy(
    x: Tensor, right: Tensor, targets: Tensor, weights: Tensor, biases: Tensor, wrong: Tensor
) -> Tensor:
    others = torch.addmm(biases, x, weights.T).float()
    others = others.masked_fill(wrong == targets[:, None], float("-inf"))
    total: Tensor = (torch.logaddexp(right, others.logsumexp(1)) - right).sum()
    return total


class Neighbours(nn.Module):
    """Predicts the next token of each step, or with the backward direction the one before it, or both.

    Args:
        network: the classifier of texts; its embedding and recurrent layers learn.
        counts: how often each token is in the training set, (V,).

    Raises:
        InputError: the outputs of the two directions cannot be told apart.
    """

    def __init__(self, network: SequenceClassifier, counts: Tensor) -> None:
        super().__init__()
        layer, size = network.recurrent, output_size(network.recurrent)
        self.forwards = layer.bidirectional or not getattr(layer, "reverse", False)
        self.backwards = layer.bidirectional or not self.forwards
        if layer.bidirectional:
            size, rest = divmod(size, 2)
            if rest or getattr(layer, "merge", "concat") != "concat":
                raise InputError(
                    "pretrain: the outputs of the cell's two directions are not side by side"
                )
        self.network = network
        self.softmax = SampledSoftmax(size, counts)
        self.dropout = nn.Dropout(DROPOUT)

    def loss(self, x: Tensor, lengths: Tensor) -> tuple[Tensor, int]:
        """Return the cross entropy of texts (T, B), summed, and how many tokens were predicted."""
        vectors = self.dropout(self.network.embed(x))
        output, _ = self.network.recurrent(vectors, lengths=lengths)
        output = self.dropout(output)
        steps = torch.arange(1, len(x), device=x.device)[:, None]
        follows = steps < lengths  # (T - 1, B): whether a text has a next token
        known, targets = [], []
        if self.forwards:
            known.append(output[:-1, :, : self.softmax.features][follows])
            targets.append(x[1:][follows])
        if self.backwards:
            known.append(output[1:, :, -self.softmax.features :][follows])
            targets.append(x[:-1][follows])
        total = self.softmax(torch.cat(known), torch.cat(targets).long())
        return total, max(sum(map(len, targets)), 1)  # texts of one token have nothing to predict


def job_of_neighbours(network: nn.Module, job: Any, vocabulary: int, epochs: int) -> Any:
    """Return what a network learns before its own job, a :class:`cello.tasks.trainer.Job`.

    Args:
        network: the classifier of texts, or several.
        job: its own, whose texts are used.
        vocabulary: V, the number of tokens.
        epochs: how long.

    Raises:
        InputError: there is nothing to predict, or the network's directions cannot be told apart.
    """
    from torchmetrics import MeanMetric

    if max(job.train.lengths) < 2:
        raise InputError(
            "pretrain: no text of the training set has two tokens, so none has a next one"
        )
    counts = torch.bincount(torch.cat([ids for ids, _ in job.train.items]), minlength=vocabulary)
    models = [Neighbours(one, counts) for one in each(network)]

    def loss_of(batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, int]:
        losses, counts = zip(*(one.loss(*batch[:2]) for one in models), strict=True)
        return torch.stack(losses).mean(), counts[0]

    def judge(metric: Any, batch: tuple[Tensor, Tensor, Tensor]) -> tuple[Tensor, int]:
        loss, count = loss_of(batch)
        metric.update(loss / count, weight=count)
        return loss, count

    return replace(
        job,
        model=nn.ModuleList(models),
        loss=loss_of,
        judge=judge,
        metric=MeanMetric(),
        metric_name="loss",
        higher_is_better=False,
        notes=[],
        name="pretraining",
        epochs=epochs,
        is_partial=True,  # the layer that scores labels has nothing to learn yet
    )
