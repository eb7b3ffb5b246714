"""Several networks of one kind that learn side by side, and answer together.

Networks that differ in their first weights and in what dropout leaves out make different mistakes; the mean
of their answers is right more often than each of them. Lakshminarayanan, Pritzel and Blundell (2017),
"Simple and Scalable Predictive Uncertainty Estimation using Deep Ensembles", arXiv:1612.01474.
"""

from __future__ import annotations

import math
import re
from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn


class Members(nn.Module):
    """Networks of one kind that answer together; each has a loss of its own.

    The optimizer takes them for one: the norm at which gradients are clipped is that of all.

    Args:
        make: makes one of them, with weights of its own.
        count: how many.
    """

    def __init__(self, make: Callable[[], nn.Module], count: int) -> None:
        super().__init__()
        self.members = nn.ModuleList(make() for _ in range(count))

    @classmethod
    def of(cls, make: Callable[[], nn.Module], count: int) -> nn.Module:
        """Return the network that `make` makes, or several where `count` says so."""
        return make() if count == 1 else cls(make, count)

    def forward(self, *inputs: Any) -> Tensor:
        """Return what each network returns, one on top of the other, (N, ...)."""
        return torch.stack([member(*inputs) for member in self.members])


def each(model: nn.Module) -> list[Any]:
    """Return the networks of a model: its members, or the model if it has none."""
    return list(model.members) if isinstance(model, Members) else [model]


def first_of(model: nn.Module) -> Any:
    """Return the first network of a model: the one that stands for all, as in pictures of its states."""
    return each(model)[0]


def plain(name: str) -> str:
    """Return the name of a weight within the network that it is of.

    Example:
        >>> plain("members.1.linear.weight"), plain("linear.weight")
        ('linear.weight', 'linear.weight')
    """
    return re.sub(r"^members\.\d+\.", "", name)


def mean_of_probabilities(logits: Sequence[Tensor], dim: int) -> Tensor:
    """Return the logarithms of the mean of the probabilities that some logits say.

    Args:
        logits: of each network.
        dim: of the classes.

    Example:
        >>> logits = [torch.tensor([0.9, 0.1]).log(), torch.tensor([0.3, 0.7]).log()]
        >>> mean_of_probabilities(logits, 0).exp()
        tensor([0.6000, 0.4000])
    """
    stacked = torch.stack([one.float().log_softmax(dim) for one in logits])
    return stacked.logsumexp(0) - math.log(len(stacked))
